"""CPU seconds of the program: python tests/benchmarks/bench_program.py [OUT.csv]   (needs OAMIP_ORACLES; OAMIP_DATA for n = 50)

Every row is measured in one process with one thread: build + solve, process time. Ratios compare with single solves of the same run."""
import os
import platform
import resource
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import pandas as pd
import torch
from oamip_nb.data import calibration_batch, image_dls
from oamip_nb.formulation import build_program
from oamip_nb.network import trace
from oamip_nb.solvers import solve, solve_path
from oracles import trained

LAMS = [.5, 1, 2, 4, 5, 8, 12, 20]
rows = []

def cpu(f):
    t = time.process_time(); out = f(); return out, time.process_time()-t

def row(what, network, n, seconds, cert=None, **more):
    rows.append(dict(what=what, network=network, n=n, cpu_seconds=round(seconds, 2), objective=cert and cert.objective, bound=cert and cert.bound, gap=cert and cert.gap,
                     status=cert and cert.status, peak_rss_gb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20, 2), **more))
    print(rows[-1], flush=True)

def program(model, x, y, relax): return build_program(trace(model, x), x, y, relax=relax)

def main(out):
    torch.set_num_threads(1)
    for name in ("fc3", "lenet"):
        model, x, y, _ = trained(name)
        for relax in (True, False):
            s, t = cpu(lambda: solve(program(model, x, y, relax), 5., "published", gap=1e-6))
            row("relaxed" if relax else "exact", name, len(x), t, s.certificate)
        p = program(model, x, y, True)
        for gap in (1e-3, 1e-4, 1e-6):
            _, path = cpu(lambda: solve_path(p, LAMS, "published", gap=gap))
            single = np.mean([cpu(lambda: solve(p, l, "published", gap=gap))[1] for l in LAMS])
            row(f"path of {len(LAMS)} weights, gap {gap:g}", name, len(x), path, single=round(single, 2), ratio=round(path/single, 2))
    if os.environ.get("OAMIP_DATA"):
        model = trained("fc3")[0]; dls = image_dls("MNIST")
        for n in (50, 100):
            x, y = calibration_batch(dls, n=n)
            for relax in (True, False):
                s, t = cpu(lambda: solve(program(model, x, y, relax), 5.))
                row("relaxed" if relax else "exact", "fc3", n, t, s.certificate)
    df = pd.DataFrame(rows).assign(machine=f"{platform.machine()}, {os.cpu_count()} cores", python=platform.python_version(), **{k: version(k) for k in ("torch", "highspy", "oamip_nb")})
    df.to_csv(out, index=False)

if __name__ == "__main__": main(sys.argv[1] if len(sys.argv) > 1 else "tests/benchmarks/results/program.csv")
