"""One fuzzing process: a target, atheris, and libFuzzer's own arguments.

    python -m tests.fuzz.worker TARGET [libFuzzer arguments]      in the environment of build.environment()

C code was instrumented by the compiler; Python code of a target's CODE is as it is imported.
--variants: what is tried are variants.py's, not what libFuzzer makes of what it found.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import atheris

from tests.fuzz import targets
from tests.fuzz.build import LIB, launcher
from tests.fuzz.engine import VARIANTS
from tests.fuzz.variants import variants


def not_instrumented(code: Sequence[str]) -> list[str]:
    """The gateway's modules that are not of CODE: atheris includes whole packages only, and excludes by module."""
    names = [
        ".".join(path.relative_to(LIB).with_suffix("").parts).removesuffix(".__init__")
        for path in LIB.glob("gateway/**/*.py")
    ]
    return [name for name in names if not any(f"{name}.".startswith(f"{part}.") for part in code)]


def main() -> None:
    _, name, *arguments = sys.argv
    code = targets.code_of(name)
    packages = {"gateway", *(part.partition(".")[0] for part in code)}
    with atheris.instrument_imports(include=list(packages), exclude=not_instrumented(code)):
        target = targets.load(name)
    import gateway._native

    assert str(gateway._native.__file__).startswith(str(LIB)), "not the fuzz build"
    logging.getLogger().addHandler(logging.NullHandler())  # only targets listen
    mutator = None
    if VARIANTS in arguments:
        arguments.remove(VARIANTS)
        made = variants(list(target.inputs()), target.words, target.max_octets)

        def mutator(_data: bytes, _max_octets: int, _seed: int) -> bytes:
            return next(made)

    # libFuzzer starts itself again by argv[0] for -merge and -minimize_crash.
    atheris.Setup([str(launcher(name)), *arguments], target.check, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
