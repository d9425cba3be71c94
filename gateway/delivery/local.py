"""Delivery into Maildirs on this machine.

    Owns      MaildirAgent, mailbox_path(), safe_name()
    Flow      submit → a thread: tmp/name → fsync → new/name → fsync of the directory → done
    Files     <pattern>/{tmp,new,cur}; "{domain}" and "{local_part}" in the pattern are filled in
    Limits    set_concurrency() deliveries at once, THREADS_MAX of them working
    Errors    no space: 4.3.1, over quota: 4.2.2, anything else the system says: 4.3.0; all DEFERRED
    Blocking  only its own threads
    Security  names from outside are percent-encoded: no path leaves the pattern; new files never
              follow a link; directories are 0700, files 0600
    Standards RFC 5321 §4.4 (Return-Path)
    Bugs      the octets are kept as received, with CRLF; some Maildir readers expect LF

A file's name is made of queue id and recipient, so that a delivery that is repeated after a crash
replaces itself instead of being there twice (unless a reader moved the first one to cur/).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

from gateway.delivery.agent import DELIVERED, Done, Job, Outcome, failed
from gateway.mail.envelope import Envelope
from gateway.mail.header import return_path

THREADS_MAX = 8  # they wait for the disk, not for each other
NAME_OCTETS_MAX = 200  # of the 255 that Linux file systems take
CHUNK_OCTETS = 256 * 1024

_UNSAFE = re.compile(rb"[^a-z0-9_+=@.-]")


class MaildirAgent:
    """An Agent for maildir:."""

    recipients_max = 0

    def __init__(self, pattern: str, *, hostname: str) -> None:
        """pattern: the path, with "{domain}" and "{local_part}" where each has its own Maildir."""
        self._pattern = pattern
        self._hostname = hostname
        self._concurrency = 1
        self._active = 0
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(THREADS_MAX, "maildir")

    @property
    def capacity(self) -> int:
        return 0 if self._closing else max(0, self._concurrency - self._active)

    @property
    def connections(self) -> int:
        return self._active

    def set_concurrency(self, connections: int) -> None:
        self._concurrency = connections

    def submit(self, job: Job, done: Done) -> None:
        self._active += 1
        future = self._loop.run_in_executor(self._pool, self._deliver_all, job)
        future.add_done_callback(lambda finished: self._finish(job, done, finished))

    def close(self) -> None:
        self._closing = True
        if not self._active:
            self._pool.shutdown(wait=False)

    def _finish(self, job: Job, done: Done, finished: asyncio.Future[list[Outcome]]) -> None:
        self._active -= 1
        if self._closing and not self._active:
            self._pool.shutdown(wait=False)
        error = asyncio.CancelledError() if finished.cancelled() else finished.exception()
        if error is not None:
            outcome = failed(f"{type(error).__name__}: {error}")
            done(job, [outcome] * len(job.recipients))
        else:
            done(job, finished.result())

    # -- in a thread ------------------------------------------------------------------------------

    def _deliver_all(self, job: Job) -> list[Outcome]:
        return [self._deliver(job, index) for index in job.recipients]

    def _deliver(self, job: Job, index: int) -> Outcome:
        envelope = job.envelope
        forward_path = envelope.recipients[index].forward_path
        started = monotonic()
        try:
            directory = mailbox_path(self._pattern, forward_path, self._hostname)
            name = f"{envelope.received_at // 10**9}.Q{job.queue_id}R{index}.{self._hostname}"
            header = trace_fields(envelope, forward_path)
            body = job.body()
            write_maildir(directory, name, header, body.chunks)
        except OSError as error:
            return failed(_reason(error), _status(error), duration_s=monotonic() - started)
        except Exception as error:  # the spool's, about a body it cannot read
            return failed(f"{type(error).__name__}: {error}", duration_s=monotonic() - started)
        return Outcome(
            DELIVERED, 0, "2.0.0", "stored in the mailbox", duration_s=monotonic() - started
        )


def mailbox_path(pattern: str, forward_path: str, hostname: str) -> str:
    """The directory of a mailbox.  The bare <Postmaster> (RFC 5321 §4.1.1.3) is this host's."""
    local_part, at, domain = forward_path.rpartition("@")
    if not at:
        local_part, domain = forward_path, hostname
    if local_part.startswith('"'):  # RFC 5321 §4.1.2: the quoted form names the same mailbox
        local_part = re.sub(r"\\(.)", r"\1", local_part[1:-1])
    # One pass: what is filled in is not looked at again.
    filled = {"{domain}": safe_name(domain), "{local_part}": safe_name(local_part)}
    return re.sub(r"\{domain\}|\{local_part\}", lambda found: filled[found[0]], pattern)


def safe_name(text: str) -> str:
    """A file name that stands for this text, any case of it, and for no other."""
    octets = text.lower().encode("utf-8", "surrogateescape")
    name = _UNSAFE.sub(lambda found: b"%%%02X" % found[0][0], octets).decode()
    if name.startswith(".") or not name:  # no "", ".", "..", no hidden file
        name = "%2E" + name[1:] if name else "%"
    if len(name) > NAME_OCTETS_MAX:
        digest = hashlib.sha256(octets).hexdigest()
        name = f"{name[: NAME_OCTETS_MAX - 66]}%%{digest}"  # "%%" comes of no encoding
    return name


def trace_fields(envelope: Envelope, forward_path: str) -> bytes:
    """RFC 5321 §4.4: the reverse-path becomes a field; Delivered-To is what mailbox readers know."""
    return return_path(envelope.reverse_path) + f"Delivered-To: {forward_path}\r\n".encode()


def write_maildir(
    directory: str,
    name: str,
    header: bytes,
    chunks: Callable[[int], Iterator[bytes | memoryview]],
) -> None:
    """The message is in new/ and on the disk when this returns.  Raises OSError."""
    _make_maildir(directory)
    temporary = os.path.join(directory, "tmp", name)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(temporary, flags, 0o600)
    except FileExistsError:  # ours, from before a crash
        os.unlink(temporary)
        fd = os.open(temporary, flags, 0o600)
    try:
        with open(fd, "wb", buffering=0) as file:
            _write_all(file.fileno(), header)
            for piece in chunks(CHUNK_OCTETS):
                _write_all(file.fileno(), piece)
            os.fsync(file.fileno())
        os.rename(temporary, os.path.join(directory, "new", name))
    except BaseException:
        with contextlib.suppress(OSError):  # it may be renamed already
            os.unlink(temporary)
        raise
    _sync_directory(os.path.join(directory, "new"))


def _write_all(fd: int, octets: bytes | memoryview) -> None:
    view = memoryview(octets)
    while view:
        view = view[os.write(fd, view) :]


def _make_maildir(directory: str) -> None:
    if os.path.isdir(os.path.join(directory, "new")):
        return
    missing = []
    path = directory
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another thread was first
            os.mkdir(path, 0o700)
    for part in ("tmp", "cur", "new"):  # new is last: its presence says that all are there
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.join(directory, part), 0o700)
    for made in (directory, *(os.path.dirname(path) for path in missing)):
        _sync_directory(made)


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _status(error: OSError) -> str:
    if error.errno == errno.EDQUOT:
        return "4.2.2"  # RFC 3463 §3.3: mailbox full
    if error.errno in (errno.ENOSPC, errno.EFBIG):
        return "4.3.1"  # §3.4: mail system full
    return "4.3.0"


def _reason(error: OSError) -> str:
    return f"the mailbox cannot be written: {error.strerror or error}"
