"""Whatever happens, in whatever order: no recipient is lost, none is settled twice, none is with
two agents at once, and when all is well again the queue empties."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from queue_lab import Lab, route

from gateway.delivery.agent import BOUNCED, DELIVERED, DISCARDED, RELAYED, Outcome, failed
from gateway.mail.envelope import Recipient
from gateway.queue.lanes import DEFERRED_TASK, HELD, READY, RUNNING
from gateway.queue.operations import Operations
from gateway.queue.routing import Router
from gateway.spool.record import PENDING

OUTCOMES = [
    Outcome(RELAYED, 250, "2.0.0", "queued"),
    Outcome(RELAYED, 250, "2.0.0", "queued", dsn=True),
    Outcome(DELIVERED, 0, "2.0.0", "stored"),
    Outcome(DISCARDED, 0, "2.0.0", "gone"),
    Outcome(BOUNCED, 550, "5.1.1", "no such user"),
    Outcome(-1, 450, "4.2.1", "mailbox busy"),
    Outcome(-1, 421, "4.3.2", "shutting down"),
    Outcome(-1, 0, "4.3.2", "503", retry_after_s=700.0),
    failed("connection lost", "4.4.2"),
]
REFUSED = failed("connection refused", "4.4.1")

ROUTES = (
    route("a.example", hops=("smtp://one", "smtp://two"), recipients_per_transaction=2),
    route("b.example", hops=("lmtp://three",), max_connections=2, rate_per_s=3.0),
    route("h.example", hops=("lmtp://three",), hold=True),
)
OTHER_ROUTES = (
    route("*", hops=("smtp://other",)),
    route("a.example", hops=("smtp://never",)),
)

mailboxes = st.sampled_from(["x@a.example", "y@a.example", "z@b.example", "q@h.example", "n@none.example"])
recipients = st.builds(Recipient, mailboxes, st.sampled_from([0, 1, 2, 4, 8, 14]))
senders = st.sampled_from(["", "me@a.example", "you@b.example", "who@none.example"])
filters = st.sampled_from(
    [{}, {"recipient": "a.example"}, {"state": "deferred"}, {"state": "held"}, {"next_hop": "one"}]
)


class QueueMachine(RuleBasedStateMachine):
    @initialize()
    def start(self):
        self.lab = Lab(
            *ROUTES, retry_s=(50.0, 500.0), expire_s=5000.0, bounce_expire_s=3000.0,
            delay_warning_s=1000.0, connect_retry_s=(5.0, 60.0), inline_wait_s=20.0,
        )  # fmt: skip
        self.asked = self.answered = 0

    @property
    def queue(self):
        return Operations(self.lab.scheduler)

    def busy_agents(self):
        return [self.lab.agents[url] for url in sorted(self.lab.agents) if self.lab.agents[url].jobs]

    @rule(to=st.lists(recipients, min_size=1, max_size=4), sender=senders)
    def send(self, to, sender):
        self.lab.send(*to, sender=sender)

    @rule(to=st.lists(recipients, min_size=1, max_size=3), sender=senders)
    def send_inline(self, to, sender):
        from queue_lab import envelope_to

        def answered(queue_id, envelope, replies):
            assert len(replies) == len(to)
            self.answered += 1

        self.asked += 1
        envelope = envelope_to(*to, sender=sender, at=self.lab.clock.now())
        self.lab.scheduler.deliver_inline("INLINE", envelope, [b"x\r\n"], answered)

    @rule(data=st.data())
    def finish(self, data):
        busy = self.busy_agents()
        if busy:
            agent = data.draw(st.sampled_from(busy))
            number = data.draw(st.integers(0, len(agent.jobs) - 1))
            count = len(agent.jobs[number][0].recipients)
            agent.finish(
                data.draw(st.lists(st.sampled_from(OUTCOMES), min_size=count, max_size=count)), number
            )

    @rule(data=st.data())
    def refuse(self, data):
        busy = self.busy_agents()
        if busy:
            agent = data.draw(st.sampled_from(busy))
            agent.refuse(REFUSED, data.draw(st.integers(0, len(agent.jobs) - 1)))

    @rule(seconds=st.sampled_from([0.0, 0.5, 6.0, 40.0, 70.0, 600.0, 4000.0]))
    def wait(self, seconds):
        self.lab.clock.advance(seconds)

    @rule(seconds=st.sampled_from([-(10**6), -100, 100, 10**6]))
    def jump(self, seconds):
        self.lab.clock.jump_ns += seconds * 10**9

    @rule(which=filters)
    def hold(self, which):
        self.queue.hold(which)

    @rule(which=filters)
    def release(self, which):
        self.queue.release(which)

    @rule(which=filters)
    def retry(self, which):
        self.queue.retry(which)

    @rule(which=filters)
    def expire(self, which):
        self.queue.expire(which)

    @rule(which=filters)
    def delete(self, which):
        self.queue.delete(which)

    @rule(which=filters, hop=st.sampled_from(["smtp://spare", "smtp://two", ""]))
    def reroute(self, which, hop):
        self.queue.reroute(which, hop)

    @rule(routes=st.sampled_from([ROUTES, OTHER_ROUTES]))
    def reload(self, routes):
        lab = self.lab
        lab.routes = routes
        agents, lab.agents = lab.agents, {}
        lab.scheduler.reload(lab.config, Router(routes, lab.delivery, "mx.example.org"))
        for url, agent in agents.items():
            if agent.jobs:
                lab.agents.setdefault(url + "#old", agent)

    @rule()
    def restart(self):
        self.asked = self.answered = 0  # who waited for an inline answer lost his connection
        self.lab.restart()

    @rule(trouble=st.sampled_from([None, "Input/output error"]))
    def sick(self, trouble):
        self.lab.spool.log.trouble = trouble
        self.lab.scheduler.on_spool_health(trouble)

    @rule(full=st.booleans(), in_memory=st.booleans())
    def disk(self, full, in_memory):
        self.lab.spool.full = full
        self.lab.spool.in_memory = in_memory

    @invariant()
    def nothing_is_lost(self):
        scheduler = self.lab.scheduler
        for queue_id, stored in self.lab.spool.messages.items():
            tasks = scheduler.tasks_of(queue_id)
            placed = [index for task in tasks for index in task.recipients]
            assert len(placed) == len(set(placed)), "with two tasks at once"
            for index, state in enumerate(stored.states):
                if state == PENDING:
                    owed = scheduler.reporter.owes(stored, index)
                    waits = self.success_is_read(stored, index)
                    assert (index in placed) + owed + waits == 1, (queue_id, index)
                else:
                    assert index not in placed

    def success_is_read(self, stored, index):
        """Delivered; settled as soon as its header was read for the report."""
        pending = self.lab.scheduler.reporter._pending.get(stored.queue_id)
        return (
            pending is not None
            and pending.original is None
            and index in [item.index for item in pending.items.get("success", [])]
        )

    @invariant()
    def tasks_are_where_they_say(self):
        scheduler = self.lab.scheduler
        running = {id(job) for a in self.lab.agents.values() for job, _ in a.jobs}
        for task in scheduler.all_tasks():
            assert task.state in (READY, RUNNING, DEFERRED_TASK, HELD)
            assert (task.state == RUNNING) == (id(task) in running)
            assert (task.timer is not None) == (task.state == DEFERRED_TASK)
            assert task.queue_id in self.lab.spool.messages
        for lane in scheduler.lanes:
            assert lane.ready == len(lane.waiting())
            assert lane.running == sum(hop.running for hop in lane.hops)

    def teardown(self):
        if not hasattr(self, "lab"):
            return
        self.disk(full=False, in_memory=True)
        self.sick(None)
        self.reload(OTHER_ROUTES)
        ok = OUTCOMES[0]
        self.lab.answer = lambda job: [ok] * len(job.recipients)
        for _ in range(100):
            for agent in list(self.lab.agents.values()):
                agent.answer = self.lab.answer
                while agent.jobs:
                    agent.finish(ok)
            self.queue.release({})
            self.lab.clock.advance(600.0)
            if not self.lab.spool.messages and not len(self.lab.scheduler.reporter):
                break
        assert not self.lab.spool.messages
        assert not self.lab.scheduler.tasks
        assert len(self.lab.scheduler.reporter) == 0
        assert self.answered == self.asked


QueueMachine.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=30)
TestQueue = QueueMachine.TestCase
