"""POP3's state machine: one answer a line, in step and however it is cut; nobody's mail before a login."""

from __future__ import annotations

from gateway.protocol import pop3
from tests.fuzz.octets import WHOLE, cut, options

MAX_OCTETS = 1200
RUNS = 3000
WORDS = (
    b"USER a\r\n",
    b"PASS b\r\n",
    b"APOP a 0123456789abcdef0123456789abcdef\r\n",
    b"AUTH PLAIN\r\n",
    b"AUTH PLAIN AGEAYg==\r\n",
    b"*\r\n",
    b"CAPA\r\n",
    b"STLS\r\n",
    b"UTF8\r\n",
    b"LANG\r\n",
    b"LIST\r\n",
    b"UIDL\r\n",
    b"RETR 2\r\n",
    b"TOP 1 1\r\n",
    b"DELE 1\r\n",
    b"RSET\r\n",
    b"QUIT\r\n",
)

TLS, TIGHT, REFUSE, APOP, PASSWORDS = 1, 2, 4, 8, 16
MESSAGES = (b"Subject: secret\r\n\r\n.one\r\ntwo\r\n", b"", b"secret\n.\n", b"\r\n.\r\nsecret")
MULTI_LINE = {"CAPA", "LIST", "UIDL", "RETR", "TOP", "AUTH", "LANG"}
ONE_LINE_WITH_ARGUMENT = {"LIST", "UIDL", "AUTH", "LANG"}


def seeds() -> list[bytes]:
    login = b"USER a\r\nPASS b\r\n"
    dialogues = (
        b"CAPA\r\nUTF8\r\nLANG\r\n"
        + login
        + b"STAT\r\nLIST\r\nUIDL\r\nRETR 1\r\nTOP 1 1\r\nQUIT\r\n",
        login + b"DELE 1\r\nDELE 2\r\nRSET\r\nDELE 3\r\nRETR 3\r\nNOOP\r\nQUIT\r\n",
        b"AUTH PLAIN\r\nAGEAYg==\r\nLIST 1\r\nUIDL 4\r\nQUIT\r\n",
        b"APOP a 0123456789abcdef0123456789abcdef\r\nRETR 4\r\nQUIT\r\n",
        b"STLS\r\n" + login + b"QUIT\r\n",
    )
    return [bytes([flags, how]) + d for d in dialogues for flags, how in ((PASSWORDS, 0), (31, 1))]


class Server:
    """Lets a in with b, and whoever shows a digest or says anything in PLAIN, unless it refuses."""

    def __init__(self, flags: int) -> None:
        tight = bool(flags & TIGHT)
        settings = pop3.Settings(
            hostname="pop.test",
            implementation="test",
            stls=not flags & TLS,
            line_octets=40 if tight else 512,
            sasl_octets=60 if tight else 12_288,
            errors_max=3 if tight else 10_000,
        )
        timestamp = "<1.2@pop.test>" if flags & APOP else ""
        self.machine = pop3.Pop3ServerMachine(settings, tls=bool(flags & TLS), timestamp=timestamp)
        self.machine.passwords = bool(flags & PASSWORDS)
        self.machine.mechanisms = ("PLAIN",)
        self.refuses = bool(flags & REFUSE)
        self.asked = 0
        self.sent = b""
        self.deleted: list[int] | None = None
        self.machine.greet()
        self.collect()

    def feed(self, octets: bytes) -> None:
        machine = self.machine
        machine.receive_data(octets)
        while True:
            event = machine.next_event()
            while event is not None:
                event = self.answer(*event) or machine.next_event()
            listing = machine.listing
            self.collect()
            if not listing:
                break
        assert machine.closing or machine.unread_octets <= max(
            machine.settings.line_octets, machine.settings.sasl_octets
        )

    def collect(self) -> None:
        self.sent += b"".join(map(bytes, self.machine.data_to_send()))

    def answer(self, kind: int, a: object, b: object) -> pop3.Event | None:
        machine = self.machine
        self.asked += 1
        if kind in (pop3.AUTH_CANCELLED, pop3.QUIT):
            return None
        if self.refuses and self.asked % 3 == 0:
            if kind == pop3.UPDATE:
                machine.update_failed("[SYS/TEMP] Not now")
            else:
                machine.refuse("[SYS/TEMP] Not now")
        elif kind == pop3.AUTH and b is None:
            machine.challenge(b"who?")
        elif kind == pop3.LOGIN and (a, b) != ("a", "b"):
            machine.refuse("[AUTH] No")
        elif kind in (pop3.LOGIN, pop3.APOP, pop3.AUTH, pop3.AUTH_RESPONSE):
            machine.logged_in(len(MESSAGES), sum(map(len, MESSAGES)))
        elif kind == pop3.STLS:
            machine.accept_tls()
            self.collect()
            machine.tls_started()
        elif kind == pop3.TABLE:
            return machine.table([len(m) for m in MESSAGES], lambda i: b"id%d" % i)
        elif kind == pop3.RETRIEVE:
            assert machine.authenticated
            content = MESSAGES[int(a)]  # type: ignore[call-overload]
            machine.begin_content(len(content))
            machine.content([content])
            machine.end_content()
        elif kind == pop3.UPDATE:
            assert machine.authenticated
            self.deleted = list(a)  # type: ignore[call-overload]
            machine.updated("Bye")
        return None


def lines_of(sent: bytes, limit: int, sasl_limit: int, sasl: bool) -> tuple[str, bytes] | None:
    """(the first line as text, what follows it), None when it is not whole; too long a one is ""."""
    most = sasl_limit if sasl else limit
    end = sent.find(b"\n") + 1
    if not end and len(sent) < most:
        return None
    if not end or end > most:
        return "", sent[end:] if end else b""
    return sent[: end - 1].removesuffix(b"\r").decode(errors="replace"), sent[end:]


def in_step(sent: bytes, answers: bytes, server: Server) -> None:
    """Read the answers as a client does that knows what it sent."""
    settings = server.machine.settings
    greeting, _, answers = answers.partition(b"\r\n")
    assert greeting.startswith(b"+OK")
    sasl = logged_in = False
    while (found := lines_of(sent, settings.line_octets, settings.sasl_octets, sasl)) is not None:
        line, sent = found
        if not answers:
            assert server.machine.closing
            return
        first, crlf, answers = answers.partition(b"\r\n")
        assert crlf
        assert first.startswith((b"+OK", b"-ERR ", b"+ ")), first
        keyword, _, argument = line.partition(" ")
        keyword = keyword.upper()
        if keyword in ("LIST", "UIDL"):
            argument = argument.strip()  # blanks alone are no message number
        multi = keyword in MULTI_LINE and not (argument and keyword in ONE_LINE_WITH_ARGUMENT)
        if first.startswith(b"+OK") and multi and not sasl:
            assert logged_in or keyword not in ("LIST", "UIDL", "RETR", "TOP")
            body, end, answers = (b"\r\n" + answers).partition(b"\r\n.\r\n")
            assert end
            assert keyword in ("RETR", "TOP") or b"secret" not in body
        if first.startswith(b"+OK") and (
            sasl or keyword in ("PASS", "APOP") or (keyword == "AUTH" and argument)
        ):
            logged_in = True
        sasl = first.startswith(b"+ ")
    assert answers in (b"", b"-ERR Too many errors\r\n")


def check(data: bytes) -> None:
    (flags, how), sent = options(data, 2)
    server = Server(flags)
    for piece in cut(sent, how):
        server.feed(piece)
    if b"STLS" not in sent.upper():  # it is about what arrives together; all else must not be
        in_step(sent, server.sent, server)
        if how != WHOLE:
            whole = Server(flags)
            whole.feed(sent)
            assert (whole.sent, whole.deleted) == (server.sent, server.deleted)
    if server.deleted is not None:
        assert server.machine.closing
        assert server.deleted == sorted(set(server.deleted))
