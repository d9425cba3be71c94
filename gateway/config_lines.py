"""At which line of a TOML text each key stands, for messages that people can act on.

Flow      locate(text) → {("listen", 1, "tls"): 17, …}
Errors    none: the text has been parsed by tomllib before; what is not understood has no line
"""

from __future__ import annotations

import contextlib
import re

Path = tuple[str | int, ...]

_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:[^"\\\n]|\\.)*"' r"|'[^'\n]*'",
    re.DOTALL,
)
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BARE_VALUE = re.compile(r"[^,\]}\n#]*")


class _Scanner:
    """One pass over the text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self._last = (0, 1)  # offset, its line

    def run(self) -> None:
        arrays: dict[Path, int] = {}  # array of tables → index of its latest element
        table: Path = ()
        self.skip_blank()
        while self.at < len(self.text):
            if self.peek() == "[":
                double = self.text.startswith("[[", self.at)
                start = self.at
                self.at += 2 if double else 1
                *parents, name = self.keys()
                table = ()
                for part in parents:
                    table = _latest(arrays, (*table, part))
                table = (*table, name)
                if double:
                    arrays[table] = arrays.get(table, -1) + 1
                    self.lines.setdefault(table, self.line(start))
                table = _latest(arrays, table)
                self.lines[table] = self.line(start)
                self.at = self.text.find("]", self.at) + (2 if double else 1)
            else:
                self.pair(table)
            self.skip_blank()

    def pair(self, table: Path) -> None:
        start = self.at
        path = (*table, *self.keys())
        for end in range(len(table) + 1, len(path) + 1):
            self.lines.setdefault(path[:end], self.line(start))
        self.at = self.text.index("=", self.at) + 1
        self.value(path)

    def keys(self) -> list[str]:
        """A dotted key."""
        found = []
        while True:
            self.skip_blank()
            quoted = _STRING.match(self.text, self.at)
            match = quoted or _BARE_KEY.match(self.text, self.at)
            if match is None:
                raise ValueError("no key")
            found.append(match[0][1:-1] if quoted else match[0])
            self.at = match.end()
            self.skip_blank()
            if self.peek() != ".":
                return found
            self.at += 1

    def value(self, path: Path) -> None:
        self.skip_blank()
        if self.peek() == "[":
            self.at += 1
            index = 0
            while self.more("]"):
                self.lines[(*path, index)] = self.line(self.at)
                self.value((*path, index))
                index += 1
        elif self.peek() == "{":
            self.at += 1
            while self.more("}"):
                self.pair(path)
        else:
            pattern = _STRING if self.peek() in "\"'" else _BARE_VALUE
            match = pattern.match(self.text, self.at)
            if match is None:
                raise ValueError("no value")
            self.at = match.end()

    def more(self, end: str) -> bool:
        """True when another element follows; the closing character is consumed."""
        self.skip_blank()
        if self.peek() == ",":
            self.at += 1
            self.skip_blank()
        if self.peek() != end:
            return True
        self.at += 1
        return False

    def skip_blank(self) -> None:
        match = _BLANK.match(self.text, self.at)
        if match is not None:
            self.at = match.end()

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def line(self, offset: int) -> int:
        known, line = self._last
        line += self.text.count("\n", known, offset)
        self._last = (offset, line)
        return line


def _latest(arrays: dict[Path, int], path: Path) -> Path:
    return (*path, arrays[path]) if path in arrays else path


def locate(text: str) -> dict[Path, int]:
    """The line of every key, table and array element, counted from 1."""
    scanner = _Scanner(text)
    with contextlib.suppress(ValueError, IndexError):  # what was found so far is right
        scanner.run()
    return scanner.lines


def line_of(lines: dict[Path, int], path: Path) -> int:
    """The line of this key or of the nearest table around it; 1 for the file itself."""
    while path:
        if path in lines:
            return lines[path]
        path = path[:-1]
    return 1
