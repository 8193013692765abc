"""Build the wheel and try it as a user gets it: in an empty environment, without extras, away from this folder.

    python tools/check_wheel.py                                # with the Python that runs this
    python tools/check_wheel.py --short python3.12 python3.13  # with others: the package's own tests only
    python tools/check_wheel.py --sdist                        # what is installed is the source archive

There the newest fastai and fastcore are installed, not the ones that nbdev is tied to. Runs `oamip --help`, the demo
on the digits data and the quicker tests that need no notebook; with `--short` only those that import every module and use
a Learner. The environment is build/wheel-env; it is removed on success.
"""
import argparse
import os, shutil, subprocess, sys, tempfile, time, zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENV, BIN = ROOT/"build/wheel-env", ROOT/"build/wheel-env/bin"
TEST_TOOLS = ["pytest", "hypothesis"]
# long numerical tests whose answer does not hang on how the package was installed
LEFT_OUT = ["test_notebooks.py", "test_mint_oracles.py", "test_oamip_oracles.py", "test_mip.py"]
SHORT = ["test_package.py", "test_all.py"]
# bytecode is compiled at the first import: quicker than compiling all that is installed
INSTALL = ["-m", "pip", "install", "-qq", "--no-compile"]
ENVIRON = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")} | {"MPLBACKEND": "agg"}
VERSIONS = """
import platform, oamip_nb, fastai, fastcore, torch
print(oamip_nb.__file__)
print(f"python {platform.python_version()}", *(f"{m.__name__} {m.__version__}" for m in (oamip_nb, fastai, fastcore, torch)), sep=", ")"""


def call(*cmd, cwd):
    "Run a command and stop with its output if it fails"
    shown, start = " ".join("VERSIONS" if c == VERSIONS else getattr(c, "name", c) for c in cmd), time.time()
    done = subprocess.run(cmd, cwd=cwd, env=ENVIRON, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(f"$ {shown}  # {time.time() - start:.0f} s", flush=True)
    if done.returncode: sys.exit(f"{done.stdout[-6000:]}\nexit {done.returncode}: {' '.join(map(str, cmd))}")
    return done.stdout


def build(folder):
    "The source archive and the wheel, which is built from the archive, so that this is complete too"
    call(sys.executable, "-m", "build", "-o", folder, ROOT, cwd=folder)
    (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    packed = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    wanted = {str(p.relative_to(ROOT)) for p in (ROOT/"oamip_nb").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    if packed != wanted: sys.exit(f"{wheel.name}: missing {sorted(wanted - packed)}, unexpected {sorted(packed - wanted)}")
    return archive, wheel


def check(python, dist, short, tmp):
    "Install `dist` in an empty environment of `python` and use it"
    tests = [ROOT/"tests"/name for name in SHORT] if short else [*(f"--ignore={ROOT/'tests'/name}" for name in LEFT_OUT), ROOT/"tests"]
    call(python, "-m", "venv", "--clear", ENV, cwd=tmp)
    call(BIN/"python", *INSTALL, dist, cwd=tmp)
    call(BIN/"python", "-m", "pip", "check", cwd=tmp)
    call(BIN/"oamip", "--help", cwd=tmp)
    print(call(BIN/"oamip", cwd=tmp))
    call(BIN/"python", *INSTALL, *TEST_TOOLS, cwd=tmp)
    print(call(BIN/"python", "-c", VERSIONS, cwd=tmp))
    print(call(BIN/"pytest", "-q", "-p", "no:cacheprovider", *tests, cwd=tmp))
    shutil.rmtree(ENV)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("pythons", nargs="*", default=[sys.executable], metavar="PYTHON", help="interpreters to try; none: the one that runs this")
    p.add_argument("--short", action="store_true", help=f"only {' and '.join(SHORT)} of the tests")
    p.add_argument("--sdist", action="store_true", help="install the source archive in place of the wheel")
    args = p.parse_args()
    missing = [x for x in args.pythons if not shutil.which(x)]
    if missing: sys.exit(f"no such interpreter: {', '.join(missing)}; name Pythons on the PATH, or their files")
    with tempfile.TemporaryDirectory() as tmp:
        archive, wheel = build(Path(tmp))
        for python in args.pythons: check(os.path.abspath(shutil.which(python)), archive if args.sdist else wheel, args.short, Path(tmp))


if __name__ == "__main__": main()
