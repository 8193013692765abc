"The estimator against stored runs of the published code, and against the numbers of a corrected one that was written independently."
from pathlib import Path

import numpy as np
import pytest
import torch
from oamip_nb.mint import (conditional_gmi, crossing, divergence, mint_scores, null_rows, published_count, published_null_rows, reference_tree, score_groups, spanning_trees,
                           squared_distances)
from oamip_nb.models import create_model
from oracles import ROOT, needs_oracles

DIR = Path(ROOT or ".")/"mint"
FILES = sorted(DIR.glob("synth_*.npz"))
MLP = sorted(DIR.glob("mlp_*_25spc_*.npz"))

def load(path):
    d = np.load(path); return d, *(torch.tensor(d[k]) for k in "XYZ")

def corrected(rows, partners, x, y, z, n):
    "Tree, count and value of the corrected estimator with SciPy's tree, which has no edge between equal rows"
    e = reference_tree(torch.cat([x[rows], y[partners], z[rows]], 1).numpy()); n1 = n-2*n//3; r = int(crossing(torch.tensor(e.T), n1))
    return e, r, divergence(r, n1, n)

@needs_oracles
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_as_published(path):
    d, x, y, z = load(path); n = len(x); order = torch.arange(n); n1 = int(d["n1"])
    rows, partners = published_null_rows(z, order)
    assert partners[n1:].tolist() == d["boot_row_index_original"].tolist()
    pool = torch.cat([x[rows], y[partners], z[rows]], 1).numpy()
    assert np.array_equal(pool[:n1], d["train1"]) and np.array_equal(pool[n1:], d["train23"])
    e = reference_tree(pool)
    assert np.array_equal(e[:, 0], d["mst_row"]) and np.array_equal(e[:, 1], d["mst_col"]) and len(e) == int(d["nnz"])
    assert np.abs(np.linalg.norm(pool[e[:, 0]]-pool[e[:, 1]], axis=1)-d["mst_w"]).max() < 1e-12
    assert published_count(e, n1) == int(d["r_as_written"]) and int(crossing(torch.tensor(e.T), n1)) == int(d["r_cross_true"])
    assert abs(conditional_gmi(x, y, z, as_published=True).value-float(d["mi_original"])) < 1e-12
    assert abs(corrected(rows, partners, x, y, z, n)[2]-float(d["mi_true_count_same_bootstrap"])) < 1e-12

@needs_oracles
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_corrected(path):
    d, x, y, z = load(path); n = len(x); n1 = int(d["n1"])
    rows, partners = null_rows(z, torch.arange(n))
    assert partners[n1:].tolist() == d["boot_row_index_conditional"].tolist()
    e, r, v = corrected(rows, partners, x, y, z, n)
    assert np.array_equal(e[:, 0], d["mst_row_cond"]) and np.array_equal(e[:, 1], d["mst_col_cond"]) and r == int(d["r_cross_conditional"])
    assert abs(v-float(d["mi_true_count_conditional_bootstrap"])) < 1e-12

@needs_oracles
@pytest.mark.parametrize("path", [p for p in FILES if "ties" not in p.stem], ids=lambda p: p.stem)
def test_fast_trees_are_the_same(path):
    d, x, y, z = load(path); rows, partners = null_rows(z, torch.arange(len(x)))
    ends = spanning_trees(squared_distances(x[rows])[None], squared_distances(torch.cat([y[partners], z[rows]], 1)))[:, :, 0]
    e = np.array(sorted(map(sorted, ends.T.tolist())))
    assert np.array_equal(e[:, 0], d["mst_row_cond"]) and np.array_equal(e[:, 1], d["mst_col_cond"])

@needs_oracles
@pytest.mark.parametrize("path", MLP, ids=lambda p: p.stem)
def test_network_scores(path):
    "Every pair of groups of a layer pair of the published network: as published, and each fault mended in turn"
    d = np.load(path); lp, lc = d["label_parent"], d["label_child"]; P, pairs = torch.tensor(d["parent"]).double(), [(c, g) for c in range(lc.max()+1) for g in range(lp.max()+1)]
    n = len(P); n1 = n-2*n//3; order = torch.arange(n); got = {k: np.zeros(d["I_parent_original"].shape) for k in d.files if k.startswith("I_")}
    boot = {g: (published_null_rows(P[:, lp != g], order), null_rows(P[:, lp != g], order)) for g in range(lp.max()+1)}
    for g in boot: assert np.array_equal(boot[g][0][1][n1:], d["boot_original"][g])
    for c, g in pairs:
        y, z = P[:, lp == g], P[:, lp != g]
        for kind in ("unpaired", "paired"):
            x = torch.tensor(d[f"child_{kind}"]).double()[:, lc == c]; e, _, v = corrected(*boot[g][0], x, y, z, n)
            got[f"I_true_count_{kind}"][c, g] = v; got["I_parent_original" if kind == "unpaired" else "I_written_paired"][c, g] = divergence(published_count(e, n1), n1, n)
        got["I_true_count_paired_conditional"][c, g] = corrected(*boot[g][1], x, y, z, n)[2]
    got["I_fast_written"] = got["I_parent_original"]
    for k, v in got.items(): assert np.abs(v-d[k]).max() < 1e-12, k

@needs_oracles
@pytest.mark.parametrize("path", MLP, ids=lambda p: p.stem)
def test_fast_scores_are_those_of_single_pairs(path):
    "Images that were drawn twice are left out, for two equal rows have many trees"
    d = np.load(path); P = torch.tensor(d["parent"]); keep = np.unique(P.numpy(), axis=0, return_index=True)[1]; P, Q = P[keep], torch.tensor(d["child_paired"])[keep]; lp, lc = d["label_parent"], d["label_child"]
    s = score_groups(P, Q, lp, lc, condition="all")
    for c, g in ((0, 0), (3, 7), (lc.max(), lp.max())):
        one = conditional_gmi(Q[:, lc == c], P[:, lp == g], P[:, lp != g], condition="all", permutations=0, resamples=0).value
        assert abs(float(s[c, g])-one) < 1e-12

def test_pairs_in_parallel(tmp_path):
    "Two processes give the scores of one, and leave them in the cache"
    model = create_model("fc_baseline", (1, 8, 8), 10, seed=0); g = torch.Generator().manual_seed(0); x, y = torch.rand(300, 1, 8, 8, generator=g), torch.arange(300) % 10
    kw = dict(parent_groups=4, child_groups=3, samples_per_class=20)
    one, two = mint_scores(model, x, y, **kw), mint_scores(model, x, y, n_jobs=2, cache=tmp_path, **kw)
    assert all(torch.equal(a.scores, b.scores) for a, b in zip(one.pairs, two.pairs)) and len(list(tmp_path.iterdir())) == 2
