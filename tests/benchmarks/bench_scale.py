"""Seconds and memory as the work grows: python tests/benchmarks/bench_scale.py [OUT.csv]   (needs OAMIP_DATA, Linux)

Each row is one call in a process of its own, forked from one that has imported everything and holds the images: CPU seconds on one thread, and by how much the call raised the
peak of the resident memory (ru_maxrss). The network is read and a small call is made first, so that what is loaded on first use counts as neither; that level is `baseline_mb`.
Fully-connected networks on MNIST, trained for a moment; images, units of a layer or layers grow, the others stay. A run that is stopped goes on where it was: rows that OUT.csv
(default nbs/results/scale.csv) holds are not computed again."""
import ctypes
import multiprocessing as mp
import resource
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

from functools import partial
import fastai.callback.progress  # Learner.no_bar
import torch
from bench_compare import shuffled
from bench_mint import Rows
from fastai.basics import Learner
from oamip_nb.baselines import baseline_importance
from oamip_nb.biprop import supermask_layers, to_supermask
from oamip_nb.data import image_dls, tensors
from oamip_nb.importance import neuron_importance, read_tensors, write_tensors
from oamip_nb.descent import descent_importance
from oamip_nb.mip import mip_importance
from oamip_nb.mint import mint_scores
from oamip_nb.models import reset
from torch import nn
from torch.nn import functional as F

HALF, FORMAT = dict(params=.5), "oamip_nb.scale/1"
END = 15.   # an axis goes no further than the first call that takes so many CPU seconds
SHORT = .1  # calls of fewer are measured three times


# ---- the calls: (network, images, labels) -> what is measured, ready to be called

def score(method, **kw): return lambda model, x, y: partial(neuron_importance, model, x, y, method=method, **kw)
def mint(model, x, y): return partial(mint_scores, model, x, y, 10, 10, len(x)//10)
def known(model, x, y): return partial(torch.ones, len(x), 2**18)  # n MB: what the measurement of memory is worth


def box(model, x, y):
    "The sound program in a box around the scores of descent, which are made before"
    start = descent_importance(model, x, y, gate="subtract", steps=100)
    return partial(mip_importance, model, x, y, radius=.01, start=start, time_limit=300.)


def biprop(model, x, y):
    "One epoch of the search for a mask"
    def epoch():
        net = to_supermask(model, keep=.5); opt = torch.optim.SGD([m.scores for m in supermask_layers(net).values()], .1, .9)
        for xb, yb in zip(x.split(128), y.split(128)): F.cross_entropy(net(xb), yb).backward(); opt.step(); opt.zero_grad()
    return epoch


METHODS = dict(relaxed=score("relaxed"), published=score("published", time_limit=300.), box=box, descent=score("descent", budget=HALF, steps=50), refit=score("refit", budget=HALF, tries=0), mint=mint, biprop=biprop, taylor=lambda model, x, y: partial(baseline_importance, "taylor", model, x, y))
MANY = dict(n=[1000, 2000, 4000, 8000], units=[64, 256, 512, 1024], layers=[2, 4, 8])
FEW = dict(n=[10, 20, 40, 80, 160, 320], units=[32, 64, 128, 256, 512], layers=[1, 2, 4, 8])
GRIDS = dict(relaxed=FEW, published=FEW|dict(units=FEW["units"][:4]), box=dict(n=[10, 20, 40, 160], units=[32, 64, 128, 256], layers=[1, 2, 4]), descent=MANY|dict(units=[64, 256, 512]), refit=MANY,
             biprop=MANY, taylor=MANY|dict(units=[*MANY["units"], 2048]), mint=dict(n=[500, 1000, 2000], units=[64, 256, 1024], layers=[2, 3, 4]))
BASE = {m: dict(n=20 if g["n"][0] == 10 else 2000, units=64, layers=2) for m, g in GRIDS.items()}


def network(units, layers, seed=0):
    sizes = [784]+[units]*layers
    return reset(nn.Sequential(nn.Flatten(), *[m for i, o in zip(sizes, sizes[1:]) for m in (nn.Linear(i, o), nn.ReLU())], nn.Linear(units, 10)), seed)


def forked(f, *args):
    "What `f` returns, called in a process of its own"
    ctypes.CDLL("libc.so.6").malloc_trim(0); here, there = mp.Pipe(False)
    p = mp.get_context("fork").Process(target=lambda: there.send(f(*args))); p.start(); there.close()
    try: return here.recv()
    except EOFError: p.join(); raise RuntimeError(f"the process of {f.__name__}{args[-1:]} ended with exit code {p.exitcode}") from None
    finally: p.join()


def balanced(x, y, seed=0):
    "Images and labels in an order of which any 10 k first ones are k of each of the ten classes"
    x, y = shuffled(x, y, seed); k = int(y.bincount().min()); order = torch.stack([torch.where(y == c)[0][:k] for c in range(10)], 1).flatten(); return x[order], y[order]


def train(path, dls, units, layers):
    "A network that has seen a few thousand images twice, kept in a file"
    learn = Learner(dls, network(units, layers)); torch.manual_seed(0)
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-3)
    write_tensors(path, learn.model.cpu().state_dict(), FORMAT, {})


def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024  # MB


def fresh_peak():
    "Give back what is free, and let the peak be what is held now"
    ctypes.CDLL("libc.so.6").malloc_trim(0); Path("/proc/self/clear_refs").write_text("5"); return peak()


def measured(call, path, x, y, units, layers):
    "CPU seconds, and MB that the call added to the peak of this process"
    torch.set_num_threads(1); model = network(units, layers); model.load_state_dict(read_tensors(path, FORMAT)[0]); model.eval()
    call(network(12, 1).eval(), x[:100], y[:100])(); run = call(model, x, y)
    before, t, w = fresh_peak(), time.process_time(), time.time(); out = run()
    return dict(cpu_seconds=round(time.process_time()-t, 3), wall_seconds=round(time.time()-w, 2), extra_mb=round(peak()-before, 1), baseline_mb=round(before, 1), status=getattr(getattr(out, "certificate", None), "status", ""))


def main(out="nbs/results/scale.csv"):
    rows = Rows(out, ("method", "grows", "n", "units", "layers", "repeat")); X, Y = balanced(*tensors(image_dls("MNIST").train)); few = image_dls("MNIST", n=6000)
    with tempfile.TemporaryDirectory() as folder:
        def row(method, grows, call, n, units, layers, repeat):
            key = dict(method=method, grows=grows, n=n, units=units, layers=layers, repeat=repeat); path = Path(folder)/f"{units}x{layers}.safetensors"
            if rows.has(**key): return next(r["cpu_seconds"] for r in rows.rows if rows.key(r) == rows.key(key))
            if not path.exists(): forked(train, path, few, units, layers)
            got = forked(measured, call, path, X[:n], Y[:n], units, layers); params = sum(p.numel() for p in network(units, layers).parameters())
            rows.add(**key, params=params, **got, highspy=version("highspy")); return got["cpu_seconds"]
        for n in (50, 500): row("known memory", "images", known, n, 64, 2, 0)
        for method, call in METHODS.items():
            for grows, name in dict(images="n", units="units", layers="layers").items():
                for v in GRIDS[method][name]:
                    took = row(method, grows, call, **BASE[method]|{name: v}, repeat=0)
                    for repeat in (1, 2) if took < SHORT else (): row(method, grows, call, **BASE[method]|{name: v}, repeat=repeat)
                    if took > END: break


if __name__ == "__main__":
    warnings.simplefilter("ignore"); torch.set_num_threads(1)
    if sys.platform != "linux": sys.exit("bench_scale.py: ru_maxrss and malloc_trim are used as Linux has them")
    main(*sys.argv[1:])
