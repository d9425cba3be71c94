"""The structure of the house: who may import whom, how long a file may grow, that the native interface is true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GATEWAY = ROOT / "gateway"

# package or module of gateway → what of gateway it may import.  "*": everything (the wiring).
MAY_IMPORT: dict[str, set[str] | str] = {
    "__init__": set(),
    "__main__": {"cli"},
    "_native": set(),
    "mail": {"_native"},
    "protocol": {"mail", "_native"},
    "config_values": set(),
    "config_fields": set(),
    "config_accounts": {"config_fields", "config_values"},
    "config_store": {"config_fields"},
    "config_imap": {"config_fields"},
    "config_model": {"config_accounts", "config_fields", "config_imap", "config_store", "config_values"},
    "config_lines": set(),
    "config": {"config_model", "config_values", "config_lines", "config_checks", "net"},
    "config_checks": {"config_model", "config_values", "accounts", "mail", "queue", "net", "spool"},
    "config_text": {"config", "config_model", "config_values"},
    "systemd": set(),
    "heartbeat": set(),
    "notice_link": {"store"},
    "worker_link": {"config_model", "heartbeat", "log", "log_sink", "net"},
    "log": {"log_sink"},
    "log_sink": set(),
    "metrics": set(),
    "history": set(),
    "net": {"config_model", "config_values", "log", "metrics"},
    "accounts": {"mail", "protocol", "policy", "config_accounts", "config_values", "log", "metrics"},
    "policy": {"mail", "config_accounts", "config_model", "config_values", "log", "metrics"},
    "spool": {"mail", "_native", "config_model", "log", "metrics"},
    "store": {"mail", "_native", "config_store", "log", "metrics"},
    "queue": {"spool", "delivery", "mail", "config_model", "log", "metrics"},
    "delivery": {"mail", "protocol", "net", "store", "_native", "config_model", "log", "metrics"},
    "server": {
        "_native", "accounts", "config_imap", "config_model", "config_values", "log", "mail", "metrics", "net",
        "policy", "protocol", "spool", "store",
    },
    "app": "*",
    "agents": "*",
    "doors": "*",
    "load": "*",
    "supervisor": "*",
    "control": "*",
    "cli": "*",
}

# What sans-I/O packages must not touch at all.
FORBIDDEN = {
    "mail": {"asyncio", "socket", "ssl", "os", "time", "logging"},
    "protocol": {"asyncio", "socket", "ssl", "os", "time", "logging"},
    "spool": {"socket", "ssl"},
    "store": {"socket", "ssl"},
    "policy": {"socket", "ssl"},
    "queue": {"socket", "ssl"},
}
# Deviation: each names its reason in its own docstring.
FORBIDDEN_EXCEPT: set[tuple[str, str]] = set()

LINES_MAX = 800


def sources() -> list[Path]:
    return sorted(GATEWAY.rglob("*.py"))


def part_of(path: Path) -> str:
    relative = path.relative_to(GATEWAY)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path) -> set[str]:
    """Every module imported, also inside functions, except under TYPE_CHECKING."""
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            if node.module == "gateway":
                found |= {f"gateway.{alias.name}" for alias in node.names}
        todo.extend(ast.iter_child_nodes(node))
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_table(path: Path) -> None:
    part = part_of(path)
    assert part in MAY_IMPORT, f"{part} is not in the import table"
    allowed = MAY_IMPORT[part]
    names = imports(path)
    if allowed != "*":
        for name in names:
            if name.startswith("gateway."):
                target = name.split(".")[1]
                assert target == part or target in allowed, f"{path}: {part} must not import {name}"
    for name in names & FORBIDDEN.get(part, set()):
        assert (path.name, name) in FORBIDDEN_EXCEPT, f"{path}: {part} must not touch {name}"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_interface_page_touches_extension_modules(path: Path) -> None:
    if part_of(path) == "_native":
        return
    for name in imports(path):
        assert not name.startswith("gateway._native."), f"{path}: import {name} from gateway._native"


def all_sources() -> list[Path]:
    tracked = subprocess.run(
        ["git", "ls-files", "*.py", "*.pyx", "*.pxi", "*.h", "*.pxd", "*.pyi"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    return [ROOT / name for name in tracked if (ROOT / name).exists()] or sources()


def test_files_have_one_job() -> None:
    too_long = {
        str(path.relative_to(ROOT)): count
        for path in all_sources()
        if (count := len(path.read_text().splitlines())) > LINES_MAX
    }
    assert not too_long


def test_every_module_says_what_it_owns() -> None:
    for path in sources():
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


def test_nothing_is_left_for_later() -> None:
    words = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")
    for path in all_sources():
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not words.search(line), f"{path}:{number}: {line.strip()}"


def test_the_stub_equals_the_compiled_interface() -> None:
    import gateway._native as native

    pages = [ast.parse((GATEWAY / "_native" / "__init__.pyi").read_text())]
    for node in pages[0].body:  # what has a page of its own
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gateway._native."):
            page = GATEWAY / "_native" / f"{(node.module or '').rpartition('.')[2]}.pyi"
            pages.append(ast.parse(page.read_text()))
    declared: dict[str, set[str] | None] = {}
    for node in [node for page in pages for node in page.body]:
        if isinstance(node, ast.ClassDef):
            declared[node.name] = {
                item.name if isinstance(item, ast.FunctionDef) else item.target.id  # type: ignore[union-attr]
                for item in node.body
                if isinstance(item, ast.FunctionDef | ast.AnnAssign)
            }
        elif isinstance(node, ast.FunctionDef):
            declared[node.name] = None
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            declared[node.target.id] = None
    assert set(native.__all__) == set(declared)
    for name, members in declared.items():
        if members is not None:
            real = {m for m in dir(getattr(native, name)) if not m.startswith("_")}
            if issubclass(getattr(native, name), Exception):
                real -= set(dir(Exception))
            stubbed = {m for m in members if not m.startswith("_")}
            assert real == stubbed, f"{name}: {real ^ stubbed}"


def test_ruff() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout


def test_mypy() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout
