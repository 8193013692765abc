"The command `oamip` as a user meets it: its help, a small run, bad input, Ctrl-C."
import os, re, signal, subprocess, sys, time
from pathlib import Path

import pytest

OAMIP = Path(sys.executable).with_name("oamip")
SMALL = ["--model", "fc_baseline", "--epochs", "2", "--n", "10", "--seconds", "5"]


def oamip(*args, cwd, env={}):
    return subprocess.run([OAMIP, *args], cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=300)


def fails(done, message):
    "Exit code 2 and one line of error, nothing else on stderr"
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stdout + done.stderr, done.stderr


def help_of(*name, cwd):
    "The help that a command prints, which must not wait for PyTorch to be loaded"
    done = oamip(*name, "--help", cwd=cwd, env=dict(PYTHONPROFILEIMPORTTIME="1")); loaded = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.M))
    assert done.returncode == 0 and "argparse" in loaded and not loaded & {"torch", "fastai", "cvxpy"}
    return done.stdout


def test_help_is_quick(tmp_path):
    text = help_of(cwd=tmp_path)
    for option in "dataset data size model epochs lr n lam params threshold cost method solver seconds gap seed out debug".split():
        assert f"--{option} " in text
    assert not any("_" in w or w.count("-") > 2 for w in text.split() if w.startswith("--"))  # spelt alike by fastcore 1 and 2


def test_small_run(tmp_path):
    "Visible work, one table, the certificate and four files; an ASCII terminal and no silenced warnings are fine"
    done = oamip(*SMALL, cwd=tmp_path, env={"PYTHONWARNINGS": "", "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for text in ("epoch 2 of 2:", "\ndense ", "\nrandom ", "\ncritical first ", "\nmagnitude ", "\nOAMIP ", "\nOAMIP fine-tuned ", "OAMIP against random:",
                 "HiGHS", "certificate  optimal: objective", "gap", "mean over 3 draws"): assert text in done.stdout, text
    assert {p.name for p in (tmp_path/"oamip_out").iterdir()} == {"accuracy.png", "pruned.safetensors", "report.csv", "scores.png"}


def test_pruned_network_loads(tmp_path, capsys):
    "The printed call loads what was saved, at the fraction that was asked for"
    from oamip_nb.all import fc_baseline, load_pruned
    from oamip_nb.cli import main
    main(["--model", "fc_baseline", "--epochs", 2, "--n", 10, "--params", .3, "--out", tmp_path])
    call = next(l for l in capsys.readouterr().out.splitlines() if l.startswith("load it:")).removeprefix("load it:")
    small, dense = eval(call, dict(load_pruned=load_pruned, fc_baseline=fc_baseline)), fc_baseline((1, 8, 8), classes=10)
    size = lambda m: sum(p.numel() for p in m.parameters())
    assert .3 <= 1 - size(small) / size(dense) < .35


@pytest.mark.parametrize("args, message", [
    (["--params", "1.5"], "--params: expected the fraction of parameters to remove"),
    (["--params", "0"], "--params: expected the fraction of parameters to remove"),
    (["--params", ".5", "--threshold", ".1"], "give one of them"),
    (["--threshold", "low"], "--threshold: expected a score or 'mean', got 'low'"),
    (["--lam", "nan"], "--lam: expected a number > 0"),
    (["--epochs", "0"], "--epochs: expected a whole number >= 1"),
    (["--out", "file/folder"], "file"),
], ids=lambda a: " ".join(a) if isinstance(a, list) else "")
def test_bad_numbers(tmp_path, args, message):
    (tmp_path/"file").touch()
    fails(oamip(*args, cwd=tmp_path), message)


def test_not_a_number(tmp_path):
    done = oamip("--n", "ten", cwd=tmp_path)
    assert done.returncode == 2 and "invalid int value: 'ten'" in done.stderr and "Traceback" not in done.stderr


def test_unknown_data_set(tmp_path):
    fails(oamip("--dataset", "digit", cwd=tmp_path), "'digit' is neither a folder nor one of digits, MNIST")


@pytest.mark.parametrize("options, message", [
    (dict(model="lenet5"), "images of 8×8 are too small"),
    (dict(model="fc9"), "no model 'fc9'; there are fc_baseline"),
    (dict(dataset="TinyImageNet"), "TinyImageNet is not here"),
    (dict(n=1000), "--n: expected at most 287"),
    (dict(solver="none"), "--solver: expected one of HIGHS"),
    (dict(model="fc_baseline", epochs=1, n=10, threshold="-1"), "nothing to remove"),
], ids=lambda o: " ".join(o) if isinstance(o, dict) else "")
def test_bad_input(tmp_path, monkeypatch, capsys, options, message):
    "The same, without a process for each"
    from oamip_nb.cli import main
    for name in ("HOME", "FASTAI_HOME", "OAMIP_DATA"): monkeypatch.setenv(name, str(tmp_path/"empty"))
    with pytest.raises(SystemExit) as stop: main([*(w for k, v in options.items() for w in (f"--{k}", v)), "--out", tmp_path])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and len(error.splitlines()) == 1


def test_steps_from_a_shell(tmp_path):
    "train, score, prune, fine-tune: each from the file of the one before; nothing is pickled"
    train = ["--model", "fc_baseline", "--epochs", "3", "--lr", ".005"]
    done = oamip("train", *train, "--out", "nets", cwd=tmp_path)
    assert done.returncode == 0 and "epoch 3 of 3" in done.stdout, done.stderr
    net, = (tmp_path/"nets").glob("*.safetensors")
    for args, text in ((["score", net], "Importance by relaxed"), (["prune", net, "scores.safetensors", "--threshold", "mean"], "OAMIP against random"),
                       (["fine-tune", "oamip_pruned/pruned.safetensors"], "fine-tuned")):
        done = oamip(*map(str, args), cwd=tmp_path)
        assert done.returncode == 0 and text in done.stdout and done.stderr == "", done.stdout + done.stderr
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} == {".safetensors", ".csv", ".png"}


@pytest.mark.parametrize("name", "train score prune fine-tune sweep compare".split())
def test_help_of_each_command_is_quick(name, tmp_path):
    assert f"usage: oamip {name}" in help_of(name, cwd=tmp_path)


def test_unknown_command(tmp_path):
    fails(oamip("pruen", cwd=tmp_path), "no command 'pruen'; there are train, score, prune, fine-tune, sweep, compare")


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_killed_sweep_goes_on(tmp_path):
    "Rows that were there when the process was killed are kept, the same command makes the others"
    args = ["sweep", "threshold", "--model", "fc_baseline", "--epochs", "1", "--values", ".1,.2,mean", "--repeats", "3", "--out", "t.csv"]
    run = subprocess.Popen([OAMIP, *args], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); table = tmp_path/"t.csv"
    while not table.exists(): assert run.poll() is None; time.sleep(.02)
    run.kill(); run.wait(); before = table.read_text().splitlines()
    done = oamip(*args, cwd=tmp_path)
    after = table.read_text().splitlines()
    assert done.returncode == 0 and after[:len(before)] == before and len(after) == 1 + 3*3*6, done.stderr  # dense, OAMIP, critical, 3 random draws
    assert list(tmp_path.glob("*.part*")) == []


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to send")
def test_interrupt(tmp_path):
    run = subprocess.Popen([OAMIP, *SMALL, "--epochs", "1000"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) # a job in the background of a shell starts with Ctrl-C ignored
    for line in run.stdout:
        if "epoch 3 of" in line: break
    run.send_signal(signal.SIGINT)
    _, error = run.communicate(timeout=60)
    assert run.returncode == 130 and error == "oamip: interrupted\n"
