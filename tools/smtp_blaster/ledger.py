"""Ledgers: what the source was promised, what the sink got, and the difference.

Files     one line a message and recipient: Message-ID, SHA-256, forward-path, tab separated
Errors    ValueError names the line that is not a ledger's
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import msgspec

Entry = tuple[str, str, str]  # Message-ID, digest, forward-path


class Ledger:
    """Writes entries to a file; the file is complete after close()."""

    def __init__(self, path: Path) -> None:
        self._file: IO[str] = path.open("w", encoding="utf-8")

    def add(self, message_id: str, digest: str, forward_paths: Iterable[str]) -> None:
        self._file.writelines(f"{message_id}\t{digest}\t{path}\n" for path in forward_paths)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Difference(msgspec.Struct):
    """Counts of (message, recipient) pairs."""

    accepted: int
    delivered: int
    lost: int  # accepted, never delivered
    duplicated: int  # deliveries beyond the first
    altered: int  # delivered with another digest
    unpromised: int  # delivered without having been accepted: a reply that got lost, seldom wrong
    lost_ids: list[str]  # the first hundred

    @property
    def is_clean(self) -> bool:
        """Nothing lost, nothing altered.  Duplicates and unpromised mail are allowed by RFC 5321 §6.1, so not here."""
        return not (self.lost or self.altered)


def read(path: Path) -> Iterator[Entry]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            fields = line.rstrip("\n").split("\t")
            if len(fields) != 3:
                raise ValueError(f"{path}:{number}: not a ledger entry: {line!r}")
            yield fields[0], fields[1], fields[2]


def compare(accepted: Iterable[Entry], delivered: Iterable[Entry]) -> Difference:
    promised = {(message_id, path): digest for message_id, digest, path in accepted}
    arrived: Counter[tuple[str, str]] = Counter()
    altered: set[tuple[str, str]] = set()
    deliveries = 0
    for message_id, digest, path in delivered:
        deliveries += 1
        arrived[message_id, path] += 1
        if promised.get((message_id, path), digest) != digest:
            altered.add((message_id, path))
    lost = [key for key in promised if key not in arrived]
    return Difference(
        accepted=len(promised),
        delivered=deliveries,
        lost=len(lost),
        duplicated=deliveries - len(arrived),
        altered=len(altered),
        unpromised=sum(1 for key in arrived if key not in promised),
        lost_ids=[f"{message_id} to {path}" for message_id, path in lost[:100]],
    )
