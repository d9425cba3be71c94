"""The table of faults in README.md, made of the docstrings of the tests.

Flow      first paragraph: the fault; Client, Queue, Shown, Arrives: what is expected, each checked by that test
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
ELSEWHERE = ("../unit/test_supervisor.py",)
EXPECTED = ("Client", "Queue", "Shown", "Arrives")

HEAD = """\
# Faults of the world around

What goes wrong around a gateway, and what is expected then: what the client sees, what the queue does, where it is
shown, and when the mail arrives.  Each row is a test with the whole gateway and real peers, run by `make test`, or
alone by `.venv/bin/pytest tests/faults`; network namespaces, name servers and full disks need root and are skipped
without it.

This page is made by `python tests/faults/fault_table.py > tests/faults/README.md`.
"""


class Row(NamedTuple):
    fault: str
    expected: tuple[str, ...]  # as EXPECTED
    test: str
    file: str


def rows(path: Path) -> Iterator[Row]:
    """Every test of a file whose docstring says what is expected."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            fault, _, rest = (ast.get_docstring(node) or "").partition("\n\n")
            found = dict.fromkeys(EXPECTED, "")
            key = ""
            for line in rest.splitlines():
                word = re.match(rf"({'|'.join(EXPECTED)}) +", line)
                if word is not None:
                    key, line = word[1], line[word.end() :]
                if key:
                    found[key] = f"{found[key]} {line.strip()}".strip()
            if all(found.values()):
                yield Row(_line(fault), tuple(map(_line, found.values())), node.name, path.name)


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def page() -> str:
    """README.md."""
    lines = [HEAD]
    for path in [*sorted(HERE.glob("test_*.py")), *((HERE / name).resolve() for name in ELSEWHERE)]:
        found = list(rows(path))
        if found:
            title = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
            place = path.name if path.parent == HERE else f"../{path.parent.name}/{path.name}"
            lines += [
                f"## {title.rstrip('.')}\n",
                "| fault | client | queue | shown | mail arrives | test |",
                "|---|---|---|---|---|---|",
            ]
            for row in found:
                lines.append(f"| {row.fault} | {' | '.join(row.expected)} | [{row.test[5:]}]({place}) |")
            lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")
