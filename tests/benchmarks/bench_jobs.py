"""Ten classes in turn and at once: python tests/benchmarks/bench_jobs.py [OUT.csv]   (needs OAMIP_ORACLES and OAMIP_DATA)

Each class of MNIST is scored on its own by the published program, one thread per solve: in turn in this process, then by two worker
processes. Rows hold wall-clock and CPU seconds of the solves (worker start-up apart, and included in `cold`), and the load before each run."""
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import pandas as pd
import torch
from joblib.externals.loky import get_reusable_executor
from oamip_nb.data import calibration_batch, image_dls
from oamip_nb.jobs import Job, score_many
from oracles import trained

IMAGES = dict(fc3=30)  # of each class


def load(): return round(os.getloadavg()[0], 2)

def cpu_model():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((l.split(":")[1].strip() for l in lines if l.startswith("model name")), platform.machine())

def jobs_of(name, dls):
    model = trained(name)[0]
    xy = [calibration_batch(dls, n=IMAGES[name], classes=c) for c in range(10)]
    return [Job(f"class {c}", model, x, y, dict(method="published")) for c, (x, y) in enumerate(xy)]

def main(out, repeats=2):
    torch.set_num_threads(1)
    dls, rows = image_dls("MNIST"), []
    meta = dict(machine=f"{cpu_model()}, {os.cpu_count()} cores", python=platform.python_version(), **{k: version(k) for k in ("torch", "highspy", "joblib", "oamip_nb")})
    for name in IMAGES:
        jobs, want = jobs_of(name, dls), None
        jobs[0]()  # imports and caches of this process
        for repeat in range(repeats):
            for workers, how in ((1, "in turn"), (2, "cold"), (2, "at once")):
                if how == "cold": get_reusable_executor().shutdown(wait=True, kill_workers=True)
                before = load()
                o = score_many(jobs, n_jobs=workers)
                done = o.all(); want = want or done
                assert all(torch.equal(done[n].scores[k], want[n].scores[k]) for n in want for k in want[n].scores)
                rows.append(dict(network=name, images=IMAGES[name], repeat=repeat, how=how, workers=workers, seconds=round(o.seconds, 2), cpu_seconds=round(sum(o.cpu.values()), 2), load_before=before, **meta))
                print({k: rows[-1][k] for k in ("network", "how", "seconds", "cpu_seconds", "load_before")}, flush=True)
                pd.DataFrame(rows).to_csv(out, index=False)
    get_reusable_executor().shutdown(wait=True)


if __name__ == "__main__": main(sys.argv[1] if len(sys.argv) > 1 else "nbs/results/jobs.csv")
