"""List the licences of all that the package needs at run time; fail on one that is not allowed here.

    python tools/licences.py

What is needed is followed from package to package, without extras and development tools; pip-licenses reads the licences.
"""
import json, re, subprocess, sys
from fnmatch import fnmatch
from importlib.metadata import requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# all permissive, but for MPL-2.0, which asks only that changes of its own files stay open
ALLOWED = re.compile(r"(The )?(Apache([ -]2\.0| Software License)?( WITH LLVM-exception)?|(0|[23]-Clause )?BSD([ -](License|[23]-Clause))?|MIT(-0|-CMU)?( License)?|ISC License \(ISCL\)|ISC|"
                     r"BSL-1\.0|Zlib|CC0-1\.0|PSF-2\.0|Python Software Foundation License|MPL-2\.0|Mozilla Public License 2\.0 \(MPL 2\.0\)|any-OSI)")
# not free, and not needed: what each is here for
EXCEPTIONS = {"mosek": "a solver, used only where its licence is installed",
              "nvidia-*": "part of PyTorch's builds for GPUs, not of those for CPUs", "cuda-toolkit": "part of PyTorch's builds for GPUs, not of those for CPUs"}


def closure(names, extras=()):
    "Canonical names of the packages and of all that they need in this environment"
    seen, todo = set(), [(n, extras) for n in names]
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen: continue
        seen.add((name, extras))
        for r in map(Requirement, requires(name) or []):
            if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in ("", *extras)): todo.append((canonicalize_name(r.name), tuple(sorted(r.extras))))
    return {name for name, _ in seen}


def allowed(licence):
    "Whether every part of a licence expression is allowed, or one of the parts to choose from"
    return all(any(ALLOWED.fullmatch(choice.strip()) for choice in part.split(" OR ")) for part in re.split(r" AND |;", licence))


def exception(name): return next((why for pattern, why in EXCEPTIONS.items() if fnmatch(name, pattern)), None)


def main():
    names = closure(["oamip-nb"]) - {"oamip-nb"}
    cmd = [sys.executable, "-m", "piplicenses", "--from=mixed", "--with-system", "--format=json", "--packages", *sorted(names)]
    rows = {canonicalize_name(r["Name"]): r for r in json.loads(subprocess.run(cmd, check=True, capture_output=True, text=True).stdout)}
    for name, r in sorted(rows.items()): print(f"{name:24} {r['Version']:14} {r['License']}" + (f"  ({exception(name)})" if exception(name) else ""))
    bad = [f"{n}: licence {r['License']!r} is not allowed by tools/licences.py" for n, r in sorted(rows.items()) if not allowed(r["License"]) and not exception(n)]
    bad += [f"{n}: needed, but pip-licenses does not list it" for n in sorted(names - rows.keys())]
    print(f"{len(rows)} packages, {sum(exception(n) is not None for n in rows)} named exceptions", *bad, sep="\n")
    return bool(bad)


if __name__ == "__main__": sys.exit(main())
