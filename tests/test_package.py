"The package as installed: no notebook and no nbdev needed, so these tests also run against the wheel."
import importlib, pkgutil, subprocess, sys, warnings
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

import pytest

import oamip_nb

ROOT = Path(__file__).resolve().parent.parent
MODULES = [m.name for m in pkgutil.walk_packages(oamip_nb.__path__, "oamip_nb.") if "._" not in m.name]


@pytest.mark.parametrize("name", MODULES)
def test_import(name):
    "Every module imports, and every name that it says it has is there"
    mod = importlib.import_module(name)
    assert [n for n in getattr(mod, "__all__", ()) if not hasattr(mod, n)] == []


def test_version():
    cfg = ConfigParser(delimiters=["="])
    cfg.read(ROOT/"settings.ini", encoding="utf-8")
    assert cfg["DEFAULT"]["version"] == oamip_nb.__version__ == version("oamip_nb")


def test_import_is_light():
    "Library code takes fastai.basics, not fastai.vision.all, which doubles the time of an import"
    code = f"import sys, importlib; [importlib.import_module(m) for m in {MODULES}]; print('fastai.vision.all' in sys.modules, 'nbdev' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_command_help(tmp_path):
    done = subprocess.run([Path(sys.executable).with_name("oamip"), "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "usage: oamip" in done.stdout


def export_and_load(dls, model, folder):
    "Assert that a Learner with these data and this model comes back from its file with the same outputs"
    import torch
    from fastai.basics import Learner, load_learner
    x = dls.one_batch()[0]
    learn = Learner(dls, model, loss_func=torch.nn.CrossEntropyLoss(), path=folder)
    learn.export("learner.pkl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # load_learner warns that pickle runs code; this file is our own
        loaded = load_learner(folder/"learner.pkl")
    assert torch.equal(loaded.model.eval()(x), learn.model.eval()(x))


def test_learner_export(tmp_path):
    "A Learner on the package's own data can be exported"
    from torch import nn
    from oamip_nb.data import image_dls
    dls = image_dls("digits")
    export_and_load(dls, nn.Sequential(nn.Flatten(), nn.Linear(dls.one_batch()[0][0].numel(), dls.c)), tmp_path)


def test_learner_export_transforms(tmp_path):
    "So can one with a transform of the user's own: fastai 2.8.7 cannot pickle it with plum-dispatch 2.10 or later"
    from fastai.basics import Categorize, Datasets, Transform
    from torch import nn, tensor

    class Row(Transform):
        def encodes(self, i: int): return tensor([float(i)])

    dsets = Datasets(list(range(4)) * 2, [[Row()], [Categorize()]], splits=[range(6), range(6, 8)])
    export_and_load(dsets.dataloaders(bs=2, num_workers=0), nn.Linear(1, 4), tmp_path)
