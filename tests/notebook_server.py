"""Runs notebooks as `nbdev_test` does, each in a process forked from this one, which has imported large libraries once.

Not fastai, which changes how tensors compare, and nothing of the package.
Each line of standard input names a notebook and a file for what it prints, as JSON; the answer is a line with its exit code, 124 where the time is up.
The first argument is the limit for one notebook, in seconds."""
import importlib
import json
import os
import signal
import sys
import time
import warnings

from nbdev.test import nbdev_test

for name in ("torch", "torchvision", "cvxpy", "torch_pruning", "sklearn.neighbors"): importlib.import_module(name)


def execute(nb, log):
    "Run a notebook in this process, a session of its own, and end it"
    os.setsid(); warnings.simplefilter("ignore")
    with open(log, "w") as f, open(os.devnull) as none:
        for source, target in ((none, 0), (f, 1), (f, 2)): os.dup2(source.fileno(), target)
    try: nbdev_test(path=nb, n_workers=0, flags=os.environ.get("TST_FLAGS", "")); code = 0
    except SystemExit as e: code = e.code or 0
    except BaseException as e: print(repr(e)); code = 1
    sys.stdout.flush(); sys.stderr.flush(); os._exit(code)


def wait(pid, limit):
    "Exit code of a process, or 124; what is left of its session is killed"
    end, code = time.monotonic()+limit, None
    while code is None and time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done: code = os.waitstatus_to_exitcode(status)
        else: time.sleep(.1)
    try: os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError: pass
    if code is None: os.waitpid(pid, 0)
    return 124 if code is None else code


if __name__ == "__main__":
    for line in sys.stdin:
        nb, log = json.loads(line)
        pid = os.fork()
        if pid == 0: execute(nb, log)
        print(wait(pid, float(sys.argv[1])), flush=True)
