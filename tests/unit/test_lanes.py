"""Lanes: fairness, concurrency that adapts, rates, backoff and fail-over."""

from __future__ import annotations

import pytest
from queue_lab import Lab, route

from gateway.delivery.agent import BOUNCED, RELAYED, Outcome, failed
from gateway.queue.backoff import TokenBucket, wait_s

OK = Outcome(RELAYED, 250, "2.0.0", "ok", "relay[192.0.2.1]:25")
REFUSED = failed("connection refused", "4.4.1")
BROKEN = failed("connection lost", "4.4.2")
TWO = ("smtp://first", "smtp://second")


def test_mail_goes_at_once_while_there_is_room():
    lab = Lab(route("example.org"))
    for _ in range(5):
        lab.send("bob@example.org")
    assert len(lab.agent().jobs) == 5  # initial_connections
    lab.send("bob@example.org")
    assert len(lab.agent().jobs) == 5
    lab.agent().finish(OK)
    assert len(lab.agent().jobs) == 5
    assert lab.scheduler.lanes[0].ready == 0


def test_an_agent_that_answers_within_submit():
    lab = Lab(route("example.org"))
    lab.answer = lambda job: [OK] * len(job.recipients)
    for _ in range(100):
        lab.send("bob@example.org")
    assert lab.metrics.relayed == 100
    assert not lab.scheduler.tasks
    assert lab.scheduler.running == 0


def test_clients_and_senders_take_turns():
    lab = Lab(route("example.org", max_connections=1))
    lab.send("bob@example.org", client_address="192.0.2.9:1")
    for _ in range(10):
        lab.send("bob@example.org", client_address="192.0.2.1:1", sender="bulk@a.example")
    for _ in range(2):
        lab.send("bob@example.org", client_address="192.0.2.2:1", sender="me@b.example")
    lab.send("bob@example.org", client_address="192.0.2.1:2", sender="other@c.example")
    agent = lab.agent()
    for _ in range(6):
        agent.finish(OK)
    senders = [job.envelope.reverse_path for job in agent.log[1:]]
    assert senders == [
        "bulk@a.example", "me@b.example", "other@c.example",
        "bulk@a.example", "me@b.example", "bulk@a.example",
    ]  # fmt: skip


def test_retries_do_not_push_new_mail_aside():
    lab = Lab(route("example.org", max_connections=1), retry_s=(10.0,))
    lab.answer = lambda job: [Outcome(-1, 450, "4.2.1", "later")]
    for _ in range(20):
        lab.send("bob@example.org", sender="old@a.example")
    lab.agent().answer = None
    lab.send("bob@example.org", sender="busy@b.example")  # keeps the connection busy
    lab.clock.advance(20)
    for _ in range(3):
        lab.send("bob@example.org", sender="new@c.example")
    for _ in range(5):
        lab.agent().finish(OK)
    started = [job.envelope.reverse_path for job in lab.agent().log[21:]]
    assert started.count("new@c.example") >= 2


def test_concurrency_grows_with_success_and_never_above_its_bound():
    lab = Lab(route("example.org", max_connections=8))
    for _ in range(200):
        lab.send("bob@example.org")
    agent = lab.agent()
    assert agent.concurrency == 5
    seen = []
    for _ in range(60):
        agent.finish(OK)
        seen.append(agent.concurrency)
    assert seen == sorted(seen)
    assert seen[-1] == 8


def test_concurrency_does_not_grow_when_nobody_waits():
    lab = Lab(route("example.org"))
    for _ in range(50):
        lab.send("bob@example.org")
        if lab.agent().jobs:
            lab.agent().finish(OK)
    assert lab.agent().concurrency == 5


@pytest.mark.parametrize("trouble", [BROKEN, Outcome(-1, 421, "4.3.2", "too many connections")])
def test_trouble_halves_the_concurrency_once_for_what_was_under_way(trouble):
    lab = Lab(route("example.org", max_connections=20))
    for _ in range(400):
        lab.send("bob@example.org")
    agent = lab.agent()
    while agent.concurrency < 16:
        agent.finish(OK)
    for _ in range(4):
        agent.finish(trouble)
    assert agent.concurrency == 8
    while agent.concurrency < 9:
        agent.finish(OK)  # and grows again


def test_a_recipient_refused_for_now_is_no_trouble_of_the_lane():
    lab = Lab(route("example.org"))
    for _ in range(30):
        lab.send("bob@example.org")
    for _ in range(20):
        lab.agent().finish(Outcome(-1, 450, "4.2.1", "mailbox busy"))
    assert lab.agent().concurrency >= 5


def test_a_lane_that_is_down_keeps_its_mail_and_probes_with_one_job():
    lab = Lab(route("example.org"), connect_retry_s=(10.0, 20.0))
    lab.unreachable = REFUSED
    for _ in range(50):
        lab.send("bob@example.org")
    lane, agent = lab.scheduler.lanes[0], lab.agent()
    assert lane.is_down
    assert lane.ready == 50
    assert len(agent.log) == 1  # 49 messages did not each find out by themselves
    lab.clock.advance(11.5)
    assert len(agent.log) == 2
    assert lab.log.names("lane_down") == ["lane_down"] * 2
    lab.clock.advance(15)
    assert len(agent.log) == 2  # the second wait is longer
    agent.unreachable = None
    lab.clock.advance(8)
    assert len(agent.jobs) == 1  # the probe
    agent.finish(OK)
    assert not lane.is_down
    assert len(agent.jobs) == 5
    while agent.jobs:
        agent.finish(OK)
    assert lab.metrics.relayed == 50
    assert all(s[2] == RELAYED for s in lab.spool.settled)


def test_mail_that_waits_for_a_lane_that_is_down_leaves_the_memory():
    lab = Lab(route("example.org", max_connections=1), connect_retry_s=(10.0,))
    before = [lab.send("bob@example.org") for _ in range(3)]
    assert not lab.spool.released
    lab.agent().refuse(REFUSED)
    assert sorted(lab.spool.released) >= [stored.queue_id for stored in before[1:]]
    after = lab.send("bob@example.org")
    assert after.queue_id in lab.spool.released
    lab.clock.advance(12)
    for _ in range(4):
        lab.agent().finish(OK)
    assert lab.metrics.relayed == 4


def test_an_agent_that_gives_back_for_ever_counts_as_down():
    lab = Lab(route("example.org"), connect_retry_s=(10.0,))
    lab.send("bob@example.org")
    agent = lab.agent()
    submit = agent.submit
    agent.submit = lambda job, done: done(job, [])
    agent.finish([])
    assert lab.scheduler.lanes[0].is_down
    agent.submit = submit
    lab.clock.advance(12)
    agent.finish(OK)
    assert lab.metrics.relayed == 1


def test_an_agent_that_forgets_to_say_it_is_ready():
    lab = Lab(route("example.org", max_connections=1))
    lab.send("a@example.org")
    lab.send("b@example.org")
    lab.agent().depth = 2
    lab.clock.advance(61)
    assert len(lab.agent().jobs) == 2


def test_waiting_in_a_lane_that_is_down_is_no_attempt():
    lab = Lab(route("example.org"), connect_retry_s=(10.0,))
    lab.unreachable = REFUSED
    stored = lab.send("bob@example.org")
    lab.clock.advance(100)
    assert stored.attempts == [0]
    (task,) = lab.scheduler.tasks_of(stored.queue_id)
    assert task.attempt == 1
    assert task.error == REFUSED


def test_a_refused_connection_beside_working_ones_only_slows_down():
    lab = Lab(route("example.org"))
    for _ in range(30):
        lab.send("bob@example.org")
    agent = lab.agent()
    agent.finish(OK)
    agent.refuse(REFUSED)
    assert not lab.scheduler.lanes[0].is_down
    assert agent.concurrency == 2
    while agent.jobs:
        agent.finish(OK)
    assert lab.metrics.relayed == 30


def test_fail_over_and_back():
    lab = Lab(route("example.org", hops=TWO), connect_retry_s=(10.0,))
    lab.send("bob@example.org")
    first = lab.agent("smtp://first:25")
    first.refuse(REFUSED)
    second = lab.agent("smtp://second:25")
    assert len(second.jobs) == 1
    assert not lab.scheduler.lanes[0].is_down
    for _ in range(20):
        lab.send("bob@example.org")
    assert len(second.jobs) == 5
    assert not first.jobs
    lab.clock.advance(12)
    second.finish(OK)
    assert len(first.jobs) == 1  # the probe; the others do not wait for it
    assert len(second.jobs) == 5
    first.finish(OK)
    assert len(first.jobs) == 5
    while first.jobs or second.jobs:
        (first if first.jobs else second).finish(OK)
    assert lab.metrics.relayed == 21


def test_a_busy_first_hop_does_not_spill_over():
    lab = Lab(route("example.org", hops=TWO))
    for _ in range(30):
        lab.send("bob@example.org")
    assert list(lab.agents) == ["smtp://first:25"]


def test_all_hops_down_is_lane_down():
    lab = Lab(route("example.org", hops=TWO), connect_retry_s=(10.0,))
    lab.unreachable = REFUSED
    lab.send("bob@example.org")
    assert lab.scheduler.lanes[0].is_down
    lab.agent("smtp://second:25").unreachable = None
    lab.clock.advance(12)
    lab.agent("smtp://second:25").finish(OK)
    assert lab.metrics.relayed == 1


def test_connections_that_break_off_again_and_again_count_as_down():
    lab = Lab(route("example.org"), retry_s=(1000.0,))
    for _ in range(30):
        lab.send("bob@example.org")
    for _ in range(5):
        lab.agent().finish(BROKEN)
    assert lab.scheduler.lanes[0].is_down


def test_rate_limit():
    lab = Lab(route("example.org", rate_per_s=10.0))
    lab.answer = lambda job: [OK]
    for _ in range(100):
        lab.send("bob@example.org")
    assert lab.metrics.relayed == 10  # one second's worth at once
    lab.clock.advance(1.0)
    assert lab.metrics.relayed == 20
    lab.clock.advance(10.0)
    assert lab.metrics.relayed == 100


def test_workers_share_a_rate():
    lab = Lab(route("example.org", rate_per_s=10.0), workers=2)
    lab.answer = lambda job: [OK]
    for _ in range(100):
        lab.send("bob@example.org")
    lab.clock.advance(9.0)
    assert 49 <= lab.metrics.relayed <= 51


def test_rates_below_one_a_second():
    lab = Lab(route("example.org", rate_per_s=0.1))
    lab.answer = lambda job: [OK]
    for _ in range(5):
        lab.send("bob@example.org")
    assert lab.metrics.relayed == 1
    lab.clock.advance(10.0)
    assert lab.metrics.relayed == 2


def test_recipients_of_one_message_share_a_transaction():
    lab = Lab(route("example.org", "example.com"))
    lab.send("a@example.org", "b@example.com", "c@example.org")
    (job,) = lab.agent().log
    assert job.recipients == [0, 1, 2]


def test_recipients_per_transaction():
    lab = Lab(route("example.org", recipients_per_transaction=2))
    stored = lab.send(*(f"r{i}@example.org" for i in range(5)))
    agent = lab.agent()
    while agent.jobs:
        agent.finish(OK)
    assert [job.recipients for job in agent.log] == [[0, 1], [2, 3], [4]]
    assert list(stored.states) == [RELAYED] * 5


def test_the_peers_own_recipient_limit():
    lab = Lab(route("example.org", max_connections=1))
    lab.send("x@example.org")
    lab.agent().recipients_max = 1
    stored = lab.send("a@example.org", "b@example.org")
    while lab.agent().jobs:
        lab.agent().finish(OK)
    assert [job.recipients for job in lab.agent().log] == [[0], [0], [1]]
    assert list(stored.states) == [RELAYED] * 2


def test_agents_may_take_more_jobs_than_connections():
    lab = Lab(route("example.org", max_connections=1))
    lab.send("bob@example.org")
    agent = lab.agent()
    agent.depth = 3
    for _ in range(5):
        lab.send("bob@example.org")
    agent.listener.on_ready()
    assert len(agent.jobs) == 3


def test_an_agent_that_raises_defers():
    lab = Lab(route("example.org"))

    def answer(job):
        raise RuntimeError("bug")

    lab.answer = answer
    stored = lab.send("bob@example.org")
    assert lab.metrics.deferred == 1
    assert list(stored.states) == [0]
    assert lab.scheduler.running == 0


def test_an_agent_that_cannot_be_made_leaves_the_lane_down():
    lab = Lab(route("example.org"), connect_retry_s=(10.0,))
    make = lab.make_agent

    def broken(*arguments):
        raise OSError("no such certificate")

    lab.scheduler._make_agent = broken
    lab.send("bob@example.org")
    lane = lab.scheduler.lanes[0]
    assert lane.is_down
    assert "no such certificate" in lane.last_error.text
    lane.make_agent = make
    lab.clock.advance(12)
    lab.agent().finish(OK)
    assert lab.metrics.relayed == 1


def test_outcomes_that_do_not_fit_the_recipients_defer_all():
    lab = Lab(route("example.org"))
    stored = lab.send("a@example.org", "b@example.org")
    lab.agent().finish([OK])
    assert list(stored.states) == [0, 0]
    assert lab.metrics.deferred == 2


def test_done_twice_is_ignored():
    lab = Lab(route("example.org"))
    stored = lab.send("a@example.org")
    job, done = lab.agent().jobs[0]
    lab.agent().finish(OK)
    done(job, [Outcome(BOUNCED, 550, "5.1.1", "no")])
    assert list(stored.states) == [RELAYED]
    assert lab.scheduler.running == 0


def test_waits():
    assert [wait_s((1.0, 5.0), n, 0.0) for n in (0, 1, 2, 3, 99)] == [1.0, 1.0, 5.0, 5.0, 5.0]
    assert wait_s((10.0,), 1, 1.0) == 11.0


def test_token_bucket():
    bucket = TokenBucket(2.0, 0.0)
    assert [bucket.take(0.0) for _ in range(3)] == [0.0, 0.0, 0.5]
    assert bucket.take(0.5) == 0.0
    assert bucket.take(100.0) == 0.0
    assert bucket.take(100.0) == 0.0
    assert bucket.take(100.0) == 0.5  # never more than the burst
