"""README.md says what the tests say, and no test of a fault goes without saying."""

from __future__ import annotations

import ast

from fault_table import HERE, page, rows


def test_readme_is_the_table() -> None:
    assert (HERE / "README.md").read_text() == page(), "python tests/faults/fault_table.py > tests/faults/README.md"


def test_every_test_says_what_is_expected() -> None:
    for path in HERE.glob("test_*.py"):
        said = {row.test for row in rows(path)}
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                assert node.name in said or path.name == "test_table.py", f"{path.name}: {node.name}"
