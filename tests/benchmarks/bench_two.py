"""Two processes at work, on the digits; results are checked against one process and go to nbs/results/two_processes.csv.

    python tests/benchmarks/bench_two.py dask      # classes and layers scored by a Dask cluster of two workers
    python tests/benchmarks/bench_two.py finetune  # a pruned network trained on by one process, and by two of torchrun, each with its half of every batch"""
import copy
import io
import os
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import redirect_stdout
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")  # of this process and of those that it starts
import fastai.callback.progress  # Learner.no_bar
import fastai.callback.schedule  # Learner.fit_one_cycle
import torch
import torch.distributed as dist
from bench_biprop import keep_rows
from dask.distributed import Client, LocalCluster
from fastai.basics import Callback, Learner, accuracy, num_distrib, rank_distrib
from joblib import parallel_config
from oamip_nb.callbacks import *  # learn.prune
from oamip_nb.data import calibration_batch, image_dls
from oamip_nb.find_ticket import data_parallel
from oamip_nb.jobs import Job, score_many
from oamip_nb.models import fc_baseline
from oamip_nb.network import trace
from oamip_nb.parts import combine
from oamip_nb.pruning import count_correct, load_pruned, save_pruned, wilson

BATCH = 64  # images of one step, over all processes


def keep(**row):
    "One row of the file, in place of an older one of as many processes"
    with redirect_stdout(io.StringIO()): keep_rows("two_processes.csv", [row], ["recipe", "processes"])


def trained():
    dls = image_dls("digits", bs=BATCH); learn = Learner(dls, fc_baseline(dls, seed=0), metrics=accuracy); torch.manual_seed(0)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(5, 5e-3)
    return learn


def jobs(learn, n=20):
    "The published program for the images of one class, and for one layer with the images of all"
    model = learn.model.cpu().eval(); x, y = calibration_batch(learn.dls, n=n)
    def of_class(c): return calibration_batch(learn.dls, n=n, classes=c)
    return [Job(f"class {c}", model, *of_class(c), dict(method="published")) for c in range(10)]+[Job(f"layer {l}", model, x, y, dict(method="published", layers=(l,))) for l in trace(model, x).units]


def on_dask(work):
    "Score on a cluster of this machine; with `Client('scheduler:8786')` in place of the first line, on one of many machines"
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        with parallel_config(backend="dask"): return score_many(work), len(set(client.run(os.getpid).values()))


def dask():
    work = jobs(trained()); turn = score_many(work); two, workers = on_dask(work); a, b = turn.all(), two.all()
    assert all(torch.equal(a[n].scores[k], b[n].scores[k]) for n in a for k in a[n].scores)
    for p, o in ((1, turn), (workers, two)):
        keep(recipe="dask", processes=p, jobs=len(work), wall_seconds=round(o.seconds, 2), cpu_seconds=round(sum(o.cpu.values()), 2), largest_difference=0.); print(f"{p} process(es): {o}")
    print("the same scores to the last bit;", combine({n: s for n, s in b.items() if n.startswith("class")}))


def parts(t):
    "A tensor of each process, this one included"
    out = [torch.empty_like(t) for _ in range(max(1, num_distrib()))]; dist.all_gather(out, t) if num_distrib() else out[0].copy_(t); return out


class SameGradient(Callback):
    "Compare the first gradient with that of one process which sees all images of the step"
    order = 1000; far = None
    def before_batch(self):
        if self.far is not None: return
        one = copy.deepcopy(getattr(self.learn.model, "module", self.learn.model)); x, y = (torch.cat(parts(t.as_subclass(torch.Tensor).contiguous())) for t in (self.x, self.y))
        self.loss_func(one(x), y).backward(); self.want = [p.grad for p in one.parameters()]
    def before_step(self):
        if self.far is None: self.far = max(float((p.grad-w).abs().max()/w.abs().max()) for p, w in zip(self.learn.model.parameters(), self.want))


def train_on(file, *cbs, epochs=10):
    "Train a pruned network on: the same lines for one process and for each of several that torchrun starts"
    world = max(1, num_distrib()); dls = image_dls("digits", bs=BATCH//world)
    learn = Learner(dls, load_pruned(file, fc_baseline(dls)), metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fine_tune_pruned(epochs, 5e-3, cbs=[*cbs, *([data_parallel(dls.device)] if world > 1 else [])])
    return learn


def worker(file, epochs=10):
    "The recipe with its checks"
    dls = image_dls("digits"); before, n = count_correct(load_pruned(file, fc_baseline(dls)), dls.test); check = SameGradient(); wall, cpu = time.time(), time.process_time(); torch.manual_seed(0)
    learn = train_on(file, check, epochs=epochs); wall, cpu = time.time()-wall, time.process_time()-cpu; world = max(1, num_distrib()); model = learn.model.eval()
    assert all(torch.equal(o, p.data) for p in model.parameters() for o in parts(p.data)) and check.far < 1e-4  # the same network in every process
    right, _ = count_correct(model, learn.dls.test); low, high = wilson(right, n)
    if not rank_distrib():
        keep(recipe="fine-tuning", processes=world, images_per_step=BATCH, epochs=epochs, params=sum(p.numel() for p in model.parameters()), pruned=before, correct=right, tested=n, low=low, high=high,
             wall_seconds=round(wall, 2), cpu_seconds=round(cpu, 2), largest_difference=check.far)
        print(f"{world} process(es): {before}/{n} right before, {right}/{n} after; the first gradient is that of one process but for {check.far:.1e} of its largest entry; {cpu:.1f} CPU s in this one", flush=True)
    if world > 1: dist.destroy_process_group()


def finetune():
    learn = trained(); imp = learn.neuron_importance(method="refit", budget=dict(params=.8)); rep = learn.prune(imp, params=.8, repair=None, batches=(1,)); me = [__file__, "worker"]
    with tempfile.TemporaryDirectory() as folder:
        file = save_pruned(Path(folder)/"pruned.safetensors", learn.model, rep.origin.selection, learn.dls.one_batch()[0])
        for launch in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]): subprocess.run([sys.executable, *launch, *me, file], check=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore"); torch.set_num_threads(1); dict(dask=dask, finetune=finetune, worker=worker)[sys.argv[1]](*sys.argv[2:])
