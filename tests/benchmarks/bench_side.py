"""One network, one budget, every tool as its users call it: python tests/benchmarks/bench_side.py accuracy|latency OUT.csv [seeds]

LeNet-5 on MNIST (needs OAMIP_DATA), .7 of the parameters removed; the networks are those of bench_compare.py. accuracy: right test images before and after one epoch of
fine-tuning, sizes, seconds to prune. latency: medians of processor time for one and for 256 images, seed 0, into a new file. Needs `pip install fasterai` besides the package.
Rows that OUT.csv holds are not computed again."""
import copy
import io
import os
import sys
import time
import warnings
from contextlib import redirect_stdout
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
import torch_pruning as tp
from bench_compare import SETTINGS, fit, shuffled, trained
from fasterai.core.criteria import large_final
from fasterai.prune.pruner import Pruner
from oamip_nb.baselines import baseline_importance
from oamip_nb.data import calibration_batch, image_dls, tensors
from oamip_nb.export import time_in_turn
from oamip_nb.importance import neuron_importance
from oamip_nb.pruning import _hardware, _versions, count_correct, remove, select, sizes

BUDGET = .7
META = _versions()|dict(fasterai=version("fasterai"))|_hardware()


def scored(score, repair=None):
    "A pruner from a function that scores: the units with the highest scores stay, as many as the budget allows"
    def prune(model, x, y, dls, seed):
        imp = score(model, x, y, dls, seed); sel = select(imp, params=BUDGET, fill=True)
        return remove(model, sel, x[:5000], repair=repair)
    return prune


def by_method(method, model, x, y, dls, seed): return neuron_importance(model, x, y, method=method, budget=dict(params=BUDGET), seed=seed)
def published(model, x, y, dls, seed): return neuron_importance(model, *calibration_batch(dls, 10, seed=seed), method="published")
def criterion(name, model, x, y, dls, seed): return baseline_importance(name, model, x[:2000], y[:2000], seed=seed)


def at_budget(prune, model):
    "The network of the smallest pruning ratio that removes the budget: these tools take a share of the channels, not of the parameters"
    full, low, high = sum(p.numel() for p in model.parameters()), 0., 1.
    for _ in range(10):
        ratio = (low+high)/2; net = prune(copy.deepcopy(model), ratio)
        if sum(p.numel() for p in net.parameters()) <= (1-BUDGET)*full: high, best = ratio, net
        else: low = ratio
    return best.requires_grad_(True)


def torch_pruning(importance, gradients, model, x, y, dls, seed):
    def prune(net, ratio):
        if gradients: net.zero_grad(); F.cross_entropy(net(x[:2000]), y[:2000]).backward()
        out = list(net.modules())[-1]; tp.pruner.MetaPruner(net, x[:1], importance=importance, global_pruning=True, pruning_ratio=ratio, ignored_layers=[out]).step(); return net
    return at_budget(prune, model)


def fasterai(model, x, y, dls, seed):
    def prune(net, ratio):
        with redirect_stdout(io.StringIO()): Pruner(net, ratio, "global", large_final, example_inputs=x[:1]).prune_model()
        return net
    return at_budget(prune, model)


TOOLS = {"descent": scored(partial(by_method, "descent")), "descent, repaired": scored(partial(by_method, "descent"), "lstsq"), "refit, repaired": scored(partial(by_method, "refit"), "lstsq"),
    "published, 10 images": scored(published), "published, repaired": scored(published, "lstsq"),
    **{n+r: scored(partial(criterion, n), "lstsq" if r else None) for n in ("magnitude", "taylor", "random") for r in ("", ", repaired")},
    "Torch-Pruning magnitude": partial(torch_pruning, tp.importance.GroupMagnitudeImportance(), False), "Torch-Pruning Taylor": partial(torch_pruning, tp.importance.GroupTaylorImportance(), True), "fasterai": fasterai}


class Rows:
    def __init__(self, out): self.out = Path(out); self.rows = pd.read_csv(out).to_dict("records") if self.out.exists() else []
    def has(self, seed, tool): return any((r["seed"], r["tool"]) == (seed, tool) for r in self.rows)
    def add(self, **row):
        self.rows.append(row|META); part = self.out.with_suffix(".part"); pd.DataFrame(self.rows).to_csv(part, index=False); os.replace(part, self.out); print({k: row[k] for k in list(row)[:8]}, flush=True)


def networks(seed, wanted):
    "Name, network and CPU seconds of every tool that is wanted"
    dls = image_dls("MNIST", seed=seed); x, y = shuffled(*tensors(dls.train), seed); model = trained("lenet5", seed, dls)
    if wanted("dense"): yield "dense", model, 0., dls, x
    for tool, prune in TOOLS.items():
        if wanted(tool): torch.manual_seed(seed); t = time.process_time(); net = prune(model, x, y, dls, seed); yield tool, net.eval(), time.process_time()-t, dls, x


def times(rows):
    "Latencies of all networks, each in its turn, since a machine is not equally fast for minutes"
    made = list(networks(0, lambda tool: True)); nets = {tool: net for tool, net, *_ in made}; x = made[0][-1]
    ms = {b: time_in_turn({tool: partial(net, x[:b]) for tool, net in nets.items()}) for b in (1, 256)}
    for tool in nets: rows.add(seed=0, tool=tool, **{f"ms_{b}": round(ms[b][tool], 4) for b in ms})


def main(what, out, seeds="012"):
    rows = Rows(out)
    if what == "latency": return times(rows)
    for seed in map(int, seeds):
        for tool, net, seconds, dls, x in networks(seed, lambda t: not rows.has(seed, t)):
            k, n = count_correct(net, dls.test); s = sizes(net, x[:1])
            tuned, _ = (None, 0) if tool == "dense" else count_correct(fit(net, dls, 1, 1e-3, SETTINGS["lenet5"].shift), dls.test)
            rows.add(seed=seed, tool=tool, right=k, tuned=tuned, n=n, params=s["params"], macs=s["macs"], bytes=s["bytes"], prune_cpu_seconds=round(seconds, 2))


if __name__ == "__main__": warnings.simplefilter("ignore"); torch.set_num_threads(1); main(*sys.argv[1:])
