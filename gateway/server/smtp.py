"""One SMTP or LMTP session: event → policy → spool → reply.

Owns      SmtpService (what the sessions of one listener share) and SmtpSession
Flow      receive() → machine.next_event() → handler → machine.reply(); all replies of one read leave in one write.
          A decision that waits (commit, TLS handshake, a full spool) sets `_waiting`; its call-back resumes the pump
Limits    deadlines by state (RFC 5321 §4.5.3.2), a floor under the data rate, errors, unread input while waiting
Errors    an exception in a handler is logged with its traceback and answered 451 4.3.0; the message is not accepted
Blocking  never: the spool writes in its own thread
Security  what the client said before TLS is forgotten; early talkers, slow and silent clients are cut
Standards RFC 5321, RFC 2033, RFC 3207, RFC 4954, RFC 6409;
          RFC 1047 (a message that is committed stays accepted even if the client left)
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from gateway.accounts.model import Identity, Refusal, Resolution, Unavailable, Unknown
from gateway.mail import envelope as env
from gateway.mail import replies
from gateway.mail.header import ReceivedStamp, transmission_type
from gateway.mail.reply import Reply
from gateway.net.connection import Connection
from gateway.policy.content import check_content
from gateway.policy.overload import Overload
from gateway.protocol.esmtp import MailParameters
from gateway.protocol.smtp_server import SmtpServerMachine
from gateway.server.service import SmtpService, peer_of, tls_text
from gateway.server.submission import Submission
from gateway.spool.spool import Incoming, SpoolError, Stored

logger = logging.getLogger(__name__)

UNREAD_OCTETS_MAX = 65_536  # input kept while a decision waits; reading pauses above it
DATA_GRACE_S = 60.0  # the data rate is judged after its first minute
SPILL_OCTETS = 16_384  # smaller pieces are not worth a record of their own
UNKNOWN_IP = "0.0.0.0"  # a client that the proxy cannot name: not the proxy, whom we may trust more
LINGER_S = 10.0  # for a peer that does not read our last reply


class SmtpSession:
    """Drives one SmtpServerMachine over one Connection."""

    __slots__ = (
        "_accepted",
        "_arriving",
        "_asking",
        "_buffered",
        "_connection",
        "_content_ended",
        "_counted",
        "_data_octets",
        "_data_started",
        "_errors",
        "_expansions",
        "_incoming",
        "_inline_chunks",
        "_inline_octets",
        "_may_relay",
        "_passing_octets",
        "_proto",
        "_reason",
        "_service",
        "_stamp",
        "_started",
        "_submission",
        "_timer",
        "_tls_text",
        "_waiting",
        "_writable",
        "client",
        "client_ip",
        "machine",
        "session_id",
    )

    def __init__(self, service: SmtpService, client: str = "", client_ip: str = "") -> None:
        """client, client_ip: from a PROXY header; else taken from the socket."""
        self._service = service
        self.client = client
        self.client_ip = client_ip
        self.machine: SmtpServerMachine = None  # type: ignore[assignment]  # set in on_connected()
        self.session_id = ""
        self._connection: Connection = None  # type: ignore[assignment]
        self._counted = False
        self._waiting = False
        self._writable = True
        self._timer: asyncio.TimerHandle | None = None
        self._stamp: ReceivedStamp = None  # type: ignore[assignment]  # from EHLO on
        self._tls_text = ""
        self._incoming: Incoming | None = None
        # Durability "inline": content so far (None: there was no memory for it), and what the next hop has to judge
        self._inline_chunks: list[Any] | None = []
        self._inline_octets = 0
        self._passing_octets = 0
        self._data_started = 0.0
        self._data_octets = 0
        self._buffered = 0
        self._content_ended = 0.0
        self._arriving = False
        self._asking = False  # a recipient is being looked up, and this is still the same call
        self._expansions: dict[str, list[str]] = {}  # of this transaction: aliases that lead elsewhere
        self._accepted = 0
        self._errors = 0
        self._reason = "quit"
        self._may_relay = False
        self._submission: Any = None  # a Submission, on a submission service
        self._proto = "SMTP"
        self._started = 0.0

    # -- what the connection calls -----------------------------------------------------------------------------------

    def on_connected(self, connection: Connection) -> None:
        service = self._service
        self._connection = connection
        self._started = time.monotonic()
        self.session_id = service.session_ids()
        if not self.client:
            self.client, self.client_ip = peer_of(connection)
        tls = connection.tls is not None
        self.machine = SmtpServerMachine(
            service.settings,
            tls=tls,
            xclient_allowed=self.client_ip in service.xclient_from,
        )
        if tls:
            self._tls_text = tls_text(connection)
            service.metrics.tls_handshakes_total += 1
        if service.submission is not None:
            self._submission = Submission(
                service.submission,
                session=self.session_id,
                on_challenge=self._challenge,
                on_done=self._login_ended,
            )
            self._offer()
        self._may_relay = service.access.may_relay(self.client_ip)
        service.metrics.sessions_total += 1
        service.metrics.sessions_open += 1
        refusal = service.gate.enter(self.client_ip, unlimited=self._may_relay)
        if refusal is not None:
            service.metrics.sessions_refused_total += 1
            self._reason = refusal.text
            self.machine.greet(refusal)
            self._flush()
            return
        self._counted = True
        if service.greeting_delay_s and not self._may_relay:
            self._waiting = True
            self._timer = asyncio.get_running_loop().call_later(
                service.greeting_delay_s, self._greet_late
            )
            return
        self.machine.greet(service.greeting)
        self._flush()

    def receive(self, data: bytes) -> None:
        machine = self.machine
        if (
            self._timer is not None
        ):  # the greeting is still held back: RFC 5321 §3.1 has the client wait for it
            self._drop_timer()
            self._service.metrics.early_talkers_total += 1
            self._reason = "early talker"
            machine.greet(replies.EARLY_TALKER)
            self._flush()
            return
        if machine.closing:
            return
        machine.receive_data(data)
        self._data_octets += len(data)
        if not self._waiting:
            self._pump()
        elif machine.unread_octets > UNREAD_OCTETS_MAX:
            self._connection.pause_reading()

    def receive_eof(self) -> None:
        if self._reason == "quit":
            self._reason = "lost"

    def on_closed(self, error: Exception | None) -> None:
        service = self._service
        self._drop_timer()
        self._expect(False)
        self._abort_incoming()
        if self._submission is not None:
            self._submission.cancel()
        self._count_buffered(self._passing_octets)
        if self._counted:
            self._counted = False
            service.gate.leave(self.client_ip)
        service.metrics.sessions_open -= 1
        service.metrics.command_errors_total += self.machine.errors
        service.log.event(
            "disconnected",
            session=self.session_id,
            client=self.client,
            reason=str(error) if error else self._reason,
            messages=self._accepted,
            errors=self.machine.errors,
            duration_s=round(time.monotonic() - self._started, 3),
            tls=self._tls_text,
        )

    def on_deadline(self) -> None:
        if self.machine.closing:
            self._connection.abort()
            return
        in_data = self.machine.in_data
        self._reason = "data too slow" if in_data else "timeout"
        self._service.metrics.timeouts_total += 1
        self._say_goodbye(replies.TOO_SLOW if in_data else replies.TIMEOUT)

    def on_write_ready(self, ready: bool) -> None:
        # A client that does not read its replies gets no more of them, and is not read either.
        self._writable = ready
        if ready:
            self._flush()
        else:
            self._connection.pause_reading()
            self._connection.set_deadline(self._service.limits.write_s)

    def drain(self) -> bool:
        """The worker is stopping: True when the session was idle and is told to go."""
        if self._waiting or self.machine.in_transaction:
            return False
        self._reason = "shutdown"
        self._drop_timer()
        self._say_goodbye(replies.SHUTTING_DOWN)
        return True

    # -- the pump ----------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        machine = self.machine
        try:
            while not self._waiting:
                event = machine.next_event()
                if event is None:
                    break
                _HANDLERS[event[0]](self, event[1], event[2])
        except Exception:
            logger.exception("session %s: unexpected error", self.session_id)
            self._abort_incoming()
            self._reason = "internal error"
            machine.say(
                Reply(
                    421,
                    "4.3.0",
                    f"Local error, session {self.session_id}; try again later",
                    close=True,
                )
            )
        if machine.errors > self._errors and self._hold_back():
            return
        self._flush()

    def _hold_back(self) -> bool:
        """After a new error: True when the replies wait a while, because the client makes many."""
        machine, limits = self.machine, self._service.limits
        self._errors = machine.errors
        if machine.errors > limits.errors:
            self._reason = "too many errors"
        if machine.closing or self._waiting or not limits.error_delay_s or machine.errors * 2 <= limits.errors:
            return False
        self._waiting = True
        self._connection.deadline = 0.0
        asyncio.get_running_loop().call_later(limits.error_delay_s, self._resume)
        return True

    def _flush(self) -> None:
        """Send what was collected, set the next deadline, close when it is time."""
        machine = self.machine
        connection = self._connection
        out = machine.data_to_send()
        if out:
            connection.write(out)
        if machine.closing:
            connection.close()
            connection.set_deadline(LINGER_S)
            return
        now = time.monotonic()
        limits = self._service.limits
        if machine.in_data:
            if not self._data_started:
                self._data_started = now
                self._data_octets = 0
                self._expect(True)
            self._count_buffered(machine.buffered_octets + self._inline_octets)
            # The block timer alone (RFC 5321 §4.5.3.2.5) would let one octet every three minutes live for ever.
            deadline = now + limits.data_block_s
            if limits.data_octets_per_s:
                owed_s = DATA_GRACE_S + self._data_octets / limits.data_octets_per_s
                deadline = min(deadline, self._data_started + owed_s)
            connection.deadline = deadline
        else:
            self._data_started = 0.0
            self._expect(False)
            if self._buffered or self._passing_octets:
                self._count_buffered(self._inline_octets + self._passing_octets)
            if self._waiting:
                connection.deadline = 0.0
            elif out or not connection.deadline:  # half a command is no progress
                connection.deadline = now + limits.command_s
        if not self._waiting and self._writable and not connection.reading:
            connection.resume_reading()

    def _count_buffered(self, octets: int) -> None:
        """Keep the worker's sum of unspooled content true; over its limit content goes to disk early."""
        memory = self._service.memory
        memory.octets += octets - self._buffered
        self._buffered = octets
        if (
            memory.octets > memory.limit_octets
            and octets >= SPILL_OCTETS
            and self.machine.in_data
            and self._service.inline is None  # there is no way to disk: refused at the end of data
        ):
            chunk = self.machine.decoder.take(True)
            if chunk is not None:
                self._on_content(chunk, None)

    def _expect(self, arriving: bool) -> None:
        """Tell the spool that content is arriving, or no more: commits that are near share one sync."""
        if arriving != self._arriving:
            self._arriving = arriving
            self._service.spool.expect(1 if arriving else -1)

    def _resume(self) -> None:
        self._waiting = False
        if not self._connection.closed:
            self._pump()

    def _greet_late(self) -> None:
        self._timer = None
        self._waiting = False
        if not self._connection.closed:
            self.machine.greet(self._service.greeting)
            self._flush()

    def _drop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._waiting = False

    def _say_goodbye(self, reply: Reply) -> None:
        self.machine.say(reply)
        self._flush()

    # -- events ------------------------------------------------------------------------------------------------------

    def _on_hello(self, verb: str, argument: str) -> None:
        self._abort_incoming()
        self.machine.accept_hello(verb, argument)
        self._make_stamp()

    def _make_stamp(self) -> None:
        """After all that changes what the Received field says: EHLO, AUTH."""
        machine = self.machine
        self._stamp = ReceivedStamp(
            hostname=self._service.hostname,
            client_name=machine.greeted,
            client_address=self.client,
            tls=self._tls_text,
            lmtp=machine.settings.lmtp,
            extended=machine.esmtp,
            authenticated=machine.authenticated,
        )
        self._proto = self._transmission_type(smtputf8=False)

    def _transmission_type(self, *, smtputf8: bool) -> str:
        machine = self.machine
        return transmission_type(
            lmtp=machine.settings.lmtp,
            extended=machine.esmtp,
            tls=machine.tls,
            authenticated=machine.authenticated,
            smtputf8=smtputf8,
        )

    def _on_mail(self, reverse_path: str, mail: MailParameters) -> None:
        service = self._service
        error = service.spool.check(mail.size)  # RFC 1870 §6.1: no room now is 452, before it is sent
        if service.gate.draining:  # RFC 5321 §3.8; a client that pipelines is never idle
            self._reason = "shutdown"
            self.machine.reply(replies.SHUTTING_DOWN)
        elif error is not None:
            self.machine.reply(error.reply)
        elif service.memory.octets > service.memory.limit_octets:
            self.machine.reply(replies.OUT_OF_MEMORY)
        elif self._submission is not None:
            self._ask(partial(self._submission.check_sender, reverse_path, self._sender_checked))
        else:
            self._accept_sender()

    def _sender_checked(self, refusal: Reply | None) -> None:
        if self._connection.closed:
            return
        self._waiting = False
        if refusal is None:
            self._accept_sender()
        else:
            self.machine.reply(refusal)
        if not self._asking and not self._waiting:
            self._pump()

    def _accept_sender(self) -> None:
        """250, unless the load is too high."""
        overload = self._service.overload
        if overload.asks:
            self._on_mail_under_load(overload)
        else:
            self.machine.reply(replies.SENDER_OK)

    def _on_mail_under_load(self, overload: Overload) -> None:
        verdict = overload.admit_message(self._may_relay)
        if isinstance(verdict, Reply):
            self.machine.reply(verdict)
        elif verdict:
            self._waiting = True
            asyncio.get_running_loop().call_later(verdict, self._mail_admitted)
        else:
            self.machine.reply(replies.SENDER_OK)

    def _mail_admitted(self) -> None:
        self.machine.reply(replies.SENDER_OK)
        self._resume()

    def _on_rcpt(self, recipient: env.Recipient, _b: object) -> None:
        access = self._service.access
        if "@" not in recipient.forward_path:
            recipient.forward_path = access.postmaster  # RFC 5321 §4.5.1: <Postmaster>
        if recipient.forward_path:
            refusal = access.check_recipient(recipient.forward_path, self._may_relay)
        else:
            refusal = replies.NO_POSTMASTER
        service = self._service
        if refusal is None and service.backlog.full and not self._may_relay:
            refusal = service.backlog.check(recipient.forward_path)
            if refusal is not None:  # counted, not logged: there may be thousands of them
                self.machine.reply(refusal)
                return
        if refusal is None and service.resolve is not None and access.is_stored(recipient.forward_path):
            self._ask(partial(service.resolve, recipient.forward_path, partial(self._resolved, recipient)))
        else:
            self._answer_rcpt(recipient, refusal)

    def _ask(self, question: Callable[[], None]) -> None:
        """A question that is answered by _answered(), within this call or later."""
        self._waiting = True
        self._asking = True
        question()
        self._asking = False

    def _answered(self) -> None:
        self._waiting = False
        if not self._asking:  # the answer came later: the pump stands
            self._pump()

    def _resolved(self, recipient: env.Recipient, resolution: Resolution) -> None:
        """Whose mail the recipient's is, or nobody's."""
        if self._connection.closed:
            return
        refusal: Reply | None = None
        if isinstance(resolution, Unknown):
            refusal = replies.MAILBOX_DISABLED if resolution.disabled else replies.NO_SUCH_MAILBOX
        elif isinstance(resolution, Unavailable):
            refusal = replies.MAILBOX_UNVERIFIED
        elif resolution.forward and self._service.inline is not None:
            refusal = replies.ALIAS_NEEDS_QUEUE
        elif resolution.forward:
            self._expansions[recipient.forward_path] = resolution.addresses()
        self._answer_rcpt(recipient, refusal)
        self._answered()

    def _answer_rcpt(self, recipient: env.Recipient, refusal: Reply | None) -> None:
        if refusal is None:
            self.machine.reply(replies.RECIPIENT_OK)
            return
        service = self._service
        service.metrics.recipients_rejected_total += 1
        service.log.event(
            "refused",
            session=self.session_id,
            client=self.client,
            reverse_path=self.machine.reverse_path,
            forward_path=recipient.forward_path,
            reply=str(refusal),
        )
        self.machine.reply(refusal)

    def _on_data(self, _a: object, _b: object) -> None:
        self.machine.start_data()

    def _on_content(self, chunk: Any, _b: object) -> None:
        if self.machine.decoder.overflow:
            return  # refused at the end of data
        if self._service.inline is not None:
            memory = self._service.memory
            if memory.octets > memory.limit_octets:
                self._inline_chunks = None  # there is no disk to go to: 452 at the end of data
                self._inline_octets = 0
            elif self._inline_chunks is not None:
                self._inline_chunks.append(chunk)
                self._inline_octets += len(chunk)
            return
        if self._incoming is None:
            self._incoming = self._service.spool.begin()
            self._incoming.on_drain = self._resume
        if not self._incoming.append(chunk):
            self._waiting = True
            self._connection.pause_reading()

    def _on_end_of_data(self, _a: object, _b: object) -> None:
        self._expect(False)
        service = self._service
        machine = self.machine
        decoder = machine.decoder
        facts = env.Facts(*decoder.facts())
        refusal = check_content(
            facts, decoder.overflow, service.reject_bare, machine.mail.body, service.limits.received_fields
        )
        if self._inline_chunks is None:
            refusal = refusal or replies.OUT_OF_MEMORY
        if refusal is not None:
            self._refuse_content(refusal, facts)
            return
        mail = machine.mail
        recipients = env.expanded(machine.recipients, self._expansions)
        incoming = self._incoming or service.spool.begin()
        queue_id = incoming.queue_id
        now = time.time_ns()
        envelope = env.Envelope(
            machine.reverse_path or env.NULL_REVERSE_PATH,
            recipients,
            now,
            mail.body,
            mail.smtputf8,
            mail.ret,
            mail.envid,
            self.client,
            machine.greeted,
            self._proto if not mail.smtputf8 else self._transmission_type(smtputf8=True),
            self.session_id,
            decoder.message_id,
            service.durability,
            facts,
        )
        only = recipients[0].forward_path if len(recipients) == 1 else None
        prefix = self._stamp.line(queue_id, only, now, mail.smtputf8)
        if self._submission is not None:
            added, envelope.message_id = self._submission.missing_fields(
                decoder.header(), envelope.message_id
            )
            prefix += added
        self._incoming = None
        self._expansions.clear()
        self._waiting = True
        self._content_ended = time.monotonic()
        last = decoder.take(True)
        if service.inline is not None:
            chunks = self._inline_chunks or []
            if last is not None:
                chunks.append(last)
            self._inline_chunks = []
            self._inline_octets = 0
            self._passing_octets = sum(map(len, chunks))
            incoming.abort()
            service.inline(queue_id, envelope, [prefix, *chunks], self._delivered_inline)
        else:
            incoming.commit(envelope, prefix, last, self._committed)

    def _refuse_content(self, refusal: Reply, facts: env.Facts) -> None:
        service = self._service
        self._abort_incoming()
        service.count_rejected(refusal)
        service.log.event(
            "refused",
            session=self.session_id,
            client=self.client,
            reverse_path=self.machine.reverse_path,
            size_octets=facts.size_octets,
            reply=str(refusal),
        )
        self._answer_content(refusal)

    def _answer_content(self, reply: Reply) -> None:
        if self._service.settings.lmtp:
            self.machine.reply_each([reply] * len(self.machine.recipients))
        else:
            self.machine.reply(reply)

    def _committed(self, stored: Stored | None, error: SpoolError | None) -> None:
        """The message is kept (and is ours from here on), or it is not and the client hears why."""
        service = self._service
        if stored is None:
            assert error is not None
            service.count_rejected(error.reply)
            service.log.event(
                "refused",
                session=self.session_id,
                client=self.client,
                reply=str(error.reply),
                error=str(error),
            )
            if not self._connection.closed:
                self._answer_content(error.reply)
            self._resume()
            return
        envelope = stored.envelope
        self._accepted += 1
        service.count_accepted(envelope, time.monotonic() - self._content_ended)
        self._log_accepted(stored.queue_id, envelope)
        if not self._connection.closed:
            machine = self.machine
            reply = f"250 2.0.0 Ok: queued as {stored.queue_id} ({service.durability})\r\n".encode()
            machine.accept_content(reply)
        try:
            service.enqueue(stored)
        except Exception:  # it is kept, and promised: the next start finds it in the spool
            logger.exception("%s: stored, but not queued", stored.queue_id)
        self._resume()

    def _log_accepted(self, queue_id: str, envelope: env.Envelope) -> None:
        by: dict[str, str] = {}
        if self._submission is not None and self._submission.identity is not None:
            by["account"] = self._submission.identity.account.name
        self._service.log.event(
            "accepted",
            queue_id=queue_id,
            session=self.session_id,
            client=self.client,
            helo=envelope.client_name,
            protocol=envelope.protocol,
            reverse_path=envelope.reverse_path,
            forward_paths=[r.forward_path for r in envelope.recipients],
            size_octets=envelope.facts.size_octets,
            message_id=envelope.message_id,
            durability=envelope.durability,
            tls=self._tls_text,
            **by,
        )

    def _delivered_inline(
        self, queue_id: str, envelope: env.Envelope, answers: list[Reply]
    ) -> None:
        """Durability "inline": each recipient's answer is what the next hop said of it."""
        service = self._service
        self._passing_octets = 0
        if any(answer.is_positive for answer in answers):
            self._accepted += 1
            service.count_accepted(envelope, time.monotonic() - self._content_ended)
            self._log_accepted(queue_id, envelope)
        else:
            service.count_rejected(answers[0])
        if self._connection.closed:
            self._count_buffered(0)
        else:
            by = f"({queue_id}, {service.durability})"
            answers = [a.with_text(f"{a.text} {by}") if a.is_positive else a for a in answers]
            if service.settings.lmtp:
                self.machine.reply_each(answers)
            else:
                self.machine.reply(answers[0])
        self._resume()

    def _on_vrfy(self, _argument: str, verb: str) -> None:
        # RFC 5321 §3.5.3, §7.3: neither confirm nor deny.
        self.machine.reply(replies.CANNOT_VERIFY if verb == "VRFY" else replies.EXPN_DISABLED)

    def _on_starttls(self, _a: object, _b: object) -> None:
        service = self._service
        context = service.tls.server if service.tls is not None else None
        if context is None:
            self.machine.reply(replies.TLS_UNAVAILABLE)
            return
        self.machine.reply(replies.READY_FOR_TLS)
        self._waiting = True  # and no deadline: start_tls() has its own
        self._connection.pause_reading()  # the handshake is for start_tls() to read
        self._flush()
        task = asyncio.get_running_loop().create_task(self._start_tls(context))
        _tls_tasks.add(task)
        task.add_done_callback(_tls_tasks.discard)

    async def _start_tls(self, context: ssl.SSLContext) -> None:
        service = self._service
        try:
            await self._connection.start_tls(
                context, server_side=True, timeout_s=service.limits.tls_handshake_s
            )
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            service.metrics.tls_failures_total += 1
            self._reason = f"TLS handshake failed: {error}"
            self._connection.abort()
            return
        if self._connection.closed:
            return
        service.metrics.tls_handshakes_total += 1
        self._tls_text = tls_text(self._connection)
        self.machine.tls_started()
        self._offer()
        self._waiting = False
        self._flush()

    def _on_quit(self, _a: object, _b: object) -> None:
        self._abort_incoming()

    def _on_reset(self, _a: object, _b: object) -> None:
        self._abort_incoming()

    def _on_xclient(self, attributes: dict[str, str], _b: object) -> None:
        """The proxy in front tells who the client is (allowed by xclient_from)."""
        service = self._service
        ip = attributes.get("ADDR")
        if ip is not None:
            ip = ip or UNKNOWN_IP
            port = attributes.get("PORT") or "0"
            if self._counted:
                service.gate.leave(self.client_ip)
                self._counted = False
            self.client_ip = ip
            self.client = f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
            refusal = service.gate.enter(ip, unlimited=False)
            if refusal is not None:
                self._reason = refusal.text
                self.machine.reply(refusal)
                return
            self._counted = True
            self._may_relay = service.access.may_relay(ip)
        self.machine.reply(service.greeting)
        self._offer()

    # -- AUTH --------------------------------------------------------------------------------------------------------

    def _offer(self) -> None:
        """What the client may log in with, as it is connected now."""
        if self._submission is not None:
            offered = self._submission.offer(self._connection, self.client, self.client_ip)
            self.machine.mechanisms = offered

    def _on_auth(self, mechanism: str, initial: bytes | None) -> None:
        self._ask(partial(self._submission.start, mechanism, initial))

    def _on_auth_response(self, response: bytes, _b: object) -> None:
        self._ask(partial(self._submission.respond, response))

    def _on_auth_cancelled(self, _a: object, _b: object) -> None:
        self._submission.cancel()

    def _challenge(self, octets: bytes) -> None:
        self.machine.challenge(octets)
        self._answered()

    def _login_ended(self, outcome: Identity | Refusal) -> None:
        if isinstance(outcome, Identity):
            self.machine.reply(replies.AUTHENTICATED)
            self._may_relay = True
            self._make_stamp()
        else:
            self.machine.reply(outcome.smtp)
        self._answered()

    def _abort_incoming(self) -> None:
        self._expansions.clear()
        self._inline_chunks = []
        self._inline_octets = 0
        if self._incoming is not None:
            self._incoming.abort()
            self._incoming = None


_tls_tasks: set[asyncio.Task[None]] = set()  # the loop keeps only weak references to tasks

_HANDLERS: list[Callable[[SmtpSession, Any, Any], None]] = [
    SmtpSession._on_hello,
    SmtpSession._on_mail,
    SmtpSession._on_rcpt,
    SmtpSession._on_data,
    SmtpSession._on_content,
    SmtpSession._on_end_of_data,
    SmtpSession._on_vrfy,
    SmtpSession._on_starttls,
    SmtpSession._on_quit,
    SmtpSession._on_xclient,
    SmtpSession._on_reset,
    SmtpSession._on_auth,
    SmtpSession._on_auth_response,
    SmtpSession._on_auth_cancelled,
]
