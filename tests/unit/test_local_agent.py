"""Maildir delivery on a real file system, and the two agents without a network."""

from __future__ import annotations

import asyncio
import errno
import mailbox
import os
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from queue_lab import FakeBody, envelope_to

from gateway.delivery import local
from gateway.delivery.agent import DEFERRED, DELIVERED, DISCARDED, Job
from gateway.delivery.discard import DiscardAgent
from gateway.delivery.local import MaildirAgent, mailbox_path, safe_name

CONTENT = b"Subject: x\r\n\r\n.dot\r\n"
PATTERN = "/{domain}/{local_part}/Maildir"


def job(*mailboxes, queue_id="ID1", content=CONTENT, **keys):
    envelope = envelope_to(*mailboxes, **keys)
    stored = SimpleNamespace(queue_id=queue_id, envelope=envelope)
    recipients = list(range(len(envelope.recipients)))
    return Job(stored, recipients, lambda _: FakeBody(content), None)


def deliver(root, *jobs, pattern=PATTERN):
    async def run():
        agent = MaildirAgent(str(root) + pattern, hostname="mx.example.org")
        agent.set_concurrency(len(jobs))
        futures = []
        for one in jobs:
            future = asyncio.get_running_loop().create_future()
            futures.append(future)
            agent.submit(one, lambda job, outcomes, future=future: future.set_result(outcomes))
        assert agent.capacity == 0
        results = await asyncio.wait_for(asyncio.gather(*futures), 30)
        assert agent.capacity == len(jobs)
        agent.close()
        assert agent.capacity == 0
        return results

    return asyncio.run(run())


def test_each_recipient_has_a_maildir(tmp_path):
    (outcomes,) = deliver(tmp_path, job("Bob@Example.org", "carol@example.com"))
    assert [o.state for o in outcomes] == [DELIVERED] * 2
    for name, to in (("example.org/bob", "Bob@Example.org"), ("example.com/carol", "carol@example.com")):
        directory = tmp_path / name / "Maildir"
        (file,) = (directory / "new").iterdir()
        assert file.read_bytes() == (
            b"Return-Path: <alice@example.org>\r\nDelivered-To: " + to.encode() + b"\r\n" + CONTENT
        )
        assert not list((directory / "tmp").iterdir())
        assert (directory / "cur").is_dir()
        assert directory.stat().st_mode & 0o777 == 0o700
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o700
        assert file.stat().st_mode & 0o777 == 0o600
        (message,) = mailbox.Maildir(directory, create=False)
        assert message["Subject"] == "x"


def test_the_null_reverse_path(tmp_path):
    deliver(tmp_path, job("bob@example.org", sender=""))
    (file,) = (tmp_path / "example.org/bob/Maildir/new").iterdir()
    assert file.read_bytes().startswith(b"Return-Path: <>\r\n")


def test_many_at_once(tmp_path):
    jobs = [job("bob@example.org", queue_id=f"ID{i}") for i in range(50)]
    deliver(tmp_path, *jobs)
    assert len(list((tmp_path / "example.org/bob/Maildir/new").iterdir())) == 50


def test_one_maildir_for_all(tmp_path):
    deliver(tmp_path, job("a@example.org", "b@example.org"), pattern="/all")
    assert len(list((tmp_path / "all/new").iterdir())) == 2


def test_a_repeated_delivery_replaces_itself(tmp_path):
    deliver(tmp_path, job("bob@example.org"))
    stale = tmp_path / "example.org/bob/Maildir/tmp"
    (file,) = (tmp_path / "example.org/bob/Maildir/new").iterdir()
    (stale / file.name).write_bytes(b"half")  # a crash in the midst of it
    deliver(tmp_path, job("bob@example.org"))
    (file,) = (tmp_path / "example.org/bob/Maildir/new").iterdir()
    assert file.read_bytes().endswith(CONTENT)


@pytest.mark.parametrize(
    ("number", "enhanced"),
    [(errno.ENOSPC, "4.3.1"), (errno.EDQUOT, "4.2.2"), (errno.EIO, "4.3.0"), (errno.EACCES, "4.3.0")],
)
def test_what_the_system_refuses_is_deferred(tmp_path, monkeypatch, number, enhanced):
    def fsync(fd):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(local.os, "fsync", fsync)
    (outcomes,) = deliver(tmp_path, job("bob@example.org"))
    assert (outcomes[0].state, outcomes[0].enhanced) == (DEFERRED, enhanced)
    assert not [f for _, _, files in os.walk(tmp_path) for f in files]


def test_one_bad_mailbox_does_not_harm_the_others(tmp_path):
    (tmp_path / "example.org").mkdir()
    (tmp_path / "example.org/bob").write_text("a file is in the way")
    (outcomes,) = deliver(tmp_path, job("bob@example.org", "carol@example.org"))
    assert [o.state for o in outcomes] == [DEFERRED, DELIVERED]


def test_short_writes(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(local.os, "write", lambda fd, octets: write(fd, octets[:3]))
    deliver(tmp_path, job("bob@example.org"))
    (file,) = (tmp_path / "example.org/bob/Maildir/new").iterdir()
    assert file.read_bytes().endswith(CONTENT)


def test_a_body_that_cannot_be_read_is_deferred(tmp_path):
    one = job("bob@example.org")

    def read(_):
        raise RuntimeError("damaged")

    one.read = read
    (outcomes,) = deliver(tmp_path, one)
    assert outcomes[0].state == DEFERRED


@pytest.mark.parametrize(
    ("forward_path", "path"),
    [
        ("Postmaster", "/mx.example.org/postmaster/Maildir"),
        ("a+b_c=d@example.org", "/example.org/a+b_c=d/Maildir"),
        ('"bob"@example.org', "/example.org/bob/Maildir"),
        (r'"a\"b"@example.org', "/example.org/a%22b/Maildir"),
        ('"../../etc"@example.org', "/example.org/%2E.%2F..%2Fetc/Maildir"),
        ('""@example.org', "/example.org/%/Maildir"),
        ("..@example.org", "/example.org/%2E./Maildir"),
        (".@..", "/%2E./%2E/Maildir"),
        ('"{domain}"@example.org', "/example.org/%7Bdomain%7D/Maildir"),
        ("a/b@[IPv6:::1]", "/%5Bipv6%3A%3A%3A1%5D/a%2Fb/Maildir"),
        ("grüße@example.org", "/example.org/gr%C3%BC%C3%9Fe/Maildir"),
    ],
)
def test_paths(forward_path, path):
    assert mailbox_path(PATTERN, forward_path, "mx.example.org") == path


@settings(deadline=None, max_examples=300)
@given(st.text(max_size=300), st.text(max_size=300))
def test_names_are_safe_and_tell_mailboxes_apart(one, two):
    for text in (one, two):
        name = safe_name(text)
        assert name and "/" not in name and "\0" not in name and not name.startswith(".")
        assert len(name.encode()) <= 255 and name.isascii()
    same = one.lower() == two.lower()
    assert (safe_name(one) == safe_name(two)) == same


def test_discard():
    agent, seen = DiscardAgent(), []
    agent.submit(job("a@example.org", "b@example.org"), lambda job, outcomes: seen.extend(outcomes))
    assert [o.state for o in seen] == [DISCARDED] * 2
    agent.close()
    assert agent.capacity == 0
