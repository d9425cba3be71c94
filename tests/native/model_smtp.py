"""The obvious slow model of the native SMTP grammar: regular expressions written from the ABNF.

    Standards RFC 5321 §4.1.2, §4.1.3, §4.2; RFC 6531 §3.3; RFC 3030 §2; RFC 3461 §4
"""

from __future__ import annotations

import ipaddress
import re

VERBS = [
    "EHLO", "HELO", "LHLO", "MAIL", "RCPT", "DATA", "BDAT", "RSET", "NOOP", "VRFY", "EXPN", "HELP",
    "QUIT", "STARTTLS", "AUTH", "XCLIENT", "ETRN",
]  # fmt: skip
UNKNOWN = 18
ERROR = 19
LINE_TOO_LONG, SYNTAX, BARE_LF, NUL, EIGHT_BIT, BAD_PATH, BAD_PARAM, PATH_TOO_LONG = range(1, 9)

HIGH = "\u0080-\U0010ffff"
ATOM = rf"[A-Za-z0-9!#$%&'*+\-/=?^_`{{|}}~{HIGH}]+"
DOT_STRING = rf"{ATOM}(?:\.{ATOM})*"
QUOTED = rf'"(?:[ !#-\[\]-~{HIGH}]|\\[ -~])*"'
LET_DIG = f"[A-Za-z0-9_{HIGH}]"
SUB_DOMAIN = rf"{LET_DIG}(?:(?:{LET_DIG}|-)*{LET_DIG})?"
DOMAIN = rf"{SUB_DOMAIN}(?:\.{SUB_DOMAIN})*"
LITERAL = r"\[[^\]]+\]"
MAILBOX = re.compile(rf"(?P<local>{DOT_STRING}|{QUOTED})@(?P<domain>{DOMAIN}|{LITERAL})")
SOURCE_ROUTE = re.compile(rf"@{DOMAIN}(?:,@{DOMAIN})*:")
PARAM = re.compile(rf"(?P<keyword>[A-Za-z0-9][A-Za-z0-9-]*)(?:=(?P<value>[!-~{HIGH}]+))?")
BDAT_ARGUMENT = re.compile(r"([0-9]{1,18})(?:[ \t]+(last))?", re.IGNORECASE)


def is_literal(text: str) -> bool:
    """Address-literal, without the brackets."""
    if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3}){3}", text):
        return all(int(snum) <= 255 for snum in text.split("."))
    tag, colon, rest = text.partition(":")
    if not colon:
        return False
    if tag.lower() == "ipv6" and tag.isascii():
        try:
            ipaddress.IPv6Address(rest)
        except ValueError:
            return False
        return "%" not in rest
    return bool(
        re.fullmatch(r"[A-Za-z0-9-]*[A-Za-z0-9]", tag) and re.fullmatch(r"[!-Z^-~]+", rest)
    )


def match_mailbox(text: str) -> re.Match[str] | None:
    found = MAILBOX.match(text)
    if found and found["domain"][0] == "[" and not is_literal(found["domain"][1:-1]):
        return None
    return found


def too_long(local: str, domain: str, path: str = "") -> bool:
    sizes = [len(part.encode()) for part in (local, domain, path)]
    return sizes[0] > 64 or sizes[1] > 255 or sizes[2] > 256


def parse_mailbox(text: str | bytes) -> tuple[str, str]:
    decoded = text.decode() if isinstance(text, bytes) else text
    decoded.encode()
    found = match_mailbox(decoded)
    if not found or found.end() != len(decoded) or too_long(found["local"], found["domain"]):
        raise ValueError("not a mailbox")
    return found["local"], found["domain"]


def parse_path(text: str, forward: bool, lenient: bool) -> tuple[str, str] | int:
    """(mailbox, what follows) or a reason."""
    angle = text.startswith("<")
    if not angle and not lenient:
        return BAD_PATH
    if text.startswith("<>") and not forward:
        return "", text[2:]
    rest = text[1:] if angle else text
    if angle and rest.startswith("@"):
        route = SOURCE_ROUTE.match(rest)
        if not route:
            return BAD_PATH
        rest = rest[route.end() :]
    found = match_mailbox(rest)
    if found:
        mailbox = found[0]
    elif forward and rest[:10].lower() == "postmaster" and rest[:10].isascii():
        mailbox = rest[:10]
    else:
        return BAD_PATH
    rest = rest[len(mailbox) :]
    if angle:
        if not rest.startswith(">"):
            return BAD_PATH
        rest = rest[1:]
    elif rest and rest[0] not in " \t":
        return BAD_PATH
    path = text[: len(text) - len(rest)]
    if found and too_long(found["local"], found["domain"], path):
        return PATH_TOO_LONG
    return mailbox, rest


def parse_params(text: str) -> tuple[tuple[str, str | None], ...] | None:
    if text and text[0] not in " \t":
        return None
    params = []
    for word in re.split(r"[ \t]+", text):
        if not word:
            continue
        found = PARAM.fullmatch(word)
        if not found:
            return None
        params.append((found["keyword"].upper(), found["value"]))
    return tuple(params)


def verb_of(word: bytes) -> int:
    name = word.upper().decode("latin-1")
    return VERBS.index(name) + 1 if name in VERBS else UNKNOWN


def parse_command(
    data: bytes, pos: int, max_octets: int, utf8: bool = True, lenient: bool = False
) -> tuple[int, int, object, object] | None:
    lf = data.find(b"\n", pos)
    if (lf < 0 and len(data) - pos >= max_octets) or lf - pos >= max_octets:
        if lf < 0:
            return len(data), ERROR, LINE_TOO_LONG, -1
        word = re.split(rb"[ \t\r\n]", data[pos:lf], maxsplit=1)[0]
        return lf + 1, ERROR, LINE_TOO_LONG, verb_of(word)
    if lf < 0:
        return None
    next_pos = lf + 1
    line = data[pos:lf]
    bare = not line.endswith(b"\r")
    if not bare:
        line = line[:-1]
    word = re.split(rb"[ \t]", line, maxsplit=1)[0]
    verb = verb_of(word)
    if bare:
        return next_pos, ERROR, BARE_LF, verb
    if b"\0" in line:
        return next_pos, ERROR, NUL, verb
    if re.search(rb"[\x01-\x08\x0a-\x1f\x7f]", line):
        return next_pos, ERROR, SYNTAX, verb
    try:
        text = line.decode("utf-8" if utf8 else "ascii")
    except UnicodeDecodeError:
        return next_pos, ERROR, EIGHT_BIT, verb
    argument = text[len(word.decode()) :].strip(" \t")
    if verb in (4, 5):
        prefix = "from:" if verb == 4 else "to:"
        if argument[: len(prefix)].lower() != prefix:
            return next_pos, ERROR, SYNTAX, verb
        path = parse_path(argument[len(prefix) :].lstrip(" \t"), verb == 5, lenient)
        if isinstance(path, int):
            return next_pos, ERROR, path, verb
        params = parse_params(path[1])
        if params is None:
            return next_pos, ERROR, BAD_PARAM, verb
        return next_pos, verb, path[0], params
    if verb == 7:
        found = BDAT_ARGUMENT.fullmatch(argument)
        if not found:
            return next_pos, ERROR, SYNTAX, verb
        return next_pos, verb, int(found[1]), found[2] is not None
    if verb in (6, 8, 13, 14):
        if argument:
            return next_pos, ERROR, SYNTAX, verb
        return next_pos, verb, "", None
    return next_pos, verb, argument, word.decode() if verb == UNKNOWN else None


def skip_line(data: bytes, pos: int) -> int:
    return data.find(b"\n", pos) + 1 or -1


def xtext_decode(text: str) -> str:
    if not re.fullmatch(rf"(?:[!-*,-<>-~{HIGH}]|\+[0-9A-Fa-f]{{2}})*", text):
        raise ValueError("bad xtext")
    raw = re.sub(rb"\+(..)", lambda found: bytes.fromhex(found[1].decode()), text.encode())
    if re.search(rb"[\x00-\x1f\x7f]", raw):
        raise ValueError("control character")
    return raw.decode()


def xtext_encode(text: str) -> str:
    return re.sub(rb"[^!-*,-<>-~]", lambda c: b"+%02X" % c[0][0], text.encode()).decode()


class ReplyParser:
    """Keeps every octet and begins anew each time."""

    def __init__(self) -> None:
        self.broken = False
        self.data = b""
        self.given = 0

    def feed(self, data: bytes) -> list[tuple[int, str, str]]:
        if self.broken:
            raise ValueError("broken")
        self.data += data
        replies, self.broken = self.parse()
        new = replies[self.given :]
        self.given = len(replies)
        if self.broken and not new:
            raise ValueError("garbage")
        return new

    def parse(self) -> tuple[list[tuple[int, str, str]], bool]:
        replies: list[tuple[int, str, str]] = []
        texts: list[str] = []
        enhanced = ""
        *lines, rest = self.data.split(b"\n")
        for line in lines:
            found = re.fullmatch(rb"(\d\d\d)(?:([- ])(.*?))?\r?", line, re.DOTALL)
            if len(line) + 1 > 2048 or not found:
                return replies, True
            code, separator, text = int(found[1]), found[2], found[3] or b""
            status = re.match(rb"([245]\.\d{1,3}\.\d{1,3})(?: |$)(?!\n)", text)
            if status and text[:1] == found[1][:1]:
                enhanced = enhanced or status[1].decode()
                text = text[status.end() :]
            text = text.replace(b"\t", b" ")
            texts.append(re.sub(rb"[\x00-\x1f\x7f]", b"?", text).decode("utf-8", "replace"))
            if separator == b"-":
                if len(texts) >= 128:
                    return replies, True
                continue
            replies.append((code, enhanced, "\n".join(texts)))
            texts, enhanced = [], ""
        return replies, len(rest) > 2048
