"""Build the wheel and try it as a user gets it: in an empty environment, without extras, away from this folder.

There the newest fastai and fastcore are installed, not the ones that nbdev is tied to. Runs `oamip --help`, the demo
on the digits data and the quicker tests that need no notebook. The environment is build/wheel-env; it is removed on success.
"""
import os, shutil, subprocess, sys, tempfile, time, venv, zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENV, BIN = ROOT/"build/wheel-env", ROOT/"build/wheel-env/bin"
TEST_TOOLS = ["pytest", "hypothesis"]
# long numerical tests whose answer does not hang on how the package was installed
LEFT_OUT = ["test_notebooks.py", "test_mint_oracles.py", "test_oamip_oracles.py", "test_mip.py"]
# bytecode is compiled at the first import: quicker than compiling all that is installed
INSTALL = ["-m", "pip", "install", "-qq", "--no-compile"]
ENVIRON = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")} | {"MPLBACKEND": "agg"}
VERSIONS = """
import oamip_nb, fastai, fastcore, torch
print(oamip_nb.__file__)
print(*(f"{m.__name__} {m.__version__}" for m in (oamip_nb, fastai, fastcore, torch)), sep=", ")"""


def call(*cmd, cwd):
    "Run a command and stop with its output if it fails"
    shown, start = " ".join("VERSIONS" if c == VERSIONS else getattr(c, "name", c) for c in cmd), time.time()
    done = subprocess.run(cmd, cwd=cwd, env=ENVIRON, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(f"$ {shown}  # {time.time() - start:.0f} s", flush=True)
    if done.returncode: sys.exit(f"{done.stdout[-6000:]}\nexit {done.returncode}: {' '.join(map(str, cmd))}")
    return done.stdout


def build(folder):
    "The wheel, built from the source archive, so that the archive is complete too"
    call(sys.executable, "-m", "build", "-o", folder, ROOT, cwd=folder)
    wheel, = folder.glob("*.whl")
    packed = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    wanted = {str(p.relative_to(ROOT)) for p in (ROOT/"oamip_nb").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    if packed != wanted: sys.exit(f"{wheel.name}: missing {sorted(wanted - packed)}, unexpected {sorted(packed - wanted)}")
    return wheel


def main():
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        wheel = build(tmp)
        venv.create(ENV, clear=True, with_pip=True)
        call(BIN/"python", *INSTALL, wheel, cwd=tmp)
        call(BIN/"python", "-m", "pip", "check", cwd=tmp)
        call(BIN/"oamip", "--help", cwd=tmp)
        print(call(BIN/"oamip", cwd=tmp))
        call(BIN/"python", *INSTALL, *TEST_TOOLS, cwd=tmp)
        print(call(BIN/"python", "-c", VERSIONS, cwd=tmp))
        print(call(BIN/"pytest", "-q", "-p", "no:cacheprovider", *(f"--ignore={ROOT/'tests'/name}" for name in LEFT_OUT), ROOT/"tests", cwd=tmp))
    shutil.rmtree(ENV)


if __name__ == "__main__": main()
