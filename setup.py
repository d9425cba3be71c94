"""Extension modules of gateway._native.  Everything else is in pyproject.toml.

GATEWAY_BUILD   release (default) | debug (-O0 -g, bounds checks, leak counters) | sanitizer (ASan + UBSan)
                | fuzz (the sanitizers and libFuzzer's coverage, by clang: tests/fuzz/build.py sets it all up)
                | none (no extensions: for an editable install whose extensions are built in place afterwards)

The sources live in /_native, the package in gateway/_native (its __init__.pyi is the whole boundary).
Cython looks a .pxd up by the extension's dotted name, so /_native never becomes a package: shared code is
static inline C in a header with an extern-only .pxd beside it.  Cython compares file times only: a change of
build kind goes through `make clean`.
"""

import os
import platform
import sys
from glob import glob
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

KIND = os.environ.get("GATEWAY_BUILD", "release")
if KIND == "none":
    setup()
    sys.exit()
SANITIZED = ["-O1", "-g1", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
SANITIZERS = {
    "sanitizer": ["-fsanitize=address,undefined"],
    "fuzz": ["-fsanitize=address,undefined,fuzzer-no-link"],
}
FLAGS = {
    "release": ["-O3", "-g0", "-fno-plt", "-fvisibility=hidden"],
    "debug": ["-O0", "-g", "-Wall", "-Wno-unused-function"],
    **{kind: flags + SANITIZED for kind, flags in SANITIZERS.items()},
}
if KIND not in FLAGS:
    sys.exit(f"GATEWAY_BUILD={KIND!r}: expected one of {', '.join(FLAGS)}")

CHECKED = KIND != "release"
LINK = SANITIZERS.get(KIND, [])
MACROS = [("GATEWAY_DEBUG", "1")] if CHECKED else []
HEADERS = sorted(glob("_native/*.h"))
MODULES = sorted(Path(p).stem for p in glob("_native/*.pyx"))

# Python modules on the path of every message, compiled as they are: the source beside the extension stays the only
# source, and runs the same without it (tests run both).  ARCHITECTURE.md has the figures that earn each its place.
COMPILED = [
    "gateway.net.connection", "gateway.protocol.imap.machine", "gateway.protocol.pop3", "gateway.protocol.smtp_server",
    "gateway.server.imap.session",
    "gateway.server.login", "gateway.server.maildrop", "gateway.server.pop3", "gateway.server.session",
    "gateway.server.smtp",
    "smtp_blaster.session", "smtp_blaster.speaker", "smtp_blaster.supply", "smtp_blaster.tally",
]


def require_compiler_and_headers() -> None:
    """One line that names the Debian package, instead of a page of compiler errors."""
    import shutil
    import sysconfig

    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if not (shutil.which(os.environ.get("CC", compiler)) or shutil.which("cc")):
        sys.exit("no C compiler found: apt-get install gcc")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        sys.exit("Python.h not found: apt-get install python3-dev")


if platform.system() != "Linux":
    sys.exit("mail-gateway runs on Linux (it uses fdatasync, eventfd, SO_REUSEPORT and netlink)")
require_compiler_and_headers()

COMMON = {"define_macros": MACROS, "extra_compile_args": FLAGS[KIND], "extra_link_args": LINK}
DIRECTIVES = {"language_level": 3, "embedsignature": True, "cdivision": True}
KERNEL_DIRECTIVES = DIRECTIVES | {"wraparound": False, "boundscheck": CHECKED, "initializedcheck": CHECKED}
# Compiled Python keeps Python's meaning: annotations are no types (the .pxd beside the source has those).
PYTHON_DIRECTIVES = {"language_level": 3, "annotation_typing": False, "binding": False}


def kernels() -> list[Extension]:
    return [
        Extension(
            f"gateway._native.{name}",
            [f"_native/{name}.pyx"],
            include_dirs=["_native"],
            depends=HEADERS,
            libraries=["pthread"] if name == "logwriter" else [],
            **COMMON,
        )
        for name in MODULES
    ]


def tools() -> list[Extension]:
    """The load tool's own kernels, beside its Python (pyproject.toml, package-dir)."""
    if KIND == "fuzz":  # of the gateway alone
        return []
    headers = glob("tools/smtp_blaster/*.pxd")
    return [
        Extension(f"smtp_blaster.{Path(path).stem}", [path], depends=headers, **COMMON)
        for path in sorted(glob("tools/smtp_blaster/*.pyx"))
    ]


def compiled() -> list[Extension]:
    common = dict(COMMON)
    if KIND in SANITIZERS:  # generated code, not ours, and the longest to compile
        common["extra_compile_args"] = [*FLAGS[KIND], "-O0"]
    found = []
    for name in COMPILED:
        if KIND == "fuzz" and not name.startswith("gateway."):
            continue
        path = name.replace(".", "/")
        if not Path(path + ".py").exists():
            path = "tools/" + path  # pyproject.toml, package-dir
        found.append(Extension(name, [path + ".py"], depends=[path + ".pxd"], **common))
    return found


JOBS = len(os.sched_getaffinity(0))
OPTIONS = {
    "nthreads": JOBS,
    "force": CHECKED and KIND != "fuzz",
    "annotate": KIND == "debug",
    "include_path": ["_native", ".", "tools"],
}
setup(
    options={"build_ext": {"parallel": JOBS}},  # also when pip builds
    ext_modules=cythonize(kernels() + tools(), compiler_directives=KERNEL_DIRECTIVES, **OPTIONS)
    + cythonize(compiled(), compiler_directives=PYTHON_DIRECTIVES, build_dir="build/compiled", **OPTIONS)
)
