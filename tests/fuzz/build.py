"""The fuzz build: a copy of the gateway whose C code tells libFuzzer where it has been, under ASan and UBSan.

Owns      build/fuzz/lib: the gateway's sources, and extensions made by clang; nothing of the checkout is touched
Flow      make() → sources that changed are copied → extensions are built anew when theirs did → environment()
Limits    one build at a time (a lock); about a minute when the kernels changed, nothing when they did not
Errors    Unavailable, with what to install
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "build" / "fuzz"
LIB = HOME / "lib"
NEEDED = ("setup.py", "pyproject.toml", "README.md", "LICENSE")


class Unavailable(Exception):
    """Fuzzing cannot run here; str() says what is missing."""


def compiler() -> str:
    """The newest clang on the path, or $CLANG."""
    if os.environ.get("CLANG"):
        return os.environ["CLANG"]
    found: dict[int, str] = {}
    for directory in os.get_exec_path():
        for path in Path(directory).glob("clang*"):
            match = re.fullmatch(r"clang(?:-(\d+))?", path.name)
            if match and os.access(path, os.X_OK):
                found.setdefault(int(match[1] or 0), str(path))
    if not found:
        raise Unavailable("clang is missing: apt-get install clang")
    return found[max(found)]


def runtime() -> Path:
    """The runtime of sanitizers and fuzzer in one: it must be in the process before Python is."""
    spec = importlib.util.find_spec("atheris")
    if spec is None or spec.origin is None:
        raise Unavailable(
            "atheris is missing: pip install atheris (wheels: x86-64, CPython 3.11 to 3.14)"
        )
    path = Path(spec.origin).parent.parent / "asan_with_fuzzer.so"
    if not path.exists():
        raise Unavailable(f"atheris was built without sanitizers: no {path}")
    return path


def make() -> None:
    """Bring build/fuzz/lib up to date with the checkout.  Raises Unavailable."""
    clang = compiler()
    runtime()
    HOME.mkdir(parents=True, exist_ok=True)
    with (HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sources = _sources()
        _copy(sources)
        built = HOME / "built"
        wanted = [_digest_of_tools(clang), _digest(sources)]
        known = built.read_text().split() if built.exists() else []
        if known != wanted:
            built.unlink(missing_ok=True)
            if known[:1] != wanted[:1]:
                _forget()
            _compile(clang)
            built.write_text("\n".join(wanted))


def environment() -> dict[str, str]:
    """What a process needs to run the build: see worker.py."""
    return {
        **os.environ,
        "LD_PRELOAD": str(runtime()),
        # Python keeps what it has until it ends, and ends without giving it back: no leaks to see.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=32",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
        "PYTHONHASHSEED": "0",
        "PYTHONSAFEPATH": "1",  # the checkout comes behind the build
        "PYTHONPATH": f"{LIB}:{ROOT}",
    }


def _sources() -> list[str]:
    names = [
        path.relative_to(ROOT)
        for pattern in ("gateway/**/*", "_native/*", "tools/smtp_blaster/*")
        for path in ROOT.glob(pattern)
        if path.suffix in (".py", ".pyi", ".pxd", ".pyx", ".pxi", ".h")
    ]
    return sorted({*map(str, names), *NEEDED})


def _copy(sources: list[str]) -> None:
    for name in sources:
        source, target = ROOT / name, LIB / name
        if not target.exists() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    for path in LIB.glob("gateway/**/*.py"):
        if str(path.relative_to(LIB)) not in sources:
            path.unlink()


def _digest_of_tools(clang: str) -> str:
    version = subprocess.run([clang, "--version"], capture_output=True, check=True).stdout
    return hashlib.sha256(
        version + sys.version.encode() + (ROOT / "setup.py").read_bytes()
    ).hexdigest()


def _digest(sources: list[str]) -> str:
    """Of all that decides about the extensions: kernels, and the modules with a .pxd beside them."""
    digest = hashlib.sha256()
    for name in sources:
        path = ROOT / name
        if path.suffix in (".pyx", ".pxi", ".pxd", ".h") or path.with_suffix(".pxd").exists():
            digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _forget() -> None:
    """Everything that other tools made."""
    for stale in (*LIB.glob("gateway/**/*.so"), *LIB.glob("_native/*.c")):
        stale.unlink()
    shutil.rmtree(LIB / "build", ignore_errors=True)


def _compile(clang: str) -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--parallel", "2"],
        cwd=LIB,
        env={**os.environ, "GATEWAY_BUILD": "fuzz", "CC": clang},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Unavailable(f"the fuzz build failed ({clang}):\n{done.stdout[-4000:]}")


def launcher(name: str) -> Path:
    """An executable that is worker.py with this target: what libFuzzer takes for itself."""
    path = HOME / "run" / name
    text = f'#!/bin/sh\nexec {sys.executable} -m tests.fuzz.worker {name} "$@"\n'
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    return path
