"""How the fields of the configuration's sections are declared.

Owns      Section, and the Meta of a key: what it means and what is allowed
"""

from __future__ import annotations

import msgspec
from msgspec import Meta

MIB = 1024 * 1024
DAY_S = 86400.0


def text(description: str) -> Meta:
    return Meta(description=description)


def count(low: int, high: int, description: str) -> Meta:
    return Meta(ge=low, le=high, description=description)


def part(description: str) -> Meta:
    return Meta(ge=0.0, le=1.0, description=description)


def seconds(low: float, high: float, description: str) -> Meta:
    return Meta(ge=low, le=high, description=description)


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Common settings of all sections."""
