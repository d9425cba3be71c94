"""The configuration: any text is a Config, or a ConfigError that names lines of it."""

from __future__ import annotations

from pathlib import Path

from gateway import config
from gateway.config_model import Config

CODE = (
    "gateway.config",
    "gateway.config_checks",
    "gateway.config_lines",
    "gateway.config_values",
    "gateway.queue.routing",
    "tomllib",
)
MAX_OCTETS = 4096
RUNS = 500
WORDS = sorted(
    {part.encode() for key in config._all_keys(Config, ()) for part in key if isinstance(part, str)}
)


def seeds() -> list[bytes]:
    edge = (
        'hostname = "mx.example.test"\nworkers = 2\n[limits]\nerrors = 5\n[access]\nrelay_from = ["192.0.2.0/24"]\n'
        '[[listen]]\nservice = "smtp"\naddress = "[::1]:2525"\n[[listen]]\nservice = "http"\naddress = "unix:/x"\n'
        '[[route]]\ndomains = ["*"]\nnext_hop = ["smtp://mx.example:25", "lmtp:unix:/y"]\nhold = true\n'
    )
    broken = (
        'a."b.c" = """x\n"""\n[[listen]]\naddress = {a = [1, 2,\n3]}\n[listen.tls]\nx = 1_0.5e3\n'
    )
    return [edge.encode(), broken.encode(), b"workers = 99999999999999999999", b"[a]\n[a]\n"]


def check(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    lines = text.count("\n") + 1
    try:
        found = config.parse(text, Path("/etc/edge.toml"), check_files=False)
    except config.ConfigError as error:
        assert error.problems and str(error)
        for problem in error.problems:
            assert 1 <= problem.line <= lines and problem.message, problem
        return
    assert isinstance(found, Config)
