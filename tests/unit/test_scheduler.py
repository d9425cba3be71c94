"""The scheduler: retries, expiry, reports, holds, reload, restart, a sick spool."""

from __future__ import annotations

import email

import pytest
from queue_lab import FakeBody, Lab, route

from gateway.delivery.agent import BOUNCED, DELIVERED, RELAYED, Outcome, failed
from gateway.mail.envelope import (
    NOTIFY_DELAY,
    NOTIFY_FAILURE,
    NOTIFY_NEVER,
    NOTIFY_SUCCESS,
    Recipient,
)
from gateway.queue.operations import Operations
from gateway.queue.routing import Router
from gateway.queue.timers import Timers
from gateway.spool.record import DISCARDED, EXPIRED, PENDING

PEER = "relay[192.0.2.1]:25"
OK = Outcome(RELAYED, 250, "2.0.0", "queued", PEER)
OK_DSN = Outcome(RELAYED, 250, "2.0.0", "queued", PEER, dsn=True)
STORED = Outcome(DELIVERED, 0, "2.0.0", "stored")
LATER = Outcome(-1, 450, "4.2.1", "mailbox busy", PEER)
NEVER = Outcome(BOUNCED, 550, "5.1.1", "no such user", PEER)
REFUSED = failed("connection refused", "4.4.1")


def both_ways(**keys):
    """Mail to example.org, and a way back to example.com, where alice is."""
    return Lab(
        route("example.org"), route("example.com", hops=("lmtp://back",)), **keys
    )


def send(lab, *mailboxes, **keys):
    keys.setdefault("sender", "alice@example.com")
    return lab.send(*mailboxes, **keys)


def reports(lab):
    """The reports on their way to alice."""
    lab.clock.advance(0)
    return [job.stored for job in lab.agents["lmtp://back:24"].log] if "lmtp://back:24" in lab.agents else []


def parse(stored):
    """(text, per-recipient fields of the delivery status)"""
    message = email.message_from_bytes(stored.content)
    assert message.get_content_type() == "multipart/report"
    text, status = message.get_payload()[:2]
    return text.get_payload(), status.get_payload()[1:]


# -- retries and expiry ----------------------------------------------------------------------------


def test_deferred_mail_is_tried_by_the_schedule():
    lab = Lab(route("example.org"), retry_s=(100.0, 200.0))
    lab.answer = lambda job: [LATER]
    stored = lab.send("bob@example.org")
    seen = []
    for _ in range(80):
        lab.clock.advance(10)
        seen.append(len(lab.agent().log))
    times = [10 * (seen.index(n) + 1) for n in range(2, 5)]
    assert 100 <= times[0] <= 120
    assert 200 <= times[1] - times[0] <= 230
    assert 200 <= times[2] - times[1] <= 230
    assert stored.attempts == [5]
    assert stored.next_attempt_at > lab.clock.now()


def test_retry_after_is_honoured_when_it_is_longer():
    lab = Lab(route("example.org"), retry_s=(100.0,))
    lab.answer = lambda job: [Outcome(-1, 0, "4.3.2", "503", retry_after_s=500.0)]
    lab.send("bob@example.org")
    lab.clock.advance(490)
    assert len(lab.agent().log) == 1
    lab.clock.advance(20)
    assert len(lab.agent().log) == 2


def test_settled_recipients_are_not_tried_again():
    lab = both_ways(retry_s=(100.0,))
    stored = send(lab, "a@example.org", "b@example.org", "c@example.org")
    lab.agent().finish([OK, LATER, NEVER])
    lab.clock.advance(120)
    assert lab.agent().log[-1].recipients == [1]
    lab.agent().finish(OK)
    assert list(stored.states) == [RELAYED, RELAYED, BOUNCED]
    assert stored.queue_id not in lab.scheduler.tasks


def test_expired_mail_is_reported_with_the_last_answer():
    lab = both_ways(retry_s=(3600.0,), expire_s=10_000.0)
    lab.answer = lambda job: [LATER] if "bob" in job.envelope.recipients[0].forward_path else [OK]
    stored = send(lab, "bob@example.org")
    lab.clock.advance(12_000)
    assert list(stored.states) == [EXPIRED]
    text, (status,) = parse(next(s for s in reports(lab) if b"failed" in s.content))
    assert status["Status"] == "4.4.7"
    assert status["Action"] == "failed"
    assert "450 4.2.1 mailbox busy" in " ".join(text.split())
    assert lab.log.names("expired") == ["expired"]


def test_the_last_attempt_is_when_it_expires():
    lab = both_ways(retry_s=(3600.0,), expire_s=4000.0, delay_warning_s=0.0)
    lab.answer = lambda job: [LATER]
    send(lab, "bob@example.org")
    lab.clock.advance(3990)
    assert len(lab.agent().log) == 2
    lab.clock.advance(20)
    assert len(lab.agent().log) == 3
    assert lab.metrics.expired == 1


def test_mail_in_a_lane_that_is_down_is_warned_about_and_expires():
    lab = both_ways(expire_s=20_000.0, delay_warning_s=5000.0)
    lab.unreachable = REFUSED
    stored = send(lab, "bob@example.org")
    lab.unreachable = None
    lab.clock.advance(5100)
    (delay,) = reports(lab)
    assert parse(delay)[1][0]["Action"] == "delayed"
    lab.clock.advance(10_000)
    assert len(reports(lab)) == 1  # only once
    lab.clock.advance(5000)
    assert list(stored.states) == [EXPIRED]


def test_a_clock_that_jumps_bounces_nothing_that_was_not_tried():
    lab = Lab(route("example.org", max_connections=1))
    for _ in range(3):
        lab.send("bob@example.org")
    lab.clock.jump_ns = 10**18  # thirty years
    lab.clock.advance(200)
    assert lab.metrics.expired == 0
    for _ in range(3):
        lab.agent().finish(OK)
    assert lab.metrics.relayed == 3


@pytest.mark.parametrize("jump_ns", [10**18, -(10**18)], ids=["forward", "back"])
def test_a_clock_that_jumps_changes_no_age(jump_ns):
    """Tried or not: mail is as old as the clock that does not jump says, over splits and new routes, too."""
    lab = Lab(route("example.org", recipients_per_transaction=1), retry_s=(1000.0,), expire_s=5000.0)
    lab.answer = lambda job: [LATER]
    stored = lab.send("bob@example.org", "eve@example.org")
    lab.clock.advance(100)
    lab.clock.jump_ns = jump_ns
    lab.scheduler.route_again(lab.scheduler.tasks_of(stored.queue_id)[0])
    lab.clock.advance(4500)
    assert lab.metrics.expired == 0
    assert not reports(lab)
    assert Operations(lab.scheduler).show(stored.queue_id)["age_s"] == 4600.0
    lab.clock.advance(1000)
    assert lab.metrics.expired == 2


# -- who is told what ------------------------------------------------------------------------------


def test_a_failure_is_reported_before_it_is_settled():
    lab = both_ways()
    stored = send(lab, Recipient("bob@example.org", orcpt="rfc822;Bob@Example.org"))
    lab.agent().finish(NEVER)
    assert list(stored.states) == [PENDING]  # until the report is safe
    (report,) = reports(lab)
    assert list(stored.states) == [BOUNCED]
    assert report.envelope.reverse_path == ""
    assert [r.forward_path for r in report.envelope.recipients] == ["alice@example.com"]
    assert report.envelope.recipients[0].notify == NOTIFY_NEVER
    assert report.envelope.facts.size_octets == len(report.content)
    _, (status,) = parse(report)
    assert status["Action"] == "failed"
    assert status["Status"] == "5.1.1"
    assert status["Original-Recipient"] == "rfc822; Bob@Example.org"
    assert status["Diagnostic-Code"] == "smtp; 550 5.1.1 no such user"


def test_a_crash_between_failure_and_report_repeats_the_attempt():
    lab = both_ways()
    send(lab, "bob@example.org")
    lab.agent().finish(NEVER)
    lab.restart()
    lab.agent().finish(NEVER)
    assert len(reports(lab)) == 1


def test_one_report_for_what_fails_together():
    lab = both_ways()
    lab.agents.clear()
    send(lab, "a@example.org", "b@example.org", "c@example.org")
    lab.agent().finish([NEVER, NEVER, OK])
    (report,) = reports(lab)
    assert len(parse(report)[1]) == 2


def test_one_report_over_several_transactions():
    lab = Lab(
        route("example.org", recipients_per_transaction=1),
        route("example.com", hops=("lmtp://back",)),
    )
    send(lab, "a@example.org", "b@example.org", "c@example.org")
    for _ in range(3):
        lab.agent().finish(NEVER)
    (report,) = reports(lab)
    assert len(parse(report)[1]) == 3


def test_a_report_does_not_wait_for_slow_siblings():
    lab = Lab(
        route("example.org", recipients_per_transaction=1),
        route("example.com", hops=("lmtp://back",)),
    )
    send(lab, "a@example.org", "b@example.org")
    lab.agent().finish(NEVER)
    assert not reports(lab)
    lab.clock.advance(6)
    assert len(reports(lab)) == 1


@pytest.mark.parametrize(
    ("notify", "outcome", "expected"),
    [
        (0, NEVER, "failed"),
        (NOTIFY_FAILURE, NEVER, "failed"),
        (NOTIFY_NEVER, NEVER, None),
        (NOTIFY_SUCCESS, NEVER, None),
        (NOTIFY_DELAY, NEVER, None),
        (0, OK, None),
        (NOTIFY_SUCCESS, OK, "relayed"),
        (NOTIFY_SUCCESS, OK_DSN, None),
        (NOTIFY_SUCCESS | NOTIFY_FAILURE, STORED, "delivered"),
        (NOTIFY_FAILURE, OK, None),
        (NOTIFY_NEVER, OK, None),
    ],
)
def test_notify(notify, outcome, expected):
    # RFC 3461 §5.2
    lab = both_ways()
    stored = send(lab, Recipient("bob@example.org", notify))
    lab.agent().finish(outcome)
    found = reports(lab)
    assert [parse(report)[1][0]["Action"] for report in found] == ([expected] if expected else [])
    assert list(stored.states) == [outcome.state]


@pytest.mark.parametrize(("notify", "warned"), [(0, 1), (NOTIFY_DELAY, 1), (NOTIFY_FAILURE, 0)])
def test_delay_warning(notify, warned):
    lab = both_ways(retry_s=(1000.0,), delay_warning_s=2500.0)
    send(lab, Recipient("bob@example.org", notify))
    for _ in range(10):
        lab.agent().finish(LATER)
        lab.clock.advance(1101)
    assert len(reports(lab)) == warned
    if warned:
        _, (status,) = parse(reports(lab)[0])
        assert status["Action"] == "delayed"
        assert status["Will-Retry-Until"]


def test_a_delay_is_warned_about_once_even_over_a_restart():
    lab = both_ways(retry_s=(1000.0,), delay_warning_s=2500.0)
    send(lab, "bob@example.org")
    for _ in range(4):
        lab.agent().finish(LATER)
        lab.clock.advance(1101)
    back = lab.agents["lmtp://back:24"]
    assert len(back.jobs) == 1
    back.finish(OK)
    lab.restart()
    lab.clock.advance(1200)
    lab.agent().finish(LATER)
    lab.clock.advance(10)
    assert not reports(lab)


def test_nobody_is_told_about_a_report():
    lab = both_ways()
    stored = send(lab, Recipient("bob@example.org", NOTIFY_SUCCESS), sender="")
    lab.agent().finish(NEVER)
    assert not reports(lab)
    assert list(stored.states) == [BOUNCED]
    assert lab.log.names("double_bounce") == ["double_bounce"]


def test_a_report_that_bounces_ends_there():
    lab = both_ways()
    send(lab, "bob@example.org")
    lab.agent().finish(NEVER)
    assert len(reports(lab)) == 1
    lab.agents["lmtp://back:24"].finish(NEVER)
    lab.clock.advance(60)
    assert len(reports(lab)) == 1
    assert not lab.scheduler.tasks
    assert not lab.spool.messages


def test_a_sender_without_a_route_gets_no_report():
    lab = both_ways()
    stored = send(lab, "bob@example.org", sender="mallory@nowhere.example")
    lab.agent().finish(NEVER)
    assert list(stored.states) == [BOUNCED]
    assert lab.log.names("undeliverable_report") == ["undeliverable_report"]


def test_a_report_that_finds_no_room_is_stored_later():
    lab = both_ways()
    stored = send(lab, "bob@example.org")
    lab.spool.full = True
    lab.agent().finish(NEVER)
    lab.clock.advance(20)
    assert list(stored.states) == [PENDING]
    lab.spool.full = False
    lab.clock.advance(40)
    assert list(stored.states) == [BOUNCED]
    assert len(reports(lab)) == 1


def test_success_is_settled_although_the_report_has_to_wait():
    lab = both_ways()
    stored = send(lab, Recipient("bob@example.org", NOTIFY_SUCCESS))
    lab.spool.full = True
    lab.agent().finish(STORED)
    assert list(stored.states) == [DELIVERED]
    lab.clock.advance(10)
    lab.spool.full = False
    lab.clock.advance(40)
    assert len(reports(lab)) == 1


def test_originals_on_disk_are_read_off_the_loop():
    lab = both_ways()
    lab.spool.in_memory = False
    one = send(lab, "bob@example.org")
    two = send(lab, Recipient("carol@example.org", NOTIFY_SUCCESS))
    lab.agent().finish(NEVER)
    lab.agent().finish(STORED)
    assert list(two.states) == [PENDING]  # its header is needed first
    lab.clock.advance(6)
    assert len(reports(lab)) == 2
    assert list(one.states) == [BOUNCED]
    assert list(two.states) == [DELIVERED]


def test_an_original_that_cannot_be_read_is_reported_without_it(monkeypatch):
    lab = both_ways()
    stored = send(lab, "bob@example.org")

    def chunks(self, size):
        raise OSError("I/O error")

    monkeypatch.setattr(FakeBody, "chunks", chunks)
    lab.agent().finish(NEVER)
    assert len(reports(lab)) == 1
    assert list(stored.states) == [BOUNCED]


# -- routes ----------------------------------------------------------------------------------------


def test_recipients_of_several_routes_go_their_own_ways():
    lab = both_ways(retry_s=(100.0,))
    stored = send(lab, "a@example.org", "b@example.com", "c@example.org")
    assert lab.agent().log[0].recipients == [0, 2]
    assert lab.agents["lmtp://back:24"].log[0].recipients == [1]
    lab.agents["lmtp://back:24"].finish(OK)
    lab.agent().finish(LATER)
    lab.clock.advance(120)
    lab.agent().finish(OK)
    assert list(stored.states) == [RELAYED] * 3
    assert not lab.scheduler.tasks


def test_mail_without_a_route_waits_for_one():
    lab = Lab(route("example.org"), retry_s=(100.0,))
    stored = lab.send("bob@elsewhere.example")
    assert list(stored.states) == [PENDING]
    lab.scheduler.reload(lab.config, Router((route("*"),), lab.delivery, "mx.example.org"))
    lab.clock.advance(120)
    lab.agent().finish(OK)
    assert list(stored.states) == [RELAYED]


def test_a_report_without_a_route_is_discarded():
    lab = Lab(route("example.org"))
    stored = lab.send("bob@elsewhere.example", sender="")
    assert list(stored.states) == [DISCARDED]
    assert not lab.scheduler.tasks


def test_reload_moves_what_waits_and_lets_finish_what_runs():
    lab = Lab(route("example.org", max_connections=1), retry_s=(100.0,))
    states = [lab.send("bob@example.org").states for _ in range(3)]
    old = lab.agent()
    router = Router((route("*", hops=("smtp://new",)),), lab.delivery, "mx.example.org")
    lab.scheduler.reload(lab.config, router)
    assert old.closed
    new = lab.agent("smtp://new:25")
    assert len(new.jobs) == 2
    old.finish(OK)
    new.finish(LATER)
    new.finish(OK)
    lab.clock.advance(120)
    new.finish(OK)
    assert [list(s) for s in states] == [[RELAYED]] * 3
    assert lab.metrics.relayed == 3


def test_reload_moves_a_job_whose_connection_fails():
    lab = Lab(route("example.org"))
    lab.send("bob@example.org")
    old = lab.agent()
    router = Router((route("*", hops=("smtp://new",)),), lab.delivery, "mx.example.org")
    lab.scheduler.reload(lab.config, router)
    old.refuse(REFUSED)
    lab.agent("smtp://new:25").finish(OK)
    assert lab.metrics.relayed == 1


# -- a restart -------------------------------------------------------------------------------------


def test_recover_takes_up_where_the_last_run_ended():
    lab = both_ways(retry_s=(1000.0,))
    send(lab, "a@example.org", "b@example.org")
    held = send(lab, "c@example.org")
    lab.agent().finish([OK, LATER])
    Operations(lab.scheduler).hold({"queue_ids": [held.queue_id]})
    lab.agent().finish(LATER)
    lab.restart()
    assert not lab.agents  # one waits for its time, the other is held
    lab.clock.advance(1150)
    (job,) = lab.agent().log
    assert job.recipients == [1]
    assert job.attempt == 2
    lab.agent().finish(OK)
    assert lab.scheduler.tasks_of(held.queue_id)[0].stored.held


def test_a_wrong_next_attempt_does_not_keep_mail_for_years():
    lab = Lab(route("example.org"), retry_s=(100.0,))
    stored = lab.send("bob@example.org")
    lab.agent().finish(LATER)
    stored.next_attempt_at = lab.clock.now() + 10**18
    lab.spool.update(stored)
    lab.restart()
    lab.clock.advance(130)
    assert len(lab.agent().log) == 1


# -- a sick spool ----------------------------------------------------------------------------------


def test_delivery_pauses_while_results_cannot_be_recorded():
    lab = Lab(route("example.org"))
    lab.send("a@example.org")
    lab.spool.log.trouble = "Input/output error"
    lab.scheduler.on_spool_health("Input/output error")
    for _ in range(3):
        lab.send("b@example.org")
    assert len(lab.agent().jobs) == 1
    lab.agent().finish(OK)
    assert not lab.agent().jobs
    lab.spool.log.trouble = None
    lab.scheduler.on_spool_health(None)
    assert len(lab.agent().jobs) == 3


def test_delivery_goes_on_while_the_disk_is_full():
    lab = Lab(route("example.org"))
    lab.scheduler.on_spool_health("no space left")
    lab.send("a@example.org")
    lab.agent().finish(OK)
    assert lab.metrics.relayed == 1


# -- the operator ----------------------------------------------------------------------------------


def test_hold_and_release():
    lab = Lab(route("example.org", max_connections=1))
    lab.send("a@example.org")
    stored = lab.send("b@example.org", "c@example.org")
    queue = Operations(lab.scheduler)
    assert queue.hold({"recipient": "B@"}) == 1
    lab.agent().finish(OK)
    assert not lab.agent().jobs
    assert queue.show(stored.queue_id)["states"] == ["held"]
    lab.clock.advance(100_000)
    assert not lab.agent().jobs
    assert queue.release({"state": "held"}) == 1
    lab.agent().finish(OK)
    assert list(stored.states) == [RELAYED] * 2


def test_hold_of_a_running_message_takes_effect_when_it_is_deferred():
    lab = Lab(route("example.org"), retry_s=(100.0,))
    stored = lab.send("a@example.org")
    Operations(lab.scheduler).hold({})
    lab.agent().finish(LATER)
    lab.clock.advance(1000)
    assert not lab.agent().jobs
    assert Operations(lab.scheduler).show(stored.queue_id)["states"] == ["held"]


def test_hold_of_a_message_whose_connection_fails():
    lab = Lab(route("example.org"), connect_retry_s=(10.0,))
    stored = lab.send("a@example.org")
    Operations(lab.scheduler).hold({})
    lab.agent().refuse(REFUSED)
    lab.clock.advance(1000)
    assert not lab.agent().jobs
    assert Operations(lab.scheduler).show(stored.queue_id)["states"] == ["held"]


def test_a_route_on_hold():
    lab = Lab(route("example.org", hold=True))
    stored = lab.send("a@example.org")
    assert not lab.agents
    queue = Operations(lab.scheduler)
    assert queue.show(stored.queue_id)["states"] == ["held"]
    assert queue.release({"queue_ids": [stored.queue_id]}) == 1
    lab.agent().finish(OK)
    assert list(stored.states) == [RELAYED]


def test_retry_now():
    lab = Lab(route("example.org"), retry_s=(1000.0,), connect_retry_s=(1000.0,))
    lab.send("a@example.org")
    lab.agent().finish(LATER)
    queue = Operations(lab.scheduler)
    assert queue.retry({"error": "BUSY"}) == 1
    assert len(lab.agent().jobs) == 1
    lab.agent().refuse(REFUSED)
    assert lab.scheduler.lanes[0].is_down
    queue.retry()
    lab.agent().finish(OK)
    assert lab.metrics.relayed == 1


def test_expire_now():
    lab = both_ways(retry_s=(1000.0,))
    stored = send(lab, "a@example.org")
    lab.agent().finish(LATER)
    assert Operations(lab.scheduler).expire({"queue_ids": [stored.queue_id]}) == 1
    (report,) = reports(lab)
    assert "given up by the operator" in " ".join(parse(report)[0].split())
    assert list(stored.states) == [EXPIRED]


def test_delete_tells_nobody():
    lab = both_ways(retry_s=(1000.0,))
    stored = send(lab, "a@example.org", "b@example.com")
    lab.agent().finish(LATER)
    Operations(lab.scheduler).delete({})
    lab.agents["lmtp://back:24"].finish(LATER)  # it ran: deleted when it is deferred
    assert list(stored.states) == [DISCARDED] * 2
    assert len(reports(lab)) == 1  # the mail to example.com itself
    assert not lab.scheduler.tasks


def test_reroute_and_back():
    lab = Lab(route("example.org", tls="required"), retry_s=(1000.0,))
    stored = lab.send("a@example.org", "b@example.org")
    lab.agent().finish([OK, LATER])
    queue = Operations(lab.scheduler)
    assert queue.reroute({}, "lmtp://spare") == 1
    spare = lab.agent("lmtp://spare:24")
    assert spare.log[0].recipients == [1]
    assert spare.route.config.tls == "required"
    spare.finish(LATER)
    lab.restart()
    assert stored.queue_id in lab.scheduler.tasks
    lab.clock.advance(1150)
    assert len(lab.agent("lmtp://spare:24").jobs) == 1  # it is remembered
    lab.agent("lmtp://spare:24").finish(LATER)
    queue = Operations(lab.scheduler)
    queue.reroute({}, "")
    lab.agent().finish(OK)
    assert lab.metrics.relayed == 1


def test_reroute_refuses_what_is_no_next_hop():
    queue = Operations(Lab().scheduler)
    with pytest.raises(ValueError, match="allowed are"):
        queue.reroute({}, "nonsense")
    with pytest.raises(ValueError, match="mx: delivery is not in this version"):
        queue.reroute({}, "mx:")
    with pytest.raises(ValueError, match="filter"):
        queue.hold({"colour": "red"})
    with pytest.raises(ValueError, match="filter: state"):
        queue.hold({"state": "red"})


def test_lists_stats_and_ages():
    lab = Lab(route("example.org", max_connections=1), retry_s=(1000.0,))
    lab.send("a@example.org", sender="x@example.net")
    lab.send("b@example.org", sender="y@example.net")
    lab.clock.advance(700)
    lab.send("c@example.org")
    lab.agent().finish(LATER)
    queue = Operations(lab.scheduler)
    listing = queue.list()
    assert listing["total"] == 3
    first = listing["messages"][0]
    assert first["recipients"][0]["reply"] == "4.2.1 mailbox busy"
    assert first["recipients"][0]["attempts"] == 1
    assert queue.list({"state": "deferred"})["total"] == 1
    assert queue.list({"older_than_s": 500})["total"] == 2
    assert queue.list({"reverse_path": "y@"})["total"] == 1
    assert len(queue.list(limit=1)["messages"]) == 1
    assert queue.show("nothing") is None
    stats = queue.stats()
    (lane,) = stats["lanes"]
    assert (stats["messages"], lane["active"], lane["ready"], lane["deferred"]) == (3, 1, 1, 1)
    assert lane["oldest_s"] == 700.0
    ages = queue.ages()
    assert ages["lanes"]["smtp://relay:25"][:4] == [1, 0, 2, 0]


def test_lists_tell_of_connections_that_fail():
    """Mail that waits for a next hop that is down shows how often it was tried, and what was the matter last."""
    lab = Lab(connect_retry_s=(100.0,), retry_s=(10.0,))
    lab.answer = lambda job: [LATER]
    deferred = lab.send("old@example.org")  # heard 4.2.1, and comes back while the next hop is down
    lab.answer = None
    lab.agent().answer = None
    lab.agent().unreachable = REFUSED
    first = lab.send("a@example.org")
    lab.clock.advance(330)
    late = lab.send("late@example.org")
    queue = Operations(lab.scheduler)
    shown = [queue.show(stored.queue_id)["recipients"][0] for stored in (first, deferred, late)]
    assert [recipient["attempts"] for recipient in shown] == [4, 1 + 3, 0]
    assert {recipient["reply"] for recipient in shown} == {"4.4.1 connection refused"}
    lab.agent().unreachable = None
    lab.agent().answer = lambda job: [OK]
    lab.clock.advance(200)
    assert queue.list()["total"] == 0


# -- inline ----------------------------------------------------------------------------------------


def inline(lab, *mailboxes):
    from queue_lab import envelope_to

    answers = []
    lab.scheduler.deliver_inline(
        "ID", envelope_to(*mailboxes), [b"Received: x\r\n", memoryview(b"\r\nhello\r\n")],
        lambda queue_id, envelope, replies: answers.append([str(reply) for reply in replies]),
    )  # fmt: skip
    return answers


def test_inline_replies_are_the_next_hops():
    lab = both_ways()
    answers = inline(lab, "a@example.org", "b@example.com", "c@example.org", "d@nowhere.example")
    assert bytes(b"".join(lab.agent().jobs[0][0].body().slices())) == b"Received: x\r\n\r\nhello\r\n"
    assert lab.agent().jobs[0][0].body().size == 22
    lab.agent().finish([OK, NEVER])
    assert not answers
    lab.agents["lmtp://back:24"].finish(LATER)
    assert answers == [
        [
            "250 2.0.0 queued",
            "450 4.2.1 mailbox busy",
            "550 5.1.1 no such user",
            "451 4.4.4 no route for this recipient",
        ]
    ]
    assert not lab.spool.settled
    assert not lab.scheduler.tasks


def test_inline_goes_before_queued_mail():
    lab = Lab(route("example.org", max_connections=1))
    for _ in range(3):
        lab.send("bob@example.org")
    answers = inline(lab, "now@example.org")
    lab.agent().finish(OK)
    lab.agent().finish(OK)
    assert answers == [["250 2.0.0 queued"]]


def test_inline_fails_at_once_while_the_lane_is_down():
    lab = Lab(route("example.org"), connect_retry_s=(10.0,))
    answers = inline(lab, "now@example.org")
    lab.agent().refuse(REFUSED)
    assert answers == [["451 4.4.1 connection refused"]]
    assert inline(lab, "now@example.org") == [["451 4.4.1 connection refused"]]
    lab.clock.advance(12)
    answers = inline(lab, "now@example.org")  # this one is the probe
    lab.agent().finish(OK)
    assert answers == [["250 2.0.0 queued"]]
    assert not lab.scheduler.lanes[0].is_down


def test_inline_fails_over():
    lab = Lab(route("example.org", hops=("smtp://first", "smtp://second")))
    answers = inline(lab, "now@example.org")
    lab.agent("smtp://first:25").refuse(REFUSED)
    lab.agent("smtp://second:25").finish(OK)
    assert answers == [["250 2.0.0 queued"]]


def test_inline_does_not_wait_for_ever():
    lab = Lab(route("example.org", max_connections=1, recipients_per_transaction=1))
    lab.send("busy@example.org")
    answers = inline(lab, "a@example.org", "b@example.org")
    lab.clock.advance(59)
    assert not answers
    lab.clock.advance(2)
    assert answers == [["451 4.4.5 no connection to the next hop is free"] * 2]
    lab.agent().finish(OK)
    assert len(lab.agent().log) == 1


def test_inline_mail_whose_job_is_given_back_late_does_not_wait_for_ever():
    lab = Lab(route("example.org", max_connections=1), connect_retry_s=(1000.0,))
    answers = inline(lab, "a@example.org")
    lab.clock.advance(100)
    lab.spool.log.trouble = "Input/output error"
    lab.scheduler.on_spool_health("Input/output error")
    lab.agent().finish([])
    assert not answers
    lab.clock.advance(60)
    assert answers == [["451 4.4.2 connection closed"]]


# -- timers ----------------------------------------------------------------------------------------


def test_timers_run_in_order_and_can_be_cancelled():
    lab = Lab()
    timers, seen = Timers(lab.clock), []
    kept = [timers.add(delay, seen.append, delay) for delay in (3.0, 1.0, 2.0, 1.5)]
    kept[2].cancel()
    kept[2].cancel()
    assert len(timers) == 3
    lab.clock.advance(2)
    assert seen == [1.0, 1.5]
    timers.add(0.5, seen.append, "soon")
    lab.clock.advance(2)
    assert seen == [1.0, 1.5, "soon", 3.0]
    kept[0].cancel()
    assert len(timers) == 0


def test_a_million_due_timers_do_not_stop_the_loop():
    lab = Lab()
    timers, seen = Timers(lab.clock), []
    for number in range(1200):
        timers.add(1.0, seen.append, number)
    counts = []
    run = lab.clock.call_later
    lab.clock.call_later = lambda delay, call: (counts.append(len(seen)), run(delay, call))[1]
    lab.clock.advance(1.0)
    assert counts == [500, 1000]
    assert len(seen) == 1200


def test_cancelled_timers_leave_no_litter():
    lab = Lab()
    timers = Timers(lab.clock)
    for _ in range(10):
        for timer in [timers.add(1e6, print) for _ in range(100)]:
            timer.cancel()
    assert len(timers._heap) < 200
    assert len(timers) == 0


def test_a_timer_that_fails_does_not_stop_the_others():
    lab = Lab()
    timers, seen = Timers(lab.clock), []
    timers.add(1.0, lambda _: 1 / 0)
    timers.add(1.0, seen.append, 1)
    lab.clock.advance(1.0)
    assert seen == [1]
