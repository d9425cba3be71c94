"""The POP3 and POP2 machines on octets alone: order of commands, framing, cuts at every octet."""

from __future__ import annotations

from binascii import b2a_base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.protocol import pop2, pop3
from gateway.protocol.smtp_server import LocalProtocolError

MESSAGES = [
    b"Subject: one\r\n\r\nfirst\r\n.dot\r\n..\r\n",
    b"Subject: two\r\n\r\n" + b"x" * 70 + b"\r\n",
    b"Subject: three\r\n\r\nno line end",
]


class Store:
    """The smallest POP3 server: one user, three messages."""

    def __init__(self, **options: object) -> None:
        self.settings = pop3.Settings(
            hostname="pop.test",
            implementation="test",
            stls=True,
            **options,  # type: ignore[arg-type]
        )
        self.machine = pop3.Pop3ServerMachine(self.settings)
        self.machine.passwords = True
        self.machine.mechanisms = ("PLAIN",)
        self.removed: list[int] | None = None
        self.out = b""
        self.events: list[int] = []
        self.machine.greet()
        self.collect()

    def collect(self) -> None:
        while True:
            self.out += b"".join(self.machine.data_to_send())
            if not self.machine.listing:
                return

    def feed(self, octets: bytes) -> None:
        machine = self.machine
        machine.receive_data(octets)
        while True:
            event = machine.next_event()
            while event is not None:
                event = self.answer(*event) or (None if machine.closing else machine.next_event())
            listing = machine.listing
            self.collect()
            if not listing:
                return

    def answer(self, kind: int, a: object, b: object) -> pop3.Event | None:
        machine = self.machine
        self.events.append(kind)
        if kind in (pop3.LOGIN, pop3.APOP):
            if a == "alice":
                machine.logged_in(3, sum(map(len, MESSAGES)))
            else:
                machine.refuse("[AUTH] No")
        elif kind == pop3.AUTH and b is None:
            machine.challenge(b"")
        elif kind in (pop3.AUTH, pop3.AUTH_RESPONSE):
            if (b if kind == pop3.AUTH else a) == b"\0alice\0secret":
                machine.logged_in(3, sum(map(len, MESSAGES)))
            else:
                machine.refuse("[AUTH] No")
        elif kind == pop3.TABLE:
            return machine.table([len(m) for m in MESSAGES], lambda i: b"id%d" % i)
        elif kind == pop3.RETRIEVE:
            content = MESSAGES[int(a)]  # type: ignore[call-overload]
            machine.begin_content(len(content))
            machine.content([content])
            machine.end_content()
        elif kind == pop3.UPDATE:
            self.removed = list(a)  # type: ignore[call-overload]
            machine.updated("Bye")
        elif kind == pop3.STLS:
            machine.accept_tls()
        return None


LOGIN = b"USER alice\r\nPASS se cret\r\n"


def lines(store: Store) -> list[bytes]:
    found, store.out = store.out.split(b"\r\n")[:-1], b""
    return found


def logged_in(**options: object) -> Store:
    store = Store(**options)
    store.feed(LOGIN)
    assert lines(store)[-1] == b"+OK 3 messages (%d octets)" % sum(map(len, MESSAGES))
    return store


def test_a_maildrop_is_listed_fetched_and_emptied() -> None:
    store = logged_in()
    store.feed(b"STAT\r\nLIST\r\nUIDL 2\r\nRETR 1\r\n")
    total = sum(map(len, MESSAGES))
    assert lines(store) == [
        b"+OK 3 %d" % total,
        b"+OK 3 messages (%d octets)" % total,
        *(b"%d %d" % (i + 1, len(m)) for i, m in enumerate(MESSAGES)),
        b".",
        b"+OK 2 id1",
        b"+OK %d octets" % len(MESSAGES[0]),
        b"Subject: one",
        b"",
        b"first",
        b"..dot",
        b"...",
        b".",
    ]
    store.feed(b"DELE 2\r\nDELE 2\r\nRETR 2\r\nLIST\r\nSTAT\r\n")
    left = total - len(MESSAGES[1])
    assert lines(store) == [
        b"+OK Deleted",
        b"-ERR That message is deleted",
        b"-ERR That message is deleted",
        b"+OK 2 messages (%d octets)" % left,
        b"1 %d" % len(MESSAGES[0]),
        b"3 %d" % len(MESSAGES[2]),
        b".",
        b"+OK 2 %d" % left,
    ]
    store.feed(b"QUIT\r\n")
    assert store.removed == [1]
    assert store.machine.closing


def test_a_message_without_a_last_line_end_gets_one() -> None:
    store = logged_in()
    store.feed(b"RETR 3\r\n")
    assert store.out.endswith(b"\r\n\r\nno line end\r\n.\r\n")


def test_rset_unmarks() -> None:
    store = logged_in()
    store.feed(b"DELE 1\r\nDELE 3\r\nRSET\r\nQUIT\r\n")
    assert store.removed == []


def test_login_asks_for_no_table() -> None:
    store = logged_in()
    store.feed(b"STAT\r\nNOOP\r\nQUIT\r\n")
    assert pop3.TABLE not in store.events


@pytest.mark.parametrize(
    ("octets", "answer"),
    [
        (b"PASS x\r\n", b"-ERR USER first"),
        (b"STAT\r\n", b"-ERR Not now"),
        (b"WHAT\r\n", b"-ERR Unknown command"),
        (b"USER\r\n", b"-ERR USER needs a name"),
        (b"AUTH NTLM\r\n", b"-ERR [AUTH] Mechanism not available here: STLS first"),
        (b"AUTH PLAIN !!!\r\n", b"-ERR [AUTH] Not base64"),
        (b"\xff\xfe\r\n", b"-ERR Not UTF-8"),
        (b"STLS\r\nUSER a\r\n", b"-ERR STLS is the last command before the handshake"),
        (b"APOP alice abc\r\n", b"-ERR APOP is not offered"),
        (b"LANG de\r\n", b"-ERR Only en is spoken here"),
        (b"A" * 600 + b"\r\n", b"-ERR Line too long"),
    ],
)
def test_what_is_out_of_order_is_said_and_in_step(octets: bytes, answer: bytes) -> None:
    store = Store()
    store.out = b""
    store.feed(octets + b"CAPA\r\n" if b"STLS" not in octets else octets)
    assert lines(store)[0] == answer
    store.feed(LOGIN)
    assert b"+OK 3 messages" in store.out


@pytest.mark.parametrize(
    "octets", [b"RETR\r\n", b"RETR 0\r\n", b"RETR 4\r\n", b"RETR -1\r\n", b"TOP 1\r\n", b"LIST x\r\n", b"USER a\r\n",
               b"DELE 99999999999999999999\r\n", "RETR ١\r\n".encode()]
)  # fmt: skip
def test_bad_arguments_are_refused(octets: bytes) -> None:
    store = logged_in()
    store.feed(octets)
    assert store.out.startswith(b"-ERR ")
    assert store.out.count(b"\r\n") == 1


def test_sasl_goes_by_challenge_and_can_be_cancelled() -> None:
    store = Store()
    store.out = b""
    store.feed(b"AUTH PLAIN\r\n*\r\nAUTH PLAIN\r\n")
    assert lines(store) == [b"+ ", b"-ERR [AUTH] Cancelled", b"+ "]
    store.feed(b2a_base64(b"\0alice\0secret", newline=False) + b"\r\n")
    assert store.machine.authenticated
    assert store.events[:2] == [pop3.AUTH, pop3.AUTH_CANCELLED]


def test_too_many_errors_end_the_session() -> None:
    store = Store(errors_max=3)
    store.feed(b"NO\r\n" * 10)
    assert store.machine.closing
    assert store.out.count(b"-ERR") == 5
    assert store.out.endswith(b"-ERR Too many errors\r\n")


def test_passwords_wait_for_tls() -> None:
    settings_ = pop3.Settings(hostname="pop.test", implementation="x", stls=True)
    machine = pop3.Pop3ServerMachine(settings_)
    machine.receive_data(b"USER alice\r\nCAPA\r\nSTLS\r\n")
    event = machine.next_event()
    said = b"".join(machine.data_to_send())
    assert event is not None
    assert event[0] == pop3.STLS
    assert said.startswith(b"-ERR [AUTH]")
    assert b"\r\nSTLS\r\n" in said
    assert b"\r\nUSER\r\n" not in said
    machine.accept_tls()
    machine.receive_data(b"smuggled\r\n")
    assert machine.next_event() is None
    machine.tls_started()
    machine.passwords = True
    machine.receive_data(b"CAPA\r\n")
    assert machine.next_event() is None
    assert b"\r\nUSER\r\n" in b"".join(machine.data_to_send()[1:])


def test_a_long_listing_comes_in_slices() -> None:
    machine = pop3.Pop3ServerMachine(pop3.Settings(hostname="pop.test", implementation="x"))
    machine.passwords = True
    machine.receive_data(b"USER a\r\nPASS b\r\nUIDL\r\nNOOP\r\n")
    machine.next_event()
    machine.logged_in(100_000, 1)
    assert machine.next_event() == (pop3.TABLE, None, None)
    assert machine.table(range(100_000), lambda i: b"%d" % i) is None
    slices = []
    while machine.listing:
        assert machine.next_event() is None
        slices.append(b"".join(machine.data_to_send()))
    assert max(map(len, slices)) < 2 * pop3.OUT_OCTETS
    assert b"".join(slices).endswith(b"\r\n100000 99999\r\n.\r\n")
    assert machine.next_event() is None
    assert machine.data_to_send() == [b"+OK\r\n"]


def test_a_wrong_answer_is_our_bug() -> None:
    machine = pop3.Pop3ServerMachine(pop3.Settings(hostname="h", implementation="x"))
    machine.passwords = True
    machine.receive_data(b"USER a\r\nPASS b\r\n")
    machine.next_event()
    with pytest.raises(LocalProtocolError):
        machine.updated("Bye")
    with pytest.raises(LocalProtocolError):
        machine.next_event()


DIALOGUE = (
    b"CAPA\r\nUTF8\r\nLANG\r\nUSER bob\r\nPASS x\r\nAUTH PLAIN\r\n*\r\n" + LOGIN
    + b"LIST\r\nUIDL\r\nTOP 1 0\r\nRETR 2\r\nDELE 3\r\nNOOP\r\nBOGUS\r\n" + b"y" * 700 + b"\r\nQUIT\r\n"
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, len(DIALOGUE)), max_size=12))
def test_cuts_change_nothing(cuts: list[int]) -> None:
    whole, cut = Store(), Store()
    whole.feed(DIALOGUE)
    at = 0
    for end in [*sorted(cuts), len(DIALOGUE)]:
        cut.feed(DIALOGUE[at:end])
        at = end
    assert cut.out == whole.out
    assert cut.removed == whole.removed == [2]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.binary(max_size=80) | st.sampled_from([b"\r\n", LOGIN, b"RETR 1\r\n", b"QUIT\r\n", b"LIST\r\n"])))
def test_anything_is_answered_line_by_line(pieces: list[bytes]) -> None:
    store = Store(errors_max=10_000)
    for piece in pieces:
        store.feed(piece)
    if not store.machine.closing:
        assert store.machine.unread_octets <= store.settings.line_octets


# -- POP2 ------------------------------------------------------------------------------------------------------------


def pop2_session(*inputs: bytes) -> tuple[pop2.Pop2ServerMachine, bytes, list[tuple[int, object]]]:
    machine = pop2.Pop2ServerMachine("pop.test")
    machine.greet()
    events: list[tuple[int, object]] = []
    out = b""
    for octets in inputs:
        machine.receive_data(octets)
        while not machine.closing and (event := machine.next_event()) is not None:
            kind, a, _ = event
            events.append((kind, sorted(machine.deleted) if kind in (pop2.LEAVE, pop2.FOLD) else a))
            if kind in (pop2.LOGIN, pop2.FOLD):
                machine.opened([len(m) for m in MESSAGES])
            elif kind == pop2.RETRIEVE:
                machine.content([MESSAGES[int(a)]])  # type: ignore[call-overload]
                machine.end_content()
            elif kind == pop2.LEAVE:
                machine.left()
        out += b"".join(machine.data_to_send())
    return machine, out, events


def test_pop2_reads_keeps_and_deletes() -> None:
    one, two, three = (len(m) for m in MESSAGES)
    machine, out, events = pop2_session(
        b"HELO alice secret\r\nREAD\r\nRETR\r\nNACK\r\nRETR\r\nACKD\r\nRETR\r\nACKS\r\nREAD 1\r\nREAD 9\r\nQUIT\r\n"
    )
    assert out == (
        b"+ POP2 pop.test server ready\r\n#3 messages\r\n=%d octets\r\n" % one
        + MESSAGES[0] + b"=%d octets\r\n" % one + MESSAGES[0] + b"=%d octets\r\n" % two
        + MESSAGES[1] + b"=%d octets\r\n=0 octets\r\n=0 octets\r\n+ Bye\r\n" % three
    )  # fmt: skip
    assert events[-1] == (pop2.LEAVE, [0])
    assert machine.closing


def test_pop2_fold_takes_the_deleted_with_it() -> None:
    _, out, events = pop2_session(b"HELO a b\r\nREAD\r\nRETR\r\nACKD\r\nFOLD other\r\n", b"QUIT\r\n")
    assert (pop2.FOLD, [0]) in events
    assert out.endswith(b"#3 messages\r\n+ Bye\r\n")


@pytest.mark.parametrize(
    "octets",
    [b"READ\r\n", b"HELO a\r\n", b"HELO a b\r\nRETR\r\n", b"HELO a b\r\nREAD 9\r\nRETR\r\n", b"HELO a b\r\nACKD\r\n",
     b"HELO a b\r\nREAD x\r\n", b"HELO a b\r\nHELO a b\r\n", b"x" * 600, b"\xff\r\n", b"WHAT\r\n"],
)  # fmt: skip
def test_pop2_ends_at_the_first_error(octets: bytes) -> None:
    machine, out, _ = pop2_session(octets)
    assert machine.closing
    assert out.split(b"\r\n")[-2].startswith(b"- ")


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 60), max_size=8))
def test_pop2_cuts_change_nothing(cuts: list[int]) -> None:
    dialogue = b"HELO alice secret\r\nREAD\r\nRETR\r\nACKD\r\nREAD 3\r\nRETR\r\nACKS\r\nQUIT\r\n"
    ends = [*sorted(min(c, len(dialogue)) for c in cuts), len(dialogue)]
    pieces = [dialogue[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    assert pop2_session(*pieces)[1:] == pop2_session(dialogue)[1:]
