"The cache of scores: hits, misses, damage, and two processes that write the same entry at the same time."
import subprocess
import sys
import time
import warnings
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from oamip_nb import importance
from oamip_nb.importance import Importance, neuron_importance
from oamip_nb.jobs import score_key


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 3)).eval()


def batch(seed=0): return torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(seed)), torch.arange(6) % 3


def solves(*args, **kwargs):
    "How often the solver runs in a call, and the scores"
    with patch.object(importance, "solve", wraps=importance.solve) as s: out = neuron_importance(*args, method=kwargs.pop("method", "published"), **kwargs)
    return s.call_count, out


def test_same_is_read(tmp_path):
    "Another process, another object with the same content, other spellings of the same arguments"
    x, y = batch()
    n, first = solves(network(), x, y, cache=tmp_path, lam=5)
    again = [solves(network(), x.clone(), y.clone(), cache=str(tmp_path), **k) for k in (dict(), dict(lam=5.), dict(solver="highs"), dict(protect=[]), dict(progress=print))]
    assert n == 1 and [k for k, _ in again] == [0] * 5 and len(list(tmp_path.iterdir())) == 1
    assert all(torch.equal(imp.scores["1"], first.scores["1"]) and imp.certificate == first.certificate for _, imp in again)


def changed(what):
    "Arguments in which one thing differs"
    model, (x, y), more = network(), batch(), {}
    if what == "weight": model[1].weight.data[0, 0] += 1e-6
    elif what == "bias": model[4].bias.data[1] += 1e-6
    elif what == "statistics": model[2].running_mean[0] += 1e-3
    elif what == "eps of a BatchNorm": model[2].eps = 1e-3
    elif what == "image": x[0, 0, 0, 0] += 1e-6
    elif what == "labels": y = y.flip(0)
    elif what == "number of images": x, y = x[:3], y[:3]
    else: more = what
    return model, x, y, more


# the published cache knows none of these: its key is a path
CHANGES = ["weight", "bias", "statistics", "eps of a BatchNorm", "image", "labels", "number of images", dict(lam=4), dict(eps=1e-4), dict(method="relaxed"),
           dict(cost="params"), dict(gap=1e-5), dict(groups={"1": torch.arange(10) // 2}), dict(caps={"1": .5}), dict(time_limit=60), dict(solver="CLARABEL", method="relaxed")]


@pytest.mark.parametrize("what", CHANGES, ids=lambda w: w if isinstance(w, str) else "-".join(w))
def test_changed_is_scored_again(tmp_path, what):
    solves(network(), *batch(), cache=tmp_path)
    model, x, y, more = changed(what)
    assert solves(model, x, y, cache=tmp_path, **more)[0] == 1
    assert len(list(tmp_path.iterdir())) == 2
    assert solves(model, x, y, cache=tmp_path, **more)[0] == 0


def test_versions_are_part_of_the_key(tmp_path):
    from oamip_nb import jobs
    x, y = batch()
    keys = {score_key(network(), x, y, method="published")}
    real = jobs.version
    for package in ("oamip_nb", "torch", "numpy"):
        with patch.object(jobs, "version", lambda k: "0" if k == package else real(k)): keys.add(score_key(network(), x, y, method="published"))
    with patch.object(jobs, "_version", lambda k: "0"): keys.add(score_key(network(), x, y, method="published"))
    with patch.object(jobs, "_code", lambda: "edited"): keys.add(score_key(network(), x, y, method="published"))
    assert len(keys) == 6


def test_force_scores_again_and_replaces(tmp_path):
    x, y = batch()
    solves(network(), x, y, cache=tmp_path)
    file, = tmp_path.iterdir()
    before = file.stat().st_mtime_ns
    assert solves(network(), x, y, cache=tmp_path, force=True)[0] == 1
    assert [*tmp_path.iterdir()] == [file] and file.stat().st_mtime_ns > before


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.sampled_from(["cut", "flip", "foreign"]), st.integers(0, 9999), st.integers(0, 7))
def test_any_damage_is_announced_and_mended(tmp_path_factory, kind, at, bit):
    "A cut, a flipped bit, foreign bytes: never scores that nobody computed, never a silent 'no scores'"
    folder, (x, y) = tmp_path_factory.mktemp("cache"), batch()
    n, first = solves(network(), x, y, cache=folder)
    file, = folder.iterdir()
    whole = file.read_bytes()
    at = at * len(whole) // 10_000
    file.write_bytes(dict(cut=whole[:at], flip=whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1:], foreign=b"\x80\x04K\x01.")[kind])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        n, imp = solves(network(), x, y, cache=folder)
    assert torch.equal(imp.scores["1"], first.scores["1"])
    told = [w for w in said if "made again" in str(w.message)]
    assert len(told) == n and all(file.name in str(w.message) for w in told)
    if n: assert solves(network(), x, y, cache=folder)[0] == 0
    else: assert kind == "flip"  # of a byte that means nothing, such as padding in the header


def test_failed_and_interrupted_solves_are_not_kept(tmp_path):
    "The published code takes a failed solve for a solution"
    x, y = batch()
    unsolved = SimpleNamespace(certificate=SimpleNamespace(objective=float("inf"), status="unsolved"))
    with patch.object(importance, "solve", lambda *a: unsolved), pytest.raises(ValueError, match="found no point"): neuron_importance(network(), x, y, method="published", cache=tmp_path)
    def press(*_): raise KeyboardInterrupt
    assert solves(network(), x, y, cache=tmp_path, progress=press)[1].certificate.status == "interrupted"
    assert not list(tmp_path.iterdir())


WRITER = """
import sys, torch
from test_cache import batch, network
from oamip_nb.importance import neuron_importance
print(flush=True); sys.stdin.readline()
for _ in range(15): imp = neuron_importance(network(), *batch(), method='published', cache=sys.argv[1], force=True)
print(float(imp.scores['1'].sum()))
"""


def test_two_processes_write_one_entry(tmp_path):
    "A reader that runs all the while sees whole entries only, and no scraps stay behind"
    x, y = batch()
    want = solves(network(), x, y, cache=tmp_path)[1]
    file, = tmp_path.iterdir()
    both = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=__file__.rsplit("/", 1)[0]) for _ in range(2)]
    for p in both: p.stdout.readline()
    for p in both: p.stdin.write("go\n"); p.stdin.flush()
    reads = 0
    while any(p.poll() is None for p in both):
        assert torch.equal(Importance.load(file).scores["1"], want.scores["1"])
        reads += 1
        time.sleep(.002)
    assert [p.returncode for p in both] == [0, 0] and reads > 10
    assert [float(p.stdout.read()) for p in both] == [float(want.scores["1"].sum())] * 2
    assert [*tmp_path.iterdir()] == [file]
