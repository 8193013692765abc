"""Fail unless every exported module is what its notebook says and every notebook is clean.

Exports and cleans in a copy, from nothing, and compares: the working tree is not touched, and edits that are not yet
committed are fine as long as notebooks and modules agree.
"""
import difflib, re, shutil, subprocess, sys, tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIB, NBS = "oamip_nb", "nbs"
MARK = re.compile(r"^# auto-?generated", re.I | re.M)  # nbdev writes it at the top of all it makes
DEFAULT_EXP = re.compile(r'"#\| *default_exp +([\w.]+)')


def generated(path):
    "Was this module written by nbdev?"
    return bool(MARK.search(path.read_text(encoding="utf-8")[:2000]))


def export_copy(dst):
    "Copy what nbdev reads to `dst`, without the generated modules, and export and clean there"
    for name in "settings.ini", "setup.py": shutil.copy(ROOT/name, dst)
    for name in LIB, NBS: shutil.copytree(ROOT/name, dst/name, symlinks=True, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    for p in (dst/LIB).rglob("*.py"):
        if generated(p): p.unlink()
    for name in "nbdev_export", "nbdev_clean":
        done = subprocess.run([Path(sys.executable).with_name(name)], cwd=dst, capture_output=True, text=True)
        if done.returncode: sys.exit(f"{name} failed:\n{(done.stdout + done.stderr)[-4000:]}")


def files(root):
    "The modules and notebooks below `root`"
    found = [*(root/LIB).rglob("*.py"), *(root/NBS).rglob("*.ipynb")]
    return {p.relative_to(root) for p in found if not any(part[0] == "." for part in p.relative_to(root).parts)}


def diff(name, new):
    "The first lines of the difference between the file here and the one in `new`"
    a, b = ((r/name).read_text(encoding="utf-8").splitlines() for r in (ROOT, new))
    return "\n".join(l[:160] for l in [*difflib.unified_diff(a, b, f"{name} (here)", f"{name} (from the notebooks)", lineterm="", n=1)][:20])


def problems(new):
    "One message for each file that is not as it should be"
    here, there = files(ROOT), files(new)
    owners = Counter(m for p in here if p.suffix == ".ipynb" for m in DEFAULT_EXP.findall((ROOT/p).read_text(encoding="utf-8")))
    yield from (f"{m}: {n} notebooks have this default_exp" for m, n in owners.items() if n > 1)
    yield from (f"{p}: missing; run nbdev_export and commit it" for p in sorted(there - here))
    yield from (f"{p}: no notebook exports it; delete it" for p in sorted(here - there))
    for p in sorted(here & there):
        if (ROOT/p).read_bytes() != (new/p).read_bytes():
            yield f"{p}: differs; run nbdev_export and nbdev_clean\n{diff(p, new)}"


def main():
    with tempfile.TemporaryDirectory() as tmp:
        export_copy(Path(tmp))
        found = list(problems(Path(tmp)))
    print(*(found or ["in sync: modules and notebooks agree"]), sep="\n")
    return bool(found)


if __name__ == "__main__": sys.exit(main())
