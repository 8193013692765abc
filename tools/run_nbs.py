"""Execute notebooks on a real kernel, save their outputs in place and clean them.

    python tools/run_nbs.py [nbs/NAME.ipynb ...]      # none named: every notebook under nbs/
    FLAGS="slow gpu" python tools/run_nbs.py ...      # also the cells that carry these flags

Cells whose flag is in `tst_flags` of settings.ini, and cells with `#| eval: false`, are left alone: they keep the
outputs they have. A notebook that fails is not written.
"""
import os, re, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from pathlib import Path

# IN_TEST makes a trailing `nbdev_export()` do nothing; warnings would save absolute paths into the outputs
os.environ.update(IN_TEST="1", PYTHONWARNINGS="ignore", MPLBACKEND="module://matplotlib_inline.backend_inline")
os.environ.setdefault("OMP_NUM_THREADS", "1")
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parent.parent
DIRECTIVE = re.compile(r"^\s*#\|\s*([\w-]+)(.*)$", re.M)
LIMIT = int(os.environ.get("NB_TIMEOUT", 1800))   # seconds for one cell


def flags():
    "The flags of settings.ini that the caller did not ask for"
    cfg = ConfigParser(delimiters=["="])
    cfg.read(ROOT/"settings.ini", encoding="utf-8")
    return set(cfg["DEFAULT"]["tst_flags"].split()) - set(os.environ.get("FLAGS", "").split())


class FlagClient(NotebookClient):
    "A client that leaves flagged cells alone"
    async def async_execute_cell(self, cell, cell_index, **kw):
        found = dict(DIRECTIVE.findall(cell.source)) if cell.cell_type == "code" else {}
        if self.resources["skip"] & found.keys() or found.get("eval", "").strip(" :") == "false": return cell
        return await super().async_execute_cell(cell, cell_index, **kw)


def run(path, skip):
    "Execute and save one notebook; returns its path, the seconds and the error or None"
    start = time.time()
    nb = nbformat.read(path, as_version=4)
    try:
        FlagClient(nb, timeout=LIMIT, kernel_name="python3", record_timing=False, extra_arguments=["--log-level=50"],
                   resources={"metadata": {"path": str(path.parent)}, "skip": skip}).execute()
    except Exception as e:                        # a failing cell, a dead kernel, a time-out: reported by name
        return path, time.time() - start, str(e) if isinstance(e, CellExecutionError) else f"{type(e).__name__}: {e}"
    nbformat.write(nb, path)
    subprocess.run([Path(sys.executable).with_name("nbdev_clean"), "--fname", path], cwd=ROOT, check=True)
    return path, time.time() - start, None


def leaks(path):
    "Texts in the notebook that name this checkout or the home directory"
    text = path.read_text(encoding="utf-8")
    return [p for p in {str(ROOT), str(Path.home())} if len(p) > 1 and p + "/" in text]


def main(args):
    files = [Path(a).resolve() for a in args] or sorted((ROOT/"nbs").glob("[!_.]*.ipynb"))
    missing = [str(p) for p in files if not p.is_file()]
    if missing: sys.exit(f"no such notebook: {', '.join(missing)}")
    skip, failed = flags(), 0
    with ThreadPoolExecutor(2) as pool:
        for path, seconds, error in pool.map(lambda p: run(p, skip), files):
            print(f"{'FAIL' if error else 'ok  '} {path.name} {seconds:.1f}s", *([error] if error else []), flush=True)
            failed += bool(error)
            for p in leaks(path): print(f"     {path.name}: the saved text names the machine's path {p}", flush=True)
    return bool(failed)


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
