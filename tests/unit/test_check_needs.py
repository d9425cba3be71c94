"""What a fresh clone says when the machine lacks something: one line, with the Debian package's name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[2] / "tools" / "check_needs"


def check(python: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", str(CHECK), python],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def fake_python(where: Path, script: str) -> str:
    program = where / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def test_all_there():
    done = check(sys.executable)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("script", "package"),
    [
        ('case "$2" in *ensurepip*) exit 1;; esac', "python3-venv"),
        ('case "$2" in *sysconfig*) echo /nowhere;; esac', "python3-dev"),
        ('case "$2" in *version_info*) exit 1;; esac; echo Python 3.9', "3.11 or newer"),
    ],
)
def test_one_line_names_the_package(tmp_path, script, package):
    done = check(fake_python(tmp_path, script))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert package in done.stderr


def test_no_python_and_no_compiler(tmp_path):
    assert "apt-get install python3" in check("no-such-python").stderr
    empty = tmp_path / "bin"
    empty.mkdir()
    python = fake_python(tmp_path, "exit 0")
    assert "apt-get install gcc" in check(python, PATH=str(empty)).stderr
