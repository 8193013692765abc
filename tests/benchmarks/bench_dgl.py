"""Decoupled against ordinary training, and the scores of both: python tests/benchmarks/bench_dgl.py lenet5|vgg7 OUT.csv [seeds]

Trains on MNIST (lenet5) or on CIFAR-10 shrunk to 16x16 pixels (vgg7), needs OAMIP_DATA; scores on validation images, counts right answers on test images.
python tests/benchmarks/bench_dgl.py time OUT.csv measures steps and scorings of VGG-7 and VGG-16 on 32x32 pixels, with random images.
Runs whose rows OUT.csv holds are not computed again."""
import copy
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from fastai.basics import Learner, accuracy
from fastai.callback.progress import ProgressCallback  # gives Learner its no_bar
from oamip_nb.baselines import baseline_importance
from oamip_nb.data import CropFlip, TensorDL, calibration_batch, image_dls
from oamip_nb.dgl import Decoupled, EachLoss, decoupled_importance, decoupled_learner
from oamip_nb.importance import neuron_importance
from oamip_nb.models import lenet5, optimisers, vgg7, vgg16
from oamip_nb.pruning import _hardware, _versions, count_correct, mask, select, select_like, wilson


@dataclass(frozen=True)
class Setting:
    "One network on one data set"
    dataset: str
    net: object
    n: int          # training images, validation included
    epochs: int
    lr: float
    every: int      # of the test images, one in so many
    scoring: dict   # arguments of `neuron_importance`
    images: int     # in the calibration batch
    size: int = None
    augment: bool = False


SETTINGS = dict(
    lenet5=Setting("MNIST", lenet5, 25_000, 3, 1e-3, 1, dict(method="published", lam=5., relax=True), 10),
    vgg7=Setting("CIFAR10", partial(vgg7, init="kaiming_normal", dropout=0.), 2_500, 5, 1e-3, 10, dict(method="descent", lam=5., steps=100, bs=50), 50, 16))


def train(s, seed, decoupled):
    "A trained network, its Learner and the CPU seconds"
    dls = image_dls(s.dataset, size=s.size, n=s.n, seed=seed); net = s.net(dls, seed=seed)
    make = partial(decoupled_learner, seed=seed) if decoupled else Learner
    learn = make(dls, net, opt_func=optimisers["adam"], lr=s.lr, metrics=accuracy, cbs=CropFlip(2, seed=seed) if s.augment else None)
    torch.manual_seed(seed); t = time.process_time()
    with learn.no_bar(), learn.no_logging(): learn.fit(s.epochs)
    return net.eval(), learn, time.process_time()-t


def test_loader(dls, every): return TensorDL(dls.test.dataset.subset(slice(None, None, every)), bs=500)


def run(name, seed, decoupled):
    "Rows of one training: dense, its exits, OAMIP, random and magnitude at the same counts"
    s = SETTINGS[name]; net, learn, seconds = train(s, seed, decoupled); dl = test_loader(learn.dls, s.every)
    def row(what, k, n, **more):
        low, high = wilson(k, n)
        return dict(setting=name, seed=seed, training="decoupled" if decoupled else "ordinary", network=what, correct=k, n=n, accuracy=k/n, low=low, high=high) | more
    rows = [row("dense", *count_correct(net, dl), cpu_seconds=seconds)]
    if decoupled: rows += [row(f"exit {k}", *count_correct(learn.model.exit(k), dl)) for k in range(len(learn.model.heads))]
    x, y = calibration_batch(learn.dls, s.images, seed=seed); t = time.process_time()
    imp = decoupled_importance(learn.model, x, y, seed=seed, **s.scoring) if decoupled else neuron_importance(net, x, y, seed=seed, **s.scoring)
    seconds = time.process_time()-t; sel = select(imp, threshold=.1); costs = imp.costs
    gone = dict(params_removed=1-costs.params(sel.kept)/costs.params({}), units_removed=1-costs.units(sel.kept)/costs.units({}))
    rows.append(row("OAMIP", *count_correct(mask(net, sel), dl), cpu_seconds=seconds, **gone))
    for how in ("random", "magnitude"):
        like = select_like(baseline_importance(how, net, x, y, seed=seed), sel)
        rows.append(row(how, *count_correct(mask(net, like), dl), **gone))
    return rows


def timing():
    "CPU seconds of a training step of 32 images and of a scoring with 10 images, random data of 3x32x32"
    torch.manual_seed(0); x, y = torch.rand(32, 3, 32, 32), torch.arange(32) % 10
    for name, f in dict(vgg7=vgg7, vgg16=vgg16).items():
        for decoupled in (False, True):
            net = f((3, 32, 32), 10, init="kaiming_normal", seed=0); model = Decoupled(net, x, seed=0) if decoupled else net
            opt = torch.optim.Adam(model.parameters(), 1e-4); loss = EachLoss(); steps = []
            for _ in range(4):
                t = time.process_time(); model.train(); opt.zero_grad(); loss(model(x), y).backward(); opt.step(); steps.append(time.process_time()-t)
            t = time.process_time()
            imp = decoupled_importance(model, x[:10], y[:10], steps=20) if decoupled else neuron_importance(net, x[:10], y[:10], steps=20)
            assert all(((0 <= s) & (s <= 1)).all() for s in imp.scores.values())
            yield dict(network=name, training="decoupled" if decoupled else "ordinary", step_seconds=min(steps[1:]), score_seconds=time.process_time()-t, score_steps=20,
                modules=len(model.parts) if decoupled else 1, units=sum(map(len, imp.scores.values())), head_params=sum(p.numel() for p in model.parameters())-sum(p.numel() for p in net.parameters()))


def main(name, out, seeds="3"):
    out = Path(out); old = pd.read_csv(out) if out.exists() else pd.DataFrame()
    if name == "time": return pd.DataFrame(timing()).assign(**_versions(), **_hardware()).to_csv(out, index=False)
    for seed in range(int(seeds)):
        for decoupled in (False, True):
            how = "decoupled" if decoupled else "ordinary"
            if len(old) and ((old.setting == name) & (old.seed == seed) & (old.training == how)).any(): continue
            rows = pd.DataFrame(run(name, seed, decoupled)).assign(**_versions(), **_hardware())
            print(rows.iloc[:, :12].to_string(), flush=True)
            old = pd.concat([old, rows]); part = out.with_suffix(".part"); old.to_csv(part, index=False); part.replace(out)


if __name__ == "__main__": main(*sys.argv[1:])
