"`from oamip_nb.all import *` gives every public name of every module, each meaning one thing."
import dataclasses, importlib, inspect, pkgutil
from collections import Counter

import fastai.basics
import oamip_nb
import oamip_nb.all as everything
from fastcore.docments import docments

NAMES = [m.name for m in pkgutil.iter_modules(oamip_nb.__path__) if m.name[0] != "_" and m.name not in ("all", "cli")]
MODULES = [importlib.import_module(f"oamip_nb.{name}") for name in NAMES]


def test_every_name_is_there():
    assert len(MODULES) >= 11
    assert {f"{m.__name__}.{n}" for m in MODULES for n in m.__all__ if getattr(everything, n, None) is not getattr(m, n)} == set()


def test_no_name_means_two_things():
    counts = Counter(n for m in MODULES for n in m.__all__)
    assert [n for n, k in counts.items() if k > 1] == []


def test_what_a_learner_needs():
    "Models, data, metric and the methods that are patched onto Learner"
    for name in "image_dls Learner fc3 accuracy neuron_importance select mask remove report".split(): assert hasattr(everything, name), name
    for name in "fit_one_cycle no_bar neuron_importance prune fine_tune_pruned".split(): assert hasattr(everything.Learner, name), name


def test_names_taken_from_fastai():
    "A star import would change these names of fastai for its reader: not one more unnoticed"
    assert {n for m in MODULES for n in m.__all__ if hasattr(fastai.basics, n)} == {"trace"}


def silent(o):
    "Arguments of a public name without a word about them; what is passed on, inherited or delegated is documented where it comes from"
    if inspect.isclass(o) and not dataclasses.is_dataclass(o) and "__init__" not in vars(o) or hasattr(o, "__delwrap__"): return []
    inherited = {f.name for b in o.__mro__[1:] if dataclasses.is_dataclass(b) for f in dataclasses.fields(b)} if inspect.isclass(o) else set()
    passed_on = {p.name for p in inspect.signature(o).parameters.values() if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    return [k for k, text in docments(o, returns=False).items() if not text and k not in inherited | passed_on | {"self"}]


def test_every_public_name_is_documented():
    "A docstring of one line, and a word for every argument, as the docs show them"
    public = {f"{m.__name__}.{n}": getattr(m, n) for m in MODULES for n in m.__all__}; public = {n: o for n, o in public.items() if inspect.isfunction(o) or inspect.isclass(o)}
    assert len(public) > 250 and [n for n, o in public.items() if not o.__doc__ or "\n" in o.__doc__.strip()] == []
    assert {n: silent(o) for n, o in public.items() if silent(o)} == {}
    def plain(a, b=1): "An argument without a word"
    assert silent(plain) == ["a", "b"]
