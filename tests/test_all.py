"`from oamip_nb.all import *` gives every public name of every module, each meaning one thing."
import importlib, pkgutil
from collections import Counter

import fastai.basics
import oamip_nb
import oamip_nb.all as everything

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
