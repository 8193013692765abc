"Many scorings on a real Dask cluster of two worker processes and on processes of this machine: a dead worker costs its own job."
import os
import signal
import time
from functools import partial

import pytest
import torch
from joblib import parallel_config
from joblib.externals.loky import get_reusable_executor
from torch import nn
from oamip_nb.jobs import Job, run_many, score_many


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.ReLU(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


def jobs(n=6):
    model = network()
    x, y = torch.rand(6, 1, 6, 6), torch.arange(6) % 3
    return [Job(f"lam {lam}", model, x, y, dict(method="published", lam=lam)) for lam in range(1, n + 1)]


def same(a, b):
    assert list(a) == list(b)
    assert all(torch.equal(a[n].scores[k], b[n].scores[k]) for n in a for k in a[n].scores)


def slow_square(i, seconds=.3): time.sleep(seconds); return i * i
def die(): os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed", reason="dask[distributed] is not installed")
    import dask
    limits = {"distributed.scheduler.allowed-failures": 1, "distributed.worker.daemon": True}
    with dask.config.set(limits), distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as c, distributed.Client(c) as client:
        yield client


@pytest.fixture(scope="module", autouse=True)
def no_processes_left():
    yield
    get_reusable_executor().shutdown(wait=True, kill_workers=True)


def test_dask_worker_killed_during_the_run(cluster, tmp_path):
    "Every score is there and the same as in turn: Dask moves the job of the dead worker to another"
    pids, killed, want = cluster.run(os.getpid), [], score_many(jobs()).all()
    assert len(set(pids.values())) == 2

    def kill_one(done, total, name):
        if done == 2: killed.append(next(iter(pids.values()))); os.kill(killed[0], signal.SIGKILL)

    with parallel_config(backend="dask"): got = score_many(jobs(), cache=tmp_path, progress=kill_one)
    same(got.all(), want)
    assert killed and all(t > 0 for t in got.cpu.values()) and len(list(tmp_path.iterdir())) == len(want)
    cluster.wait_for_workers(2, timeout=100)
    assert killed[0] not in cluster.run(os.getpid).values()
    with parallel_config(backend="dask"): again = score_many(jobs(), cache=tmp_path)
    same(again.all(), want)
    assert not any(again.cpu.values())


@pytest.mark.slow
def test_dask_job_that_kills_its_workers(cluster):
    "It is reported by name, and the others come back"
    cluster.wait_for_workers(2, timeout=100)
    calls = {f"call {i}": partial(slow_square, i, .05) for i in range(4)}
    with parallel_config(backend="dask"): o = run_many(calls | {"killer": die})
    assert o.done == {f"call {i}": i * i for i in range(4)}
    assert list(o.failed) == ["killer"] and "died" in o.failed["killer"]


@pytest.mark.slow
def test_processes_killed_once_and_always():
    "A worker killed from outside costs nothing; one that its job kills costs that job"
    seen = []

    def kill_one(done, total, name):
        seen.append(name)
        if done == 1: os.kill(next(iter(get_reusable_executor(reuse=True)._processes)), signal.SIGKILL)

    o = run_many({f"call {i}": partial(slow_square, i) for i in range(5)} | {"killer": die}, n_jobs=2, progress=kill_one)
    assert o.done == {f"call {i}": i * i for i in range(5)}
    assert list(o.failed) == ["killer"] and "died twice" in o.failed["killer"]
    assert sorted(seen) == sorted([*o.done, "killer"])


def test_ctrl_c_keeps_what_is_finished():
    "SIGINT, as a terminal sends it, in the middle of a pool: finished calls are returned, running ones end"
    hit = lambda done, total, name: os.kill(os.getpid(), signal.SIGINT) if done == 2 else None
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try: o = run_many({f"call {i}": partial(slow_square, i, .2 if i < 2 else 900) for i in range(4)}, n_jobs=2, progress=hit)
    finally: signal.signal(signal.SIGINT, handler)
    assert o.interrupted and o.done == {"call 0": 0, "call 1": 1} and o.seconds < 300
    with pytest.raises(KeyboardInterrupt): o.all()
