"Coupled units: every group of known networks removed in turn, random small networks, and the witness of Torch-Pruning."
import copy

import pytest, torch, torch_pruning as tp, torchvision.models as tvm
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn
from oamip_nb.baselines import baseline_importance
from oamip_nb.descent import descent_importance
from oamip_nb.graphs import GraphGated, PadShortcut, read_graph, read_network, structure
from oamip_nb.models import resnet20
from oamip_nb.pruning import Selection, kept_entries, mask, remove, select, sizes
from oamip_nb.repair import repair

EXAMPLES = settings(max_examples=12, deadline=None, derandomize=True)


def settle(model, seed=0):
    "BatchNorm statistics and parameters that are not the defaults"
    torch.manual_seed(seed)
    for b in model.modules():
        if isinstance(b, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(b.weight, .5, 1.5), nn.init.normal_(b.bias, 0, .3)
            b.running_mean.normal_(0, .3), b.running_var.uniform_(.5, 1.5)
    return model.eval()


def some(units, share=.5):
    "A random choice of at least one unit, and not all where there are more"
    k = torch.rand(units) > share
    k[torch.randint(units, (1,))] = True
    if units > 1 and k.all(): k[0] = False
    return k


@torch.no_grad()
def agree(graph, model, x, keep):
    "Removed, masked and gated networks say the same, and the costs are those of the removed one"
    small, masked = graph.remove(model, keep), graph.mask(model, keep)
    a, b = small(x), masked(x)
    assert (a - b).abs().max() <= 1e-5 * b.abs().max(), keep.keys()
    kept = {n: int(k.sum()) for n, k in keep.items()}
    assert sum(p.numel() for p in small.parameters()) == graph.costs.params(kept)
    assert sizes(small, x)["macs"] == graph.costs.macs(kept)
    gates = [keep.get(n, torch.ones(k)).float() for n, k in graph.units.items()]
    assert (GraphGated(graph).tail(x, gates) - b).abs().max() <= 1e-5 * b.abs().max()
    return small


def every_group(model, x, groups=None):
    graph = read_graph(model, x)
    for n in groups or graph.units: agree(graph, model, x, {n: some(graph.units[n])})
    small = agree(graph, model, x, {n: some(k) for n, k in graph.units.items()})
    assert small(x).isfinite().all()
    return graph


def tv(name, **kwargs): return settle(getattr(tvm, name)(num_classes=10, **kwargs))


def test_resnet18():
    graph = every_group(tv("resnet18"), torch.randn(1, 3, 32, 32))
    assert len(graph.units) == 12 and graph.units["conv1"] == 64 and graph.units["layer2.0.conv2"] == 128


def test_mobilenet_v2():
    graph = every_group(tv("mobilenet_v2"), torch.randn(1, 3, 32, 32))
    assert len(graph.units) == 25


def test_resnet50_some():
    model, x = tv("resnet50"), torch.randn(1, 3, 32, 32)
    graph = every_group(model, x, ["conv1", "layer1.0.conv3", "layer3.0.conv1", "layer4.0.conv3"])
    assert len(graph.units) == 37


@pytest.mark.slow
def test_resnet50_every_group(): every_group(tv("resnet50"), torch.randn(1, 3, 64, 64))


@pytest.mark.slow
def test_vgg16_bn_every_group(): every_group(tv("vgg16_bn"), torch.randn(1, 3, 32, 32))


def slim(model):
    "VGG-16-BN with a classifier that fits into a test: 64 in place of 4096 units"
    model.avgpool = nn.AdaptiveAvgPool2d(2)
    model.classifier = nn.Sequential(nn.Linear(2048, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 10))
    return settle(model)


def test_vgg16_bn_as_a_chain_and_as_a_graph():
    with torch.device("meta"): model = tvm.vgg16_bn(num_classes=10)
    model.classifier = model.avgpool = nn.Identity()
    model, x = slim(model.to_empty(device="cpu")), torch.randn(1, 3, 32, 32)
    for m in model.modules():
        if isinstance(m, nn.Conv2d): m.reset_parameters()
    graph, chain = every_group(model, x, ["features.0", "features.40", "classifier.0"]), read_network(model, x)  # every group: the slow test above
    assert graph.units == chain.units and graph.costs.full == chain.costs.full
    keep = {n: some(k) for n, k in graph.units.items()}
    for n, p in remove(model, Selection(keep), x).state_dict().items(): assert torch.equal(p, graph.remove(model, keep).state_dict()[n])


@pytest.mark.parametrize("shortcut", ["pad", "conv"])
def test_resnet20(shortcut): every_group(settle(resnet20((3, 8, 8), 10, shortcut=shortcut)), torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("name", ["densenet121", "efficientnet_b0", "shufflenet_v2_x0_5", "squeezenet1_1", "mobilenet_v3_small"])
def test_other_architectures(name):
    model, x = tv(name), torch.randn(1, 3, 64 if name == "squeezenet1_1" else 32, 64 if name == "squeezenet1_1" else 32)
    graph = read_graph(model, x)
    agree(graph, model, x, {n: some(k) for n, k in graph.units.items()})


def witness(model, x, names=None):
    "The channels that Torch-Pruning removes with the first and last unit of each group are ours"
    s, path = structure(model), {m: n for n, m in model.named_modules()}
    graph = tp.DependencyGraph().build_dependency(model.requires_grad_(True), x, verbose=False)
    for n in names or s.units:
        m = model.get_submodule(n)
        for j in {0, s.units[n] - 1}:
            unit, seen = s.start[n] + j, {}
            mine = (s.ends[n][1] == unit).nonzero()[:, 0].tolist()
            for dep, idx in graph.get_pruning_group(m, tp.prune_linear_out_channels if isinstance(m, nn.Linear) else tp.prune_conv_out_channels, mine):
                p = path.get(dep.target.module)
                if p in s.ends: seen.setdefault((p, graph.is_out_channel_pruning_fn(dep.handler)), set()).update(idx)
            ours = {(p, side): set((v == unit).nonzero()[:, 0].tolist()) for p, e in s.ends.items() for side, v in zip((False, True), e) if (v == unit).any()}
            assert {p for p, _ in ours} == {p for p, _ in seen}
            assert all(ours[k] == v for k, v in seen.items())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_the_witness(name): witness(tv(name), torch.randn(1, 3, 32, 32))


class Block(nn.Module):
    "A random block: residual sum, concatenation, depthwise or grouped convolution, squeeze and excitation"
    def __init__(self, kind, c, k, act):
        super().__init__()
        self.kind, self.act = kind, act
        mid = 2 * k if kind == "group" else k
        self.a, self.n = nn.Conv2d(c, mid, 1 + 2 * (k % 2), padding=k % 2, bias=kind == "sum"), nn.BatchNorm2d(mid)
        self.b = nn.Conv2d(mid, mid if kind == "depth" else 2 * k if kind == "group" else c, 3, padding=1, groups={"depth": mid, "group": k}.get(kind, 1), bias=k % 3 == 0)
        self.m = nn.BatchNorm2d(self.b.out_channels)
        self.c = nn.Conv2d(self.b.out_channels, c, 1) if kind in ("depth", "group") else nn.Identity()
        if kind == "gate": self.s = nn.Conv2d(c, c, 1)
        self.out = c + k if kind == "cat" else c

    def forward(self, x):
        h = self.act(self.n(self.a(x)))
        y = self.c(self.act(self.m(self.b(h))))
        if self.kind == "cat": return torch.cat([h, y], 1)
        if self.kind == "gate": return y * torch.sigmoid(self.s(F.adaptive_avg_pool2d(y, 1))) + x
        return y + x


def network(kinds, width, act, flat, seed):
    torch.manual_seed(seed)
    c, body = width, []
    for i, kind in enumerate(kinds):
        body.append(Block(kind, c, 2 + (seed + i) % 4, act))
        c = body[-1].out
    end = [nn.Flatten(), nn.Linear(16 * c, 5), nn.ReLU(), nn.Linear(5, 3)] if flat else [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 3)]
    return settle(nn.Sequential(nn.Conv2d(2, width, 3, padding=1), *body, nn.ReLU(), *end), seed)


kinds = st.lists(st.sampled_from(["sum", "cat", "depth", "group", "gate"]), min_size=1, max_size=3)
networks = st.builds(network, kinds, st.integers(2, 5), st.sampled_from([F.relu, F.relu6, torch.sigmoid, F.silu]), st.booleans(), st.integers(0, 10_000))


@EXAMPLES
@given(networks, st.integers(0, 1000))
def test_random_networks(model, seed):
    torch.manual_seed(seed)
    x = torch.randn(2, 2, 4, 4)
    graph = every_group(model, x)
    keep = {n: some(k) for n, k in graph.units.items()}
    entries, dense = kept_entries(model, Selection(keep), x), dict(model.named_parameters())
    for n, p in remove(model, Selection(keep), x).named_parameters(): assert torch.equal(dense[n].flatten()[entries[n]], p)


@EXAMPLES
@given(networks, st.sampled_from(["params", "macs", "units"]), st.integers(5, 50), st.integers(0, 1000))
def test_budgets_hold_to_within_one_unit(model, what, percent, seed):
    torch.manual_seed(seed)
    x, y = torch.randn(12, 2, 4, 4), torch.arange(12) % 3
    try: imp = descent_importance(model, x, y, budget={what: percent / 100}, steps=4, bs=12, search=0, seed=seed)
    except ValueError as e: assert "cannot go" in str(e); return
    sel, count = select(imp, **{what: percent / 100}), getattr(imp.costs, what)
    removed = lambda kept: 1 - count(kept) / imp.costs.full[what]
    assert removed(sel.kept) >= percent / 100 - 1e-12
    assert all(removed(sel.kept | {n: k + 1}) < percent / 100 for n, k in sel.kept.items() if sel.removed[n])


@EXAMPLES
@given(networks, st.integers(0, 1000))
def test_repair_lowers_the_error_of_every_layer(model, seed):
    torch.manual_seed(seed)
    x = torch.randn(60, 2, 4, 4)
    keep = {n: some(k, .3) for n, k in structure(model).units.items()}
    dense = copy.deepcopy(model.state_dict())
    fixed, table = repair(remove(model, Selection(keep), x), model, Selection(keep), x, ridge=1e-6)
    assert len(table) and (table.after <= table.before * (1 + 1e-6) + 1e-9).all()
    assert fixed(x).isfinite().all() and all(torch.equal(v, dense[n]) for n, v in model.state_dict().items())
    silent, _ = repair(mask(model, Selection(keep)), model, Selection(keep), x, ridge=1e-6)  # the masked network is refitted to the same
    small = fixed(x)
    assert (silent(x) - small).abs().max() <= 1e-2 * small.abs().max()


@pytest.mark.parametrize("name", ["random", "magnitude", "activation", "taylor", "snip"])
def test_baselines_score_every_unit(name):
    model = network(["sum", "depth", "group"], 4, F.relu, False, 1)
    x, y = torch.randn(9, 2, 4, 4), torch.arange(9) % 3
    scores = baseline_importance(name, model, x, y).scores
    assert {n: len(s) for n, s in scores.items()} == structure(model).units


def test_zero_padding_lines_up_with_the_middle():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), PadShortcut(1, 4), nn.Conv2d(6, 1, 1), nn.Flatten(), nn.Linear(4, 2)).eval()
    s = structure(model)
    assert s.ends["1"][1].tolist() == [-1, -1, 0, 1, -1, -1]  # no layer writes the zeros
    small = s.remove(model, {"0": torch.tensor([False, True])})
    x = torch.randn(1, 1, 2, 2)
    assert torch.allclose(small(x), s.mask(model, {"0": torch.tensor([False, True])})(x), atol=1e-6)
