"""Accounts in text files: htpasswd, and the passwd-file that Dovecot reads.

Owns      FileSource, parse_htpasswd(), parse_passwd_file()
Files     the file, read whole; read again when its time, size or inode changed
Limits    FILE_OCTETS_MAX
Errors    SourceError when the file cannot be read; a line that cannot be used is left out and told by problems()
Blocking  a stat() for each look-up; reading 10,000 lines anew takes 30 ms
Standards htpasswd(1), Dovecot's passwd-file; RFC 2307 §5.3 ({SCHEME})
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from gateway.accounts.model import Account, Record, SourceError
from gateway.accounts.names import normal_user
from gateway.accounts.passwords import UnknownScheme, check_scheme, plain_of, split
from gateway.accounts.source import Checks, LocalSource

FILE_OCTETS_MAX = 64 * 1024 * 1024  # half a million accounts

_SIZES = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

Line = tuple[str, str, int | None, int | None, bool]  # name, verifier, quotas, disabled


class FileSource(LocalSource):
    """One file."""

    def __init__(
        self,
        path: Path,
        parse: Callable[[str], Line | None],
        checks: Checks,
        *,
        name: str,
        default_domain: str,
        nobody: str,
        next_on_failure: bool = False,
    ) -> None:
        """parse: parse_htpasswd or parse_passwd_file; nobody: a verifier for a file without accounts."""
        super().__init__(checks, next_on_failure=next_on_failure)
        self.name = name
        self._path = path
        self._parse = parse
        self._default_domain = default_domain
        self._nobody = nobody
        self._stamp: tuple[int, int, int] = (0, 0, 0)
        self._records: dict[str, Record] = {}
        self._abilities: frozenset[str] = frozenset()
        self._problems: list[str] = []

    def record(self, user: str) -> Record | None:
        self._refresh()
        return self._records.get(user)

    def nobody(self) -> str:
        """That of the first account: what the others cost, too."""
        first = next(iter(self._records.values()), None)
        return first.verifier if first is not None else self._nobody

    def abilities(self) -> frozenset[str]:
        try:
            self._refresh()
        except SourceError:
            return frozenset()
        return self._abilities

    def problems(self) -> list[str]:
        try:
            self._refresh()
        except SourceError as error:
            return [str(error)]
        return list(self._problems)

    def _refresh(self) -> None:
        try:
            found = os.stat(self._path)
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            if stamp == self._stamp:
                return
            if found.st_size > FILE_OCTETS_MAX:
                raise SourceError(f"{self._path}: larger than {FILE_OCTETS_MAX} octets")
            text = self._path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise SourceError(f"{self._path}: {error.strerror}") from None
        self._problems = []
        self._records = {record.account.name: record for record in self._read(text)}
        self._abilities = _abilities(self._records)
        self._stamp = stamp

    def _read(self, text: str) -> Iterator[Record]:
        for number, line in enumerate(text.splitlines(), 1):
            line = line.strip()
            if not line or line[0] == "#":
                continue
            try:
                parsed = self._parse(line)
                if parsed is None:
                    raise ValueError("expected name:hash")
                typed, verifier, octets, messages, disabled = parsed
                name = normal_user(typed, self._default_domain)
                if not name:
                    raise ValueError(f'"{typed}" is no local-part@domain (accounts.default_domain)')
                if verifier:
                    check_scheme(verifier)
            except (ValueError, UnknownScheme) as error:
                self._problems.append(f"{self._path}:{number}: {error}")
                continue
            scheme, rest = split(verifier)
            kind = scheme.removeprefix("SCRAM-")
            yield Record(
                Account(name, octets, messages, disabled, self.name),
                verifier,
                {kind: rest} if kind != scheme else {},
                plain_of(verifier),
            )


def _abilities(records: dict[str, Record]) -> frozenset[str]:
    if not records:
        return frozenset()
    can = {"SHA-256", "SHA-1", "secret"}
    for record in records.values():
        if record.secret is None:
            can &= record.scram.keys()
    return frozenset(can)


def parse_htpasswd(line: str) -> Line | None:
    """ "name:hash"; Apache takes no plain text there, and neither do we."""
    name, colon, verifier = line.partition(":")
    if not colon or not name or not verifier:
        return None
    if verifier.startswith("{") and split(verifier)[0] not in ("SHA", "SSHA"):
        raise UnknownScheme(f"htpasswd has no {verifier.partition('}')[0]}}}")
    return name, verifier, None, None, False


def parse_passwd_file(line: str) -> Line | None:
    """ "user:password:uid:gid:gecos:home:shell:extra fields"; only the first two are needed."""
    fields = line.split(":", 7)
    if len(fields) < 2 or not fields[0]:
        return None
    octets = messages = None
    disabled = False
    for extra in fields[7].split() if len(fields) == 8 else ():
        key, _, value = extra.partition("=")
        key = key.removeprefix("userdb_")
        if key == "quota_rule":  # *:storage=1G:messages=1000
            rules = dict(part.partition("=")[::2] for part in value.split(":")[1:])
            octets = _octets(rules.get("storage", ""), 1024) or _octets(rules.get("bytes", ""), 1)
            messages = _octets(rules.get("messages", ""), 1)
        elif key == "quota_storage_size":
            octets = _octets(value, 1)
        elif key == "quota_message_count":
            messages = _octets(value, 1)
        elif key == "nologin":
            disabled = True
    return fields[0], fields[1], octets, messages, disabled


def _octets(text: str, unit: int) -> int | None:
    """ "1G", "500M", or a number in units."""
    found = re.fullmatch(r"(\d{1,18})([BKMGT]?)", text.upper())
    if found is None:
        return None
    return int(found[1]) * (_SIZES[found[2]] if found[2] else unit)
