"""Every method at every budget, plain, repaired, after one epoch and after ten: python tests/benchmarks/bench_compare.py NETWORK OUT.csv [seeds]

NETWORK is a name in SETTINGS. Trains on MNIST or CIFAR-10 (needs OAMIP_DATA), scores on training images, counts right answers on test images. A run that is stopped
goes on where it was: rows that OUT.csv holds are not computed again, and trained networks are kept in `compare_nets` of the cache folder."""
import copy
import os
import platform
import sys
import time
import warnings
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from fastai.basics import Callback, Learner, accuracy
from fastai.callback.schedule import *
from oamip_nb.baselines import baseline_importance
from oamip_nb.data import TensorDL, cache_folder, image_dls, tensors
from oamip_nb.importance import neuron_importance, read_tensors, write_tensors
from oamip_nb.models import models
from oamip_nb.pruning import _hardware, count_correct, remove, select
from oamip_nb.ticket_models import ticket_nets


@dataclass(frozen=True)
class Setting:
    "What is compared on one network"
    dataset: str
    epochs: int
    what: str = "params"                    # what the budget counts
    budgets: tuple = (.3, .5, .7, .85, .95)
    tuned: tuple = (.3, .5, .7, .85, .95)   # budgets that are also trained for one epoch
    long: tuple = ()                        # budgets at which the methods in LONG are trained for ten epochs
    net: str | None = None                  # name of the network, where it is not the name of the setting
    same: str | None = None                 # setting whose trained networks are used, where it is another one
    model: dict = field(default_factory=dict)
    descent: dict = field(default_factory=dict)
    images: int = 48_000                    # training images for descent
    repair: int = 10_000                    # training images for the repair
    shift: int = 0                          # augmentation of the training: flips, and shifts of up to so many pixels
    size: int | None = None                 # pixels a side, where the images are shrunk
    n: int | None = None                    # training images, validation included; None for all
    every: int = 1                          # of the test images, one in so many
    untried: bool = False                   # also refit with widths that are counted, not tried


SETTINGS = dict(
    fc3=Setting("MNIST", 5, long=(.85,), untried=True),
    lenet5=Setting("MNIST", 3, long=(.95,), model=dict(padding=2, pool="max"), untried=True),
    lenet5_macs=Setting("MNIST", 3, "macs", (.3, .5, .7, .85), (), net="lenet5", same="lenet5", model=dict(padding=2, pool="max"), untried=True),
    conv5=Setting("CIFAR10", 10, "macs", (.5, .3, .7, .85, .95), (.85,), descent=dict(steps=500, bs=128, search=0), images=20_000, repair=5_000, shift=3, untried=True),
    fc4=Setting("MNIST", 5, budgets=(.85, .95, .7, .5, .3), long=(.85,), untried=True),
    lenet5_cifar10=Setting("CIFAR10", 10, budgets=(.85, .7, .95, .5, .3), long=(.85,), net="lenet5", model=dict(pool="max"), images=20_000, repair=5_000, shift=2, untried=True),
    lenet5_cifar10_macs=Setting("CIFAR10", 10, "macs", (.3, .5, .7, .85), (), net="lenet5", same="lenet5_cifar10", model=dict(pool="max"), images=20_000, repair=5_000, shift=2, untried=True),
    conv4=Setting("CIFAR10", 20, "macs", (.85, .7, .95, .5, .3), (.85,), (.85,), descent=dict(steps=300, bs=128, search=0), images=8_000, repair=2_000, shift=2, size=16, n=10_000, every=2, untried=True),
    vgg7=Setting("CIFAR10", 10, budgets=(.85, .95, .7, .5, .3), tuned=(.85,), long=(.85,), model=dict(init="kaiming_normal", dropout=0.), descent=dict(steps=200, bs=64, search=0), images=4_000, repair=2_000,
        size=16, n=5_000, every=5))
# name -> (criterion, scope of the selection)
CRITERIA = {k: (k, "global") for k in ("random", "magnitude", "activation", "taylor", "snip", "tp_magnitude", "tp_taylor", "tp_hessian", "tp_lamp", "tp_fpgm")}
CRITERIA |= {f"{k}, per layer": (k, "layer") for k in ("magnitude", "taylor")}
UNTRIED = "refit, tries=0"
METHODS = ("descent", "refit", UNTRIED, "critical", *CRITERIA)
LONG = ("descent", "refit", UNTRIED, "random", "magnitude", "tp_taylor", "tp_hessian")  # the program's own, the controls, and the best criteria at one epoch
_FORMAT = "oamip_nb.compare/1"


class Augment(Callback):
    "Flip each image with probability 1/2 and shift the batch by up to `shift` pixels"
    run_valid = False
    def __init__(self, shift): self.shift = shift
    def before_batch(self):
        x, k = self.x, self.shift; i, j = torch.randint(2*k+1, (2,)).tolist()
        x = torch.where(torch.rand(len(x), 1, 1, 1) < .5, x, x.flip(3))
        self.learn.xb = (F.pad(x, (k,)*4)[..., i:i+x.shape[2], j:j+x.shape[3]].contiguous(memory_format=torch.channels_last),)


def fit(model, dls, epochs, lr, shift):
    "The network after `epochs` of one-cycle training"
    learn = Learner(dls, copy.deepcopy(model).train().to(memory_format=torch.channels_last), metrics=accuracy, cbs=[Augment(shift)] if shift else [])
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr)
    return learn.model.cpu().eval().to(memory_format=torch.contiguous_format)


def trained(name, seed, dls):
    "The dense network of a seed, trained once"
    s, name = SETTINGS[name], SETTINGS[name].same or name; path = cache_folder()/"compare_nets"/f"{name}_{seed}.safetensors"; make = (models|ticket_nets)[s.net or name]; model = make(dls, seed=seed, **s.model)
    if path.exists(): model.load_state_dict(read_tensors(path, _FORMAT)[0]); return model.eval()
    model = fit(model, dls, s.epochs, 3e-3, s.shift); write_tensors(path, model.state_dict(), _FORMAT, dict(network=name, seed=seed, torch=version("torch")))
    return model


def shuffled(x, y, seed):
    "Images and labels in an order of the seed: a folder of images comes class by class, and criteria take the first ones"
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)); return x[order], y[order]


def importance(method, model, x, y, s, removed, seed, known):
    "Scores of one method; those of a criterion, which know no budget, are made once"
    budget = {s.what: removed}
    if method == "descent": return neuron_importance(model, x[:s.images], y[:s.images], method="descent", budget=budget, seed=seed, **s.descent)
    if method in ("refit", UNTRIED): return neuron_importance(model, x, y, method="refit", budget=budget, seed=seed, n=min(20_000, 2*s.repair), tries=0 if method == UNTRIED else None)
    if method == "critical": return baseline_importance("critical", model, x[:1], y[:1], imp=known["descent", removed])
    name = CRITERIA[method][0]; n = 200 if name == "tp_hessian" else 2000  # one backward pass per image
    return known[name] if name in known else known.setdefault(name, baseline_importance(name, model, x[:n], y[:n], seed=seed))


def named(epochs): return "1 epoch" if epochs == 1 else f"{epochs} epochs"


def main(name, out, seeds):
    torch.set_num_threads(1); out, s = Path(out), SETTINGS[name]; rows = pd.read_csv(out).to_dict("records") if out.exists() else []
    done = {(r["seed"], r["removed"], r["method"], r["stage"]) for r in rows}
    meta = dict(machine=f"{platform.machine()}, 1 thread", python=platform.python_version(), **{k: version(k) for k in ("torch", "fastai", "torch-pruning", "oamip_nb")}, **_hardware())
    def add(seed, removed, method, stage, model, seconds, really=None):
        k, n = count_correct(model, test)
        rows.append(dict(network=name, what=s.what, seed=seed, removed=removed, method=method, stage=stage, right=k, n=n, really=really, fill=method in CRITERIA, cpu_seconds=round(seconds, 2), **meta))
        part = out.with_suffix(".part"); pd.DataFrame(rows).to_csv(part, index=False); os.replace(part, out)
        print(seed, removed, method, stage, f"{k/n:.4f}", f"{seconds:.1f} s", flush=True)
    for seed in seeds:
        dls = image_dls(s.dataset, size=s.size, n=s.n, seed=seed); test = TensorDL(dls.test.dataset.subset(slice(None, None, s.every)), bs=500); x, y = shuffled(*tensors(dls.train), seed); t = time.process_time(); model = trained(name, seed, dls); t = time.process_time()-t
        if (seed, 0., "dense", "plain") not in done: add(seed, 0., "dense", "plain", model, t)
        known = {}
        for removed in s.budgets:
            epochs = lambda m: (1,)*(removed in s.tuned)+(10,)*(removed in s.long and m in LONG)
            stages = lambda m: [k for k in ("plain", "repaired", *map(named, epochs(m))) if (seed, removed, m, k) not in done]
            for method in METHODS:
                if method == UNTRIED and not s.untried: continue
                if not stages(method) and not (method == "descent" and stages("critical")): continue
                t = time.process_time(); imp = importance(method, model, x, y, s, removed, seed, known); t = time.process_time()-t
                if method == "descent": known["descent", removed] = imp
                sel = select(imp, **{s.what: removed}, scope=CRITERIA.get(method, (0, "global"))[1], fill=method in CRITERIA)  # descent and refit fill their budgets themselves
                left = getattr(imp.costs, s.what)(sel.kept)/imp.costs.full[s.what]; small = remove(model, sel, x[:1])
                for stage in stages(method):
                    now = time.process_time()
                    if stage == "repaired": net = remove(model, sel, x[:s.repair], repair="lstsq")
                    else: net = small if stage == "plain" else fit(small, dls, int(stage.split()[0]), 1e-3, s.shift)
                    add(seed, removed, method, stage, net, t if stage == "plain" else time.process_time()-now, 1-left)


if __name__ == "__main__":
    warnings.simplefilter("ignore"); main(sys.argv[1], sys.argv[2], [int(s) for s in (sys.argv[3] if len(sys.argv) > 3 else "012")])
