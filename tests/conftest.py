"Tests marked `slow`, `gpu`, `mosek` or `notest` are skipped unless TST_FLAGS names the mark, like flagged notebook cells."
import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
FLAGS = {"slow", "gpu", "mosek", "notest"} - set(os.environ.get("TST_FLAGS", "").split())


def pytest_collection_modifyitems(items):
    for item in items:
        for flag in sorted(FLAGS & {m.name for m in item.iter_markers()}):
            item.add_marker(pytest.mark.skip(reason=f"{flag}: asked for with TST_FLAGS={flag}"))
