"""MINT's experiments: python tests/benchmarks/bench_mint.py truth|speed|mnist|worth|groups OUT.csv [seeds]

truth: what each conditioning detects in data of known truth. speed: CPU seconds by number of pairs. mnist, worth and groups: see the functions; they need OAMIP_DATA.
A run that is stopped goes on where it was: rows that OUT.csv holds are not computed again."""
import os
import platform
import resource
import sys
import time
import warnings
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import fastai.callback.progress # Learner.no_bar
import pandas as pd
import torch
import torch.nn.functional as F
from fastai.basics import Learner, accuracy, set_seed
from fastai.callback.schedule import *
from oamip_nb.data import calibration_batch, image_dls, tensors
from oamip_nb.formulation import build_program, restrict
from oamip_nb.importance import neuron_importance
from oamip_nb.mint import (CONDITIONS, _block_entries, conditional_gmi, contiguous_groups, magnitude_blocks, mint_scores, mint_table,
                           random_blocks, schedule, score_groups, unit_groups)
from oamip_nb.models import create_model, load_weights, restore, save_weights
from oamip_nb.network import trace
from oamip_nb.pruning import _hardware, count_correct, mask, remove, select
from scipy.stats import spearmanr

META = dict(python=platform.python_version(), **{k: version(k) for k in ("torch", "numpy", "oamip_nb")}, **_hardware())

class Rows:
    "A CSV that grows by one row at a time and knows what it holds"
    def __init__(self, path, keys):
        self.path, self.keys = Path(path), keys; self.rows = pd.read_csv(path).to_dict("records") if self.path.exists() else []
        self.done = {self.key(r) for r in self.rows}
    def key(self, r): return tuple(str(r[k]) for k in self.keys)
    def has(self, **r): return self.key(r) in self.done
    def add(self, **r):
        self.rows.append(r | META); self.done.add(self.key(r)); part = self.path.with_suffix(f".{os.getpid()}.part")
        pd.DataFrame(self.rows).to_csv(part, index=False); os.replace(part, self.path)
        print({k: v for k, v in r.items()}, flush=True)

TRUTH = dict(indep="independent", cond_indep="independent", cond_indep_relu="independent", cond_dep="dependent", cond_dep_z="dependent", cond_dep_relu="dependent")

def sample(kind, n, dims, seed):
    "x, y, z of a kind of known truth"
    g = torch.Generator().manual_seed(seed); r = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64); dx, dy, dz = dims; z, y = r(n, dz), r(n, dy)
    f = torch.relu if kind.endswith("relu") else lambda t: t
    if kind == "indep": return r(n, dx), y, z
    if kind.startswith("cond_indep"): return f(z@r(dz, dx))+.1*r(n, dx), f(z@r(dz, dy))+.1*r(n, dy), z
    if kind == "cond_dep_z": y = z@r(dz, dy)+y
    return f(z@r(dz, dx)+y@r(dy, dx))+.1*r(n, dx), f(y), f(z)

def truth(out, seeds, n=900):
    "p-values of every conditioning on every kind of data; 40 repetitions for 'features', 20 for 'regress' and with four cuts, 10 for the others; stop it at any time, the table counts what is there"
    rows = Rows(out, ("kind", "dims", "condition", "rep")); ways = {k: dict(condition=k) for k in CONDITIONS} | {"features, 4 cuts": dict(condition="features", splits=4)}
    reps = {"features": 40, "regress": 20, "features, 4 cuts": 20}
    for rep in range(40):
        for dims in ((2, 2, 2), (5, 5, 20)):
            for kind in TRUTH:
                for how, kw in ways.items():
                    name = "×".join(map(str, dims))
                    if rep >= reps.get(how, 10) or rows.has(kind=kind, dims=name, condition=how, rep=rep): continue
                    x, y, z = sample(kind, n, dims, 7919*rep+13); t = time.process_time()
                    e = conditional_gmi(x, y, z, resamples=0, seed=rep, **kw)
                    rows.add(kind=kind, truth=TRUTH[kind], dims=name, condition=how, rep=rep, n=n, value=round(e.value, 6), corrected=round(e.corrected, 6), p=e.p_value, cpu_seconds=round(time.process_time()-t, 3))

def speed(out, seeds):
    "CPU seconds and peak memory for the pairs of two layers of 500 and 300 units"
    rows = Rows(out, ("groups", "n", "condition"))
    g = torch.Generator().manual_seed(0)
    for k in (20, 50):
        for how in ("features", "regress", "all", "nearest", "none"):
            if rows.has(groups=k, n=2500, condition=how): continue
            P = torch.relu(torch.randn(2500, 500, generator=g)); Q = torch.relu(P@torch.randn(500, 300, generator=g)/20)
            t, w = time.process_time(), time.time(); score_groups(P, Q, contiguous_groups(500, k), contiguous_groups(300, k), condition=how)
            rows.add(groups=k, pairs=k*k, n=2500, columns=500+300//k, condition=how, cpu_seconds=round(time.process_time()-t, 2), wall_seconds=round(time.time()-w, 2),
                     peak_memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//1024)

def dense(seed, dls, folder, epochs=10):
    "MINT's MLP, trained by the published recipe in fewer epochs; kept in `folder`"
    file = Path(folder)/f"mint_mlp-{epochs}-{seed}.safetensors"; model = create_model("mint_mlp", dls, seed=seed)
    if file.exists(): return restore(model, load_weights(file)[0])
    set_seed(seed); learn = Learner(dls, model, metrics=accuracy); retrain(learn, epochs); save_weights(file, learn.model)
    return learn.model

def retrain(learn, epochs):
    n, lr, learn.opt_func, cb = schedule("mlp", len(learn.dls.train), epochs)
    with learn.no_bar(), learn.no_logging(): learn.fit(n, lr, cbs=cb)

FULL = ("none", "mint", "random", "magnitude", "reversed", "gaussian")
JOBS = [ # name, pairs, groups of the parent and of the child, images per class, fraction of the listed weights to remove, rows wanted, epochs of retraining (0 for none)
    ("20 groups", None, 20, 20, 250, .885, FULL, 1), *[(f"{g} groups", None, g, g, 250, .885, FULL[1:5], 0) for g in (5, 10)],
    ("headline", ["fc2"], 250, 100, 75, .962, FULL[1:], 1), ("50 groups", None, 50, 50, 250, .885, FULL[1:5], 0), *[(f"{s} images", None, 20, 20, s, .885, FULL[1:5], 0) for s in (150, 350, 450, 550, 650)],
    ("20 groups, 3 epochs", None, 20, 20, 250, .885, FULL[:5], 3), ("20 groups global, 3 epochs", None, 20, 20, 250, .885, FULL[:5], 3),
    *[(f"{g} groups, 3 epochs", None, g, g, 250, .885, FULL[1:5], 3) for g in (5, 10, 50)], ("headline, 3 epochs", ["fc2"], 250, 100, 75, .962, FULL[1:], 3)]

def mnist(out, seeds):
    "The published table with its controls, before and after retraining"
    rows = Rows(out, ("setting", "seed", "mask", "stage")); folder = Path(os.environ.get("MINT_CACHE", "mint_cache"))
    for name, pairs, gp, gc, s, remove, only, epochs in JOBS:
        for seed in seeds:
            wanted = [m for m in only if not rows.has(setting=name, seed=seed, mask=m, stage="after" if epochs else "before")]
            if not wanted: continue
            dls = image_dls("MNIST", bs=256, valid=.1, seed=seed); learn = Learner(dls, dense(seed, dls, folder), metrics=accuracy)
            score = lambda e: learn.mint_scores(gp, gc, s, pairs=pairs, cache=folder/"pairs", seed=seed, estimator=e)
            t = time.process_time(); scores = score("tree"); t = time.process_time()-t; again = (lambda l: retrain(l, epochs)) if epochs else None
            others = dict(gaussian=replace(score("gaussian"), method="gaussian")) if "gaussian" in wanted else None
            for m in wanted:
                for r in mint_table(learn, scores, remove, again, scope="global" if "global" in name else "layer", seed=seed, only=(m,), others=others).to_dict("records"):
                    if not rows.has(setting=name, seed=seed, mask=m, stage=r["stage"]): rows.add(setting=name, seed=seed, parent_groups=gp, child_groups=gc, samples_per_class=s, retrain_epochs=epochs, score_seconds=round(t, 1), **r)

def ablation(model, x, y, scores):
    "Rise of the mean cross-entropy when a block of a child's weights is zeroed, by block"
    p = scores.pairs[0]; m = model.get_submodule(p.pair.child); full = m.weight.detach().clone(); entries = _block_entries(model, p); out = torch.zeros(p.scores.numel(), dtype=torch.float64)
    names = [n for n, _ in model.named_children()]; i = names.index(p.pair.child); front, back = model[:i].eval(), model[i:].eval()
    with torch.no_grad():
        h = front(x); base = F.cross_entropy(back(h), y)
        for b in range(len(out)): m.weight.copy_(full*(entries != b)); out[b] = F.cross_entropy(back(h), y)-base
        m.weight.copy_(full)
    return out.view(p.scores.shape)

def worth(out, seeds, samples=100):
    "Rank correlation of block scores with what the block is worth alone, and of two samples with each other; fc1 to fc2, 20 by 20 groups"
    rows = Rows(out, ("score", "seed")); folder = Path(os.environ.get("MINT_CACHE", "mint_cache")); kinds = {k: dict(condition=k) for k in CONDITIONS} | {"regress, 8 cuts": dict(splits=8), "gaussian": dict(estimator="gaussian")}
    for seed in seeds:
        dls = image_dls("MNIST", bs=256, valid=.1, seed=seed); model = dense(seed, dls, folder); x, y = tensors(dls.train); true = None
        for k in (*kinds, "magnitude", "random"):
            if rows.has(score=k, seed=seed): continue
            get = lambda s: mint_scores(model, x, y, pairs=["fc2"], samples_per_class=samples, cache=folder/"pairs", seed=s, **kinds.get(k, kinds["none"]))
            a, b = get(seed), get(seed+100)
            if k == "magnitude": a = b = magnitude_blocks(model, a)
            if k == "random": a, b = random_blocks(a, seed), random_blocks(a, seed+100)
            true = ablation(model, x[:5000], y[:5000], a) if true is None else true
            flat = [t.pairs[0].scores.flatten() for t in (a, b)]
            rows.add(score=k, seed=seed, samples_per_class=samples, ablation=round(float(spearmanr(flat[0], true.flatten())[0]), 4), repeat=round(float(spearmanr(*flat)[0]), 4), mean=round(float(flat[0].mean()), 4), sd=round(float(flat[0].std()), 4))

def small_vgg(dls, seed): # VGG-7 on 8x8 images: what a processor can train in half a minute; with dropout of .5 it does not learn in so few epochs
    return create_model("vgg7", dls, seed=seed, init="kaiming_normal", dropout=0.)

GROUPED = dict(lenet5=("MNIST", lambda dls, seed: create_model("lenet5", dls, seed=seed), 3, 3e-3, dict(steps=300, bs=256), 12_000),
               vgg7=("digits", small_vgg, 6, 1e-3, dict(steps=100, bs=64, search=0), None))

def groups(out, seeds):
    "Size, time and accuracy of the program with a score per group: the published program on ten images (LeNet-5), descent at half of the parameters (both)"
    rows = Rows(out, ("network", "seed", "share", "grouping", "method"))
    for name, (data, make, epochs, lr, kw, n) in GROUPED.items():
        for seed in seeds:
            dls = image_dls(data, seed=seed, bs=128 if n else 64, n=n); set_seed(seed); learn = Learner(dls, make(dls, seed), metrics=accuracy)
            with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr)
            model = learn.model.eval(); x, y = tensors(dls.train)
            for share, grouping in ((1., "none"), (.5, "dependence"), (.5, "contiguous"), (.25, "dependence"), (.25, "contiguous")):
                gs = None if share == 1 else unit_groups(model, x[:1000], share, grouping)
                for method in ("relaxed", "descent") if name == "lenet5" else ("descent",):
                    if rows.has(network=name, seed=seed, share=share, grouping=grouping, method=method): continue
                    xs, ys = calibration_batch(dls.train, 10, seed=seed) if method == "relaxed" else (x, y)
                    t = time.process_time()
                    imp = neuron_importance(model, xs, ys, method=method, groups=gs, seed=seed, **({} if method == "relaxed" else dict(budget=dict(params=.5), **kw))); t = time.process_time()-t
                    size = restrict(build_program(trace(model, xs), xs, ys), groups=gs) if method == "relaxed" else None
                    sel = select(imp, params=.5); k, total = count_correct(mask(model, sel), dls.test); fixed, _ = count_correct(remove(model, sel, x[:1000], repair="lstsq"), dls.test)
                    rows.add(network=name, data=data, seed=seed, share=share, grouping=grouping, method=method, scores=sum(int(g.max())+1 for g in gs.values()) if gs else sum(map(len, imp.scores.values())),
                             entries=size.A.nnz if size else "", rows=size.A.shape[0] if size else "", cpu_seconds=round(t, 2), dense=count_correct(model, dls.test)[0], correct=k, repaired=fixed, tested=total)

if __name__ == "__main__":
    warnings.simplefilter("ignore"); torch.set_num_threads(1)
    dict(truth=truth, speed=speed, mnist=mnist, worth=worth, groups=groups)[sys.argv[1]](sys.argv[2], [int(s) for s in (sys.argv[3] if len(sys.argv) > 3 else "012")])
