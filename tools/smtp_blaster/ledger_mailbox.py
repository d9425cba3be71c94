"""Deliveries as they lie in mailboxes: Maildir trees and mbox files, as rows beside a sink's ledger.

    Owns      maildir(), mbox()
    Flow      file → content, its line ends CRLF as they were sent → Message-ID, digest, for whom → row
    Limits    one message at a time in memory
    Errors    ValueError for a folder without any Maildir; OSError of the file system
    Standards RFC 4155 (mbox), RFC 5321 §4.4; the Maildir layout is Daniel Bernstein's

For whom a copy is, its Delivered-To or X-Original-To says; a copy that says nothing is given to a
recipient of the message who has none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from smtp_blaster.content import identify
from smtp_blaster.ledger_file import ENTRY, Row

HEAD_OCTETS = 65536  # the trace fields stand within
_FOR = re.compile(rb"^(?:Delivered-To|X-Original-To):[ \t]*<?([^>\s]+)", re.IGNORECASE | re.MULTILINE)
_BARE_LF = re.compile(rb"(?<!\r)\n")
_QUOTED_FROM = re.compile(rb"^>(>*From )", re.MULTILINE)


def maildir(tree: Path) -> Iterator[Row]:
    """Every message in new/ and cur/ of every Maildir within the tree.  tmp/ is not delivered."""
    found = False
    for folder, names, files in os.walk(tree):
        names.sort()
        if Path(folder).name in ("new", "cur") and Path(folder).with_name("tmp").is_dir():
            found = True
            for name in sorted(files):
                path = Path(folder) / name
                yield _row(path.read_bytes(), path.stat().st_mtime_ns)
    if not found:
        raise ValueError(f"{tree}: no Maildir (new/, cur/ and tmp/ beside each other) in it")


def mbox(path: Path) -> Iterator[Row]:
    """Every message of an mbox file, with or without quoted From_ lines."""
    at = path.stat().st_mtime_ns
    lines: list[bytes] = []
    blank = True
    with path.open("rb") as file:
        for number, line in enumerate(file):
            if blank and line.startswith(b"From "):
                if number:
                    yield _row(_message(lines), at)
                lines = []
            elif number == 0:
                raise ValueError(f"{path}: not an mbox: its first line does not begin with 'From '")
            else:
                lines.append(line)
            blank = line in (b"\n", b"\r\n")
    if lines:
        yield _row(_message(lines), at)


def _message(lines: list[bytes]) -> bytes:
    """Without the blank line that ends it."""
    if lines and lines[-1] in (b"\n", b"\r\n"):
        lines.pop()
    return _QUOTED_FROM.sub(rb"\1", b"".join(lines))


def _row(octets: bytes, at: int) -> Row:
    content = _BARE_LF.sub(b"\r\n", octets)
    message_id, digest = identify(content)
    head = content[:HEAD_OCTETS].partition(b"\r\n\r\n")[0]
    found = _FOR.search(head)
    forward_path = found[1].decode("utf-8", "surrogateescape") if found else ""
    return ENTRY, message_id, digest, forward_path, at
