"""Directories of a test for programs that run as somebody else."""

from __future__ import annotations

from pathlib import Path


def let_others_in(directory: Path) -> None:
    """Everybody may list it, and whatever it lies in; pytest's own directories are 0700."""
    for path in (directory, *directory.parents):
        mode = path.stat().st_mode
        if not mode & 0o001:
            path.chmod(mode | 0o055)
