"""Certificates, exchanges with proof, and the growth of the work: python tests/benchmarks/bench_mip.py certificates|exchanges|scaling|blocks [OUT.csv]
(`blocks` writes VGG-7 to OUT.csv and ResNet-20 to mip_resnet20.csv beside it.)

Needs OAMIP_ORACLES and OAMIP_DATA (certificates), OAMIP_DATA (exchanges) or nothing (scaling, blocks: the digits, random images). One process, one thread, CPU seconds. A run that is
stopped goes on where it was: rows that OUT.csv (default nbs/results/mip_WHAT.csv) holds are not computed again."""
import resource
import sys
import time
import warnings
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import torch
from bench_compare import shuffled
from bench_compare import trained as dense_network
from fastai.basics import Learner
from fastai.callback.progress import ProgressCallback  # gives Learner its no_bar
from fastai.callback.schedule import *
from oamip_nb.data import calibration_batch, image_dls, tensors
from oamip_nb.descent import descent_importance
from oamip_nb.experiments import sweep
from oamip_nb.formulation import build_program
from oamip_nb.importance import _part, neuron_importance
from oamip_nb.mip import _box, _by_layer, _single, block_importance, enumerated_exchanges, lp_tightened, mip_importance, sound_program
from oamip_nb.models import reset, resnet20, vgg7
from oamip_nb.network import trace
from oamip_nb.pruning import Selection, count_correct, remove, select, wilson
from oamip_nb.solvers import solve
from oracles import trained
from torch import nn

LIMIT = 60.  # CPU seconds of one certificate


class Clock:
    "CPU and wall-clock seconds of what runs inside"
    def __enter__(self): self.cpu, self.wall = time.process_time(), time.time(); return self
    def __exit__(self, *_): self.cpu, self.wall = time.process_time()-self.cpu, time.time()-self.wall


def reached(history, gap):
    "CPU seconds at which the gap was closed to `gap`, None if it was not"
    return next((round(t, 2) for t, f, b in history if np.isfinite(b) and f-b <= gap*abs(f)), None)


@lru_cache
def batch(network, n):
    "Reference network and images"
    model, x, y, _ = trained(network)
    if n != len(x): x, y = calibration_batch(image_dls("MNIST"), n=n)
    return model, x, y, trace(model, x)


@lru_cache
def descended(network, n, cost):
    "Scores of descent, CPU seconds, and how much longer the clock ran on a machine with other work"
    model, x, y, _ = batch(network, n)
    with Clock() as c: imp = descent_importance(model, x, y, cost=cost, gate="subtract", steps=1500)
    return imp, c.cpu, max(1., c.wall/c.cpu)


def certificate(network, n, cost, radius, tighten, seed, lam, goal):
    "Descent and the certificate of one box"
    model, x, y, net = batch(network, n); imp, begin, slow = descended(network, n, cost)
    s = _single(_by_layer(net, {k: v.numpy() for k, v in imp.scores.items()})); p = sound_program(net, x, y, *_box(net, s, radius, ()), start=s, pairs=tighten != "interval")
    if tighten == "lp": p = lp_tightened(p, lam, cost)
    history, t0 = [], time.process_time(); note = lambda t, f, b: history.append((time.process_time()-t0, f, b))
    with Clock() as c: out = mip_importance(model, x, y, lam, cost, radius, start=s, gap=goal, tighten=tighten, time_limit=LIMIT*slow, progress=note)
    v = out.certificate
    return dict(relus=len(x)*sum(int(np.prod(st.shape)) for st in net.stages if st.kind == "relu"), open_signs=int(p.integer.sum()), start_seconds=round(begin, 2), seconds=round(c.cpu, 2),
                wall=round(c.wall, 1), objective=v.objective, bound=v.bound, gap=v.gap, status=v.status, to_half_percent=reached(history, 5e-3), to_fifth_percent=reached(history, 2e-3), highspy=version("highspy"))


def certificates(out):
    fixed = dict(lam=5., goal=2e-3); run = lambda **grid: sweep(partial(certificate, **fixed), {k: grid[k] for k in ("network", "n", "cost", "radius", "tighten")}, (0,), out, fixed, progress=print)
    run(network=["fc3"], n=[10], cost=["largest"], radius=[.05, .1], tighten=["facets"])
    run(network=["fc3"], n=[10], cost=["largest"], radius=[.05], tighten=["interval", "pairs", "lp"])
    run(network=["lenet"], n=[10], cost=["largest"], radius=[.005, .01], tighten=["facets"])
    run(network=["lenet"], n=[10], cost=["largest"], radius=[.005], tighten=["interval", "pairs", "lp"])
    run(network=["fc3"], n=[50], cost=["largest"], radius=[.02, .05], tighten=["facets"])
    run(network=["fc3"], n=[10], cost=["units"], radius=[.05, .1], tighten=["facets"])
    run(network=["fc3"], n=[10], cost=["largest"], radius=[.2, .15], tighten=["facets"])
    run(network=["lenet"], n=[10], cost=["largest"], radius=[.02], tighten=["facets"])
    run(network=["fc3"], n=[50], cost=["largest"], radius=[.1], tighten=["facets"])
    run(network=["fc3"], n=[10], cost=["largest"], radius=[.1], tighten=["pairs"])
    run(network=["lenet"], n=[10], cost=["largest"], radius=[.05, .1], tighten=["facets"])
    run(network=["fc3"], n=[50], cost=["largest"], radius=[.07], tighten=["facets"])
    run(network=["fc3"], n=[10], cost=["largest"], radius=[.12], tighten=["facets"])


@lru_cache
def mnist(seed):
    "Dense FC-3, its data, training images in an order of the seed"
    dls = image_dls("MNIST", seed=seed); return dense_network("fc3", seed, dls), dls, *shuffled(*tensors(dls.train), seed)


def counted(model, dls, keep, x):
    "Right answers on the test images, plain and repaired on training images"
    sel, out = Selection(keep), {}
    for name, kw in dict(plain={}, repaired=dict(repair="lstsq")).items():
        k, n = count_correct(remove(model, sel, x if kw else x[:1], **kw), dls.test); low, high = wilson(k, n)
        out |= {name: k, f"{name}_low": low, f"{name}_high": high, "n_test": n}
    return out


def exchange(removed, start, seed, images, many):
    "A selection by descent on few or many images, and what exchanges with proof on the few make of it"
    model, dls, x, y = mnist(seed); b = dict(params=removed); xb, yb = calibration_batch(dls, n=images, seed=seed); a, c = (xb, yb) if start == "few" else (x[:many], y[:many])
    with Clock() as t: imp = descent_importance(model, a, c, budget=b, seed=seed)
    keep = select(imp, **b).keep; slow = max(1., t.wall/t.cpu); first = {n: k.float() for n, k in keep.items()}; rows = []
    def add(search, n, keep, seconds, cert=None):
        known = dict(objective=cert.objective, gap=cert.gap, status=cert.status, note=cert.note) if cert else {}
        rows.append(dict(search=search, n=n, seconds=round(seconds, 2), changed=int(sum((keep[k] != first[k].bool()).sum() for k in keep)), **known, **counted(model, dls, keep, x[:10_000])))
    add("none", len(a), keep, t.cpu)
    with Clock() as t: one = enumerated_exchanges(model, xb, yb, first, b, time_limit=120*slow)
    add("every exchange", images, {n: s > .5 for n, s in one.scores.items()}, t.cpu, one.certificate)
    return rows


def proved_exchange(k, how, removed, n, seed, goal, limit):
    "What the program or the list of all exchanges proves around a selection by descent; the program within a time limit"
    model, dls, x, y = mnist(seed); b = dict(params=removed); xs, ys = calibration_batch(dls, n=n, seed=seed)
    with Clock() as t: imp = descent_importance(model, xs, ys, budget=b, seed=seed)
    keep = select(imp, **b).keep; first = {n: s.float() for n, s in keep.items()}
    with Clock() as u:
        if how == "program": out = mip_importance(model, xs, ys, binary=True, budget=b, exchanges=k, start=first, gap=goal, time_limit=limit*max(1., t.wall/t.cpu))
        else: out = enumerated_exchanges(model, xs, ys, first, b, time_limit=None, exchanges=k)
    c = out.certificate; now = {n: s > .5 for n, s in out.scores.items()}
    return dict(seconds=round(u.cpu, 2), objective=c.objective, bound=c.bound, gap=c.gap, status=c.status, note=c.note, changed=int(sum((now[n] != keep[n]).sum() for n in keep)),
                **{f"{k}_before": v for k, v in counted(model, dls, keep, x[:10_000]).items() if k in ("plain", "repaired")}, **counted(model, dls, now, x[:10_000]), highspy=version("highspy"))


def exchanges(out):
    proofs, limits = Path(out).with_name("mip_exchange_proofs.csv"), dict(goal=1e-2, limit=30.)
    sweep(partial(proved_exchange, **limits), dict(k=[1, 2], how=["program", "enumeration"], removed=[.85], n=[10]), (0,), proofs, limits, progress=print)
    for images, removed, starts in ((50, .85, ["few", "many"]), (500, .85, ["many"]), (50, .7, ["few", "many"])):
        fixed = dict(images=images, many=5000); sweep(partial(exchange, **fixed), dict(removed=[removed], start=starts), (0, 1), out, fixed, progress=print)


@lru_cache
def digits_network(units, layers):
    "A fully-connected network of equal layers, trained on the digits"
    dls = image_dls("digits"); sizes = [dls.train.dataset.x[0].numel()]+[units]*layers
    model = nn.Sequential(nn.Flatten(), *[m for i, o in zip(sizes, sizes[1:]) for m in (nn.Linear(i, o), nn.ReLU())], nn.Linear(units, 10)); reset(model, 0); learn = Learner(dls, model)
    torch.manual_seed(0)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(30, 3e-3)
    return model.cpu().eval(), dls


def grown(grows, n, units, layers, seed, lam, radius, goal, limit, steps):
    "The three methods on one network and batch"
    model, dls = digits_network(units, layers); x, y = calibration_batch(dls, n=n); net = trace(model, x); rows = []
    def add(method, t, cert, **more): rows.append(dict(method=method, seconds=round(t.cpu, 3), objective=cert.objective, bound=cert.bound, gap=cert.gap, status=cert.status, highspy=version("highspy"), **more))
    with Clock() as t: imp = neuron_importance(model, x, y, lam=lam, method="relaxed", gap=goal)
    add("relaxed", t, imp.certificate)
    with Clock() as t: imp = descent_importance(model, x, y, lam=lam, gate="subtract", steps=steps)
    add("descent", t, imp.certificate); slow = max(1., t.wall/t.cpu)
    s = _single(_by_layer(net, {k: v.numpy() for k, v in imp.scores.items()})); p = sound_program(net, x, y, *_box(net, s, radius, ()), start=s)
    with Clock() as t: imp = mip_importance(model, x, y, lam, radius=radius, start=s, gap=goal, time_limit=limit*slow)
    add("mip", t, imp.certificate, open_signs=int(p.integer.sum())); return rows


def scaling(out):
    digits_network(16, 1); descent_importance(digits_network(16, 1)[0], *calibration_batch(digits_network(16, 1)[1], n=10), steps=5)  # what is loaded on first use
    fixed = dict(lam=5., radius=.05, goal=2e-3, limit=6., steps=300); run = lambda **grid: sweep(partial(grown, **fixed), {k: grid[k] for k in ("grows", "n", "units", "layers")}, (0,), out, fixed, progress=print)
    run(grows=["images"], n=[10, 20, 40, 80], units=[64], layers=[2])
    run(grows=["units"], n=[20], units=[16, 32, 64, 128], layers=[2])
    run(grows=["layers"], n=[20], units=[64], layers=[1, 2, 3, 4])


def peak(): return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20, 2)  # of the whole process so far


def signs(b, net):
    "ReLUs whose sign the bounds leave open"
    return sum((b.lo[i-1] < 0).logical_and(b.hi[i-1] > 0).sum() for i, st in enumerate(net.stages) if st.kind == "relu")


def vgg_block(size, part, n, seed, lam, goal):
    "The relaxed program of one layer of VGG-7 with all that is behind it, the other layers whole; `eps` = 0, for interval bounds that start wider decide no sign"
    x, y = torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)), torch.arange(n) % 10; net = trace(vgg7((3, size, size), 10, init="kaiming_normal", seed=seed).eval(), x)
    with Clock() as t: part_net, h, b = _part(net, x, 0., (part,)); p = build_program(part_net, h, y, relax=True, bounds=b)
    with Clock() as u: c = solve(p, lam, gap=goal, time_limit=300.).certificate
    wide = _part(net, x, 1e-5, (part,))[2]; relus = n*sum(int(np.prod(st.shape)) for st in part_net.stages if st.kind == "relu")
    return dict(scores=p.n_scores, relus=relus, open_published=int(signs(wide, part_net)), open_signs=int(signs(b, part_net)), rows=p.A.shape[0], entries=p.A.nnz, build_seconds=round(t.cpu, 2), solve_seconds=round(u.cpu, 2), gap=c.gap, status=c.status, peak_gb=peak(), highspy=version("highspy"))


def resnet_block(part, n, seed, lam, goal):
    "The filters inside one block of ResNet-20, by the program on the signs of the dense network"
    x, y = torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed)), torch.arange(n) % 10; model = resnet20((3, 32, 32), 10, init="kaiming_normal", seed=seed).eval()
    with Clock() as t: imp = block_importance(model, x, y, part, lam=lam, gap=goal, time_limit=300.)
    c = imp.certificate; return dict(scores=len(imp.scores[f"{part}.conv1"]), seconds=round(t.cpu, 2), gap=c.gap, status=c.status, peak_gb=peak(), highspy=version("highspy"))


def blocks(out):
    fixed = dict(lam=5., goal=1e-3); res = Path(out).with_name("mip_resnet20.csv")
    resnet = lambda parts: sweep(partial(resnet_block, **fixed), dict(part=parts, n=[2]), (0,), res, fixed, progress=print)
    vgg = lambda size, parts: sweep(partial(vgg_block, **fixed), dict(size=[size], part=parts, n=[2]), (0,), out, fixed, progress=print)
    vgg(16, ["fc2", "fc1", "conv5"]); resnet(["layer3.2", "layer2.0", "layer1.0"]); vgg(16, ["conv4", "conv3", "conv2", "conv1"]); vgg(32, ["fc2", "fc1", "conv5"]); resnet([f"layer{i}.{j}" for i in (1, 2, 3) for j in (0, 1, 2)])


if __name__ == "__main__":
    warnings.simplefilter("ignore"); torch.set_num_threads(1); what = sys.argv[1]
    dict(certificates=certificates, exchanges=exchanges, scaling=scaling, blocks=blocks)[what](sys.argv[2] if len(sys.argv) > 2 else f"nbs/results/mip_{what}.csv")
