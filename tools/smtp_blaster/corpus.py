"""Real messages: a folder of .eml files, a Maildir, or an mbox.

Owns      messages()
Files     read only, one at a time
Errors    ValueError for a path that is neither; OSError as it comes
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def messages(path: Path) -> Iterator[bytes]:
    """Each message as it lies there, in the order of names."""
    if path.is_file():
        yield from _mbox(path)
    elif (path / "cur").is_dir():
        for folder in ("cur", "new"):
            for file in sorted((path / folder).glob("*")):
                yield file.read_bytes()
    elif path.is_dir():
        for file in sorted(path.rglob("*.eml")):
            yield file.read_bytes()
    else:
        raise ValueError(f"{path}: neither a folder of messages nor an mbox")


def _mbox(path: Path) -> Iterator[bytes]:
    import mailbox  # for this alone: it takes its time to load

    box = mailbox.mbox(path, create=False)
    try:
        for key in box.iterkeys():
            yield box.get_bytes(key)
    finally:
        box.close()
