"Readers of the stored reference numbers (OAMIP_ORACLES); the tests that use them skip without it."
import os
import re
from pathlib import Path
import numpy as np
import pytest
import torch
from torch import nn

ROOT = os.environ.get("OAMIP_ORACLES")
needs_oracles = pytest.mark.skipif(not ROOT, reason="OAMIP_ORACLES is not set: no reference numbers to compare with")
DIR = Path(ROOT or ".")/"oamip"

def fc3(): return nn.Sequential(nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))

def lenet(): return nn.Sequential(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
                                  nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10))

def trained(name):
    "A trained network and its ten images: (model, x, y, the batch file)"
    model, w, b = dict(fc3=fc3, lenet=lenet)[name](), np.load(DIR/f"{name}_weights.npz"), np.load(DIR/f"{name}_batch.npz")
    model.load_state_dict({k.removeprefix("model."): torch.tensor(w[k]) for k in w.files})
    return model.eval(), torch.tensor(b["X"]), torch.tensor(b["y"]), b

def _layer(text):
    "Build one module from its printed form, e.g. 'Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1))'"
    name, args = re.fullmatch(r"(\w+)\((.*)\)", text).groups()
    args = re.sub(r"bias=False, track", "track", args) if name.startswith("BatchNorm") else args
    return eval(f"cls({args})", {"cls": getattr(nn, name)}) # the text comes from the reference files only

def toys(): return sorted((DIR/"toys").glob("*.npz")) if ROOT else []

def toy(path):
    "A tiny network of the reference set: (model, x, y, file)"
    d = np.load(path); model = nn.Sequential(*[_layer(a) for a in eval(str(d["arch"]))])
    model.load_state_dict({k.removeprefix("sd__model."): torch.tensor(d[k]) for k in d.files if k.startswith("sd__")})
    return model.double().eval(), torch.tensor(d["X"]), torch.tensor(d["y"]), d
