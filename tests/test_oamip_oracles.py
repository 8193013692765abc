"The program against the published one: bounds, objectives and scores stored from runs of the original's own constraints."
from dataclasses import replace
import cvxpy as cp
import numpy as np
import pytest
import torch
from oamip_nb.bounds import box_bounds, pre_upper, subtract
from oamip_nb.formulation import _top_expr, build_program, literal_problem, sparsity_term
from oamip_nb.network import trace
from oamip_nb.solvers import solve
from oracles import DIR, needs_oracles, toy, toys, trained

pytestmark = needs_oracles
LOOSE = {"fc_K2_eps0.1": 1e-4, "conv_pad_group_bn_adaptive_eps1e-05": 1e-4} # stored from an 'optimal_inaccurate' solve

def relaxed(p): return replace(p, integer=np.zeros_like(p.integer))

@pytest.mark.parametrize("name", ["fc3"])
def test_bounds_are_the_published_ones(name):
    model, x, y, b = trained(name); ref = np.load(DIR/f"{name}_bounds.npz")
    net = trace(model, x); ours = box_bounds(net, x, float(b["epsilon"]))
    for st, lo, hi in zip(net.stages, ours.lo, ours.hi): # stored in float32
        assert np.abs(lo.numpy()-ref[f"L_{st.name}"].reshape(lo.shape)).max() < 2e-5
        assert np.abs(hi.numpy()-ref[f"U_{st.name}"].reshape(hi.shape)).max() < 2e-5

def literal_optimum(lit, net, y, lam):
    "Optimum of the literal program by linear programs through cvxpy: its own rows, and tangents of the cross-entropy until they meet it"
    n = len(y); t = cp.Variable(n); cuts, best = [t >= 0], np.inf
    sparsity = _top_expr(sparsity_term(net, "published"), cp.hstack(list(lit.scores.values())))
    for _ in range(100):
        low = cp.Problem(cp.Minimize(lam*cp.sum(t)/n+sparsity), lit.problem.constraints+cuts).solve(solver="HIGHS")
        f = lit.logits.value; best = min(best, lit.problem.objective.value)
        if best-low < 1e-6: return best
        p = np.exp(f-f.max(1, keepdims=True)); p /= p.sum(1, keepdims=True); g = p-np.eye(f.shape[1])[y]
        ce = torch.nn.functional.cross_entropy(torch.tensor(f), torch.tensor(y), reduction="none").numpy()
        cuts.append(t >= ce+cp.sum(cp.multiply(g, lit.logits-f), axis=1))
    raise AssertionError(f"no convergence: {low} to {best}")

@pytest.mark.parametrize("path", toys(), ids=lambda p: p.stem)
def test_toy(path):
    model, x, y, d = toy(path); tol = LOOSE.get(path.stem, 1e-5); eps = float(d["eps"])
    net = trace(model, x, fold_bn=False); p = build_program(net, x, y, eps)
    r = solve(relaxed(p), float(d["lam"]), "published", gap=1e-7)
    assert abs(r.certificate.objective-float(d["relaxed_objective"])) < tol
    lit = literal_problem(net, x, y, float(d["lam"]), "published", eps=eps, relax=True)
    assert abs(literal_optimum(lit, net, y.numpy(), float(d["lam"]))-r.certificate.objective) < tol
    if "exact_objective" in d.files:
        e = solve(p, float(d["lam"]), "published", gap=1e-7)
        assert abs(e.certificate.objective-float(d["exact_objective"])) < tol and e.certificate.bound <= float(d["exact_objective"])+tol

@pytest.mark.parametrize("form", ["relaxed", "exact"])
def test_fc3(form):
    model, x, y, _ = trained("fc3"); ref = np.load(DIR/f"fc3_SCORESPACE_{form}_lam5_solution.npz")
    p = build_program(trace(model, x), x, y)
    s = solve(relaxed(p) if form == "relaxed" else p, 5., "published", gap=2e-7)
    assert abs(s.certificate.objective-float(ref["objective"])) < 1e-5 and s.certificate.gap < 1e-6
    assert abs(p.losses(s.q).mean()-float(ref["ce_term"])) < 1e-4
    for k in ("1", "3"): assert np.abs(s.scores[k]-ref[f"score_{k}"]).max() < 1e-2

def test_lenet_exact_is_certified():
    model, x, y, _ = trained("lenet"); p = build_program(trace(model, x), x, y)
    r, e = solve(relaxed(p), 5., "published", gap=1e-6), solve(p, 5., "published", gap=1e-6)
    assert r.certificate.status == e.certificate.status == "optimal"
    assert -1.3363073 < r.certificate.objective < -1.336305 and -1.3363071 < e.certificate.objective < -1.336304 # the stored brackets, and the gap

def test_the_network_keeps_what_the_program_promises():
    "The gated network, run in torch with the exact scores, has the program's cross-entropy"
    model, x, y, _ = trained("lenet"); net = trace(model, x); s = solve(build_program(net, x, y), 5., "published", gap=1e-4)
    U, q = pre_upper(net, box_bounds(net, x)), {k: torch.tensor(v) for k, v in s.scores.items()}
    f = net.run(x.double(), lambda st, z: subtract(st, z, q[st.gate], U[st.gate]))[-1]
    assert abs(torch.nn.functional.cross_entropy(f, y).item()-build_program(net, x, y).losses(s.q).mean()) < 1e-5
