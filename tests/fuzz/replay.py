"""Inputs on the build that users have, without clang: python -m tests.fuzz.replay TARGET [FILE ...]

Without files: everything that was kept of the target, and its seeds.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from tests.fuzz import targets


def main() -> None:
    target = targets.load(sys.argv[1])
    logging.getLogger().addHandler(logging.NullHandler())
    inputs = [(str(name), Path(name).read_bytes()) for name in sys.argv[2:]]
    if not inputs:
        inputs = [(f"seed {number}", seed) for number, seed in enumerate(target.seeds())]
        for folder in (target.corpus, target.regressions):
            if folder.is_dir():
                inputs += [(str(path), path.read_bytes()) for path in sorted(folder.iterdir())]
    for name, octets in inputs:
        try:
            target.check(octets)
        except Exception:
            print(f"{target.name}: {name}", flush=True)
            raise
    print(f"{target.name}: {len(inputs)} inputs")


main()
