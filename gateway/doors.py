"""The listeners of a worker and what their sessions share: built from the configuration, rebuilt by a reload.

    Owns      Doors
    Flow      Doors.open → a service for each [[listen]] → Listener → a session of its protocol
    Limits    gate, overload and memory are one for all listeners of the worker
    Errors    OSError when a socket cannot listen
"""

from __future__ import annotations

import asyncio
import itertools
import math
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

from gateway import __version__
from gateway.accounts.model import Resolution
from gateway.config_model import Config, LimitsConfig, ListenConfig
from gateway.mail.reply import Reply
from gateway.mail.unique_id import UniqueIds
from gateway.net.connection import Handler
from gateway.net.listener import Listener
from gateway.net.netlink import AcceptQueue, fullness
from gateway.policy.access import Access
from gateway.policy.backlog import Backlog
from gateway.policy.gate import Gate
from gateway.policy.overload import Load, Overload
from gateway.protocol import pop3
from gateway.protocol.imap import machine as imap
from gateway.protocol.smtp_server import AUTH_LINE_OCTETS, Settings
from gateway.server.http import HttpService
from gateway.server.imap.notify_hub import Hubs
from gateway.server.imap.previews import Previews
from gateway.server.imap.service import ImapService
from gateway.server.imap.session import ImapSession
from gateway.server.imap.watch import Watches
from gateway.server.pop2 import Pop2Session
from gateway.server.pop3 import Pop3Service, Pop3Session, PopService
from gateway.server.service import Commits, Memory, SmtpService
from gateway.server.smtp import SmtpSession
from gateway.server.submission import Rules

if TYPE_CHECKING:
    from gateway.app import Worker
    from gateway.worker_link import Sockets


class Doors:
    """All listeners of one worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        limits = worker.config.limits
        self.memory = Memory(limits.memory_octets)
        self.commits = Commits()
        self.overload = Overload(targets_of(limits))
        self.backlog = Backlog(worker.scheduler.router.route_for, limits.shed_route_s)
        self.gate = Gate(
            sessions_max=limits.sessions,
            sessions_per_client_max=limits.sessions_per_client,
            overloaded=self.overload.check_connection,
        )
        self._listeners: dict[int, Listener] = {}  # by the socket's descriptor
        self._watches = Watches(worker.store)
        self._hubs = Hubs(worker.store)
        self._previews = Previews()
        self._services: dict[int, SmtpService | PopService | ImapService] = {}
        self._http: dict[int, HttpService] = {}
        self._addresses: dict[int, str] = {}
        self._session_ids = session_ids(worker.index)
        self._closing: set[asyncio.Task[None]] = set()

    async def open(self, sockets: Sockets) -> None:
        """Listen on every socket of every [[listen]]."""
        for index, listen in enumerate(self._worker.config.listen):
            for sock in sockets.get(index, ()):
                await self._open(sock, listen)

    async def _open(self, sock: socket.socket, listen: ListenConfig) -> None:
        worker, fd = self._worker, sock.fileno()
        backlog = worker.config.limits.backlog
        tls = worker.tls.server if listen.tls == "implicit" else None
        self._addresses[fd] = str(listen.address)
        if listen.service == "http":
            self._http[fd] = HttpService(
                sock,
                metrics=worker.metrics_text,
                health=worker.unhealthy,
                allows=lambda ip: ip in self._worker.config.metrics.allow_from,
                tls=tls,
            )
            await self._http[fd].start()
            return
        self._services[fd] = self._service(listen)
        trusted = listen.proxy_protocol
        self._listeners[fd] = Listener(
            sock,
            lambda client, ip: session_of(self._services[fd], client, ip),
            worker.sweep,
            backlog=backlog,
            tls=tls,
            tls_handshake_s=worker.config.limits.tls_handshake_s,
            trusts_proxy=trusted.__contains__ if trusted else None,
        )
        await self._listeners[fd].start()

    def _service(self, listen: ListenConfig) -> SmtpService | PopService | ImapService:
        if listen.service in ("pop3", "pop2"):
            return self._pop_service(listen)
        if listen.service == "imap":
            return self._imap_service(listen)
        return self._smtp_service(listen)

    def _reader_service(self, listen: ListenConfig) -> dict[str, Any]:
        """What all services have that read mail."""
        worker = self._worker
        config = worker.config
        return {
            "name": listen.service,
            "hostname": config.hostname,
            "limits": config.limits,
            "gate": self.gate,
            "log": worker.log,
            "metrics": worker.metrics,
            "session_ids": self._session_ids,
            "tls": worker.tls,
            "authenticator": worker.accounts.auth,
            "store": worker.store,
        }

    def _imap_service(self, listen: ListenConfig) -> ImapService:
        config = self._worker.config
        settings = imap.Settings(
            line_octets=config.imap.line_octets,
            literal_octets=config.imap.literal_octets,
            command_octets=config.imap.command_octets,
            errors_max=config.limits.errors,
        )
        return ImapService(
            **self._reader_service(listen),
            config=config.imap,
            settings=settings,
            watches=self._watches,
            hubs=self._hubs,
            previews=self._previews,
            version=__version__,
            auth_mechanisms=listen.auth_mechanisms,
            append_octets=config.imap.append_octets or config.limits.message_octets,
            starttls=listen.tls == "starttls",
            preauth=listen.preauth,
        )

    def _pop_service(self, listen: ListenConfig) -> PopService:
        config = self._worker.config
        common = {
            **self._reader_service(listen),
            "unique_ids": UniqueIds(config.pop.unique_id),
            "login_delay_s": config.pop.login_delay_s,
            "marks_seen": config.pop.mark_seen,
        }
        if listen.service == "pop2":
            return PopService(**common)
        settings = pop3.Settings(
            hostname=config.hostname,
            implementation=f"mail-gateway {__version__}",
            stls=listen.tls == "starttls",
            login_delay_s=math.ceil(config.pop.login_delay_s),
            errors_max=config.limits.errors,
        )
        return Pop3Service(
            **common,
            settings=settings,
            apop=config.pop.apop,
            auth_mechanisms=listen.auth_mechanisms,
        )

    def _smtp_service(self, listen: ListenConfig) -> SmtpService:
        worker = self._worker
        config = worker.config
        limits = config.limits
        inline = listen.durability == "inline"
        lmtp = listen.service == "lmtp"
        submission = listen.service == "submission"
        settings = Settings(
            hostname=config.hostname,
            lmtp=lmtp,
            starttls=listen.tls == "starttls",
            xclient=bool(listen.xclient_from),
            # RFC 3461 §5.2.2: a client that is not offered DSN reports to its users itself.
            dsn=not inline,
            auth=submission,
            max_message_octets=listen.max_message_octets or limits.message_octets,
            line_octets=max(limits.command_octets, AUTH_LINE_OCTETS) if submission else limits.command_octets,
            # SMTP has one reply for all recipients: with "inline" they might fare differently (LMTP has one each).
            recipients_max=1 if inline and not lmtp else limits.recipients,
            transactions_max=limits.transactions,
            junk_commands_max=limits.junk_commands,
            errors_max=limits.errors,
            normalize=listen.bare_newline == "normalize",
            chunk_octets=config.spool.chunk_octets,
        )
        return SmtpService(
            hostname=config.hostname,
            greeting=Reply(220, "", f"{config.hostname} {'LMTP' if lmtp else 'ESMTP'}"),
            settings=settings,
            limits=limits,
            access=self._access(config),
            gate=self.gate,
            overload=self.overload,
            backlog=self.backlog,
            commits=self.commits,
            spool=worker.spool,
            enqueue=worker.scheduler.enqueue,
            submission=self._rules(listen) if submission else None,
            resolve=self._resolve if worker.scheduler.router.has_store else None,
            inline=worker.scheduler.deliver_inline if inline else None,
            durability=listen.durability,
            log=worker.log,
            metrics=worker.metrics,
            session_ids=self._session_ids,
            tls=worker.tls,
            greeting_delay_s=limits.greeting_delay_s,
            xclient_from=listen.xclient_from,
            reject_bare=listen.bare_newline == "reject",
            memory=self.memory,
        )

    def _access(self, config: Config) -> Access:
        router = self._worker.scheduler.router
        return Access(
            relay_from=config.access.relay_from,
            route_for=router.route_for,
            names_domain=router.names_domain,
            is_stored=router.is_stored,
            postmaster=postmaster_of(config, router.names_domain),
        )

    def _rules(self, listen: ListenConfig) -> Rules:
        worker = self._worker
        config = worker.config
        return Rules(
            authenticator=worker.accounts.auth,
            mechanisms=listen.auth_mechanisms,
            resolve=self._resolve,
            any_sender=config.submission.any_sender,
            add_fields=config.submission.add_fields,
            hostname=config.hostname,
            contexts=worker.tls,
        )

    def _resolve(self, forward_path: str, done: Callable[[Resolution], None]) -> None:
        self._worker.accounts.directory.resolve(forward_path, done)

    # -- changes -----------------------------------------------------------------------------------------------------

    def reload(self, sockets: Sockets) -> None:
        """Close what is no longer listed, open what is new; new sessions get the new configuration."""
        config = self._worker.config
        limits = config.limits
        self.memory.limit_octets = limits.memory_octets
        self.overload.targets = targets_of(limits)
        self.backlog.limit_s = limits.shed_route_s
        self.backlog.route_for = self._worker.scheduler.router.route_for
        self.gate.sessions_max = limits.sessions
        self.gate.sessions_per_client_max = limits.sessions_per_client
        wanted = {
            sock.fileno(): (sock, listen)
            for index, listen in enumerate(config.listen)
            for sock in sockets.get(index, ())
        }
        for fd in [fd for fd in self._addresses if fd not in wanted]:
            self._close(fd)
        for fd, (sock, listen) in wanted.items():
            if fd in self._listeners:
                self._services[fd] = self._service(listen)
            elif fd not in self._http:
                self._later(self._open(sock, listen))

    def _close(self, fd: int) -> None:
        del self._addresses[fd]
        listener = self._listeners.pop(fd, None)
        if listener is not None:
            listener.close()
        http = self._http.pop(fd, None)
        if http is not None:
            self._later(http.close())

    def _later(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._closing.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._worker.log.error("listener_failed", reason=str(error))

    def close(self) -> None:
        """No new sessions; http stays until the end, so that /healthz can say that we are leaving."""
        self.gate.draining = True
        for listener in self._listeners.values():
            listener.close()

    async def close_http(self) -> None:
        for http in self._http.values():
            await http.close()

    # -- for those who measure --------------------------------------------------------------------------------------

    def sockets(self) -> list[socket.socket]:
        """Those that listen for mail now."""
        return [listener.sock for listener in self._listeners.values() if listener.sock.fileno() >= 0]

    def accept_fullness(self) -> float:
        """The fullest accept queue, as a part of its backlog."""
        return fullness(self.sockets())

    def accept_queues(self, queues: dict[int, AcceptQueue]) -> Iterator[tuple[str, AcceptQueue]]:
        for fd, queue in queues.items():
            if fd in self._addresses:
                yield self._addresses[fd], queue


def targets_of(limits: LimitsConfig) -> Load:
    return Load(
        accept_queue=limits.shed_backlog,
        memory=1.0,  # there reading stops anyway: more sessions would only wait
        turn_s=limits.shed_turn_s,
        commit_s=limits.shed_commit_s,
        queue_s=limits.shed_queue_s,
    )


def session_of(service: SmtpService | PopService | ImapService, client: str, client_ip: str) -> Handler:
    """A session of what the listener serves now: a reload may have changed it."""
    if isinstance(service, SmtpService):
        return SmtpSession(service, client, client_ip)
    if isinstance(service, Pop3Service):
        return Pop3Session(service, client, client_ip)
    if isinstance(service, ImapService):
        return ImapSession(service, client, client_ip)
    return Pop2Session(service, client, client_ip)


def postmaster_of(config: Config, names_domain: Callable[[str], bool]) -> str:
    """Whose mail the bare <Postmaster> is (RFC 5321 §4.5.1): this host's, else that of the first domain routed."""
    domains = [d for route in config.route for d in route.domains if d[:1] not in ("*", ".")]
    if names_domain(config.hostname):
        return f"postmaster@{config.hostname}"
    return f"postmaster@{domains[0]}" if domains else ""


def session_ids(index: int) -> Callable[[], str]:
    """Names for sessions: unique over workers and restarts, short enough to read aloud."""
    prefix = f"{index}-{int(time.time()):x}-"
    counter = itertools.count(1)
    return lambda: f"{prefix}{next(counter):x}"
