"""Extension modules of gateway._native.  Everything else is in pyproject.toml.

GATEWAY_BUILD   release (default) | debug (-O0 -g, bounds checks, leak counters) | sanitizer (ASan + UBSan)

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
FLAGS = {
    "release": ["-O3", "-g0", "-fno-plt", "-fvisibility=hidden"],
    "debug": ["-O0", "-g", "-Wall", "-Wno-unused-function"],
    "sanitizer": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined",
                  "-fno-omit-frame-pointer"],
}
if KIND not in FLAGS:
    sys.exit(f"GATEWAY_BUILD={KIND!r}: expected one of {', '.join(FLAGS)}")

CHECKED = KIND != "release"
LINK = ["-fsanitize=address,undefined"] if KIND == "sanitizer" else []
MACROS = [("GATEWAY_DEBUG", "1")] if CHECKED else []
HEADERS = sorted(glob("_native/*.h"))
MODULES = sorted(Path(p).stem for p in glob("_native/*.pyx"))


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

setup(
    ext_modules=cythonize(
        [
            Extension(
                f"gateway._native.{name}",
                [f"_native/{name}.pyx"],
                include_dirs=["_native"],
                depends=HEADERS,
                define_macros=MACROS,
                extra_compile_args=FLAGS[KIND],
                extra_link_args=LINK,
                libraries=["pthread"] if name == "logwriter" else [],
            )
            for name in MODULES
        ],
        force=CHECKED,
        annotate=KIND == "debug",
        include_path=["_native"],
        compiler_directives={
            "language_level": 3,
            "embedsignature": True,
            "wraparound": False,
            "cdivision": True,
            "boundscheck": CHECKED,
            "initializedcheck": CHECKED,
        },
    )
)
