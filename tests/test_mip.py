"The sound program and the local certificates: against brute force on random small networks, and on the reference networks."
import itertools
from dataclasses import replace
import numpy as np
import pytest
import torch
from torch import nn
from oamip_nb.descent import Gated, descent_importance
from oamip_nb.importance import Importance, neuron_importance
from oamip_nb.mip import _Around, _moves, block_importance, check_certificate, enumerated_exchanges, gated_run, lp_tightened, mip_importance, near_bounds, sound_program, true_objective
from oamip_nb.models import resnet20
from oamip_nb.network import trace
from oracles import needs_oracles, trained


def small(seed, conv=False):
    "A random network of at most nine units, images and labels"
    torch.manual_seed(seed)
    if conv: model, x = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)), torch.rand(3, 1, 5, 5)
    else: model, x = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), torch.rand(6, 4)
    for m in model.modules():
        if hasattr(m, "weight"): m.weight.data *= 2
    return model.eval(), x, torch.arange(len(x)) % 3


def selections(net):
    "All selections that keep a unit in every layer"
    ends = np.cumsum([*net.units.values()]); every = (dict(zip(net.units, np.split(np.array(m, float), ends[:-1]))) for m in itertools.product((0, 1), repeat=ends[-1]))
    return [s for s in every if min(v.sum() for v in s.values())]


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [1, 2])
def test_best_selection_and_exchanges_by_brute_force(k, seed, conv):
    model, x, y = small(seed, conv); net = trace(model, x); every = selections(net); lam = 20.
    value = lambda s: true_objective(net, x, y, s, lam, gate="multiply")
    imp = neuron_importance(model, x, y, lam=lam, method="mip", binary=True, gap=1e-6, start=every[-1])
    assert abs(imp.certificate.objective-min(map(value, every))) < 1e-4
    start = every[np.random.default_rng(seed).integers(len(every))]
    imp = neuron_importance(model, x, y, lam=lam, method="mip", binary=True, exchanges=k, gap=1e-6, start=start); at = {n: s.numpy() for n, s in imp.scores.items()}
    near = [s for s in every if all(sum(((s[n] != at[n]) & (at[n] == v)).sum() for n in s) <= k for v in (0, 1))]
    assert min(map(value, near)) >= value(at)-1e-4 and imp.certificate.bound <= min(map(value, near))+1e-7
    b = near_bounds(net, x, at, k)
    for s in near:
        for i, (st, r) in enumerate(zip(net.stages, gated_run(net, x, s, "multiply"))):
            if st.kind == "affine": assert (r >= b.lo[i]-1e-9).all() and (r <= b.hi[i]+1e-9).all()


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("method", ["mip", "auto"])
def test_no_point_of_the_box_is_below_the_bound(method, conv):
    model, x, y = small(7, conv); net = trace(model, x); radius = .2; rng = np.random.default_rng(0)
    begin = dict(steps=200) if method == "auto" else dict(start=descent_importance(model, x, y, lam=1., gate="subtract", steps=200))
    imp = neuron_importance(model, x, y, lam=1., method=method, radius=radius, gap=1e-4, time_limit=60, **begin); c = imp.certificate
    assert c.status == "optimal" and c.bound <= c.objective+1e-12 and all(((0 <= s) & (s <= 1)).all() for s in imp.scores.values())
    assert abs(true_objective(net, x, y, imp.scores, 1.)-c.objective) < 1e-6
    center = {n: np.array(v) for n, v in imp.settings["center"].items()}
    for i in range(200):
        s = {n: np.clip(v+radius*(2*(rng.random(len(v)).round() if i % 2 else rng.random(len(v)))-1), 0, 1) for n, v in center.items()}
        assert true_objective(net, x, y, s, 1.) >= c.bound-1e-7
    assert "not below the bound" in check_certificate(imp, model, x, y)
    with pytest.raises(ValueError, match="below the bound"): check_certificate(replace(imp, certificate=replace(c, bound=c.objective+.02)), model, x, y)
    with pytest.raises(ValueError, match="the certificate says"): check_certificate(replace(imp, certificate=replace(c, objective=c.objective-.02)), model, x, y)


@pytest.mark.parametrize("tighten, conv", [("interval", False), ("pairs", True), ("lp", True), ("facets", False), ("facets", True)])
def test_bounds_of_every_kind_hold(tighten, conv):
    "The evaluator knows nothing of the program: no sampled point of the box, nor the end of a descent in it, may be below a bound; a planted one is found"
    model, x, y = small(5, conv); net = trace(model, x); start = {n: np.full(k, .7) for n, k in net.units.items()}; rng = np.random.default_rng(2)
    imp = mip_importance(model, x, y, lam=1., radius=.3, gap=1e-4, tighten=tighten, start=start, time_limit=60); c = imp.certificate; center = imp.settings["center"]
    value = true_objective(net, x, y, imp.scores, 1.); assert c.status == "optimal" and abs(value-c.objective) < 1e-6 and c.bound <= value+1e-12 and c.gap <= 1e-4
    for n, v in imp.scores.items(): assert (np.abs(v.numpy()-np.array(center[n])) <= .3+1e-6).all() and 0 <= v.min() and v.max() <= 1
    for i in range(100):
        d = lambda k: 2*(rng.random(k).round() if i % 2 else rng.random(k))-1
        assert true_objective(net, x, y, {n: np.clip(np.array(v)+.3*d(len(v)), 0, 1) for n, v in center.items()}, 1.) >= c.bound-1e-7
    check_certificate(imp, model, x, y, samples=30)
    with pytest.raises(ValueError, match="below the bound"): check_certificate(replace(imp, certificate=replace(c, bound=value+.01)), model, x, y, samples=30)


@pytest.mark.parametrize("lo, fewer", [(.3, 0), (.8, 1)])
def test_linear_programs_lose_no_better_point(lo, fewer):
    model, x, y = small(0); net = trace(model, x); rng = np.random.default_rng(3); draws = [{n: lo+(1-lo)*rng.random(k) for n, k in net.units.items()} for _ in range(100)]
    values = [true_objective(net, x, y, s, 3.) for s in draws]; best = float(np.quantile(values, .02)); begin = draws[int(np.argmin(values))]
    p = sound_program(net, x, y, lo, start=begin); t = lp_tightened(p, 3., best=best, near=1.); assert p.integer.sum()-t.integer.sum() == fewer
    bad = [t.violation(sound_program(net, x, y, lo, start=s).dense) for s in draws]
    assert max(v for v, f in zip(bad, values) if f <= best) <= 1e-6 < max(bad)  # what is worse may go, and some of it does


@pytest.mark.parametrize("k, room", [(1, None), (2, None), (2, 50), (3, 50)])
@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_enumerated_exchanges_by_brute_force(seed, conv, k, room, monkeypatch):
    if room: monkeypatch.setattr(_Around, "room", room)  # many small blocks, images one at a time
    model, x, y = small(seed, conv); net = trace(model, x); every = selections(net); b = dict(params=.3); room = .7*net.costs.full["params"]+1e-9; rng = np.random.default_rng(seed)
    fits = [s for s in every if net.costs.params({n: v.sum() for n, v in s.items()}) <= room and all(v.any() for v in s.values())]; start = fits[rng.integers(len(fits))]
    value = lambda s: true_objective(net, x, y, s, 5., None, "multiply"); imp = enumerated_exchanges(model, x, y, start, b, exchanges=k); at = {n: s.numpy() for n, s in imp.scores.items()}; c = imp.certificate
    near = [s for s in fits if all(sum(((s[n] != at[n]) & (at[n] == v)).sum() for n in s) <= k for v in (0, 1))]
    assert c.status == "optimal" and abs(value(at)-c.objective) < 1e-9 and c.bound <= min(map(value, near)) and c.gap <= 1.1e-6/min(1., c.objective) and value(at) <= value(start)+1e-9
    with pytest.raises(ValueError, match="below the bound"): check_certificate(replace(imp, certificate=replace(c, bound=c.objective+.01)), model, x, y)


@pytest.mark.parametrize("conv", [False, True])
def test_losses_around_a_selection(conv):
    "Every selection within two exchanges has the loss of the network that is masked so, whatever layer changes first"
    model, x, y = small(1, conv); net = trace(model, x); G = Gated(net, dtype=torch.float64); S = [(torch.arange(k) % 2).double() for k in net.units.values()]; seen = 0
    at = _Around(G, G.head(x.double()).detach(), y, S); images = torch.tensor([2, 0])
    for k in (1, 2):
        for move in _moves(at, k, [torch.rand(len(s)) for s in S], lambda out, new: True):
            with torch.no_grad(): found = at.losses(move, images)
            for row, losses in enumerate(found):
                s = {n: v.clone() for n, v in zip(G.layers, S)}
                for layer, unit, value in move: s[G.layers[layer]][unit[row]] = value
                want = torch.nn.functional.cross_entropy(gated_run(net, x, s, "multiply")[-1], y, reduction="none")[images]; assert (losses-want).abs().max() < 1e-12; seen += 1
    a, b = sum(int(s.sum()) for s in S), sum(int((1-s).sum()) for s in S); assert seen == (1+a+a*(a-1)//2)*(1+b+b*(b-1)//2)-1  # each once


def test_program_contains_every_gated_run():
    "Scores anywhere in the box, with the activations of the network, are a point of the program's columns: its logits are the network's at the start"
    model, x, y = small(3, True); net = trace(model, x); rng = np.random.default_rng(1)
    for _ in range(20):
        s = {n: rng.uniform(.4, 1, k) for n, k in net.units.items()}; p = sound_program(net, x, y, .4, 1., start=s)
        assert p.violation(p.dense) <= 1e-9 and np.abs(p.c+p.J@p.dense-gated_run(net, x, s)[-1].numpy()).max() < 1e-9


@needs_oracles
@pytest.mark.parametrize("name", ["fc3", "lenet"])
def test_local_certificate_of_reference_networks(name, tmp_path):
    model, x, y, _ = trained(name); imp = neuron_importance(model, x, y, steps=300, radius=.005); c = imp.certificate
    assert c.gap <= 1e-3 and "within 0.005 of these" in imp.proof and c.bound <= c.objective
    imp.save(tmp_path/"imp.safetensors"); back = Importance.load(tmp_path/"imp.safetensors"); assert back.proof == imp.proof
    check_certificate(back, model, x, y, samples=30)
    with pytest.raises(ValueError, match="below the bound"): check_certificate(replace(back, certificate=replace(c, bound=c.objective*1.01)), model, x, y, samples=30)


def test_a_block_of_a_residual_network():
    "The program of one block, from the package alone: objective and bound against the network with scaled filters"
    model = resnet20((3, 8, 8), 4, seed=0).eval(); torch.manual_seed(0); x, y = torch.rand(4, 3, 8, 8), torch.arange(4); path = "layer3.2"
    imp = block_importance(model, x, y, path, lam=20.); s = imp.scores[f"{path}.conv1"]; c = imp.certificate
    def value(s):
        h = model.get_submodule(path).relu1.register_forward_hook(lambda m, i, o: o*s[:, None, None])
        try: return 20*torch.nn.functional.cross_entropy(model(x), y).item()+s.mean().item()
        finally: h.remove()
    assert abs(value(s)-c.objective) < 1e-3 and c.bound <= c.objective <= value(torch.ones(64))+1e-3 and c.gap <= 1e-3
