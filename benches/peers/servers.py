"""The servers under comparison, each started from a fresh directory on a port of its own.

Owns      Server and one class a server; SERVERS, what can be compared
Files     everything below one directory on a real disk; nothing is removed before the end, because
an ext4
          without a journal is slow to re-use inodes just deleted and would slow the next run down
Errors    Missing when the server is not installed
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from benches.peers.accounting import Account

SEARCH_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
PEERS = Path(
    os.environ.get("MAIL_GATEWAY_PEERS")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mail-gateway" / "peers"
)
START_S = 30.0


class Missing(Exception):
    """Not installed, or not to be had on this machine; the text says what."""


def find(program: str) -> str:
    found = shutil.which(program, path=SEARCH_PATH)
    if found is None:
        raise Missing(f"{program} is not installed (tools/install_peers --bench)")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server(ABC):
    """A server that listens on 127.0.0.1:port; its account counts what it costs."""

    name = ""
    is_durable = True  # its 250 means that the mail is on the disk

    def __init__(
        self, where: Path, *, relay_port: int = 0, workers: int = 1, tls: bool = False
    ) -> None:
        """relay_port 0: mail stays in the queue."""
        self.where = where
        self.relay_port = relay_port
        self.workers = workers
        self.tls = tls
        self.port = free_port()
        where.mkdir(parents=True)
        where.chmod(0o755)
        self._words = self.command()
        self._start()

    def _start(self) -> None:
        self.account = Account(f"{self.name}-{self.port}")
        with (self.where / "output").open("wb") as output:
            self.process = subprocess.Popen(
                self.account.command(self._words),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment()},
                start_new_session=True,
            )
        self.account.started(self.process.pid)
        self._wait()

    def restart(self) -> None:
        """The same on the same ports, with what it kept on the disk."""
        self.stop()
        self._start()

    @abstractmethod
    def command(self) -> list[str]:
        """What starts it in the foreground; writes its configuration first."""

    def environment(self) -> dict[str, str]:
        return {}

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                probe.settimeout(2)
                try:
                    probe.connect(("127.0.0.1", self.port))
                    if probe.recv(100).startswith(b"220"):
                        probe.sendall(b"QUIT\r\n")
                        return
                except OSError:
                    pass
            if self.process.poll() not in (None, 0):
                break
            time.sleep(0.05)
        output = (self.where / "output").read_text(errors="replace")[-2000:]
        self.stop()
        raise Missing(f"{self.name} did not start:\n{output}")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.account.close()

    def certificate(self) -> tuple[Path, Path]:
        cert, key = self.where / "cert.pem", self.where / "key.pem"
        subprocess.run(
            [
                find("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                "-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(cert),
            ],
            check=True,
            capture_output=True,
        )  # fmt: skip
        return cert, key


class Gateway(Server):
    """This product: fsync class, JSON log to a file, metrics on; mail held in the queue or relayed."""

    name = "gateway"

    def command(self) -> list[str]:
        hop = f"smtp://127.0.0.1:{self.relay_port or 9}"
        config = self.where / "gateway.toml"
        tls = "starttls" if self.tls else "off"
        self.http_port = free_port()
        text = f"""\
hostname = "bench.example.test"
state_dir = "{self.where}/state"
workers = {self.workers}
log = {{ file = "{self.where}/gateway.log", format = "json" }}
spool = {{ messages_max = 10000000 }}
limits = {{ sessions_per_client = 20000, sessions = 20000, transactions = 0, junk_commands = 100000 }}
"""
        if self.tls:
            cert, key = self.certificate()
            text += f'tls = {{ certificate = "{cert}", key = "{key}" }}\n'
        text += f"""
[[listen]]
service = "smtp"
address = "127.0.0.1:{self.port}"
tls = "{tls}"

[[listen]]
service = "http"
address = "127.0.0.1:{self.http_port}"

[[route]]
domains = ["*"]
next_hop = ["{hop}"]
hold = {json.dumps(not self.relay_port)}
"""
        config.write_text(text)
        serve = "import sys; from gateway.cli import main; sys.exit(main())"
        return [sys.executable, "-c", serve, "serve", "--config", str(config)]


class GatewayTwoWorkers(Gateway):
    name = "gateway-2-workers"

    def __init__(self, where: Path, *, relay_port: int = 0, tls: bool = False) -> None:
        super().__init__(where, relay_port=relay_port, workers=2, tls=tls)


class SmtpSink(Server):
    """Postfix's smtp-sink: takes mail and throws it away."""

    name = "smtp-sink"
    is_durable = False

    def command(self) -> list[str]:
        user = ["-u", "postfix"] if os.geteuid() == 0 else []
        return [find("smtp-sink"), *user, "-m", "2000", f"127.0.0.1:{self.port}", "1024"]


class Postfix(Server):
    """An instance with its own directories, tuned: no DNS, many processes, no flow delay, connection cache."""

    name = "postfix"

    def command(self) -> list[str]:
        if os.geteuid() != 0:
            raise Missing("Postfix needs root")
        program = find("postfix")
        for name in ("config", "queue", "data"):
            (self.where / name).mkdir()
        shutil.chown(self.where / "data", "postfix")
        lines = {
            "compatibility_level": "3.6",
            "queue_directory": self.where / "queue",
            "data_directory": self.where / "data",
            "command_directory": "/usr/sbin",
            "daemon_directory": "/usr/lib/postfix/sbin",
            "maillog_file": self.where / "postfix.log",
            "maillog_file_prefixes": self.where,
            "mail_owner": "postfix",
            "setgid_group": "postdrop",
            "myhostname": "postfix.example.test",
            "mydestination": "",
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            "mynetworks": "127.0.0.0/8",
            "disable_dns_lookups": "yes",
            "smtpd_peername_lookup": "no",
            "alias_maps": "",
            "local_recipient_maps": "",
            "default_process_limit": "100",
            "in_flow_delay": "0",
            "smtpd_client_connection_count_limit": "0",
            "default_destination_concurrency_limit": "100",
            "initial_destination_concurrency": "50",
            "smtp_connection_cache_on_demand": "yes",
            "smtp_connection_cache_destinations": f"[127.0.0.1]:{self.relay_port}",
            "smtpd_recipient_restrictions": "permit_mynetworks, reject",
            "relayhost": f"[127.0.0.1]:{self.relay_port or 9}",
        }
        if not self.relay_port:
            lines["smtpd_client_restrictions"] = "check_client_access static:HOLD"
        if self.tls:
            cert, key = self.certificate()
            lines["smtpd_tls_chain_files"] = f"{key}, {cert}"
            lines["smtpd_tls_security_level"] = "may"
            lines["smtpd_tls_session_cache_database"] = ""
        config = self.where / "config"
        (config / "main.cf").write_text(
            "".join(f"{key} = {value}\n" for key, value in lines.items())
        )
        services = [
            f"127.0.0.1:{self.port} inet n - n - - smtpd",
            "cleanup unix n - n - 0 cleanup",
            "qmgr unix n - n 300 1 qmgr",
            "rewrite unix - - n - - trivial-rewrite",
            *(f"{name} unix - - n - 0 bounce" for name in ("bounce", "defer", "trace")),
            *(f"{name} unix - - n - - error" for name in ("error", "retry")),
            "proxymap unix - - n - - proxymap",
            "anvil unix - - n - 1 anvil",
            "scache unix - - n - 1 scache",
            "smtp unix - - n - - smtp",
            "relay unix - - n - - smtp",
            "flush unix n - n 1000? 0 flush",
            "tlsmgr unix - - n 1000? 1 tlsmgr",
            "postlog unix-dgram n - n - 1 postlogd",
        ]
        (config / "master.cf").write_text("\n".join(services) + "\n")
        return [program, "-c", str(config), "start-fg"]

    def stop(self) -> None:
        subprocess.run(
            [find("postfix"), "-c", str(self.where / "config"), "stop"],
            capture_output=True,
            check=False,
        )
        super().stop()


class Exim(Server):
    """Debian's exim4-daemon-light, unpacked by tools/install_peers --bench.  queue_only, split spool."""

    name = "exim"

    def command(self) -> list[str]:
        program = PEERS / "exim" / "usr" / "sbin" / "exim4"
        if not program.exists():
            raise Missing("Exim is not installed (tools/install_peers --bench)")
        if self.relay_port or self.tls or os.geteuid() != 0:
            raise Missing("Exim is compared for its queue only, and needs root")
        spool = self.where / "spool"
        spool.mkdir()
        shutil.chown(spool, "mail", "mail")
        (self.where / "exim.conf").write_text(
            f"""\
exim_user = mail
exim_group = mail
spool_directory = {spool}
log_file_path = {self.where}/%slog
pid_file_path = {self.where}/pid
primary_hostname = exim.example.test
local_interfaces = 127.0.0.1
daemon_smtp_ports = {self.port}
tls_advertise_hosts =
host_lookup =
rfc1413_hosts =
queue_only
split_spool_directory
smtp_accept_max = 0
smtp_accept_max_per_connection = 0
smtp_connect_backlog = 500
smtp_enforce_sync = false
keep_environment =
acl_smtp_rcpt = accept
acl_smtp_data = accept
"""
        )
        shutil.chown(self.where, "mail", "mail")
        return [str(program), "-bdf", "-C", str(self.where / "exim.conf")]

    def environment(self) -> dict[str, str]:
        libraries = [str(path) for path in (PEERS / "exim").glob("usr/lib/*-linux-gnu")]
        libraries += [str(path) for path in (PEERS / "exim").glob("lib/*-linux-gnu")]
        return {"LD_LIBRARY_PATH": ":".join(libraries)}


class Haraka(Server):
    """Haraka with one plug-in that accepts everything; its outbound queue."""

    name = "haraka"

    def command(self) -> list[str]:
        program = PEERS / "haraka" / "node_modules" / "Haraka" / "bin" / "haraka"
        if not program.exists():
            raise Missing("Haraka is not installed (tools/install_peers --bench)")
        if self.tls:
            raise Missing("Haraka is not compared with TLS")
        config, plugins = self.where / "config", self.where / "plugins"
        for directory in (config, plugins, self.where / "queue"):
            directory.mkdir()
        files = {
            "smtp.ini": f"listen=127.0.0.1:{self.port}\n[headers]\nmax_received=100\n",
            "plugins": "accept\n",
            "me": "haraka.example.test\n",
            "loglevel": "WARN\n",
            "log.ini": "[main]\nlevel=warn\n",
            "databytes": "0\n",
            "outbound.ini": f"disabled={'false' if self.relay_port else 'true'}\nconcurrency_max=100\n"
            "enable_tls=false\nlocal_mx_ok=true\nreceived_header=Haraka\n",
        }
        for name, text in files.items():
            (config / name).write_text(text)
        shutil.copy(program.parents[1] / "config" / "connection.ini", config)
        (plugins / "accept.js").write_text(
            f"""\
exports.register = function () {{
    this.register_hook('rcpt', 'accept');
    this.register_hook('get_mx', 'mx');
}};
exports.accept = function (next, connection) {{ connection.relaying = true; next(OK); }};
exports.mx = function (next) {{
    next(OK, [{{ exchange: '127.0.0.1', port: {self.relay_port or 9}, priority: 0 }}]);
}};
"""
        )
        return [find("node"), str(program), "-c", str(self.where)]


SERVERS: dict[str, Callable[..., Server]] = {
    kind.name: kind for kind in (SmtpSink, Gateway, GatewayTwoWorkers, Postfix, Exim, Haraka)
}
