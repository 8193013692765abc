"""Each notebook is one test: its unflagged cells run as `nbdev_test` runs them, in a process of their own, two at a time.

TST_FLAGS="slow gpu" also runs the cells with these flags; NB_TIMEOUT=900 changes the limit of one notebook, in seconds.
"""
import json, os, re, subprocess, sys, tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NBS = sorted((ROOT/"nbs").glob("[!_.]*.ipynb"))
LIMIT = int(os.environ.get("NB_TIMEOUT", 600))
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|Users|work|tmp)/\w[^\s\"'\\]*")


def server():
    "A process that runs one notebook after the other"
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "MPLBACKEND": "agg"}
    return subprocess.Popen([sys.executable, ROOT/"tests/notebook_server.py", str(LIMIT)], cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run(nb, server):
    "The exit code of one notebook (124: out of time) and the end of what it printed"
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder)/"log"
        server.stdin.write(json.dumps([str(nb), str(log)])+"\n"); server.stdin.flush()
        answer = server.stdout.readline()
        return int(answer or 1), log.read_text(errors="replace")[-4000:] if log.exists() else "the process that runs the notebooks ended"


@pytest.fixture
def runs(started): return started


@pytest.mark.parametrize("nb", NBS, ids=lambda p: p.stem)
def test_notebook(nb, runs):
    code, text = runs[nb].result()
    if code: pytest.fail(f"{nb.name}: " + (f"over {LIMIT} s" if code == 124 else f"exit {code}") + f"\n{text}", pytrace=False)


@pytest.mark.parametrize("nb", NBS, ids=lambda p: p.stem)
def test_saved_outputs(nb):
    "What is saved with the notebook holds no error and no path of the machine it ran on"
    outputs = [o for c in json.loads(nb.read_text(encoding="utf-8"))["cells"] for o in c.get("outputs", [])]
    assert not [o["ename"] for o in outputs if o["output_type"] == "error"]
    assert not MACHINE_PATH.findall(json.dumps([{k: v for k, v in o.get("data", o).items() if not k.startswith("image/")} for o in outputs]))
