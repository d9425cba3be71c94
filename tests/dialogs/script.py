"""Dialogue scripts: what the server answers, one behaviour a file, readable without this program.

# RFC 5321 §4.1.1.4  One line that says what is shown
! key=value …          settings of the listener (see SETTINGS); "! whole": never cut the input;
                       "! socket": needs the whole session, not only the state machine
C: text                sent with CRLF; C lines that follow each other travel in one write
C| text\\r\\n\\x00      sent as it is, with Python's escapes
S: 250 2.1.0 *         the next reply; its last line matches this pattern (fnmatch; a bare code matches any text)
S~ SIZE *              the last reply had a line like this
S! closed              the server closed the connection
M: <a@b> -> <c@d> <e@f>   the next message that was accepted has this envelope …
M| text\\r\\n            … and ends in this content (behind the Received field)
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field
from pathlib import Path

SETTINGS = {
    "lmtp": bool,
    "starttls": bool,
    "xclient": bool,
    "max_message_octets": int,
    "line_octets": int,
    "recipients_max": int,
    "transactions_max": int,
    "junk_commands_max": int,
    "bare": str,  # normalize | reject
    "errors": int,
    "greeting_delay_s": float,
    "relay": bool,  # may this client relay
    "busy": bool,  # too much load to take its mail now
}


@dataclass
class Step:
    kind: str  # "C" | "S" | "S~" | "S!" | "M" | "M|"
    line: int
    octets: bytes = b""
    pattern: str = ""


@dataclass
class Script:
    path: Path
    title: str = ""
    settings: dict[str, object] = field(default_factory=dict)
    whole: bool = False
    socket: bool = False
    steps: list[Step] = field(default_factory=list)


def load(path: Path) -> Script:
    script = Script(path)
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if number == 1:
            assert line.startswith("# RFC"), (
                f"{path}: line 1 names the RFC section and the behaviour"
            )
            script.title = line[2:]
            continue
        if not line.strip() or line.startswith("#"):
            continue
        mark, text = line[:2], line[3:]
        if mark == "! " or mark == "!":
            _directive(script, line[1:].strip(), number)
        elif mark == "C:":
            _send(script, number, text.encode() + b"\r\n")
        elif mark == "C|":
            _send(script, number, _unescape(text))
        elif mark in ("S:", "S~", "S!", "M:"):
            script.steps.append(Step(mark.rstrip(":"), number, pattern=text.strip()))
        elif mark == "M|":
            script.steps.append(Step("M|", number, octets=_unescape(text)))
        else:
            raise AssertionError(f"{path}:{number}: unknown mark {mark!r}")
    return script


def _directive(script: Script, text: str, number: int) -> None:
    for word in text.split():
        key, _, value = word.partition("=")
        if key == "whole":
            script.whole = True
        elif key == "socket":
            script.socket = True
        else:
            assert key in SETTINGS, f"{script.path}:{number}: unknown setting {key}"
            kind = SETTINGS[key]
            script.settings[key] = (
                value.lower() in ("1", "true", "yes") if kind is bool else kind(value)
            )


def _send(script: Script, number: int, octets: bytes) -> None:
    last = script.steps[-1] if script.steps else None
    if last is not None and last.kind == "C":
        last.octets += octets
    else:
        script.steps.append(Step("C", number, octets))


def _unescape(text: str) -> bytes:
    return text.encode("utf-8").decode("unicode_escape").encode("latin-1")


def split_reply(data: bytes) -> tuple[list[str], bytes] | None:
    """The first whole reply of data and the rest, or None while it is not whole."""
    lines: list[str] = []
    while True:
        line, crlf, data = data.partition(b"\r\n")
        if not crlf:
            return None
        lines.append(line.decode())
        if line[3:4] != b"-":
            return lines, data


def matches(pattern: str, line: str) -> bool:
    return (
        line == pattern
        or fnmatch.fnmatchcase(line, pattern)
        or (pattern.isdigit() and line[:3] == pattern)
    )


def envelope_text(reverse_path: str, forward_paths: list[str]) -> str:
    return f"<{reverse_path}> -> " + " ".join(f"<{path}>" for path in forward_paths)


def scripts() -> list[Script]:
    return [load(path) for path in sorted(Path(__file__).parent.glob("*/*.dlg"))]
