"Properties of selections, masks and removal over random networks and scores."
import copy
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
from oamip_nb.network import trace
from oamip_nb.pruning import kept_entries, load_pruned, mask, remove, save_pruned, select, select_like

EXAMPLES = settings(max_examples=15, deadline=None, derandomize=True)
widths = st.lists(st.integers(1, 7), min_size=1, max_size=3)
seeds = st.integers(0, 10_000)
fractions = st.integers(0, 60).map(lambda p: p / 100)


def network(channels, hidden, bn, bias, pool, seed):
    "Convolutions, then linear layers, on 1x10x10 images"
    torch.manual_seed(seed)
    layers, c = [], 1
    for k in channels:
        layers += [nn.Conv2d(c, k, 3, padding=1, bias=bias)]
        if bn: layers += [nn.BatchNorm2d(k, affine=bn == "affine")]
        layers += [nn.ReLU()]
        c = k
    layers += [pool(2), nn.Flatten()]
    c *= 25
    for k in hidden:
        layers += [nn.Linear(c, k, bias=bias), nn.ReLU(), nn.Dropout(.3)]
        c = k
    model = nn.Sequential(*layers, nn.Linear(c, 3))
    model(torch.randn(16, 1, 10, 10))  # moves the BatchNorm statistics off their defaults
    return model.eval()


networks = st.builds(network, st.lists(st.integers(1, 5), min_size=1, max_size=2), widths, st.sampled_from([None, "affine", "plain"]),
                     st.booleans(), st.sampled_from([nn.AvgPool2d, nn.MaxPool2d]), seeds)


def scored(model, x, seed):
    net = trace(model, x)
    gen = torch.Generator().manual_seed(seed)
    return net, {n: torch.rand(u, generator=gen) for n, u in net.units.items()}


@EXAMPLES
@given(networks, fractions, seeds)
def test_removed_equals_masked(model, fraction, seed):
    x = torch.randn(4, 1, 10, 10)
    net, scores = scored(model, x, seed)
    try: sel = select(scores, units=fraction)
    except ValueError: return  # too few units for the fraction
    small, masked = remove(model, sel, x), mask(model, sel)
    assert torch.allclose(small(x), masked(x), atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) == net.costs.params(sel.kept)
    entries, dense = kept_entries(model, sel, x), dict(model.named_parameters())
    assert all(torch.equal(dense[n].flatten()[entries[n]], p) for n, p in small.named_parameters())


@EXAMPLES
@given(st.lists(st.lists(st.sampled_from([0., .1, .1, .5, .9]), min_size=1, max_size=6), min_size=1, max_size=4), fractions, st.sampled_from(["global", "layer"]))
def test_selection_takes_the_lowest(values, fraction, scope):
    scores = {str(i): torch.tensor(v) for i, v in enumerate(values)}
    n = sum(map(len, values))
    most = (n - len(values)) / n
    if fraction > most:
        with pytest.raises(ValueError): select(scores, units=fraction, scope=scope)
        return
    sel = select(scores, units=fraction, scope=scope)
    gone = sum(sel.removed.values())
    assert gone / n >= fraction - 1e-9 and (gone == 0 or (gone - 1) / n < fraction)
    for name, keep in sel.keep.items():
        assert keep.any()
        assert (~keep).sum() == 0 or scores[name][~keep].max() <= scores[name][keep].min()
    again = select_like(scores, sel)
    assert all(torch.equal(again.keep[k], sel.keep[k]) for k in sel.keep)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(networks, seeds)
def test_saved_network_returns(tmp_path_factory, model, seed):
    x = torch.randn(2, 1, 10, 10)
    _, scores = scored(model, x, seed)
    sel = select(scores, threshold=.3)
    small, path = remove(model, sel, x), tmp_path_factory.mktemp("saved") / "net.safetensors"
    save_pruned(path, small, sel, x)
    fresh = copy.deepcopy(model)
    for m in fresh.modules():
        if hasattr(m, "reset_parameters"): m.reset_parameters()
    assert torch.equal(load_pruned(path, fresh)(x), small(x))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_damaged_files_end_in_a_value_error(tmp_path_factory, data):
    model, x = network([2], [3], None, True, nn.AvgPool2d, 0), torch.randn(2, 1, 10, 10)
    _, scores = scored(model, x, 0)
    sel = select(scores, units=.4)
    path = tmp_path_factory.mktemp("damaged") / "net.safetensors"
    raw = bytearray(save_pruned(path, remove(model, sel, x), sel, x).read_bytes())
    header = int.from_bytes(raw[:8], "little") + 8
    if data.draw(st.booleans()): raw = raw[:data.draw(st.integers(0, len(raw) - 1))]
    else: raw[data.draw(st.integers(0, header - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(raw)
    try: load_pruned(path, model)
    except ValueError as e: assert path.name in str(e)
