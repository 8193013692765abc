"""Every method at every budget, plain, repaired and after one epoch: python tests/benchmarks/bench_compare.py fc3|lenet5 OUT.csv [seeds]

Trains on MNIST (needs OAMIP_DATA), scores on training images, counts right answers on the test set. A run that is stopped goes on where it was:
rows that OUT.csv holds are not computed again."""
import copy
import os
import platform
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from fastai.basics import Learner, accuracy
from fastai.callback.schedule import *
from oamip_nb.baselines import baseline_importance
from oamip_nb.data import image_dls, tensors
from oamip_nb.importance import neuron_importance
from oamip_nb.models import create_model
from oamip_nb.pruning import count_correct, mask, remove, select

BASE = ("random", "magnitude", "activation", "taylor", "snip", "tp_taylor", "tp_lamp", "tp_fpgm")
BUDGETS, EPOCHS, TUNED = (.3, .5, .7, .85, .95), dict(fc3=5, lenet5=3), ("random", "magnitude", "taylor", "descent", "refit")
EXTRA = dict(lenet5=dict(padding=2, pool="max"))

def trained(name, seed, dls):
    learn = Learner(dls, create_model(name, dls, seed=seed, **EXTRA.get(name, {})), metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(EPOCHS[name], 3e-3)
    return learn.model.cpu().eval()

def tuned(model, dls):
    learn = Learner(dls, copy.deepcopy(model).train(), metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 1e-3)
    return learn.model.cpu().eval()

def importance(method, model, x, y, budget, seed):
    if method in ("descent", "refit"):
        more = dict(n=20_000) if method == "refit" else {}
        return neuron_importance(model, x, y, method=method, budget=budget, seed=seed, **more)
    return baseline_importance(method, model, x[:2000], y[:2000], seed=seed)

def main(name, out, seeds):
    torch.set_num_threads(1); out = Path(out); rows = pd.read_csv(out).to_dict("records") if out.exists() else []
    done = {(r["seed"], r["removed"], r["method"], r["stage"]) for r in rows}
    meta = dict(machine=f"{platform.machine()}, 1 thread", python=platform.python_version(), **{k: version(k) for k in ("torch", "fastai", "torch-pruning", "oamip_nb")})
    def add(seed, removed, method, stage, model, seconds, really=None):
        if (seed, removed, method, stage) in done: return
        k, n = count_correct(model, dls.test)
        rows.append(dict(network=name, seed=seed, removed=removed, method=method, stage=stage, right=k, n=n, really=really, cpu_seconds=round(seconds, 2), **meta))
        pd.DataFrame(rows).to_csv(out, index=False); print(rows[-1]["seed"], removed, method, stage, f"{k/n:.4f}", f"{seconds:.1f} s", flush=True)
    for seed in seeds:
        dls = image_dls("MNIST", seed=seed); x, y = tensors(dls.train); model = trained(name, seed, dls)
        if (seed, 0., "dense", "plain") not in done: add(seed, 0., "dense", "plain", model, 0.)
        imps = {}
        for removed in BUDGETS:
            for method in (*BASE, "descent", "refit"):
                if (seed, removed, method, "repaired") in done: continue
                t = time.process_time(); budget = dict(params=removed)
                imp = importance(method, model, x, y, budget, seed) if method in ("descent", "refit") else imps.setdefault(method, importance(method, model, x, y, budget, seed)) if method not in imps else imps[method]
                t = time.process_time()-t; sel = select(imp, params=removed); left = imp.costs.params(sel.kept)/imp.costs.full["params"]
                small = remove(model, sel, x[:1]); add(seed, removed, method, "plain", small, t, 1-left)
                t = time.process_time(); fixed = remove(model, sel, x[:10_000], repair="lstsq"); add(seed, removed, method, "repaired", fixed, time.process_time()-t, 1-left)
                if removed in (.7, .95) and method in TUNED: t = time.process_time(); add(seed, removed, method, "1 epoch", tuned(small, dls), time.process_time()-t, 1-left)

if __name__ == "__main__":
    warnings.simplefilter("ignore"); main(sys.argv[1], sys.argv[2], [int(s) for s in (sys.argv[3] if len(sys.argv) > 3 else "012")])
