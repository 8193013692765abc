"""Do the other scripts still run, and to the same numbers? python tests/benchmarks/bench_all.py [SECONDS] [WORDS]   (needs what they need)

Each command starts anew, in a copy of the scripts with an empty folder of results, and is stopped after so many CPU seconds (default 45); with words, only the commands that
hold one of them. A row that it had made by then is the same as
a kept one if all columns agree to six digits, but for times, memory, versions and hardware. One row per command goes to nbs/results/quick_pass.csv, in place of an older one."""
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from oamip_nb.pruning import _hardware, _versions

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parents[1]/"nbs/results"
COMMANDS = {  # command -> file; bench_program.py keeps its own beside the scripts
    "bench_mint.py truth OUT": "mint_truth", "bench_mint.py speed OUT": "mint_speed", "bench_two.py finetune": "two_processes", "bench_mip.py scaling OUT": "mip_scaling", "bench_scale.py OUT": "scale",
    "bench_program.py OUT": "program", "bench_compare.py fc3 OUT": "compare_fc3_mnist", "bench_dgl.py lenet5 OUT": "dgl_lenet5_mnist", "bench_side.py accuracy OUT": "side_lenet5_mnist",
    "bench_jobs.py OUT": "jobs", "bench_biprop.py speed": "biprop_speed"}
MEASURED = ("second", "_ms", "ratio", "single", "wall", "load", "_mb", "_gb", "machine")
VERSIONS = ("oamip_nb", "python", "torch", "torch_pruning", "torch-pruning", "numpy", "highspy", "fastai", "fasterai", "joblib", "cpu", "gpu")


def answers(path):
    "The columns that must come out again, as text"
    d = pd.read_csv(path); d = d[[c for c in d if c not in VERSIONS and not any(w in c for w in MEASURED)]]
    return d.apply(lambda c: c.map(lambda v: f"{v:.6g}" if isinstance(v, (int, float)) else str(v)))


def quick(command, name, limit):
    "What a command makes in so many CPU seconds"
    kept = HERE/"results/program.csv" if name == "program" else RESULTS/f"{name}.csv"
    with tempfile.TemporaryDirectory() as tmp:
        shutil.copytree(HERE.parent, f"{tmp}/tests", ignore=shutil.ignore_patterns("__pycache__")); out = Path(tmp)/"nbs/results"/kept.name; out.parent.mkdir(parents=True)
        script, *args = [a.replace("OUT", str(out)) for a in command.split()]
        done = subprocess.run([sys.executable, f"{tmp}/tests/benchmarks/{script}", *args], cwd=tmp, capture_output=True, text=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (limit, limit+5)))
        error = (done.stderr.strip().splitlines() or [""])[-1]; over = done.returncode in (-9, -24) or error.endswith(("exit code -9", "exit code -24"))  # itself, or a process that it started
        end = "stopped" if over else error.split(":")[0] if done.returncode else "finished"
        if not out.exists(): return dict(end=end, rows=0, same=0)
        new, old = answers(out), answers(kept); both = [c for c in new if c in old]; seen = {*old[both].itertuples(index=False, name=None)}
        return dict(end=end, rows=len(new), same=sum(r in seen for r in new[both].itertuples(index=False, name=None)))


def main(limit="45", *words):
    path = RESULTS/"quick_pass.csv"
    for command, name in COMMANDS.items():
        if words and not any(w in command for w in words): continue
        t = time.time(); row = dict(command=command, limit=int(limit), **quick(command, name, int(limit)), wall_seconds=round(time.time()-t), **_versions(), **_hardware()); print({k: row[k] for k in ("command", "end", "rows", "same")}, flush=True)
        old = pd.read_csv(path).to_dict("records") if path.exists() else []; pd.DataFrame([r for r in old if r["command"] != command]+[row]).to_csv(path, index=False)


if __name__ == "__main__": main(*sys.argv[1:])
