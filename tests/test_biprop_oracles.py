"Supermask layers, activations, global pruning and two short trainings against stored numbers of the published code."
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from oamip_nb.biprop import BinAct, SupermaskConv2d, SupermaskLinear, keep_ramp, kept_count, random_weight, set_global_keep, supermask_layers
from oamip_nb.find_ticket import TicketLoss, jsd_loss, lr_factor, schedules
from oracles import ROOT, needs_oracles

DIR = Path(ROOT or ".")/"biprop"
pytestmark = needs_oracles
FILES = sorted(p.name for k in ("layer", "init", "edge") for p in DIR.glob(f"{k}_*.npz")) if ROOT else []
SCHEDULES = DIR/"schedules_losses_counts.npz"


def T(a): return torch.tensor(np.asarray(a))


def close(a, b, rel=1e-5, slack=0.):
    "Largest difference, relative to the largest entry, and what it may be besides"
    a, b = a.detach(), T(b)
    assert a.shape == b.shape and (a-b).abs().max() <= rel*b.abs().max().clamp(min=1e-12)+slack


def filled(layer, weight, scores):
    with torch.no_grad(): layer.weight.copy_(weight.view_as(layer.weight)); layer.scores.copy_(scores.view_as(layer.scores))
    return layer.forget()


def layer_of(d, **kw):
    w = T(d["weight"]); o, i, h, _ = w.shape
    conv = SupermaskConv2d(i*int(d["groups"]), o, h, stride=tuple(d["stride"]), padding=tuple(d["padding"]), groups=int(d["groups"]), keep=float(d["keep"]), **kw)
    return filled(conv, w, T(d["scores"]))


@pytest.mark.parametrize("name", [f for f in FILES if "denominator_zero" not in f])
def test_layer(name):
    "Mask and gain exact, output and gradients to 1e-5; with our own count the gain differs by the published factor alone"
    d = np.load(DIR/name); x = T(d["x"]).requires_grad_()
    layer = layer_of(d, as_published=True)
    y = layer(x); y.backward(T(d["grad_y"]))
    assert int(layer.count) == d["n_kept"] and int(layer.count)-layer.extra == d["alpha_denominator"]
    tied = "tied" in name or "zero_scores" in name  # the published sort is not stable: which of them stay is arbitrary there
    if not tied: assert torch.equal(layer.mask(), T(d["mask"]))
    if not tied: assert abs(layer.alpha()-float(d["alpha"])) <= 1e-6*abs(float(d["alpha"]))
    if not tied:
        for ours, theirs in ((y, "y"), (x.grad, "grad_x"), (layer.scores.grad, "grad_scores"), (layer.effective(), "w_eff")): close(ours, d[theirs])
    ours = layer_of(d)
    assert int(ours.count) == kept_count(int(d["n"]), float(d["keep"]))[0] and int(ours.mask().sum()) == int(ours.count)
    if not tied and int(ours.count) == d["n_kept"]: close(ours.alpha()*int(ours.count), np.float32(float(d["alpha"])*d["alpha_denominator"]), 2e-6)


@pytest.mark.parametrize("name", [f for f in FILES if f.startswith(("layer_lin", "layer_c1"))])
def test_linear(name):
    "The published 1x1 convolution on 1x1 maps is a linear layer"
    d = np.load(DIR/name); w = T(d["weight"]); x = T(d["x"]).flatten(1).requires_grad_()
    layer = filled(SupermaskLinear(w.shape[1], w.shape[0], keep=float(d["keep"]), as_published=True), w, T(d["scores"]))
    y = layer(x); y.backward(T(d["grad_y"]).flatten(1))
    close(y[..., None, None], d["y"]); close(x.grad[..., None, None], d["grad_x"]); close(layer.scores.grad[..., None, None], d["grad_scores"])


def test_nothing_kept_by_the_published_count():
    "Where the published denominator is zero, its output is NaN; ours keeps one weight and stays finite"
    d = np.load(DIR/"edge_denominator_zero_k0.05.npz")
    assert d["alpha_denominator"] == 0 and not np.isfinite(d["y"]).any() and not layer_of(d, as_published=True)(T(d["x"])).isfinite().any()
    ours = layer_of(d)
    assert int(ours.mask().sum()) == 1 and ours(T(d["x"])).isfinite().all()


@pytest.mark.parametrize("name", [f for f in FILES if f.startswith("init_")])
def test_init(name):
    "The published samples have the spread that our formula has; constants are equal"
    d = np.load(DIR/name); full, scaled = name.removeprefix("init_").removesuffix("_k0.5.npz").rsplit("_", 1)
    w = random_weight(d["weight"].shape, full, float(d["keep"]), scaled=scaled == "scaled", as_published=True)
    rms = lambda t: t.square().mean().sqrt()
    if "constant" in full or full == "ones": close(w.abs(), np.abs(d["weight"]), 1e-6)
    else: assert abs(rms(w)/rms(T(d["weight"]))-1) < 6/w.numel()**.5
    assert ((w >= 0).all() and (d["weight"] >= 0).all()) or (w < 0).any() and (d["weight"] < 0).any()
    if full in ("kaiming_normal", "signed_constant", "unsigned_constant"): assert abs(float(d["formula_std"])/float(rms(w))-1) < 6/w.numel()**.5


def test_counts():
    for n, keep, kept, denominator in np.load(SCHEDULES)["counts_n_keep_kept_denominator"]:
        assert kept_count(int(n), float(keep), as_published=True) == (int(kept), int(denominator))
        assert kept_count(int(n), float(keep))[0] == max(1, round(keep*n))


def test_binact():
    d = np.load(DIR/"binact.npz"); x = T(d["x"]).requires_grad_()
    y = BinAct(as_published=True)(x); y.backward(T(d["grad_y"]))
    assert torch.equal(y.detach(), T(d["y"])); close(x.grad, d["grad_x"]); close(x.grad, d["grad_x_spline_module"])
    ours = BinAct()(x.detach()); zero = x.detach() == 0
    assert torch.equal(ours[~zero], T(d["y"])[~zero]) and (ours[zero] == 1).all()


def test_batchnorm():
    d = np.load(DIR/"bn_nonaffine.npz"); bn = nn.BatchNorm2d(5, affine=False); x = T(d["x"]).requires_grad_()
    y = bn(x); y.backward(T(d["grad_y"])); close(y, d["y_train"]); close(x.grad, d["grad_x"])
    close(bn.running_mean, d["running_mean"]); close(bn.running_var, d["running_var"]); close(bn.eval()(T(d["x"])), d["y_eval"])


@pytest.mark.parametrize("keep", (.3, .5))
def test_global(keep):
    "One threshold over three layers: its masks and gains, outputs and gradients"
    d = np.load(DIR/f"global_k{keep}.npz"); w = [T(d[f"weight{i}"]) for i in range(3)]; x = T(d["x"]).requires_grad_()
    conv = lambda v, i: SupermaskConv2d(v.shape[1], v.shape[0], v.shape[2], stride=1+(i == 1), padding=v.shape[2]//2)
    net = nn.Sequential(*[filled(conv(v, i), v, T(d[f"scores{i}"])) for i, v in enumerate(w)])
    set_global_keep(net, keep, as_published=True)
    for i, layer in enumerate(net): assert torch.equal(layer.mask(), T(d[f"mask{i}"])); assert abs(layer.alpha()-float(d[f"alpha{i}"])) < 1e-6
    assert all(((layer.scores.abs() > float(d["threshold"])) == layer.mask().bool()).all() for layer in net)
    y = net[2](F.relu(net[1](F.relu(net[0](x)))).reshape(len(x), -1, 1, 1)); y.backward(T(d["grad_y"]))
    close(y, d["y"]); close(x.grad, d["grad_x"])
    for i, layer in enumerate(net): close(layer.scores.grad, d[f"grad_scores{i}"])


@pytest.mark.parametrize("final", (.4, .3, .2, .1, .05, .02, .01, .5, .6))
def test_ramp(final):
    want = np.load(SCHEDULES)[f"global_ramp_final{final}_E10"]
    np.testing.assert_allclose([keep_ramp(e, final, 10) for e in range(len(want))], want, rtol=1e-9)


@pytest.mark.parametrize("name", schedules)
@pytest.mark.parametrize("warmup", (0, 5))
def test_schedule(name, warmup):
    "Every learning rate policy over 100 epochs, highest rate 0.256"
    want = np.load(SCHEDULES)[f"{name}_lr_warm{warmup}"]
    np.testing.assert_allclose([.256*lr_factor(name, e, 100, warmup) for e in range(100)], want, rtol=1e-9, atol=1e-15)


def test_losses():
    "Label smoothing and the Jensen-Shannon term, with gradients"
    d = np.load(SCHEDULES)
    for kind, loss in (("ls", TicketLoss(.1)), ("jsd", jsd_loss)):
        z = T(d[f"{kind}_logits"]).requires_grad_(); out = loss(z, T(d[f"{kind}_target"]).long()); out.backward()
        assert abs(out.item()/float(d[f"{kind}_loss"])-1) < 1e-6; close(z.grad, d[f"{kind}_grad"])


def network(d, config):
    "Conv4 at an eighth of its width, with the stored state"
    at = lambda n: T(d[f"init/{n}"]); layers = []
    def masked(n):
        w = at(f"{n}.weight"); kw = dict(keep=config["keep"], as_published=True)
        m = SupermaskConv2d(w.shape[1], w.shape[0], w.shape[2], padding=w.shape[2]//2, **kw)
        layers.append((n, filled(m, w, at(f"{n}.scores")))); return m
    binary = "BinAct" in config["arch"]
    def block(part, i, pool=False):
        m, act = masked(f"{part}.{i}"), [BinAct(True)] if binary else [nn.ReLU()]
        bn = [nn.BatchNorm2d(m.weight.shape[0], affine=False)] if binary else []
        return [m, *([nn.MaxPool2d(2)] if pool and binary else []), *bn, *act, *([nn.MaxPool2d(2)] if pool and not binary else [])]
    convs, lins = ((0, 3, 7, 10), (0, 3, 6)) if binary else ((0, 2, 5, 7), (0, 2, 4))
    net = [b for k, i in enumerate(convs) for b in block("convs", i, pool=k % 2 == 1)]
    net += [nn.Flatten(), nn.Unflatten(1, (-1, 1, 1))] + [b for i in lins[:-1] for b in block("linear", i)] + [masked(f"linear.{lins[-1]}"), nn.Flatten()]
    return nn.Sequential(*net), dict(layers)


def trajectory(name):
    d = np.load(DIR/f"traj_{name}.npz"); config = json.loads(str(d["config"])); net, layers = network(d, config)
    scores = [m.scores for m in layers.values()]
    opt = torch.optim.SGD(scores, config["lr"], config["momentum"], weight_decay=config["weight_decay"]) if config["optimizer"] == "sgd" else torch.optim.Adam(scores, config["lr"])
    return d, net, layers, opt


def test_real_activations():
    "Six steps of SGD on a 1/32 network: the first two to float accuracy, the loss of the others loosely, since near ties may flip"
    d, net, layers, opt = trajectory("conv4wide_1_32_sgd_k0.5")
    for step, want in enumerate(d["losses"]):
        out = net(T(d[f"step{step}/x"])); loss = F.cross_entropy(out, T(d[f"step{step}/target"]))
        opt.zero_grad(); loss.backward()
        if step < 2:
            close(out, d[f"step{step}/logits"])
            for n, m in layers.items(): close(m.scores.grad, d[f"step{step}/grad/{n}.scores"])
        assert abs(loss.item()-want) <= (1e-5 if step < 2 else .02)*want, (step, loss.item(), want)
        opt.step()
        if step == 0:
            for n, m in layers.items(): close(m.scores, d[f"step0/after/{n}.scores"])


def test_binary_activations():
    """One step of a 1/1 network. Signs of sums that equal the mean of their batch are up to round-off, and to the processor: the statistics of
    every BatchNorm, and the logits, may differ by what those bits carry, and by nothing before the first of them."""
    d, net, layers, opt = trajectory("conv4wide_1_1_adam_k0.2"); h, early, alpha, same = T(d["step0/x"]), 0, 0., True
    norms = iter(("convs.1", "convs.5", "convs.8", "convs.12", "linear.1", "linear.4"))
    for m in net:
        if isinstance(m, BinAct): tied = (h.abs() < 1e-5).flatten(1).sum(1); early += int(tied.sum()); assert tied.max() <= 6 and (early <= 1 or h.shape[1:] == (32, 1, 1))
        if m in layers.values(): alpha = float(m.alpha())
        if isinstance(m, nn.BatchNorm2d): z = h
        h = m(h)
        if isinstance(m, nn.BatchNorm2d):
            n, step = next(norms), .1*early*2*alpha/(z.numel()/z.shape[1])  # momentum times what a bit moves a mean by
            close(m.running_mean, d[f"step0/after/{n}.running_mean"], 1e-4, step); close(m.running_var, d[f"step0/after/{n}.running_var"], 1e-4, 2*step*(2*(z-z.mean(0)).abs().max().item()+2*alpha))
            same = same and bool((m.running_mean-T(d[f"step0/after/{n}.running_mean"])).abs().max() <= 1e-4*m.running_mean.abs().max())
    off = (h-T(d["step0/logits"])).abs().amax(1)/layers["linear.6"].alpha()
    assert (off <= 2*tied+1e-4).all() and next(norms, None) is None and (not same or (off < .01).any())
    loss = F.cross_entropy(h, T(d["step0/target"])); loss.backward(); opt.step()
    assert abs(loss.item()/d["losses"][0]-1) < .1
    for n, m in layers.items(): assert F.cosine_similarity(m.scores.grad.flatten(), T(d[f"step0/grad/{n}.scores"]).flatten(), 0) > .8, n


def test_layers_are_found():
    d = np.load(DIR/"traj_conv4wide_1_32_sgd_k0.5.npz"); net, layers = network(d, json.loads(str(d["config"])))
    assert [*supermask_layers(net).values()] == [*layers.values()]
