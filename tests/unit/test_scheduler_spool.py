"""Scheduler, reports and the real spool together, on a real loop; Maildirs are where mail ends."""

from __future__ import annotations

import asyncio
import email
import time

from queue_lab import FakeAgent, FakeLog, envelope_to, route

from gateway.config_model import DeliveryConfig, QueueConfig, SpoolConfig
from gateway.delivery.agent import BOUNCED, DELIVERED, RELAYED, Outcome
from gateway.delivery.local import MaildirAgent
from gateway.mail.envelope import NOTIFY_SUCCESS, Recipient
from gateway.metrics import Metrics
from gateway.queue.operations import Operations
from gateway.queue.routing import Router
from gateway.queue.scheduler import Scheduler, detail_of
from gateway.queue.timers import LoopClock
from gateway.spool.spool import Spool

SMALL = SpoolConfig(
    segment_octets=1024 * 1024, min_free_octets=0, results_delay_s=0.001, memory_octets=4096
)
CONTENT = b"Subject: hello\r\n\r\n" + b"Some text.\r\n" * 20
OK = Outcome(RELAYED, 250, "2.0.0", "queued", "relay[192.0.2.1]:25")
LATER = Outcome(-1, 450, "4.2.1", "mailbox busy", "relay[192.0.2.1]:25")
NEVER = Outcome(BOUNCED, 550, "5.1.1", "no such user", "relay[192.0.2.1]:25")


class Worker:
    """As much of a worker as the queue needs."""

    def __init__(self, root, *routes):
        loop = asyncio.get_running_loop()
        self.root = root
        self.agents = []
        self.log = FakeLog()
        self.spool = Spool(root / "spool", worker=0, settings=SMALL, on_health=self.on_health)
        recovery = self.spool.recover()
        assert not recovery.damaged
        self.spool.attach(loop)
        self.scheduler = Scheduler(
            hostname="mx.example.org",
            config=QueueConfig(),
            router=Router(
                routes
                or (
                    route("example.org"),
                    route("example.com", hops=("store:",)),
                ),
                DeliveryConfig(),
                "mx.example.org",
            ),
            spool=self.spool,
            make_agent=self.make_agent,
            log=self.log,
            metrics=Metrics(),
            clock=LoopClock(loop),
        )
        self.recovered = len(recovery.messages)
        self.scheduler.recover(recovery.messages)

    def on_health(self, reason):
        self.scheduler.on_spool_health(reason)

    def make_agent(self, route, next_hop, listener):
        if next_hop.scheme == "store":
            return MaildirAgent(f"{self.root}/store/{{local_part}}", hostname="mx.example.org")
        agent = FakeAgent(route, next_hop, listener)
        self.agents.append(agent)
        return agent

    async def send(self, *mailboxes, content=CONTENT, **keys):
        keys.setdefault("sender", "alice@example.com")
        future = asyncio.get_running_loop().create_future()
        self.spool.begin().commit(
            envelope_to(*mailboxes, at=time.time_ns(), **keys), b"Received: x\r\n", content,
            lambda stored, error: future.set_result(stored or error),
        )  # fmt: skip
        stored = await future
        self.scheduler.enqueue(stored)
        return stored

    async def until(self, condition):
        for _ in range(5000):
            if condition():
                return
            await asyncio.sleep(0.002)
        raise AssertionError("it never came to that")

    def mail_for(self, name):
        directory = self.root / "store" / name / "new"
        return sorted(directory.iterdir()) if directory.is_dir() else []

    async def close(self):
        await self.scheduler.close(5)
        self.spool.close()


def test_mail_reaches_its_maildir_and_leaves_the_spool(tmp_path):
    async def run():
        worker = Worker(tmp_path)
        for _ in range(20):
            await worker.send("bob@example.com", "carol@example.com")
        await worker.until(lambda: worker.spool.count == 0)
        assert len(worker.mail_for("bob")) == len(worker.mail_for("carol")) == 20
        content = worker.mail_for("bob")[0].read_bytes()
        assert content.endswith(b"Received: x\r\n" + CONTENT)
        await worker.close()
        worker = Worker(tmp_path)
        assert worker.recovered == 0
        await worker.close()

    asyncio.run(run())


def test_a_failure_becomes_a_report_in_the_senders_maildir(tmp_path):
    async def run():
        worker = Worker(tmp_path)
        await worker.send("nobody@example.org")
        worker.agents[0].finish(NEVER)
        await worker.until(lambda: worker.spool.count == 0)
        (file,) = worker.mail_for("alice")
        message = email.message_from_bytes(file.read_bytes())
        assert message["Return-Path"] == "<>"
        assert message.get_content_type() == "multipart/report"
        assert message.get_payload()[1].get_payload()[1]["Status"] == "5.1.1"
        assert b"Subject: hello" in message.get_payload()[2].as_bytes()
        await worker.close()

    asyncio.run(run())


def test_success_of_a_message_that_is_on_disk_only(tmp_path):
    async def run():
        worker = Worker(tmp_path)
        big = CONTENT + b"x" * 70 + b"\r\n" * 5000  # more than memory_octets
        await worker.send(Recipient("bob@example.com", NOTIFY_SUCCESS), content=big)
        await worker.until(lambda: len(worker.scheduler.reporter) == 1)
        worker.scheduler.reporter.flush_all()
        await worker.until(lambda: worker.mail_for("alice"))
        await worker.until(lambda: worker.spool.count == 0)
        report = email.message_from_bytes(worker.mail_for("alice")[0].read_bytes())
        status = report.get_payload()[1].get_payload()[1]
        assert status["Action"] == "delivered"
        await worker.close()

    asyncio.run(run())


def test_state_survives_a_restart(tmp_path):
    async def run():
        worker = Worker(tmp_path)
        stored = await worker.send("a@example.org", "b@example.org", "c@example.org")
        held = await worker.send("d@example.org")
        worker.agents[0].finish([OK, LATER, LATER])
        Operations(worker.scheduler).hold({"queue_ids": [held.queue_id]})
        worker.agents[0].finish(LATER)
        await worker.close()

        worker = Worker(tmp_path)
        queue = Operations(worker.scheduler)
        assert worker.recovered == 2
        assert not worker.agents
        shown = queue.show(stored.queue_id)
        assert [r["state"] for r in shown["recipients"]] == ["relayed", "pending", "pending"]
        assert [r["attempts"] for r in shown["recipients"]] == [0, 1, 1]
        assert shown["recipients"][1]["reply"] == "4.2.1 mailbox busy"
        assert shown["states"] == ["deferred"]
        assert queue.show(held.queue_id)["states"] == ["held"]
        queue.retry({"queue_ids": [stored.queue_id]})
        (job,) = worker.agents[0].log
        assert job.recipients == [1, 2]
        assert job.attempt == 2
        assert bytes(b"".join(job.body().slices())).endswith(CONTENT)
        worker.agents[0].finish(OK)
        queue.release({})
        worker.agents[0].finish(OK)
        await worker.until(lambda: worker.spool.count == 0)
        await worker.close()

    asyncio.run(run())


def test_a_reroute_survives_a_restart(tmp_path):
    async def run():
        worker = Worker(tmp_path)
        await worker.send("bob@example.org")
        worker.agents[0].finish(LATER)
        Operations(worker.scheduler).reroute({}, "store:")
        await worker.until(lambda: worker.mail_for("bob"))
        stored = await worker.send("carol@example.org")
        Operations(worker.scheduler).hold({})
        worker.agents[0].finish(LATER)
        Operations(worker.scheduler).reroute({}, "store:")
        assert detail_of(stored, 0).text == "mailbox busy"
        await worker.close()
        worker = Worker(tmp_path)
        Operations(worker.scheduler).release({})
        await worker.until(lambda: worker.mail_for("carol"))
        await worker.until(lambda: worker.spool.count == 0)
        await worker.close()

    asyncio.run(run())


def test_close_waits_for_what_runs(tmp_path):
    async def run():
        worker = Worker(tmp_path)
        await worker.send("bob@example.org")
        closing = asyncio.ensure_future(worker.scheduler.close(30))
        await asyncio.sleep(0)
        assert not closing.done()
        stored = await worker.send("late@example.org")  # kept for the next start
        worker.agents[0].finish(OK)
        await closing
        assert stored.unsettled == 1
        worker.spool.close()
        worker = Worker(tmp_path)
        assert worker.recovered == 1
        worker.agents[0].finish(Outcome(DELIVERED, 0, "2.0.0", "stored"))
        await worker.close()

    asyncio.run(run())


def test_close_does_not_wait_for_ever(tmp_path):
    async def run():
        worker = Worker(tmp_path)
        await worker.send("bob@example.org")
        await worker.scheduler.close(0.01)
        assert worker.log.names("drain_timeout") == ["drain_timeout"]
        worker.spool.close()

    asyncio.run(run())
