"""The process that starts the workers, keeps them alive and tells them what changed.

    Flow      bind → read keys → fork workers → wait for signals, deaths and reports → drain → leave
    Files     state_dir/lock: held by us and, through the fork, by every worker: a partition of the
              spool never has two owners, not even when we are killed and started again at once (the
              new one then waits until the workers that were left behind are gone)
    Limits    a worker that dies is started again after 1 s, doubling to 30 s; one whose loop does not turn for
              limits.heartbeat_s is made to die (heartbeat.py): SIGABRT, so that it says on stderr where it is,
              then SIGKILL
    Errors    StartError: nothing was started; a refused reload is logged, the old configuration stays
    Blocking  it may: it serves nobody.  No event loop, no threads: it forks
    Security  the only process that may be root; it reads the configuration and keys, binds ports and
              reads nothing from the network.  Workers become `user` before they read a single octet

SIGTERM and SIGINT drain (a second one does not wait), SIGHUP reads the configuration again, SIGUSR1
opens the log file again.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import gc
import os
import resource
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from gateway import systemd
from gateway.config import ConfigError, load
from gateway.config_model import Config, ListenConfig
from gateway.heartbeat import Heartbeats, state_of
from gateway.log import Log, wants_text
from gateway.log_sink import Sink
from gateway.net.listener import bind
from gateway.net.tls import TlsError
from gateway.worker_link import (
    KeyMaterial,
    WorkerContext,
    WorkerLink,
    WorkerReports,
    send_to_worker,
)

BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 30.0
STEADY_S = 60.0  # a worker that ran so long starts its backoff anew
KILL_GRACE_S = 5.0  # what a worker may need behind drain_s to write its last records

LOCK_POLL_S = 0.05

# A running gateway cannot change these: they decide who owns which files.
FIXED = ("state_dir", "workers", "user", "group")

RunWorker = Callable[[WorkerContext], int]


class StartError(Exception):
    """The gateway cannot start; str() says why and what helps."""


class _Worker:
    """One child, or the place of one that died."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.pid = 0  # 0: not running
        self.link: socket.socket | None = None
        self.reports = WorkerReports()
        self.ready = False
        self.restarts = 0
        self.started_at = 0.0
        self.start_at = 0.0  # time.monotonic() of the next start, when not running
        self.kill_at = 0.0  # time.monotonic(), after SIGABRT
        self.backoff_s = BACKOFF_FIRST_S


class Supervisor:
    """Runs until it is told to stop."""

    def __init__(
        self,
        config: Config,
        run_worker: RunWorker,
        *,
        config_file: str | Path | None = None,
    ) -> None:
        self._config = config
        self._config_file = config_file
        self._run_worker = run_worker
        self._keys = KeyMaterial()
        self._sockets: dict[str, list[socket.socket]] = {}  # address → one for each worker
        self._workers = [_Worker(index) for index in range(config.worker_count)]
        self._selector = selectors.DefaultSelector()
        self._heartbeats = Heartbeats()
        self._stop_at = 0.0  # time.monotonic() at which workers that still run are killed
        self._notified = False
        self._lock = -1
        self._log_fd = _open_log_file(config)
        self.log = self._open_log()

    # -- start -------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until SIGTERM; the exit code.  Raises StartError."""
        self._prepare()
        wakeup, signals = socket.socketpair()
        try:
            self._watch_signals(wakeup, signals)
            for worker in self._workers:
                self._start(worker)
            watchdog_s = systemd.watchdog_s()
            while any(worker.pid for worker in self._workers) or not self._stop_at:
                self._wait(watchdog_s)
                systemd.notify("WATCHDOG=1") if watchdog_s else None
                self._restart_due()
                self._kill_hanging()
                self._kill_late()
        finally:
            signal.set_wakeup_fd(-1)
            self._close_sockets(list(self._sockets))
            self.log.event("stopped")
            self.log.close()
            for end in (wakeup, signals):
                end.close()
            self._selector.close()
            os.close(self._lock)
        return 0

    def _prepare(self) -> None:
        """Everything that may need privileges."""
        config = self._config
        uid, gid = identity(config)
        directories = (config.state_dir, config.spool_dir, config.history_dir, config.control_dir)
        for directory in (*directories, config.store_dir):
            try:
                _make_directory(directory, uid, gid)
                _check_owner(directory, uid, gid)
            except OSError as error:
                raise StartError(f"{error.filename}: {error.strerror}") from None
        self._lock = self._take_lock(config.state_dir / "lock")
        _raise_file_limit(config)
        try:
            self._keys = KeyMaterial.read(config)
        except TlsError as error:
            raise StartError(str(error)) from None
        self._sockets = self._bind(config, {})
        for name in self._sockets:
            self.log.event("listening", address=_shown(self._sockets[name][0]), configured=name)

    def _take_lock(self, path: Path) -> int:
        """The descriptor that makes state_dir ours.  Raises StartError when it is somebody else's."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise StartError(f"{path}: {error.strerror}") from None
        try:
            # fcntl's locks do not pass to children: this one tells whether a supervisor lives.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _try_flock(descriptor):
                self._await_orphans(descriptor)
        except (BlockingIOError, PermissionError):
            reason = "is in use by another gateway; stop it, or choose another state_dir"
        except TimeoutError:
            reason = "is still in use by the workers of a gateway that was killed"
        except OSError as error:
            reason = f"cannot be locked: {error.strerror}"
        else:
            return descriptor
        os.close(descriptor)
        raise StartError(f"{path.parent} {reason}")

    def _await_orphans(self, descriptor: int) -> None:
        """Workers whose supervisor was killed drain and leave.  Raises TimeoutError."""
        bound_s = self._config.drain_s + KILL_GRACE_S
        self.log.warning("waiting", reason="workers of a gateway that was killed", bound_s=bound_s)
        deadline = time.monotonic() + bound_s
        while not _try_flock(descriptor):
            if time.monotonic() >= deadline:
                raise TimeoutError
            time.sleep(LOCK_POLL_S)

    def _bind(
        self, config: Config, known: dict[str, list[socket.socket]]
    ) -> dict[str, list[socket.socket]]:
        """The sockets of every listener, new ones bound.  Raises StartError, with none left open."""
        sockets: dict[str, list[socket.socket]] = {}
        try:
            for name, listen in zip(names_of(config), config.listen, strict=True):
                sockets[name] = known.get(name) or _bind_for_each(listen, len(self._workers))
        except OSError as error:
            for name in sockets.keys() - known.keys():
                for sock in sockets[name]:
                    sock.close()
            raise StartError(f"{listen.address}: {_why_not_bound(error)}") from None
        return sockets

    def _watch_signals(self, wakeup: socket.socket, signals: socket.socket) -> None:
        for end in (wakeup, signals):
            end.setblocking(False)
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        for number in (
            signal.SIGTERM,
            signal.SIGINT,
            signal.SIGHUP,
            signal.SIGUSR1,
            signal.SIGCHLD,
        ):
            signal.signal(number, lambda *_: None)
        self._selector.register(signals, selectors.EVENT_READ, None)

    def _start(self, worker: _Worker) -> None:
        """Fork it."""
        ours, theirs = socket.socketpair()
        self.log.flush()
        gc.collect()
        gc.freeze()  # pages that the collector does not touch stay shared
        worker.started_at = time.monotonic()
        worker.ready, worker.reports, worker.kill_at = False, WorkerReports(), 0.0
        pid = os.fork()
        if pid == 0:
            os._exit(self._child(worker, ours, theirs))
        gc.unfreeze()
        theirs.close()
        worker.pid, worker.link = pid, ours
        self._selector.register(ours, selectors.EVENT_READ, worker)
        self.log.event("worker_started", worker_index=worker.index, pid=pid)

    # -- the child ---------------------------------------------------------------------------------

    def _child(self, worker: _Worker, ours: socket.socket, theirs: socket.socket) -> int:
        """The life of a worker; its exit code.  Nothing may leave: the stack below is the parent's."""
        try:
            self._leave_parent(worker, ours)
            with contextlib.suppress(OSError, ValueError, AttributeError):  # no stderr
                faulthandler.enable()  # a crash and SIGABRT show where every thread is
            with contextlib.suppress(OSError):  # for ps and top; at most 15 octets
                Path("/proc/self/comm").write_text(f"gateway-{worker.index}")
            become(self._config)
            mine = {name: [sockets[worker.index]] for name, sockets in self._sockets.items()}
            context = WorkerContext(
                index=worker.index,
                config=self._config,
                keys=self._keys,
                sockets=dict(enumerate(mine[name] for name in names_of(self._config))),
                link=WorkerLink(theirs, mine, self._config.limits.heartbeat_s),
                log_fd=self._log_fd,
                orphans=orphans_of(self._config) if worker.index == 0 else [],
                restarts=worker.restarts,
            )
            return self._run_worker(context)
        except BaseException:
            log = self._open_log(worker.index)
            log.exception("worker_failed")
            log.close()
            return 1
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()

    def _leave_parent(self, worker: _Worker, ours: socket.socket) -> None:
        """Close what belongs to the parent and to our siblings."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        # The terminal sends Ctrl-C to all of us; only the supervisor acts on it.
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        self._selector.close()
        ours.close()
        for sibling in self._workers:
            if sibling.link is not None:
                sibling.link.close()
        for sockets in self._sockets.values():
            mine = sockets[worker.index]
            for sock in sockets:
                if sock is not mine:
                    sock.close()

    # -- waiting -----------------------------------------------------------------------------------

    def _wait(self, watchdog_s: float) -> None:
        due = [worker.start_at for worker in self._workers if not worker.pid and not self._stop_at]
        due += [self._stop_at] if self._stop_at else []
        due += [time.monotonic() + watchdog_s / 2] if watchdog_s else []
        due += [self._heartbeats.next_at] if self._heartbeats.next_at else []
        due += [worker.kill_at for worker in self._workers if worker.pid and worker.kill_at]
        timeout = max(0.0, min(due) - time.monotonic()) if due else None
        for key, _ in self._selector.select(timeout):
            if key.data is None:
                assert isinstance(key.fileobj, socket.socket)
                self._on_signals(key.fileobj)
            else:
                self._on_report(key.data)

    def _on_signals(self, signals: socket.socket) -> None:
        for number in dict.fromkeys(signals.recv(4096)):
            if number == signal.SIGCHLD:
                self._reap()
            elif number == signal.SIGHUP:
                self._reload()
            elif number == signal.SIGUSR1:
                self._reopen_log()
            elif self._stop_at:
                self._stop_at = time.monotonic()
            else:
                self._stop(signal.Signals(number).name)

    def _on_report(self, worker: _Worker) -> None:
        if worker.link is None:
            return
        reports = worker.reports.read(worker.link)
        if reports is None:
            self._forget_link(worker)  # it is dying: SIGCHLD follows
            return
        for kind, text in reports:
            if kind == "alive":
                self._heartbeats.beat(worker.pid)
            elif kind == "ready":
                worker.ready = True
                self.log.event(
                    "worker_up",
                    worker_index=worker.index,
                    duration_s=round(time.monotonic() - worker.started_at, 3),
                )
            elif kind == "failed":
                self.log.error("reload_failed", worker_index=worker.index, reason=text)
            else:
                self.log.event("worker_reloaded", worker_index=worker.index)
        if not self._notified and all(worker.ready for worker in self._workers):
            self._notified = True
            self.log.event("ready", workers=len(self._workers))
            systemd.notify("READY=1")

    def _forget_link(self, worker: _Worker) -> None:
        if worker.link is not None:
            self._selector.unregister(worker.link)
            worker.link.close()
            worker.link = None

    # -- deaths ------------------------------------------------------------------------------------

    def _reap(self) -> None:
        for worker in self._workers:
            if not worker.pid:
                continue
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                self._on_death(worker, os.waitstatus_to_exitcode(status))

    def _on_death(self, worker: _Worker, code: int) -> None:
        self._forget_link(worker)
        worker.ready = False
        pid, worker.pid = worker.pid, 0
        self._heartbeats.forget(pid)
        fields = {"worker_index": worker.index, "pid": pid}
        if self._stop_at:
            self.log.event("worker_exited", **fields, code=code)
            return
        now = time.monotonic()
        if now - worker.started_at > STEADY_S:
            worker.backoff_s = BACKOFF_FIRST_S
        if any(sibling.ready for sibling in self._workers if sibling is not worker):
            self._silence(worker)
        worker.start_at = now + worker.backoff_s
        worker.restarts += 1
        reason = f"exit {code}" if code >= 0 else signal.Signals(-code).name
        self.log.error("worker_died", **fields, reason=reason, restart_in_s=worker.backoff_s)
        worker.backoff_s = min(worker.backoff_s * 2, BACKOFF_MAX_S)

    def _silence(self, worker: _Worker) -> None:
        """New connections go to its siblings, instead of waiting for one that is not there.

        The next worker listens again.  Without siblings they wait: it comes back soon.
        """
        for sockets in self._sockets.values():
            sock = sockets[worker.index]
            # Unix sockets are shared, and one that never listened must not be told to stop.
            if sock.family != socket.AF_UNIX and _listens(sock):
                sock.shutdown(socket.SHUT_RD)

    def _restart_due(self) -> None:
        if self._stop_at:
            return
        for worker in self._workers:
            if not worker.pid and worker.start_at <= time.monotonic():
                self._start(worker)

    def _kill_hanging(self) -> None:
        now = time.monotonic()
        heartbeat_s = self._config.limits.heartbeat_s
        hanging = self._heartbeats.tick(0.0 if self._stop_at else heartbeat_s)
        for worker in self._workers:
            if worker.pid in hanging:
                self.log.error(
                    "worker_hangs",
                    worker_index=worker.index,
                    pid=worker.pid,
                    reason=f"its event loop did not turn for {heartbeat_s:g} s (limits.heartbeat_s)",
                    state=state_of(worker.pid),
                )
                os.kill(worker.pid, signal.SIGABRT)
                worker.kill_at = now + KILL_GRACE_S
            elif worker.pid and worker.kill_at and worker.kill_at <= now:
                os.kill(worker.pid, signal.SIGKILL)
                worker.kill_at = 0.0

    # -- what we are told --------------------------------------------------------------------------

    def _stop(self, reason: str) -> None:
        self.log.event("stopping", reason=reason, drain_s=self._config.drain_s)
        systemd.notify("STOPPING=1")
        self._stop_at = time.monotonic() + self._config.drain_s + KILL_GRACE_S
        # Our copies keep the ports open, and connections that nobody will accept would wait in them.
        self._close_sockets(list(self._sockets))
        for worker in self._workers:
            self._tell(worker, "stop")

    def _kill_late(self) -> None:
        if self._stop_at and time.monotonic() >= self._stop_at:
            for worker in self._workers:
                if worker.pid:
                    self.log.warning("worker_killed", worker_index=worker.index, pid=worker.pid)
                    os.kill(worker.pid, signal.SIGKILL)
            self._stop_at = time.monotonic() + KILL_GRACE_S

    def _tell(
        self, worker: _Worker, kind: str, payload: object = None, fds: list[int] | None = None
    ) -> None:
        if worker.link is None:
            return
        try:
            send_to_worker(worker.link, kind, payload, fds)
        except (BrokenPipeError, ConnectionResetError):
            return  # it is dead: SIGCHLD follows, and the next one begins with what is new
        except OSError as error:
            self.log.error("worker_hangs", worker_index=worker.index, reason=str(error))
            if worker.pid:
                os.kill(worker.pid, signal.SIGKILL)

    def _reload(self) -> None:
        if self._config_file is None or self._stop_at:
            return
        systemd.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        old, known = self._config, self._sockets
        try:
            new = load(self._config_file)
            for key in FIXED:
                if getattr(new, key) != getattr(old, key):
                    self.log.warning(
                        "reload_ignored", key=key, reason="takes effect at the next start"
                    )
                    new = msgspec.structs.replace(new, **{key: getattr(old, key)})
            keys = KeyMaterial.read(new)
            sockets = self._bind(new, known)
        except (ConfigError, TlsError, StartError) as error:
            self.log.error("reload_refused", reason=str(error))
            systemd.notify("READY=1")
            return
        self._config, self._keys, self._sockets = new, keys, sockets
        if new.log != old.log:
            self._reopen_log()
        fresh = [name for name in sockets if name not in known]
        for worker in self._workers:
            fds = [sockets[name][worker.index].fileno() for name in fresh]
            self._tell(worker, "reload", (new, keys, names_of(new), fresh), fds)
        self._sockets = known | sockets
        self._close_sockets([name for name in known if name not in sockets])
        self.log.event("reloaded", listeners=len(sockets))
        systemd.notify("READY=1")

    def _reopen_log(self) -> None:
        try:
            fd = _open_log_file(self._config)
        except StartError as error:
            self.log.error("reopen_failed", reason=str(error))
            return
        self.log.close()
        old, self._log_fd = self._log_fd, fd
        self.log = self._open_log()
        for worker in self._workers:
            self._tell(worker, "reopen", None, [fd])
        if old > 2:
            os.close(old)

    def _open_log(self, worker: int | None = None) -> Log:
        settings = self._config.log
        text = wants_text(settings.format, self._log_fd)
        sink = Sink(self._log_fd, backlog_octets=settings.backlog_octets)
        return Log(sink, worker=worker, level=settings.level, text=text)

    def _close_sockets(self, names: list[str]) -> None:
        for name in names:
            sockets = self._sockets.pop(name)
            path = sockets[0].getsockname() if sockets[0].family == socket.AF_UNIX else ""
            for sock in sockets:
                sock.close()
            if path:
                with contextlib.suppress(OSError):
                    os.unlink(path)


# -- parts with no state ---------------------------------------------------------------------------


def names_of(config: Config) -> list[str]:
    """A name for each listener that stays the same over reloads: its address, counted if repeated
    (":0" may be)."""
    seen: dict[str, int] = {}
    names = []
    for listen in config.listen:
        address = str(listen.address)
        seen[address] = seen.get(address, 0) + 1
        names.append(address if seen[address] == 1 else f"{address}#{seen[address]}")
    return names


def _bind_for_each(listen: ListenConfig, workers: int) -> list[socket.socket]:
    """One socket a worker, the kernel shares connections out (SO_REUSEPORT); unix: one for all."""
    address = listen.address
    # SO_REUSEPORT alone would share the port with a stranger of the same user without a word.
    bind(address, reuse_port=False, mode=listen.mode).close()
    first = bind(address, reuse_port=not address.path, mode=listen.mode)
    if address.path:
        return [first] * workers
    address = msgspec.structs.replace(address, port=first.getsockname()[1])
    sockets = [first]
    try:
        while len(sockets) < workers:
            sockets.append(bind(address, reuse_port=True))
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _listens(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _shown(sock: socket.socket) -> str:
    name = sock.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"


def _why_not_bound(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "permission denied; ports below 1024 need root or CAP_NET_BIND_SERVICE"
    return f"{error.strerror or error}"


def orphans_of(config: Config) -> list[int]:
    """Partitions of the spool left by workers of a time when there were more of them."""
    found = []
    for path in config.spool_dir.iterdir():
        if path.name.isdigit() and int(path.name) >= config.worker_count and path.is_dir():
            found.append(int(path.name))
    return sorted(found)


def identity(config: Config) -> tuple[int, int]:
    """uid and gid that workers get; -1 where nothing is to be changed."""
    if not config.user or os.geteuid() != 0:
        return -1, -1
    import grp
    import pwd

    account = pwd.getpwnam(config.user)
    return account.pw_uid, grp.getgrnam(config.group).gr_gid if config.group else account.pw_gid


def become(config: Config) -> None:
    """Give up root for good.  Raises OSError."""
    uid, gid = identity(config)
    if uid < 0:
        return
    os.initgroups(config.user, gid)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _make_directory(path: Path, uid: int, gid: int) -> None:
    if not path.is_dir():
        path.mkdir(mode=0o750, parents=True)
        if uid >= 0:
            os.chown(path, uid, gid)


def _check_owner(path: Path, uid: int, gid: int) -> None:
    """Workers may enter it, as whoever they are.  Raises StartError."""
    status = path.stat()
    shift = 6 if status.st_uid == uid else 3 if status.st_gid == gid else 0
    if uid > 0 and not status.st_mode >> shift & 0o1:
        raise StartError(
            f"{path} is closed to the account in `user`: it was made by another; "
            f"chown -R {uid}:{gid} {path}"
        )


def _try_flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _raise_file_limit(config: Config) -> None:
    """As many descriptors as the configured sessions and connections may need."""
    wanted = config.descriptors
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < wanted:
        with contextlib.suppress(ValueError, OSError):  # only root may
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            return
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(wanted, soft), hard), hard))


def _open_log_file(config: Config) -> int:
    if config.log.file is None:
        return 1
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(config.log.file, flags, 0o640)
    except OSError as error:
        raise StartError(f"log.file: {error.filename}: {error.strerror}") from None
