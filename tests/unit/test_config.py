"""The configuration: what is accepted, what is refused and how the refusal reads."""

from __future__ import annotations

import pickle
import re
import tomllib
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.cli import main
from gateway.cli.init import demo_values, first_values, self_signed
from gateway.config import ConfigError, load, parse
from gateway.config_checks import warnings_for
from gateway.config_lines import line_of, locate
from gateway.config_model import Config
from gateway.config_text import render, toml
from gateway.config_values import Address, Networks

SMALLEST = """\
hostname = "mx.example.org"
[[listen]]
service = "smtp"
address = "127.0.0.1:0"
"""


def problems(text: str, **options: bool) -> dict[str, tuple[int, str]]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "edge.toml", **options)
    return {problem.key: (problem.line, problem.message) for problem in caught.value.problems}


def test_the_smallest_file_has_all_defaults() -> None:
    config = parse(SMALLEST)
    assert config.limits.recipients == 1000
    assert config.listen[0].durability == "fsync"
    assert "127.0.0.1" in config.access.relay_from
    assert pickle.loads(pickle.dumps(config)) == config  # workers get a new one over a socket


def test_all_errors_are_told_at_once_with_their_lines() -> None:
    found = problems(
        """\
hostname = "mx.example.org"
staet_dir = "x"
workers = -3

[[listen]]
service = "smtp"
address = "127.0.0.1:25"

[[listen]]
service = "nntp"
address = "localhost:25"
tls = "startls"   # a typing error

[access]
relay_from = ["10.0.0.1/8"]

[queue]
retry_s = [
    300,
    0,
]

[[route]]
domains = ["*"]
next_hop = ["smtpx://a"]
"""
    )
    assert found["staet_dir"] == (2, 'unknown; did you mean "state_dir"?')
    assert found["workers"][0] == 3
    assert "0 … 256" in found["workers"][1]
    assert found["listen[1].service"] == (
        10,
        '"nntp" is not allowed; use one of: smtp, submission, lmtp, pop3, pop2, imap, http',
    )
    assert found["listen[1].address"][0] == 11
    assert found["listen[1].tls"] == (
        12,
        '"startls" is not allowed; use one of: off, starttls, implicit',
    )
    assert found["access.relay_from"][0] == 15
    assert found["queue.retry_s[1]"][0] == 20
    assert found["route[0].next_hop[0]"][0] == 25


def test_an_error_reads_as_file_line_key_message() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(SMALLEST + 'tls = "startls"\n', "/etc/gateway/edge.toml")
    assert str(caught.value) == (
        '/etc/gateway/edge.toml:5: listen[0].tls: "startls" is not allowed; '
        "use one of: off, starttls, implicit"
    )


@pytest.mark.parametrize(
    ("addition", "key", "message"),
    [
        ('user = "nobody-of-that-name"', "listen[0].user", "did you mean user?"),
        ("durability = true", "listen[0].durability", "true is not allowed"),
        ("max_message_octets = 1.5", "listen[0].max_message_octets", "a whole number, found 1.5"),
        ('proxy_protocol = "10.0.0.0/8"', "listen[0].proxy_protocol", "a list of networks"),
        ('tls = "starttls"', "listen[0].tls", "needs tls.certificate"),
        ("[limits]\ncommand_s = 0", "limits.command_s", "0 is outside 1.0 … 3600.0"),
        ("[limits]\nrecipients = 99", "limits.recipients", "at least 100"),
        ('[limits]\ncommand_s = "5m"', "limits.command_s", 'a number, found "5m"'),
        ('[access]\nrelay_from = ["0.0.0.0/0"]', "access.relay_from", "open_relay = true"),
        ('[access]\nrelay_from = ["::/0"]', "access.relay_from", "everybody"),
        ("[queue]\nretry_s = []", "queue.retry_s", "must not be empty"),
        ('[route]\ndomains = ["a.example"]', "route", "each under [[route]], found a table"),
        ('[[route]]\ndomains = ["a.example"]', "route[0]", '"next_hop" is missing'),
        ("[limit]\nx = 1", "limit", 'did you mean "limits"?'),
        ('[tls]\ncertificate = "absent.pem"\nkey = "absent.key"', "tls.certificate", "No such"),
        ('[tls]\nkey = "absent.key"', "tls.certificate", "is missing"),
        ('[log]\nfile = "/absent/gateway.log"', "log.file", "no directory /absent"),
        ("[trace]\nkeep_octets = 2000000", "trace.keep_octets", "at least one file"),
        (
            '[[listen]]\nservice = "http"\naddress = "127.0.0.1:80"\ntls = "starttls"\n',
            "listen[1].tls",
            "no STARTTLS",
        ),
        (
            '[[listen]]\nservice = "lmtp"\naddress = "127.0.0.1:25"\n',
            "listen[1].address",
            "RFC 2033",
        ),
    ],
)
def test_what_is_refused(addition: str, key: str, message: str) -> None:
    found = problems(SMALLEST + addition + "\n")
    assert key in found, found
    assert message in found[key][1] or message == found[key][1]


def route(domains: str, more: str = "") -> str:
    return f'[[route]]\ndomains = [{domains}]\nnext_hop = ["discard:"]\n{more}\n'


def test_a_route_that_can_never_match_is_an_error() -> None:
    found = problems(SMALLEST + route('"*"') + route('"a.example"'))
    assert "can never be reached" in found["route[1]"][1]
    found = problems(SMALLEST + route('"a.example"') + route('"A.EXAMPLE", "b.example"'))
    assert "route[0] already" in found["route[1].domains"][1]
    # A list of recipients leaves the others of the domain to a later route.
    parse(SMALLEST + route('"a.example"', 'recipients = ["x@a.example"]') + route('"a.example"'))


def test_recipients_must_lie_in_the_domains_of_their_route() -> None:
    found = problems(SMALLEST + route('"a.example"', 'recipients = ["x@b.example", "y"]'))
    assert "none of the route's domains" in found["route[0].recipients[0]"][1]
    assert "local-part@domain" in found["route[0].recipients[1]"][1]
    parse(SMALLEST + route('".example"', 'recipients = ["x@b.example"]'))


def test_two_listeners_need_two_addresses() -> None:
    listener = '[[listen]]\nservice = "smtp"\naddress = "[::1]:2525"\n'
    found = problems('hostname = "a.example"\n' + listener * 2)
    assert found["listen[1].address"] == (7, "[::1]:2525 is taken by listen[0]")


def test_a_syntax_error_has_its_line() -> None:
    found = problems('hostname = "a"\nworkers = \n')
    assert found[""][0] == 2


def test_key_and_certificate_must_belong_together(tmp_path: Path) -> None:
    certificate, _ = self_signed("a.example")
    _, other_key = self_signed("a.example")
    (tmp_path / "tls.pem").write_bytes(certificate)
    (tmp_path / "tls.key").write_bytes(other_key)
    config = tmp_path / "edge.toml"
    config.write_text(SMALLEST + '[tls]\ncertificate = "tls.pem"\nkey = "tls.key"\n')
    with pytest.raises(ConfigError, match=r"tls\.certificate: .*mismatch"):
        load(config)
    # The workers of a running gateway get keys from the supervisor: they need not read the files.
    parse(config.read_text(), config, check_files=False)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gateway init"):
        load(tmp_path / "absent.toml")


# -- the written file ------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [first_values("mx.example.org"), demo_values()])
def test_the_written_file_loads_and_its_comments_tell_the_defaults(
    tmp_path: Path, values: dict[str, object]
) -> None:
    text = render(values)
    for name, data in zip(("tls.pem", "tls.key"), self_signed("a.example"), strict=True):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "edge.toml").write_text(text)
    as_written = load(tmp_path / "edge.toml")
    uncommented = re.sub(r"^#(?=\w+ = )", "", text, flags=re.MULTILINE)
    assert uncommented != text
    spelt_out = parse(uncommented, tmp_path / "edge.toml")
    assert spelt_out == as_written
    assert max(map(len, text.splitlines())) <= 120


def test_every_key_is_in_the_written_file() -> None:
    text = render(demo_values())
    written = set(re.findall(r"^#? ?(\w+) (?:=|\(not set\))", text, flags=re.MULTILINE))
    for name, section in Config.__annotations__.items():
        assert name in written or f"[{name}]" in text, section
    for section in ("limits", "queue", "delivery", "spool"):
        keys = msgspec.structs.fields(type(getattr(parse(SMALLEST), section)))
        assert {key.name for key in keys} <= written


def test_init_writes_what_check_accepts_and_overwrites_nothing(tmp_path: Path) -> None:
    runner = CliRunner()
    directory = str(tmp_path / "etc")
    assert runner.invoke(main, ["init", directory, "--demo"]).exit_code == 0
    key = tmp_path / "etc" / "tls.key"
    assert key.stat().st_mode & 0o777 == 0o600
    before = key.read_bytes()
    again = runner.invoke(main, ["init", directory])
    assert again.exit_code == 1
    assert "exists" in again.output
    assert key.read_bytes() == before
    config = str(tmp_path / "etc" / "edge.toml")
    checked = runner.invoke(main, ["check", "--config", config])
    assert checked.exit_code == 0, checked.output
    assert "127.0.0.1:2525" in checked.output
    facts = runner.invoke(main, ["check", "--config", config, "--json"])
    assert '"ok": true' in facts.output


def test_check_exits_with_2_and_tells_all(tmp_path: Path) -> None:
    config = tmp_path / "edge.toml"
    config.write_text(SMALLEST + 'tls = "x"\nmode = 1000\n')
    checked = CliRunner().invoke(main, ["check", "-c", str(config)])
    assert checked.exit_code == 2
    assert "edge.toml:5: listen[0].tls" in checked.output
    assert "edge.toml:6: listen[0].mode" in checked.output


def test_what_cannot_work_together_in_the_spool() -> None:
    found = problems(SMALLEST + "[spool]\nsegment_octets = 65537\n")
    assert "multiple of 4096" in found["spool.segment_octets"][1]
    found = problems(SMALLEST + "[spool]\nsegment_octets = 1048576\nchunk_octets = 262144\n")
    assert "eighth of segment_octets" in found["spool.chunk_octets"][1]
    found = problems(SMALLEST + "[spool]\ncompact_below = 0.9\n")
    assert "compact_below_when_full" in found["spool.compact_below"][1]
    found = problems(SMALLEST + "[spool]\nmessage_pending_octets = 1024\n")
    assert "at least chunk_octets" in found["spool.message_pending_octets"][1]


def test_warnings(tmp_path: Path) -> None:
    for name, data in zip(("tls.pem", "tls.key"), self_signed("a.example"), strict=True):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "tls.key").chmod(0o644)
    text = SMALLEST.replace("mx.example.org", "localhost").replace(
        "[[listen]]", "workers = 256\n[[listen]]", 1
    )
    text += '[tls]\ncertificate = "tls.pem"\nkey = "tls.key"\n'
    found = "\n".join(warnings_for(parse(text, tmp_path / "edge.toml")))
    for word in ("fully qualified", "workers: 256", "route: there is none", "chmod 600"):
        assert word in found


# -- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["127.0.0.1:25", "[::1]:2525", "0.0.0.0:0", "[::]:65535", "unix:/run/gateway.sock"]
)
def test_addresses_read_as_written(text: str) -> None:
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "25", "localhost:25", "127.0.0.1", "::1:25", "[127.0.0.1]:25", "1.2.3.4:65536", "unix:",
     "1.2.3.4:-1", "1.2.3.4:²", "unix:/" + "x" * 107],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"use host:port|needs a path|107"):
        Address.parse(text)


def test_a_relative_socket_path_starts_beside_the_file() -> None:
    config = parse(SMALLEST.replace("127.0.0.1:0", "unix:lmtp.sock"), "/etc/gateway/edge.toml")
    assert config.listen[0].address.path == "/etc/gateway/lmtp.sock"


def test_networks() -> None:
    networks = Networks.parse(["10.0.0.0/8", "192.0.2.1", "2001:db8::/32"])
    for inside in ("10.1.2.3", "192.0.2.1", "2001:db8::1", "::ffff:10.0.0.1"):
        assert inside in networks
        assert inside in networks  # from the cache
    for outside in ("11.0.0.1", "192.0.2.2", "::1", "", "unix:", "10.0.0.1.evil.example"):
        assert outside not in networks
    assert not Networks()


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,8}", fullmatch=True),
        st.recursive(
            st.text(max_size=20) | st.integers() | st.booleans(),
            lambda inner: st.lists(inner, max_size=4),
            max_leaves=6,
        ),
        min_size=1,
        max_size=5,
    ),
    st.integers(0, 3),
)
def test_every_key_has_the_line_it_stands_on(values: dict[str, object], blank: int) -> None:
    lines = ["[a.b]"]
    expected = {}
    for key, value in values.items():
        lines += [""] * blank + [f"# {key} = 1"]
        expected[key] = len(lines) + 1
        lines.append(f"{key} = {toml(value)} # trailing")
    text = "\n".join(lines)
    assert tomllib.loads(text)["a"]["b"] == values
    found = locate(text)
    assert {key: found["a", "b", key] for key in values} == expected
    assert line_of(found, ("a", "b", "absent", 3)) == 1
