"What goes wrong in the published code when scores are made in parts must not go wrong here: one test per defect, small networks."
from collections import OrderedDict
from unittest.mock import patch

import pytest
import torch
from fastai.basics import Learner
from torch import nn
from oamip_nb import importance, parts
from oamip_nb.data import image_dls
from oamip_nb.importance import _part, neuron_importance
from oamip_nb.bounds import box_bounds
from oamip_nb.formulation import build_program, restrict
from oamip_nb.network import trace
from oamip_nb.parts import class_importance, layer_importance, layers_from
from oamip_nb.pruning import mask, remove, select
from oamip_nb.solvers import solve


def dense(*widths, classes=3, seed=0):
    torch.manual_seed(seed)
    layers, k = [("flat", nn.Flatten())], 16
    for i, w in enumerate(widths): layers += [(f"fc{i}", nn.Linear(k, w)), (f"relu{i}", nn.ReLU())]; k = w
    return nn.Sequential(OrderedDict([*layers, ("out", nn.Linear(k, classes))])).eval()


def conv(classes=3):
    torch.manual_seed(1)
    return nn.Sequential(OrderedDict(conv1=nn.Conv2d(1, 3, 3, padding=1), bn1=nn.BatchNorm2d(3), relu1=nn.ReLU(), pool1=nn.AvgPool2d(2), conv2=nn.Conv2d(3, 4, 3, padding=1), relu2=nn.ReLU(),
                                     pool2=nn.MaxPool2d(2), flat=nn.Flatten(), fc1=nn.Linear(4, 6), relu3=nn.ReLU(), out=nn.Linear(6, classes))).eval()


def batch(n=9, classes=3): return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(3)), torch.arange(n) % classes


def test_a_batch_may_hold_many_images_of_a_class():
    "Published: labels must differ pairwise, so a class has one image"
    imp = class_importance(dense(8), *batch(9), method="published")
    assert list(imp.parts) == ["0", "1", "2"] and all(p.settings["n"] == 3 for p in imp.parts.values())


def test_the_mean_divides_by_the_classes_that_were_scored():
    "Published: weight 1/C for C classes of the data set"
    imp = class_importance(dense(8), *batch(), classes=[0, 2], method="published")
    assert torch.allclose(imp.scores["fc0"], (imp.parts["0"].scores["fc0"] + imp.parts["2"].scores["fc0"]) / 2)


def test_mean_threshold_reaches_scores_per_class():
    "Published: the flag of the mean threshold is not passed on per class"
    imp = class_importance(dense(8, 6), *batch(), method="published", lam=1)
    sel = select(imp, threshold="mean")
    assert all(torch.equal(sel.keep[n], s.double() >= s.double().mean()) for n, s in imp.scores.items()) and sum(sel.removed.values()) > 0


def test_images_per_class_are_validation_images_and_correct_if_asked():
    "Published: drawn from all training images, right or wrong"
    dls = image_dls("digits")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
    learn, seen = Learner(dls, model, loss_func=nn.CrossEntropyLoss()), {}
    learn.fit(4, 1e-2)
    valid = torch.cat([x for x, _ in dls.valid]).flatten(1).cpu()

    def look(jobs, *args): seen.update({j.name: j for j in jobs}); raise StopIteration

    for correct in (True, False):
        seen.clear()
        with patch.object(parts, "score_many", look), pytest.raises(StopIteration): learn.class_importance(n=3, correct=correct)
        assert len(seen) == 10
        for c, j in enumerate(seen.values()):
            assert j.y.tolist() == [c] * 3 and all((valid == x.flatten()).all(1).any() for x in j.x.cpu())
            if correct: assert (model(j.x).argmax(1) == j.y).all()


@pytest.mark.parametrize("widths", [(5,), (5, 4), (5, 4, 3), (5, 4, 4, 3), (4, 4, 4, 4, 4)], ids=len)
@pytest.mark.parametrize("step", [1, 2, 3])
def test_every_layer_has_its_turn(widths, step):
    "Published: the walk starts at the third-last layer in steps of two, so that two layers are not scored at all and of four the first is not"
    imp = layer_importance(dense(*widths), *batch(), step=step, method="relaxed")
    assert list(imp.scores) == [f"fc{i}" for i in range(len(widths))]
    order = [n for p in imp.parts.values() for n in reversed(p.scores)]
    assert order == [f"fc{i}" for i in reversed(range(len(widths)))] and all(len(p.scores) <= step for p in imp.parts.values())


def test_convolutions_pools_and_batchnorm_layer_by_layer():
    "conv1 of LeNet-like networks is scored too, and the network that is left can be made smaller for real"
    model, (x, y) = conv(), batch()
    for method in (dict(method="published"), dict(method="descent", steps=20)):
        imp = layer_importance(model, x, y, **method)
        assert list(imp.scores) == ["conv1", "conv2", "fc1"] and list(imp.parts) == ["fc1", "conv2", "conv1"]
    sel = select(imp, units=.4)
    assert torch.allclose(remove(model, sel, x[:1])(x), mask(model, sel)(x), atol=1e-5)


def test_later_layers_are_those_of_the_masked_network():
    "Published: pruned units keep their bias, and ReLUs behind them are fixed at the solver's values, fractions included"
    model, (x, y) = dense(8, 6), batch()
    with torch.no_grad(): model.fc1.bias.fill_(2.)
    seen, real = [], neuron_importance
    def look(m, *a, **k): seen.append(m); return real(m, *a, **k)
    with patch.object(parts, "neuron_importance", look): imp = layer_importance(model, x, y, method="published", threshold="mean", lam=.5)
    gone = ~select(imp.parts["fc1"], threshold="mean").keep["fc1"]
    assert gone.any() and torch.equal(seen[1][:5](x)[:, gone], torch.zeros(len(x), int(gone.sum())))
    part, h, b = _part(trace(seen[1], x), x, 1e-5, ("fc0",))
    p = build_program(part, h, y, bounds=b)
    assert abs(p.losses(p.dense).mean() - nn.CrossEntropyLoss()(seen[1](x), y).item()) < 1e-6


def test_prune_from_leaves_the_front_out_of_the_program():
    "As published: layers before the first are run once; the program behind it says the same as the whole one with them protected"
    model, (x, y) = conv(), batch()
    net = trace(model, x)
    assert layers_from(net, "conv2") == ("conv2", "fc1")
    part, h, b = _part(net, x, 1e-5, layers_from(net, "conv2"))
    small, whole = build_program(part, h, y, bounds=b), restrict(build_program(net, x, y, bounds=box_bounds(net, x, 1e-5)), protect=("conv1",))
    assert small.n_scores == 10 and h.shape[1:] == (3, 2, 2)
    a, c = solve(small, 5., "layers", gap=1e-7), solve(whole, 5., "layers", gap=1e-7)
    assert abs(a.certificate.objective + 1 - c.certificate.objective) < 1e-6  # the mean score of conv1 is one
    imp = neuron_importance(model, x, y, method="published", layers=("conv2", "fc1"))
    assert list(select(imp, units=.3).keep) == ["conv2", "fc1"]


def test_a_failed_class_is_not_passed_over():
    "Published: a failed solve is taken for a solution, or the run stops in a debugger"
    real = importance.solve
    def fails(p, *a): return (1 / 0) if p.y[0] == 1 else real(p, *a)
    with patch.object(importance, "solve", fails), pytest.raises(RuntimeError, match="'1' failed: ZeroDivisionError"): class_importance(dense(8), *batch(), method="published")
