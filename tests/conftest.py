"""Tests marked `slow`, `gpu`, `mosek` or `notest` are skipped unless TST_FLAGS names the mark, like flagged notebook cells.

The notebooks start with the first test, two at a time, and their results are asked for last: the other tests run beside them."""
import os
import queue
from concurrent.futures import ThreadPoolExecutor

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
FLAGS = {"slow", "gpu", "mosek", "notest"} - set(os.environ.get("TST_FLAGS", "").split())


def pytest_collection_modifyitems(items):
    items.sort(key=lambda i: "runs" in i.fixturenames)
    for item in items:
        for flag in sorted(FLAGS & {m.name for m in item.iter_markers()}):
            item.add_marker(pytest.mark.skip(reason=f"{flag}: asked for with TST_FLAGS={flag}"))


@pytest.fixture(scope="session", autouse=True)
def started(request):
    "One future for each notebook that was selected"
    wanted = [i for i in request.session.items if "runs" in i.fixturenames]
    if not wanted: yield {}; return
    module, servers = wanted[0].module, queue.SimpleQueue()
    for _ in range(min(2, os.cpu_count() or 1)): servers.put(module.server())
    def run(nb):
        mine = servers.get()
        try: return module.run(nb, mine)
        finally: servers.put(mine)
    with ThreadPoolExecutor(servers.qsize()) as pool:
        yield {i.callspec.params["nb"]: pool.submit(run, i.callspec.params["nb"]) for i in wanted}
        pool.shutdown(cancel_futures=True)
    while not servers.empty():
        p = servers.get(); p.stdin.close(); p.wait()
