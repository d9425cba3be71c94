"""Read the configuration: TOML → Config, checked as a whole before anything starts.

Flow      load(path) → parse(text) → build (types and ranges, key by key) → check_all (what keys
          mean together) → Config, or one ConfigError with everything that is wrong
Files     the file, and the certificates and keys it names
Errors    ConfigError: "edge.toml:17: listen[1].tls: …", one line a problem, each with what is
          allowed
Security  key files are read to see that they belong to their certificates, nothing is kept
"""

from __future__ import annotations

import difflib
import re
import tomllib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from gateway.config_checks import check_all
from gateway.config_lines import Path as KeyPath
from gateway.config_lines import line_of, locate
from gateway.config_model import Config
from gateway.config_values import Address, Networks


class Problem(NamedTuple):
    """One thing that is wrong."""

    line: int
    key: str  # "listen[1].tls"; "" for the file as a whole
    message: str


class ConfigError(Exception):
    """The configuration cannot be used; str() is what an operator needs to repair it."""

    def __init__(self, path: str, problems: list[Problem]) -> None:
        super().__init__(path, problems)
        self.path = path
        self.problems = sorted(problems)

    def __str__(self) -> str:
        return "\n".join(
            f"{self.path}:{problem.line}: " + ": ".join(filter(None, problem[1:]))
            for problem in self.problems
        )


def load(path: str | Path) -> Config:
    """The checked configuration in this file.  Raises ConfigError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        hint = " (gateway init DIR writes a first one)" if not Path(path).exists() else ""
        raise ConfigError(str(path), [Problem(1, "", f"{reason}{hint}")]) from None
    return parse(text, path)


def parse(text: str, path: str | Path = "config", *, check_files: bool = True) -> Config:
    """The checked configuration in this text; relative paths start where `path` lies."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(path), [_syntax_problem(error)]) from None
    builder = _Builder(Path(path).absolute().parent)
    # What is missing gets a stand-in, so that the meaning of the rest can be checked all the same.
    config = builder.section(Config, table, (), {"hostname": "localhost", "listen": ()})
    problems = builder.problems
    assert isinstance(config, Config)
    known = {key for key, _ in problems}
    problems += [found for found in check_all(config, check_files) if found[0] not in known]
    if problems:
        lines = locate(text)
        raise ConfigError(
            str(path), [Problem(line_of(lines, key), show(key), said) for key, said in problems]
        )
    return config


def show(key: KeyPath) -> str:
    """("listen", 1, "tls") as people write it."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _syntax_problem(error: tomllib.TOMLDecodeError) -> Problem:
    match = re.search(r"(.*?) \(at line (\d+), column (\d+)\)", str(error))
    if match is None:  # "at end of document"
        return Problem(1, "", f"not TOML: {error}")
    return Problem(int(match[2]), "", f"not TOML: {match[1]} at column {match[3]}")


class _Builder:
    """Makes the Structs, collecting problems instead of stopping at the first."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self.problems: list[tuple[KeyPath, str]] = []

    def section(
        self,
        kind: type[msgspec.Struct],
        table: object,
        at: KeyPath,
        stand_in: Mapping[str, object] = MappingProxyType({}),
    ) -> object:
        """The Struct that this table means; None when a key it needs is missing or wrong."""
        if not isinstance(table, dict):
            self._say(at, f"expected a table, found {_found(table)}")
            return None
        hints = get_type_hints(kind, include_extras=True)
        for name in table.keys() - hints.keys():
            self._say((*at, name), _unknown(name, list(hints)))
        values: dict[str, object] = dict(stand_in)
        complete = True
        for field in msgspec.structs.fields(kind):
            name, hint = field.name, hints[field.name]
            if name in table:
                value = self._value(hint, table[name], (*at, name))
                if value is not _BROKEN:
                    values[name] = value
                    continue
            elif field.required:
                self._say(at, f'"{name}" is missing: {describe(hint)}')
            complete &= not field.required or name in stand_in
        return kind(**values) if complete else None

    def _value(self, hint: Any, raw: object, at: KeyPath) -> object:
        kind, meta = plain(hint)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind is not Address:
            value = self.section(kind, raw, at)
            return _BROKEN if value is None else value
        element = get_args(kind)[0] if get_origin(kind) is tuple else None
        if isinstance(element, type) and issubclass(element, msgspec.Struct):
            return self._sections(element, raw, at, meta)
        try:
            if kind is Address:  # a Struct to msgspec, one string to people
                return self._custom(kind, raw)
            return msgspec.convert(raw, hint, dec_hook=self._custom)
        except msgspec.ValidationError as error:
            message, _, where = str(error).partition(" - at `$")
            element = re.match(r"\[(\d+)\]", where)
            if element and isinstance(raw, list):
                at, raw = (*at, int(element[1])), raw[int(element[1])]
            self._say(at, _explain(kind, meta, raw, message))
        except ValueError as error:
            self._say(at, str(error))
        return _BROKEN

    def _sections(self, kind: type[msgspec.Struct], raw: object, at: KeyPath, meta: Meta) -> object:
        if not isinstance(raw, list):
            self._say(at, f"expected tables, each under [[{show(at)}]], found {_found(raw)}")
            return _BROKEN
        if meta.min_length and not raw:
            self._say(at, "needs at least one")
        built = [self.section(kind, table, (*at, index)) for index, table in enumerate(raw)]
        # One that could not be made would shift the numbers of those behind it: check none of them.
        return tuple(built) if None not in built else _BROKEN

    def _custom(self, kind: type[object], raw: object) -> object:
        """What msgspec does not know how to make."""
        if kind is Networks:
            if not isinstance(raw, list):
                raise ValueError(f"expected a list of networks, found {_found(raw)}")
            return Networks.parse(raw)
        if not isinstance(raw, str):
            raise ValueError(f"expected a string, found {_found(raw)}")
        if kind is Address:
            return Address.parse(raw, self._base)
        if not raw or "\0" in raw:
            raise ValueError("expected the path of a file")
        return self._base / Path(raw).expanduser()

    def _say(self, at: KeyPath, message: str) -> None:
        self.problems.append((at, message))


_BROKEN = object()


def plain(hint: Any) -> tuple[Any, Meta]:
    """The type of a field without Annotated, and what Annotated said."""
    if get_origin(hint) is typing.Annotated:
        return get_args(hint)[0], hint.__metadata__[0]
    return hint, Meta()


def describe(hint: Any) -> str:
    """The description of a key, from the model."""
    kind, meta = plain(hint)
    return meta.description or (kind.__doc__ or "").partition("\n")[0]


def _explain(kind: Any, meta: Meta, raw: object, message: str) -> str:
    """What is allowed, in the words of the file instead of msgspec's."""
    if not message.startswith("Expected") and get_origin(kind) is not Literal:
        return message  # ours, from _custom
    if get_origin(kind) is Literal:
        return f"{_found(raw)} is not allowed; use one of: {', '.join(get_args(kind))}"
    if meta.min_length and raw == []:
        return f"must not be empty: {meta.description}"
    if kind in (int, float) and isinstance(raw, int | float) and not isinstance(raw, bool):
        if kind is int and isinstance(raw, float):
            return f"expected a whole number, found {_found(raw)}"
        return f"{raw} is outside {meta.ge} … {meta.le}: {meta.description}"
    names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    wanted = names.get(kind) or message[9:].partition(", got")[0].replace("`", "")
    return f"expected {wanted.replace('array', 'a list')}, found {_found(raw)}"


def _found(raw: object) -> str:
    if isinstance(raw, str):
        return f'"{raw}"'
    if isinstance(raw, bool):
        return str(raw).lower()
    names: dict[type, str] = {dict: "a table", list: "a list"}
    return names.get(type(raw), str(raw))


def _unknown(name: str, known: list[str]) -> str:
    elsewhere = [show(path) for path in _all_keys(Config, ()) if path[-1] == name]
    if elsewhere:
        return f"unknown here; did you mean {' or '.join(elsewhere)}?"
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f'unknown; did you mean "{close[0]}"?'
    return f"unknown; known here: {', '.join(known)}"


def _all_keys(kind: Any, at: KeyPath) -> Iterator[KeyPath]:
    for name, hint in get_type_hints(kind, include_extras=True).items():
        inner, _ = plain(hint)
        inner = get_args(inner)[0] if get_origin(inner) is tuple else inner
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct) and inner is not Address:
            yield from _all_keys(inner, (*at, name))
        else:
            yield (*at, name)
