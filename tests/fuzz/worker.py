"""One fuzzing process: a target, atheris, and libFuzzer's own arguments.

    python -m tests.fuzz.worker TARGET [libFuzzer arguments]      in the environment of build.environment()

Python code of the gateway (and tomllib, which reads its configuration) is instrumented as it is imported; C code was by
the compiler.
"""

from __future__ import annotations

import logging
import sys

import atheris

from tests.fuzz import targets
from tests.fuzz.build import LIB, launcher


def main() -> None:
    _, name, *arguments = sys.argv
    with atheris.instrument_imports(include=["gateway", "tomllib"]):
        target = targets.load(name)
        import gateway._native
    assert str(gateway._native.__file__).startswith(str(LIB)), "not the fuzz build"
    logging.lastResort = None  # only targets listen to what is logged
    # libFuzzer starts itself again by argv[0] for -merge and -minimize_crash.
    atheris.Setup([str(launcher(name)), *arguments], target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
