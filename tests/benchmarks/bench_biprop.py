"""Figures of BIPROP: CPU seconds against a layer that sorts and short trainings. Results go to nbs/results.

    python tests/benchmarks/bench_biprop.py speed             # biprop_speed.csv
    python tests/benchmarks/bench_biprop.py conv2 FOLDER SEED [INIT] # one epoch of the published recipe on CIFAR-10; biprop_conv2_cifar10.csv
    python tests/benchmarks/bench_biprop.py mnist FOLDER NET SEED EPOCHS # ticket, random ticket, dense; biprop_mnist.csv

The trainings keep checkpoints in FOLDER and go on from them.
"""
import copy, sys, time
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from fastai.basics import Learner, SGD, accuracy
from torch import nn

from oamip_nb.biprop import supermask_layers, to_supermask
from oamip_nb.find_ticket import Recipe, ticket_learner
from oamip_nb.pruning import _hardware, _versions, count_correct, wilson
from oamip_nb.ticket_models import conv2, conv4

RESULTS = Path(__file__).resolve().parents[2]/"nbs/results"


def keep_rows(name, rows, by):
    "Add rows to a table of results, in place of older ones with the same `by`"
    path = RESULTS/name; new = pd.DataFrame(rows).assign(**_versions(), **_hardware())
    if path.exists(): new = pd.concat([pd.read_csv(path), new]).drop_duplicates(by, keep="last")
    new.sort_values(by).to_csv(path, index=False); print(new.to_string())


# ---- speed

class SortChoice(torch.autograd.Function):
    "The choice as it is commonly written: a full sort of |S|, index fills and a plain straight-through gradient"
    @staticmethod
    def forward(ctx, scores, weight, k):
        out = scores.abs().clone(); _, idx = scores.abs().flatten().sort(stable=True); j = scores.numel()-k
        flat = out.flatten(); flat[idx[:j]] = 0; flat[idx[j:]] = 1; mask = flat.view_as(scores)
        ctx.save_for_backward(scores, weight); ctx.mark_non_differentiable(mask)
        return (torch.abs(weight)*mask).sum()/k*mask*torch.sign(weight), mask
    @staticmethod
    def backward(ctx, g, _): s, w = ctx.saved_tensors; return g*w*torch.sign(s), None, None


class SortLayer(nn.Module):
    "A supermask layer that sorts in every pass; dense layers are 1x1 convolutions, as published, or linear"
    def __init__(self, m, linear):
        super().__init__(); self.like, self.linear, self.scores = m, linear or not isinstance(m, nn.Linear), nn.Parameter(m.scores.detach().clone(memory_format=torch.contiguous_format))
        self.weight = m.weight.detach().clone(memory_format=torch.contiguous_format); m.requires_grad_(False)
    def forward(self, x):
        w, self.mask = SortChoice.apply(self.scores, self.weight, int(self.like.count))
        if isinstance(self.like, nn.Conv2d): return self.like._conv_forward(x, w, None)
        return F.linear(x, w) if self.linear else F.conv2d(x[:, :, None, None], w[:, :, None, None]).flatten(1)


def sorting(model, linear):
    new = copy.deepcopy(model)
    for n, m in supermask_layers(new).items(): setattr(new, n, SortLayer(m, linear))
    return new


def stepper(model, x, y, fused):
    opt = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], .1, .9, weight_decay=1e-4, fused=fused)
    def step(): F.cross_entropy(model(x), y).backward(); opt.step(); opt.zero_grad()
    return step


def cpu(f):
    t = time.process_time(); f(); return time.process_time()-t


def masks(model): return [m.mask() if not isinstance(m, SortLayer) else m.mask for m in model.modules() if isinstance(m, SortLayer) or hasattr(m, "set_keep") and not isinstance(m, SortLayer)]


def speed(repeats=3):
    torch.set_num_threads(1); torch.manual_seed(0); rows = []
    x, y = torch.rand(128, 3, 32, 32), torch.randint(10, (128,))
    for name, f in dict(Conv2=conv2, Conv4=conv4).items():
        fast = to_supermask(f((3, 32, 32), 10), keep=.5, init="kn")
        nets = {"sort, 1x1 convolutions": sorting(fast, False), "sort, linear": sorting(fast, True), "ours, contiguous": copy.deepcopy(fast),
                "ours": fast.to(memory_format=torch.channels_last)}
        xs = {k: x.to(memory_format=torch.channels_last) if k == "ours" else x for k in nets}
        steps = {k: stepper(m, xs[k], y, k.startswith("ours")) for k, m in nets.items()}
        for s in steps.values(): s()
        ts = {k: [] for k in nets}
        for _ in range(repeats):  # in turn, so that other load meets all alike
            for k, s in steps.items(): ts[k].append(cpu(s))
        # identical masks: the same scores go to every network, and all are asked again
        base = [m.scores.detach() for m in supermask_layers(nets["ours"]).values()]
        for k, m in nets.items():
            if k.startswith("ours"): layers = list(supermask_layers(m).values())
            else: layers = [l for l in m.modules() if isinstance(l, SortLayer)]
            for l, s in zip(layers, base): l.scores.data.copy_(s)
            m.eval()
            with torch.no_grad(): m(xs[k][:2])
        ours = [l.mask() for l in supermask_layers(nets["ours"].train().eval()).values()]
        for k in ("sort, 1x1 convolutions", "sort, linear"):
            assert all(torch.equal(a, l.mask) for a, l in zip(ours, [l for l in nets[k].modules() if isinstance(l, SortLayer)])), k
        te = {k: [] for k in nets}
        with torch.no_grad():
            for _ in range(repeats+1):
                for k, m in nets.items(): te[k].append(cpu(lambda: m(xs[k])))
        med = lambda v: sorted(v)[len(v)//2]
        for k in nets:
            rows.append(dict(network=name, layer=k, step_ms=1000*med(ts[k]), evaluation_ms=1000*med(te[k][1:]), step_ratio=med(ts["sort, 1x1 convolutions"])/med(ts[k]),
                             evaluation_ratio=med(te["sort, 1x1 convolutions"][1:])/med(te[k][1:]), batch=128, threads=1, repeats=repeats))
    keep_rows("biprop_speed.csv", rows, ["network", "layer"])


# ---- learning

def search(learn, recipe, folder, until):
    "Search until so many epochs are done, going on from what there is; the search and its CPU seconds"
    resume = (Path(folder)/"last.safetensors").exists()
    with learn.no_bar(), learn.no_logging(): found = learn.find_ticket(recipe, folder, resume, until)
    return found, sum(r["cpu_seconds"] for r in found.rows)


def train_conv2(folder, seed, init="kn"):
    "One epoch of the hundred of the published recipe, on all but ten training images; nothing is chosen"
    r = Recipe.of("conv2", valid=.0002, seed=int(seed), init=init); learn = ticket_learner(r)
    found, seconds = search(learn, r, f"{folder}/conv2-{init}-{seed}", 1); k, n = count_correct(learn.model, learn.dls.test); low, high = wilson(k, n)
    keep_rows("biprop_conv2_cifar10.csv", [dict(recipe=f"conv2, {init}", seed=int(seed), images=len(learn.dls.train.dataset), epochs=1, of_epochs=r.epochs, keep=r.keep, lr=r.lr,
        bs=r.bs, train_loss=found.rows[-1]["train_loss"], correct=k, of=n, accuracy=k/n, low=low, high=high, cpu_seconds=seconds)], ["recipe", "seed"])


def train_mnist(folder, net, seed, epochs):
    "A ticket trained to the end, the random ticket that it starts from, and the dense network with the same budget of epochs"
    name = {"fc": "mnist_fc", "conv2": "mnist_conv2"}[net]; seed, epochs = int(seed), int(epochs); rows = []
    r = Recipe.of(name, epochs=epochs, seed=seed, **(dict(net_options=dict(width=.25)) if net == "conv2" else {}))
    learn = ticket_learner(r); dense = copy.deepcopy(learn.model); test = learn.dls.test
    def row(arm, model, seconds):
        k, n = count_correct(model, test); low, high = wilson(k, n)
        rows.append(dict(network=net, arm=arm, seed=seed, epochs=epochs, keep=r.keep, correct=k, of=n, accuracy=k/n, low=low, high=high, cpu_seconds=round(seconds, 1)))
    found, seconds = search(learn, r, f"{folder}/{name}-{seed}-{epochs}", None); row("ticket", learn.model, seconds)
    row("random ticket", to_supermask(dense, keep=r.keep, init=r.init, seed=r.seed), 0.)
    start = time.process_time(); sgd = Learner(learn.dls, dense, metrics=accuracy, opt_func=partial(SGD, mom=.9))
    with sgd.no_bar(), sgd.no_logging():
        sgd.fit_one_cycle(epochs, 1e-2)
    row("dense, trained", dense, time.process_time()-start)
    keep_rows("biprop_mnist.csv", rows, ["network", "arm", "seed", "epochs"])


if __name__ == "__main__":
    what, *args = sys.argv[1:]
    dict(speed=speed, conv2=train_conv2, mnist=train_mnist)[what](*args)
