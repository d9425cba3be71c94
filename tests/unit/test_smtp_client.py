"""The client machine against a model server, and against everything a server should not do.

Standards RFC 5321 §4.2, §4.5.3.1.10; RFC 1047, RFC 2033, RFC 2920, RFC 3030, RFC 3207, RFC 3461, RFC 9422
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.model_smtp_server import ModelServer, Plan

from gateway.mail import envelope as env
from gateway.protocol import esmtp_client as esmtp
from gateway.protocol import smtp_client as client
from gateway.protocol.smtp_client import (
    ACCEPTED,
    PERMANENT,
    TRANSIENT,
    SmtpClientMachine,
    Transaction,
)

ALL = ("PIPELINING", "SIZE 1000000", "8BITMIME", "SMTPUTF8", "CHUNKING", "BINARYMIME", "DSN")


def opened(*offers: str, **options: object) -> SmtpClientMachine:
    """A machine that is ready to begin."""
    machine = SmtpClientMachine("me.example", **options)  # type: ignore[arg-type]
    lines = ["hi", *offers]
    reply = "".join(f"250{'-' if n < len(lines) else ' '}{line}\r\n" for n, line in enumerate(lines, 1))
    assert machine.receive_data(b"220 hi\r\n") == []
    assert machine.receive_data(reply.encode()) == [(client.READY, None)]
    machine.data_to_send()
    return machine


def message(number: int = 0, rcpts: int = 1, *, bdat: bool = False, content: bytes = b"Hi\r\n\r\nx\r\n") -> Transaction:
    lines = [b"RCPT TO:<r%d.m%d@b>\r\n" % (index, number) for index in range(rcpts)]
    out = [content] if bdat else [content, b".\r\n"]
    return Transaction(number, b"MAIL FROM:<m%d@a>\r\n" % number, lines, out, len(content), bdat=bdat)


def sent(machine: SmtpClientMachine) -> bytes:
    return b"".join(machine.data_to_send())


def kinds(transaction: Transaction) -> list[int]:
    return [verdict[0] for verdict in transaction.verdicts if verdict is not None]


# -- the writing shape -------------------------------------------------------------------------------------------------


def test_data_is_one_round_trip_for_each_message() -> None:
    machine = opened("PIPELINING")
    first, second = message(1), message(2)
    machine.begin(first)
    assert sent(machine) == b"MAIL FROM:<m1@a>\r\nRCPT TO:<r0.m1@b>\r\nDATA\r\n"
    assert not machine.can_begin  # RFC 2920 §3.1: DATA ends a group
    assert machine.receive_data(b"250 ok\r\n250 ok\r\n354 go\r\n") == []
    machine.begin(second)
    assert sent(machine) == (
        b"Hi\r\n\r\nx\r\n.\r\nMAIL FROM:<m2@a>\r\nRCPT TO:<r0.m2@b>\r\nDATA\r\n"
    )
    events = machine.receive_data(b"250 2.0.0 queued\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    assert events == [(client.DONE, first)]
    assert first.verdicts == [(ACCEPTED, 250, "2.0.0", "queued")]
    assert machine.receive_data(b"250 queued\r\n") == [(client.DONE, second)]


def test_bdat_is_one_write() -> None:
    machine = opened("PIPELINING", "CHUNKING")
    machine.begin(message(1, bdat=True, content=b"abc"))
    assert machine.can_begin
    machine.begin(message(2, bdat=True, content=b"de"))
    assert sent(machine) == (
        b"MAIL FROM:<m1@a>\r\nRCPT TO:<r0.m1@b>\r\nBDAT 3 LAST\r\nabc"
        b"RSET\r\nMAIL FROM:<m2@a>\r\nRCPT TO:<r0.m2@b>\r\nBDAT 2 LAST\r\nde"
    )
    assert not machine.can_begin  # depth


def test_big_bdat_waits_for_its_recipients() -> None:
    machine = opened("PIPELINING", "CHUNKING", blind_octets=10)
    first = message(1, 2, bdat=True, content=b"x" * 11)
    machine.begin(first)
    assert b"BDAT" not in sent(machine)
    machine.receive_data(b"250 ok\r\n550 no\r\n250 ok\r\n")
    assert sent(machine) == b"BDAT 11 LAST\r\n" + b"x" * 11
    machine.receive_data(b"250 ok\r\n")
    assert kinds(first) == [PERMANENT, ACCEPTED]


def test_streamed_content_is_asked_for() -> None:
    machine = opened("PIPELINING")
    first = message(1)
    first.content = None
    machine.begin(first)
    assert machine.receive_data(b"250 ok\r\n250 ok\r\n354 go\r\n") == [(client.CONTENT, first)]
    assert not machine.can_begin
    machine.content_sent(first)
    assert machine.can_begin
    assert machine.receive_data(b"250 ok\r\n") == [(client.DONE, first)]


def test_without_pipelining_each_reply_is_waited_for() -> None:
    server = ModelServer([Plan(rcpts=(250, 550)), Plan()], offers=("SIZE 100",))
    machine = opened("SIZE 100")
    for number in range(2):
        machine.begin(message(number, 2 - number))
        assert not machine.can_begin
        while machine.in_flight:
            out = sent(machine)
            assert out.count(b"\r\n") == 1 or out.endswith(b".\r\n")
            machine.receive_data(server.feed(out))
    assert [number for number, _, _ in server.received] == [0, 1]


def test_limits_and_quit() -> None:
    machine = opened("PIPELINING", "LIMITS MAILMAX=2 RCPTMAX=7")
    assert machine.capabilities.recipients_max == 7
    machine.begin(message(1))
    machine.receive_data(b"250 ok\r\n250 ok\r\n354 go\r\n")
    machine.begin(message(2))
    assert machine.is_spent and not machine.can_begin
    machine.receive_data(b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    assert not sent(machine).endswith(b"QUIT\r\n")
    machine.receive_data(b"250 ok\r\n")
    assert sent(machine) == b"QUIT\r\n"
    assert machine.receive_data(b"221 bye\r\n") == [(client.CLOSE, None)]


def test_drain_finishes_first() -> None:
    machine = opened("PIPELINING")
    machine.begin(message(1))
    machine.drain()
    assert not machine.can_begin
    machine.receive_data(b"250 ok\r\n250 ok\r\n354 go\r\n250 ok\r\n")
    assert sent(machine).endswith(b"QUIT\r\n")


# -- against the model -------------------------------------------------------------------------------------------------

codes = st.sampled_from([250] * 6 + [251, 450, 452, 550, 552, 554, 199, 333, 600])
plans = st.builds(
    Plan,
    codes,
    st.lists(codes, min_size=1, max_size=3).map(tuple),
    st.sampled_from([354] * 5 + [250, 451, 554, 700]),
    codes,
)


def kind_of(code: int, accepts: bool = True) -> int:
    if 200 <= code <= 299:
        return ACCEPTED if accepts else TRANSIENT
    return PERMANENT if 500 <= code <= 599 else TRANSIENT


def expected_kinds(plan: Plan, lmtp: bool, bdat: bool) -> list[int]:
    if kind_of(plan.mail) != ACCEPTED:
        return [kind_of(plan.mail)] * len(plan.rcpts)
    result = []
    for index, code in enumerate(plan.rcpts):
        if kind_of(code) != ACCEPTED:
            result.append(TRANSIENT if code == 552 else kind_of(code))
        elif not bdat and not 300 <= plan.data <= 399:
            result.append(kind_of(plan.data, accepts=False))
        else:
            result.append(kind_of(plan.finals[index] if lmtp else plan.final))
    return result


def exchange(machine: SmtpClientMachine, server: ModelServer, transactions: list[Transaction], cut: int) -> None:
    """Run them all, feeding replies `cut` octets at a time."""
    waiting = list(transactions)
    done: list[Transaction] = []
    replies = b""
    for _ in range(100_000):
        while waiting and machine.can_begin:
            machine.begin(waiting.pop(0))
        replies += server.feed(sent(machine))
        if not replies:
            break
        piece, replies = replies[:cut], replies[cut:]
        for kind, value in machine.receive_data(piece):
            assert kind == client.DONE, (kind, value)
            done.append(value)
    assert not waiting and machine.is_idle
    assert sorted(t.tag for t in done) == [t.tag for t in transactions]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(plans, min_size=1, max_size=4),
    st.sampled_from([(), ("PIPELINING",), ("PIPELINING", "CHUNKING"), ("CHUNKING",)]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(1, 3),
    st.sampled_from([1, 2, 7, 64, 10_000]),
)
def test_verdicts_are_those_of_the_server(
    drawn: list[Plan],
    offers: tuple[str, ...],
    lmtp: bool,
    keeps_failed: bool,
    lenient_data: bool,
    depth: int,
    cut: int,
) -> None:
    server = ModelServer(
        drawn, offers=offers, lmtp=lmtp, keeps_failed=keeps_failed, lenient_data=lenient_data and not lmtp
    )
    machine = opened(*offers, lmtp=lmtp, depth=depth)
    bdat = "CHUNKING" in offers
    if lmtp:
        for plan in drawn:
            plan.finals = tuple(plan.final if i % 2 else 250 for i in range(len(plan.rcpts)))
    transactions = [message(n, len(plan.rcpts), bdat=bdat) for n, plan in enumerate(drawn)]
    exchange(machine, server, transactions, cut)
    wanted = {n: expected_kinds(plan, lmtp, bdat) for n, plan in enumerate(drawn)}
    assert {t.tag: kinds(t) for t in transactions} == wanted
    # What was accepted has arrived once, whole, and nothing else has.
    arrived = {
        n: tuple(i for i, kind in enumerate(kinds_of) if kind == ACCEPTED)
        for n, kinds_of in wanted.items()
        if ACCEPTED in kinds_of
    }
    assert {n: rcpts for n, rcpts, _ in server.received} == arrived
    assert len(server.received) == len(arrived)
    assert all(content == b"Hi\r\n\r\nx\r\n" for _, _, content in server.received)


# -- endings -----------------------------------------------------------------------------------------------------------


def test_lost_before_the_dot_is_deferred() -> None:
    machine = opened("PIPELINING")
    first = message(1, 2)
    machine.begin(first)
    machine.receive_data(b"250 ok\r\n550 5.1.1 no\r\n250 ok\r\n")
    assert machine.abandon("4.4.2", "lost") == [(client.DONE, first), (client.CLOSE, None)]
    assert first.verdicts == [(PERMANENT, 550, "5.1.1", "no"), (TRANSIENT, 0, "4.4.2", "lost")]
    assert machine.is_closed and machine.receive_data(b"250 ok\r\n") == []


def test_lost_behind_the_dot_may_be_twice() -> None:
    machine = opened("PIPELINING")
    first, second = message(1), message(2)
    machine.begin(first)
    machine.receive_data(b"250 ok\r\n250 ok\r\n354 go\r\n")
    machine.begin(second)
    events = machine.abandon("4.4.2", "lost")
    assert events == [(client.DONE, first), (client.RETURNED, second), (client.CLOSE, None)]
    assert first.verdicts[0] == (TRANSIENT, 0, "4.4.2", "lost" + client.MAYBE_TWICE)


def test_a_reused_connection_that_died_returns_the_message() -> None:
    machine = opened("PIPELINING", "CHUNKING")
    machine.begin(message(1, bdat=True))
    machine.receive_data(b"250 ok\r\n250 ok\r\n250 ok\r\n")
    second = message(2, bdat=True)
    machine.begin(second)
    assert machine.abandon("4.4.2", "lost") == [(client.RETURNED, second), (client.CLOSE, None)]


def test_shutdown_at_mail() -> None:
    fresh = opened("PIPELINING")
    first = message(1)
    fresh.begin(first)
    assert fresh.receive_data(b"421 4.3.2 bye\r\n") == [(client.DONE, first), (client.CLOSE, None)]
    assert first.verdicts == [(TRANSIENT, 421, "4.3.2", "bye")]
    used = opened("PIPELINING")
    used.begin(message(1))
    used.receive_data(b"250 ok\r\n250 ok\r\n354 go\r\n250 ok\r\n")
    second = message(2)
    used.begin(second)
    events = used.receive_data(b"421 too many messages\r\n")
    assert events == [(client.RETURNED, second), (client.CLOSE, None)]


@pytest.mark.parametrize("before", [1, 2, 3])
def test_shutdown_midway_is_no_duplicate(before: int) -> None:
    machine = opened("PIPELINING")
    first = message(1)
    machine.begin(first)
    machine.receive_data(b"".join([b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"][:before]))
    machine.receive_data(b"421 4.3.2 bye\r\n")
    assert first.verdicts == [(TRANSIENT, 421, "4.3.2", "bye")]


def test_lmtp_lost_between_the_replies_of_two_recipients() -> None:
    machine = opened("PIPELINING", lmtp=True)
    first = message(1, 3)
    machine.begin(first)
    machine.receive_data(b"250 ok\r\n" * 4 + b"354 go\r\n250 2.1.5 kept\r\n")
    machine.abandon("4.4.2", "lost")
    assert first.verdicts[0] == (ACCEPTED, 250, "2.1.5", "kept")
    assert first.verdicts[1] == first.verdicts[2] == (TRANSIENT, 0, "4.4.2", "lost" + client.MAYBE_TWICE)


@pytest.mark.parametrize(("reply", "kind"), [(b"552 5.3.4 too big\r\n", PERMANENT), (b"250 ok\r\n", TRANSIENT)])
def test_verdict_before_the_end_of_data(reply: bytes, kind: int) -> None:
    machine = opened("PIPELINING")
    first = message(1)
    first.content = None
    machine.begin(first)
    machine.receive_data(b"250 ok\r\n250 ok\r\n354 go\r\n")
    events = machine.receive_data(reply)
    # A final dot now would make a message of the part that was sent.
    assert events == [(client.DONE, first), (client.CLOSE, None)]
    assert kinds(first) == [kind]


def test_only_the_dot_when_nobody_was_accepted() -> None:
    machine = opened("PIPELINING")
    first = message(1)
    machine.begin(first)
    sent(machine)
    machine.receive_data(b"250 ok\r\n550 no\r\n354 go\r\n")
    assert sent(machine) == b".\r\n"  # RFC 2920 §3.1
    assert machine.receive_data(b"554 no recipients\r\n") == [(client.DONE, first)]
    assert kinds(first) == [PERMANENT]


def test_no_dot_for_a_peer_that_is_in_another_transaction() -> None:
    machine = opened("PIPELINING")
    first = message(1)
    machine.begin(first)
    sent(machine)
    events = machine.receive_data(b"550 no\r\n250 ok\r\n354 go\r\n")
    assert events == [(client.DONE, first), (client.CLOSE, None)]
    assert sent(machine) == b""


# -- peers that offer PIPELINING and break it --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replies", "kinds_"),
    [
        (b"503 nested\r\n503 no MAIL\r\n503 no MAIL\r\n503 no RCPT\r\n", [TRANSIENT, TRANSIENT]),
        (b"250 ok\r\n250 ok\r\n503 busy\r\n354 go\r\n250 ok\r\n", [ACCEPTED, TRANSIENT]),
        (b"250 ok\r\n250 ok\r\n550 no\r\n503 sync\r\n", [TRANSIENT, PERMANENT]),
        (b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n503 what?\r\n", [TRANSIENT, TRANSIENT]),
    ],
    ids=["MAIL", "RCPT", "DATA", "content"],
)
def test_503_to_what_was_in_order_is_the_peers_fault(replies: bytes, kinds_: list[int]) -> None:
    """RFC 5321 §4.2.2: the mail waits; the connection ends; PIPELINING is to be left out."""
    machine = opened("PIPELINING")
    first = message(1, 2)
    machine.begin(first)
    events = machine.receive_data(replies)
    assert [kind for kind, _ in events] == [client.OUT_OF_STEP, client.DONE]
    assert kinds(first) == kinds_
    assert machine.is_spent and not machine.can_begin
    assert sent(machine).endswith(b"QUIT\r\n")


def test_503_that_follows_from_a_refusal_is_in_order() -> None:
    machine = opened("PIPELINING")
    first = message(1)
    machine.begin(first)
    assert machine.receive_data(b"250 ok\r\n550 no\r\n503 no recipients\r\n") == [(client.DONE, first)]
    assert machine.can_begin


def test_503_without_pipelining_is_the_answer() -> None:
    """There is no way to be more orderly."""
    machine = opened("PIPELINING", pipelining=False)
    assert not machine.capabilities.pipelining
    first = message(1)
    machine.begin(first)
    assert sent(machine) == b"MAIL FROM:<m1@a>\r\n"
    assert machine.receive_data(b"503 5.5.1 authenticate first\r\n") == [(client.DONE, first)]
    assert first.verdicts == [(PERMANENT, 503, "5.5.1", "authenticate first")]


def test_refused_rset_with_the_content_behind_it_is_heard_out() -> None:
    """The peer may take that content: only its words tell, and a second copy would be our fault."""
    machine = opened("PIPELINING", "CHUNKING")
    first, second = message(1, bdat=True), message(2, bdat=True)
    machine.begin(first)
    machine.begin(second)
    events = machine.receive_data(b"250 ok\r\n250 ok\r\n250 ok\r\n502 RSET?\r\n250 ok\r\n250 ok\r\n250 ok\r\n")
    assert [kind for kind, _ in events] == [client.DONE, client.OUT_OF_STEP, client.DONE]
    assert kinds(first) == kinds(second) == [ACCEPTED]
    assert sent(machine).endswith(b"QUIT\r\n")


def test_refused_rset_before_the_content_gives_the_message_back() -> None:
    machine = opened("PIPELINING", "CHUNKING", blind_octets=1)
    first, second = message(1, bdat=True), message(2, bdat=True)
    machine.begin(first)
    machine.receive_data(b"250 ok\r\n250 ok\r\n")
    machine.begin(second)
    events = machine.receive_data(b"250 ok\r\n502 RSET?\r\n250 ok\r\n250 ok\r\n")
    assert events == [(client.DONE, first), (client.RETURNED, second), (client.CLOSE, None)]
    assert not second.sent


def test_content_taken_without_mail_may_be_twice() -> None:
    machine = opened("PIPELINING", "CHUNKING")
    first = message(1, bdat=True)
    machine.begin(first)
    machine.receive_data(b"450 4.3.0 no\r\n250 ok\r\n250 ok\r\n")
    assert first.verdicts == [(TRANSIENT, 450, "4.3.0", "no" + client.MAYBE_TWICE)]


def test_garbage_ends_it() -> None:
    machine = opened("PIPELINING")
    first = message(1)
    machine.begin(first)
    events = machine.receive_data(b"250 ok\r\nwhat?\r\n")
    assert events == [(client.DONE, first), (client.CLOSE, None)]
    assert kinds(first) == [TRANSIENT]


def test_garbage_behind_the_verdict_does_not_change_it() -> None:
    machine = opened("PIPELINING")
    first = message(1)
    machine.begin(first)
    machine.receive_data(b"250 ok\r\n250 ok\r\n354 go\r\n")
    events = machine.receive_data(b"250 ok\r\n\0\0\r\n")
    assert events == [(client.DONE, first), (client.CLOSE, None)]
    assert kinds(first) == [ACCEPTED]


def test_more_replies_than_commands_end_it() -> None:
    machine = opened("PIPELINING")
    assert machine.receive_data(b"250 hello?\r\n") == [(client.CLOSE, None)]
    assert machine.is_closed


# -- opening -----------------------------------------------------------------------------------------------------------


def failed(machine: SmtpClientMachine, data: bytes) -> client.Verdict:
    events = machine.receive_data(data)
    assert [kind for kind, _ in events] == [client.FAILED, client.CLOSE]
    verdict: client.Verdict = events[0][1]
    return verdict


def test_greeting_and_ehlo() -> None:
    machine = SmtpClientMachine("me.example")
    assert machine.waiting_for == client.WAIT_GREETING
    machine.receive_data(b"220-hi\r\n220 there\r\n")
    assert sent(machine) == b"EHLO me.example\r\n"
    assert failed(machine, b"450 4.7.1 later\r\n") == (TRANSIENT, 450, "4.7.1", "later")
    assert failed(SmtpClientMachine("x"), b"554 5.7.1 no\r\n") == (PERMANENT, 554, "5.7.1", "no")
    assert failed(SmtpClientMachine("x"), b"250 huh\r\n")[0] == TRANSIENT
    assert failed(SmtpClientMachine("x"), b"SSH-2.0\r\n")[0] == TRANSIENT


def test_helo_when_ehlo_is_unknown() -> None:
    machine = SmtpClientMachine("me.example")
    machine.receive_data(b"220 hi\r\n")
    sent(machine)
    assert machine.receive_data(b"502 what\r\n") == []
    assert sent(machine) == b"HELO me.example\r\n"
    assert machine.receive_data(b"250 hi\r\n") == [(client.READY, None)]
    assert machine.capabilities == esmtp.NO_CAPABILITIES


def test_lmtp_has_no_helo() -> None:
    machine = SmtpClientMachine("me.example", lmtp=True)
    machine.receive_data(b"220 hi\r\n")
    assert sent(machine) == b"LHLO me.example\r\n"
    assert failed(machine, b"502 what\r\n")[1] == 502


def starting_tls(mode: str) -> SmtpClientMachine:
    machine = SmtpClientMachine("me.example", tls_mode=mode)
    machine.receive_data(b"220 hi\r\n")
    machine.receive_data(b"250-hi\r\n250-PIPELINING\r\n250 STARTTLS\r\n")
    assert sent(machine).endswith(b"STARTTLS\r\n")
    return machine


def test_starttls_forgets_what_was_said_in_clear() -> None:
    machine = starting_tls("opportunistic")
    assert machine.receive_data(b"220 go\r\n") == [(client.START_TLS, None)]
    machine.tls_started()
    assert sent(machine) == b"EHLO me.example\r\n"
    assert machine.receive_data(b"250 hi\r\n") == [(client.READY, None)]
    assert machine.tls and not machine.capabilities.pipelining


@pytest.mark.parametrize("extra", [b"250-PIPELINING\r\n250 X\r\n", b"2", b"\0"])
def test_replies_before_the_handshake_are_refused(extra: bytes) -> None:
    assert failed(starting_tls("opportunistic"), b"220 go\r\n" + extra)[2] == "4.7.0"
    machine = starting_tls("opportunistic")
    machine.receive_data(b"220 go\r\n")
    assert failed(machine, extra)[2] == "4.7.0"


def test_starttls_refused_or_missing() -> None:
    assert starting_tls("opportunistic").receive_data(b"454 no\r\n") == [(client.READY, None)]
    assert failed(starting_tls("required"), b"454 4.7.0 no\r\n")[1] == 454
    machine = SmtpClientMachine("me.example", tls_mode="verify")
    machine.receive_data(b"220 hi\r\n")
    assert failed(machine, b"250 hi\r\n")[2] == "4.7.4"


def test_xclient_goes_first_and_only_when_it_changes() -> None:
    machine = opened("PIPELINING", "XCLIENT ADDR")
    first, second, third = message(1), message(2), message(3)
    first.xclient = second.xclient = b"XCLIENT ADDR=192.0.2.1\r\n"
    third.xclient = b"XCLIENT ADDR=192.0.2.2\r\n"
    machine.begin(first)
    assert sent(machine) == b"XCLIENT ADDR=192.0.2.1\r\n"
    machine.receive_data(b"220 hi\r\n")
    assert sent(machine) == b"EHLO me.example\r\n"
    machine.receive_data(b"250-hi\r\n250 PIPELINING\r\n")
    assert sent(machine).startswith(b"MAIL FROM:<m1@a>")
    machine.receive_data(b"250 ok\r\n250 ok\r\n354 go\r\n")
    machine.begin(second)
    assert b".\r\nMAIL FROM:<m2@a>" in sent(machine)
    machine.receive_data(b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    machine.begin(third)
    assert not machine.can_begin and not sent(machine).endswith(b"192.0.2.2\r\n")
    machine.receive_data(b"250 ok\r\n")
    assert sent(machine) == b"XCLIENT ADDR=192.0.2.2\r\n"
    events = machine.receive_data(b"550 5.7.0 no\r\n")
    assert events == [(client.DONE, third), (client.CLOSE, None)]
    assert third.verdicts == [(TRANSIENT, 550, "4.7.0", "no")]  # said of us, not of the message


def test_nothing_leaks_from_a_failed_transaction_into_the_next() -> None:
    server = ModelServer([Plan(rcpts=(250, 550), final=550), Plan(), Plan()], offers=("PIPELINING", "CHUNKING"))
    machine = opened("PIPELINING", "CHUNKING", depth=3)
    transactions = [message(0, 2, bdat=True), message(1, bdat=True), message(2, bdat=True)]
    exchange(machine, server, transactions, 10_000)
    assert [kinds(t) for t in transactions] == [[PERMANENT, PERMANENT], [ACCEPTED], [ACCEPTED]]
    assert [received[:2] for received in server.received] == [(1, (0,)), (2, (0,))]


# -- capabilities and command lines ------------------------------------------------------------------------------------


def test_capabilities() -> None:
    found = esmtp.parse_capabilities(
        "hi\nPIPELINING\nSIZE 1000\n8bitmime\nSMTPUTF8\nCHUNKING\nBINARYMIME\nDSN\nSTARTTLS\n"
        "LIMITS RCPTMAX=10 MAILMAX=x FOO=1\nXCLIENT NAME addr\nAUTH PLAIN\n\nSIZE"
    )
    assert found == esmtp.Capabilities(
        pipelining=True,
        eightbit=True,
        smtputf8=True,
        chunking=True,
        binarymime=True,
        dsn=True,
        starttls=True,
        size=True,
        max_octets=0,
        recipients_max=10,
        xclient=("NAME", "ADDR"),
    )
    assert esmtp.parse_capabilities("PIPELINING") == esmtp.NO_CAPABILITIES  # that is the host's name
    assert not esmtp.parse_capabilities("hi\nBINARYMIME").binarymime


def test_mail_and_rcpt_lines() -> None:
    everything = esmtp.parse_capabilities("\n".join(("hi", *ALL)))
    mail = esmtp.render_mail(
        everything, "a@b", 12, body=env.BODY_8BITMIME, smtputf8=True, ret=env.RET_HDRS, envid="a b+c"
    )
    assert mail == b"MAIL FROM:<a@b> SIZE=12 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=a+20b+2Bc\r\n"
    bare = esmtp.render_mail(esmtp.NO_CAPABILITIES, "", 12, body=env.BODY_8BITMIME, ret=env.RET_HDRS, envid="x")
    assert bare == b"MAIL FROM:<>\r\n"
    recipient = env.Recipient("u@d", env.NOTIFY_SUCCESS | env.NOTIFY_DELAY, "rfc822;x+y@z")
    line = b"RCPT TO:<u@d> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;x+2By@z\r\n"
    assert esmtp.render_rcpt(everything, recipient) == line
    assert esmtp.render_rcpt(esmtp.NO_CAPABILITIES, recipient) == b"RCPT TO:<u@d>\r\n"
    never = env.Recipient("ü@d", env.NOTIFY_NEVER, "utf-8;ü@d")
    assert esmtp.render_rcpt(everything, never).decode() == (
        "RCPT TO:<ü@d> NOTIFY=NEVER ORCPT=utf-8;\\x{FC}@d\r\n"
    )


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.1:4711", b"XCLIENT NAME=[UNAVAILABLE] ADDR=192.0.2.1 PORT=4711 HELO=cl+20ient\r\n"),
        ("[2001:db8::1]:25", b"XCLIENT NAME=[UNAVAILABLE] ADDR=IPV6:2001:db8::1 PORT=25 HELO=cl+20ient\r\n"),
        ("unix:", b"XCLIENT NAME=[UNAVAILABLE] ADDR=[UNAVAILABLE] PORT=[UNAVAILABLE] HELO=cl+20ient\r\n"),
    ],
)
def test_xclient_lines(address: str, expected: bytes) -> None:
    offered = esmtp.Capabilities(xclient=("NAME", "ADDR", "PORT", "HELO", "LOGIN"))
    envelope = env.Envelope("", [], 0, client_address=address, client_name="cl ient")
    assert esmtp.render_xclient(offered, envelope) == expected
    assert esmtp.render_xclient(esmtp.NO_CAPABILITIES, envelope) == b""
