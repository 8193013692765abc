"The command `oamip` as a user meets it: its help, a small run, bad input, Ctrl-C."
import os, signal, subprocess, sys, time
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


def test_help_is_quick(tmp_path):
    start = time.time()
    done = oamip("--help", cwd=tmp_path)
    assert done.returncode == 0 and time.time() - start < 5  # PyTorch is not loaded for it
    for option in "dataset data size model epochs lr n lam params threshold cost method solver seconds gap seed out debug".split():
        assert f"--{option} " in done.stdout
    assert not any("_" in w or w.count("-") > 2 for w in done.stdout.split() if w.startswith("--"))  # spelt alike by fastcore 1 and 2


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
    main(model="fc_baseline", epochs=2, n=10, params=.3, out=str(tmp_path))
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
    with pytest.raises(SystemExit) as stop: main(**options, out=str(tmp_path))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and len(error.splitlines()) == 1


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to send")
def test_interrupt(tmp_path):
    run = subprocess.Popen([OAMIP, *SMALL, "--epochs", "1000"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) # a job in the background of a shell starts with Ctrl-C ignored
    for line in run.stdout:
        if "epoch 3 of" in line: break
    run.send_signal(signal.SIGINT)
    _, error = run.communicate(timeout=60)
    assert run.returncode == 130 and error == "oamip: interrupted\n"
