"A search for a ticket in two processes on a CPU: every validation image counted once, one network in both, files by one."
import json, os, subprocess, sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = """
import json, os, sys, torch
from oamip_nb.biprop import supermask_layers
from oamip_nb.find_ticket import Recipe, ticket_learner
r = Recipe(net='conv2', net_options=dict(width=.125), dataset='digits', crop=1, flip=False, bs=64, epochs=2, optimizer='adam', lr=.01, valid=.2, shared=True, keep=.3, ramp=1)
learn = ticket_learner(r); steps, sizes = [], []
from fastai.basics import Callback
class Watch(Callback):
    def after_step(self): steps.append(1); sizes.append(len(self.y))
until = int(os.environ['UNTIL']) or None
with learn.no_bar(), learn.no_logging(): found = learn.find_ticket(r, sys.argv[1], until=until, resume=os.environ['RESUME']=='1', cbs=[Watch()])
out = dict(rank=int(os.environ['RANK']), rows=found.rows, steps=len(steps), sizes=sizes, start=[float(m.weight.sum()) for m in supermask_layers(learn.model).values()],
    scores=[float(m.scores.double().sum()) for m in supermask_layers(learn.model).values()], of=len(learn.dls.valid.dataset), wrapped=type(learn.model).__name__)
json.dump(out, open(sys.argv[1]+f"/rank{out['rank']}.json", 'w'))
torch.distributed.destroy_process_group()
"""


def launch(folder, **env):
    "Run the script in two processes, and give what each of them saw"
    script = folder.parent/"search.py"; script.write_text(SCRIPT); folder.mkdir(exist_ok=True)
    cmd = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script), str(folder)]
    done = subprocess.run(cmd, env=os.environ | dict(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", **env), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder/f"rank{r}.json").read_text()) for r in (0, 1)]


@pytest.mark.skipif(not find_spec("accelerate"), reason="needs accelerate: pip install oamip_nb[ticket]")
def test_two_processes(tmp_path):
    import pandas as pd
    from oamip_nb.find_ticket import Recipe, ticket_learner
    from oamip_nb.find_ticket import _load_search, _masked_net
    from oamip_nb.pruning import count_correct
    a, b = launch(tmp_path/"run", UNTIL="0", RESUME="0")
    assert a["rows"][-1]["of"] == a["of"] and a["of"] % 2 == 1  # an odd number of images: one process has a filler, which is not counted
    same = lambda rows: [{k: v for k, v in r.items() if k != "cpu_seconds"} for r in rows]
    assert same(a["rows"]) == same(b["rows"])
    assert a["scores"] == b["scores"] and a["start"] == b["start"] and a["steps"] == b["steps"] > 20 and set(a["sizes"]+b["sizes"]) == {32}
    table = pd.read_csv(tmp_path/"run/results.csv"); assert table.right.tolist() == [r["right"] for r in a["rows"]] and (table.processes == 2).all() and (table.recipe_bs == 64).all()
    # one process alone counts the same on the best checkpoint
    r = Recipe(net="conv2", net_options=dict(width=.125), dataset="digits", crop=1, flip=False, bs=64, epochs=2, optimizer="adam", lr=.01, valid=.2, shared=True, keep=.3, ramp=1)
    learn = ticket_learner(r); model = _masked_net(learn.model, r); _load_search(tmp_path/"run/best.safetensors", model)
    best = [row for row in a["rows"] if row["best"]][-1]
    assert count_correct(model, learn.dls.valid) == (best["right"], a["of"])
