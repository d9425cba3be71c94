"""What is fuzzed: one module a target.  README.md says how to add one.

check(data)        takes any octets; an exception that leaves it is a finding (its docstring says what must hold)
seeds()            inputs to begin with, beside corpus/<target>
CODE               Python modules or packages whose coverage guides (C code's always does); each costs time at start
WORDS              octets worth trying as they are (libFuzzer's dictionary)
MAX_OCTETS         of an input; 4096 when not given
RUNS               how many inputs `make test` tries beyond the corpus
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
FUZZ = HERE.parent


@dataclass(frozen=True)
class Target:
    name: str
    check: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    words: Sequence[bytes]
    max_octets: int
    runs: int

    @property
    def corpus(self) -> Path:
        """Small inputs that together reach what was ever reached."""
        return FUZZ / "corpus" / self.name

    @property
    def regressions(self) -> Path:
        """Inputs that were findings once."""
        return FUZZ / "regressions" / self.name

    def inputs(self) -> Iterator[bytes]:
        """Its seeds and all that was kept, in an order of their own."""
        yield from self.seeds()
        for folder in (self.corpus, self.regressions):
            if folder.is_dir():
                yield from (path.read_bytes() for path in sorted(folder.iterdir()))

    @property
    def dictionary(self) -> str:
        """The words as libFuzzer reads them."""
        return "".join(
            '"' + "".join(f"\\x{octet:02x}" for octet in word) + '"\n' for word in self.words
        )


def names() -> list[str]:
    return sorted(path.stem for path in HERE.glob("[a-z]*.py"))


def code_of(name: str) -> Sequence[str]:
    """CODE of a target that is not imported yet: what it names must be instrumented when it is."""
    for node in ast.parse((HERE / f"{name}.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CODE":
            code: Sequence[str] = ast.literal_eval(node.value)
            return code
    return ()


def load(name: str) -> Target:
    """Imports the target, and with it the code that it fuzzes."""
    module = importlib.import_module(f"tests.fuzz.targets.{name}")
    return Target(
        name,
        module.check,
        getattr(module, "seeds", tuple),
        getattr(module, "WORDS", ()),
        getattr(module, "MAX_OCTETS", 4096),
        getattr(module, "RUNS", 5000),
    )
