"""The commented configuration file, made from the model: `gateway init` writes it.

Flow      render(values) → text: keys in values are set, all others stand there as comments with
          their defaults
Errors    none; a test loads what it writes
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

from gateway.config import plain
from gateway.config_model import Config
from gateway.config_values import Address, Networks

_HEAD = """\
# Configuration of the mail gateway.  `gateway check --config FILE` tells what is wrong with it, a
# running gateway reads it again on SIGHUP.  Keys behind a "#" show their defaults.  Sizes are octets,
# durations seconds; relative paths start at the directory of this file.
"""


def render(values: Mapping[str, Any]) -> str:
    """The text of a file that sets these values (nested as TOML nests them)."""
    hints = get_type_hints(Config, include_extras=True)
    sections = {name for name, hint in hints.items() if _section_of(hint) is not None}
    blocks = [_HEAD]
    blocks += _keys(Config, values, skip=sections)
    for name in hints:
        if name in sections:
            blocks += _table(name, hints[name], values.get(name))
    return "\n".join(blocks)


def _section_of(hint: Any) -> type[msgspec.Struct] | None:
    kind, _ = plain(hint)
    kind = get_args(kind)[0] if get_origin(kind) is tuple else kind
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind is not Address:
        return kind
    return None


def _table(name: str, hint: Any, values: Any) -> list[str]:
    """One [section], or all [[sections]] of this name; only the first shows what else there is."""
    kind = _section_of(hint)
    assert kind is not None
    repeated = get_origin(plain(hint)[0]) is tuple
    blocks = ["\n" + _comment(" ".join((kind.__doc__ or "").split()))]
    if not repeated:
        blocks[0] += f"[{name}]\n"
        inner = {
            key: below
            for key, value in get_type_hints(kind, include_extras=True).items()
            if (below := _section_of(value)) is not None
        }
        blocks += _keys(kind, values or {}, skip=inner)
        blocks += [_example(f"{name}.{key}", below) for key, below in inner.items()]
        return blocks
    for number, element in enumerate(values or []):
        if number == 0:
            blocks[0] += f"[[{name}]]\n"
            blocks += _keys(kind, element)
        else:
            lines = [f"[[{name}]]", *(f"{key} = {toml(value)}" for key, value in element.items())]
            blocks.append("\n".join(lines) + "\n")
    return blocks


def _keys(
    kind: type[msgspec.Struct], values: Mapping[str, Any], skip: Iterable[str] = ()
) -> list[str]:
    blocks = []
    hints = get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        if field.name in skip:
            continue
        meta = plain(hints[field.name])[1]
        description = meta.description or ""
        if field.name in values:
            line = f"{field.name} = {toml(values[field.name])}\n"
        elif field.default is None:
            blocks.append(_comment(f"{field.name} (not set): {description}"))
            continue
        else:
            default = _default(field)
            shown = oct(default) if meta.extra and meta.extra.get("octal") else toml(default)
            line = f"#{field.name} = {shown}\n"
        blocks.append(_comment(description) + line)
    return blocks


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


# What the sections within sections may look like.
_EXAMPLES: dict[str, dict[str, Any]] = {
    "tls.sni": {"names": ["mail.example.org"], "certificate": "mail.pem", "key": "mail.key"},
    "accounts.source": {"type": "passwd-file", "file": "/etc/dovecot/users"},
    "auth.oauth": {"introspection_url": "https://login.example.org/introspect"},
}


def _example(name: str, kind: type[msgspec.Struct]) -> str:
    """A section within a section: all its keys with what they mean, as a comment."""
    repeated = name != "auth.oauth"
    about = " ".join((kind.__doc__ or "").split())
    text = _comment(about + ("  Repeat the section for each:" if repeated else ""))
    text += f"# [[{name}]]\n" if repeated else f"# [{name}]\n"
    text += "".join(f"# {key} = {toml(value)}\n" for key, value in _EXAMPLES[name].items())
    hints = get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        if field.name not in _EXAMPLES[name]:
            default = _default(field)
            shown = "" if default is None or default is msgspec.NODEFAULT else f" = {toml(default)}"
            text += _comment(f"{field.name}{shown}: {plain(hints[field.name])[1].description}")
    return text


def _comment(text: str) -> str:
    return textwrap.fill(text, 100, initial_indent="# ", subsequent_indent="# ") + "\n"


def toml(value: object) -> str:
    """The value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:_}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, Networks | tuple | list):
        return "[" + ", ".join(toml(element) for element in value) + "]"
    assert isinstance(value, str | Path | Address)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
