"""TLS to next hops: off, opportunistic, required and verify, against good and bad certificates.

Standards RFC 3207, RFC 7435, RFC 8314 §3, RFC 5280 §6.1, RFC 6125 §6
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from e2e.rig import DROP, Gateway, Lab, NextHop, Session, route, wait_until
from e2e.web_hook import WebHook

CONTENT = b"Subject: x\r\n\r\nbody\r\n"
NAME = "hop.example.test"
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


@dataclass
class Authority:
    """Signs certificates; file is what a gateway trusts."""

    directory: Path

    def __post_init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Test CA")])
        usage = x509.KeyUsage(
            *(False, False, False, False, False, True, True, False, False)
        )  # keyCertSign, cRLSign
        certificate = (
            self._builder(self.name, self.key.public_key(), NOW - 10 * DAY, NOW + 10 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(self._identifier(), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        self.file = self.directory / "ca.pem"
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _identifier(self) -> x509.SubjectKeyIdentifier:
        return x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())

    def _builder(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        begin: datetime.datetime,
        end: datetime.datetime,
        is_ours: bool = True,
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name if is_ours else subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
        )

    def server(self, kind: str) -> ssl.SSLContext:
        """A server's context: good | by address | wrong name | self-signed | expired | not yet."""
        key = ec.generate_private_key(ec.SECP256R1())
        begin, end = NOW - 2 * DAY, NOW + 2 * DAY
        if kind == "expired":
            end = NOW - DAY
        elif kind == "not yet":
            begin = NOW + DAY
        names: list[x509.GeneralName] = [
            x509.DNSName("other.example.test" if kind == "wrong name" else NAME)
        ]
        if kind == "by address":
            names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
        builder = self._builder(subject, key.public_key(), begin, end, kind != "self-signed")
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if kind == "self-signed":
            signer = key
        else:
            signer = self.key
            builder = builder.add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
        certificate = builder.sign(signer, hashes.SHA256())
        file = self.directory / f"{kind}.pem"
        file.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


def gateway_to(
    lab: Lab, hop: NextHop, authority: Authority, tls: str = "opportunistic", tls_name: str = NAME
) -> Gateway:
    settings = {"tls_name": tls_name} if tls == "verify" else {}
    return lab.gateway(
        route(hop.url, "rcpt.test", tls=tls, **settings),
        extra=f'[queue]\nretry_s = [1.0]\nconnect_retry_s = [0.2]\n[tls]\nca_file = "{authority.file}"\n',
    )


def refused(gateway: Gateway, hop: NextHop) -> str:
    """Nothing of the mail went out; why."""
    reason = str(gateway.wait_for("lane_down")[0]["reply"])
    assert not hop.said("MAIL")
    assert not hop.received
    assert gateway.left() == 1
    return reason


KINDS = ("good", "wrong name", "self-signed", "expired")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["opportunistic", "required"])
def test_without_verification_any_certificate_will_do(
    lab: Lab, authority: Authority, mode: str, kind: str
) -> None:
    """RFC 7435 §3: encrypted to somebody is better than in clear to everybody."""
    hop = lab.hop(tls=authority.server(kind))
    gateway = gateway_to(lab, hop, authority, tls=mode)
    gateway.send(CONTENT)
    assert hop.wait()[0].tls
    assert gateway.wait_for("relayed")[0]["tls"].startswith("TLSv1.3")


def test_off_is_off(lab: Lab, authority: Authority) -> None:
    hop = lab.hop(tls=authority.server("good"))
    gateway = gateway_to(lab, hop, authority, tls="off")
    gateway.send(CONTENT)
    assert not hop.wait()[0].tls
    assert not hop.said("STARTTLS")


@pytest.mark.parametrize(
    ("kind", "name"), [("good", NAME), ("by address", ""), ("good", NAME.upper())]
)
def test_verify_takes_the_right_certificate(
    lab: Lab, authority: Authority, kind: str, name: str
) -> None:
    hop = lab.hop(tls=authority.server(kind))
    gateway = gateway_to(lab, hop, authority, tls="verify", tls_name=name)
    gateway.send(CONTENT)
    assert hop.wait()[0].tls


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("wrong name", "mismatch"),
        ("self-signed", "self"),
        ("expired", "expired"),
        ("not yet", "not yet valid"),
    ],
)
def test_verify_refuses_the_wrong_one(
    lab: Lab, authority: Authority, kind: str, words: str
) -> None:
    """The mail waits: the operator, or the next hop's, has to put this right."""
    hop = lab.hop(tls=authority.server(kind))
    gateway = gateway_to(lab, hop, authority, tls="verify")
    gateway.send(CONTENT)
    assert words in refused(gateway, hop)


def test_verify_does_not_take_any_authority(lab: Lab, authority: Authority, tmp_path: Path) -> None:
    hop = lab.hop(tls=authority.server("good"))
    (tmp_path / "other").mkdir()
    gateway = gateway_to(lab, hop, Authority(tmp_path / "other"), tls="verify")
    gateway.send(CONTENT)
    assert "certificate verification failed" in refused(gateway, hop)


@pytest.mark.parametrize("mode", ["required", "verify"])
def test_a_next_hop_without_tls_gets_nothing(lab: Lab, authority: Authority, mode: str) -> None:
    """An attacker who takes STARTTLS out of the reply gets no mail either."""
    hop = lab.hop()
    gateway = gateway_to(lab, hop, authority, tls=mode)
    gateway.send(CONTENT)
    assert "STARTTLS" in refused(gateway, hop)


def breaking(session: Session, _argument: str) -> str:
    """220, and then something that is no handshake."""
    session.sock.sendall(b"220 go on\r\n")
    session.sock.recv(10)
    session.sock.sendall(b"this is no TLS\r\n" * 10)
    return DROP


@pytest.mark.parametrize(
    "answer", [breaking, "454 4.7.0 not now", DROP], ids=["broken", "454", "drop"]
)
def test_opportunistic_falls_back(lab: Lab, authority: Authority, answer: object) -> None:
    hop = lab.hop(tls=authority.server("good"), replies={"STARTTLS": answer})
    gateway = gateway_to(lab, hop, authority)
    gateway.send(CONTENT)
    mail = hop.wait()[0]
    assert not mail.tls
    assert mail.body == CONTENT


@pytest.mark.parametrize("mode", ["required", "verify"])
@pytest.mark.parametrize("answer", [breaking, "454 4.7.0 not now"], ids=["broken", "454"])
def test_others_do_not_fall_back(lab: Lab, authority: Authority, mode: str, answer: object) -> None:
    hop = lab.hop(tls=authority.server("good"), replies={"STARTTLS": answer})
    gateway = gateway_to(lab, hop, authority, tls=mode)
    gateway.send(CONTENT)
    refused(gateway, hop)
    hop.replies.clear()
    assert hop.wait()[0].tls


def injecting(session: Session, _argument: str) -> str:
    """RFC 3207 §6: a reply that an attacker put behind the 220, in clear."""
    return "220 2.0.0 ready\r\n250-evil\r\n250 PIPELINING"


@pytest.mark.parametrize("mode", ["opportunistic", "required"])
def test_what_follows_starttls_in_clear_is_not_believed(
    lab: Lab, authority: Authority, mode: str
) -> None:
    hop = lab.hop(tls=authority.server("good"), replies={"STARTTLS": injecting})
    gateway = gateway_to(lab, hop, authority, tls=mode)
    gateway.send(CONTENT)
    gateway.wait_for("lane_down")
    assert not hop.said("MAIL")


@pytest.mark.parametrize(("kind", "mode"), [("good", "verify"), ("self-signed", "required")])
def test_smtps(lab: Lab, authority: Authority, kind: str, mode: str) -> None:
    """RFC 8314 §3: TLS before the greeting."""
    hop = lab.hop(tls=authority.server(kind), implicit_tls=True)
    gateway = gateway_to(lab, hop, authority, tls=mode)
    gateway.send(CONTENT)
    mail = hop.wait()[0]
    assert mail.tls
    assert mail.body == CONTENT
    assert not hop.said("STARTTLS")


@pytest.mark.parametrize("mode", ["opportunistic", "required", "verify"])
def test_smtps_never_in_clear(lab: Lab, authority: Authority, mode: str) -> None:
    hop = lab.hop()  # no TLS at all
    hop.url = hop.url.replace("smtp:", "smtps:")
    gateway = gateway_to(lab, hop, authority, tls=mode)
    gateway.send(CONTENT)
    gateway.wait_for("lane_down")
    assert not hop.said("EHLO")


def test_smtps_with_a_bad_certificate(lab: Lab, authority: Authority) -> None:
    hop = lab.hop(tls=authority.server("wrong name"), implicit_tls=True)
    gateway = gateway_to(lab, hop, authority, tls="verify")
    gateway.send(CONTENT)
    assert "mismatch" in refused(gateway, hop)


def test_lmtp_with_starttls(lab: Lab, authority: Authority) -> None:
    """RFC 2033 §5 and RFC 3207: LHLO again behind the handshake."""
    hop = lab.hop(tls=authority.server("good"), lmtp=True)
    gateway = gateway_to(lab, hop, authority, tls="verify")
    gateway.send(CONTENT)
    assert hop.wait()[0].tls
    assert len(hop.said("LHLO")) == 2


def test_a_large_message_under_tls(lab: Lab, authority: Authority) -> None:
    hop = lab.hop(tls=authority.server("good"))
    gateway = gateway_to(lab, hop, authority, tls="required")
    content = b"Subject: x\r\n\r\n" + (b"." * 70 + b"\r\n") * 60_000
    gateway.send(content)
    assert hop.wait()[0].body == content
    wait_until(lambda: not gateway.left(), "the end")


# -- https -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("good", NAME, ""),
        ("by address", "", ""),
        ("good", "", "mismatch"),
        ("wrong name", NAME, "mismatch"),
        ("self-signed", NAME, "self"),
        ("expired", NAME, "expired"),
    ],
)
def test_a_web_hook_is_always_verified(
    lab: Lab, authority: Authority, kind: str, name: str, words: str
) -> None:
    """Against tls.ca_file; a bad certificate is no answer, so the mail waits."""
    hook = WebHook(authority.server(kind))
    hook.server.handle_error = lambda *_: None  # type: ignore[method-assign]
    try:
        gateway = lab.gateway(
            route(hook.url, "rcpt.test", **({"tls": "verify", "tls_name": name} if name else {})),
            extra=f'[tls]\nca_file = "{authority.file}"\n',
        )
        gateway.send(CONTENT)
        if words:
            assert words in gateway.wait_for("lane_down")[0]["reply"]
            assert not hook.requests
        else:
            gateway.wait_for("delivered")
            assert hook.wait()[0][1].endswith(CONTENT)
    finally:
        hook.close()


def test_authorities_are_read_again_on_reload(
    lab: Lab, authority: Authority, tmp_path: Path
) -> None:
    """[tls] is read again on SIGHUP, the file of authorities too."""
    trusted = tmp_path / "trusted.pem"
    (tmp_path / "other").mkdir()
    trusted.write_bytes(Authority(tmp_path / "other").file.read_bytes())
    hop = lab.hop(tls=authority.server("good"))
    gateway = lab.gateway(
        route(hop.url, "rcpt.test", tls="verify", tls_name=NAME),
        extra=f'[queue]\nconnect_retry_s = [0.2]\n[tls]\nca_file = "{trusted}"\n',
    )
    gateway.send(CONTENT)
    gateway.wait_for("lane_down")
    trusted.write_bytes(authority.file.read_bytes())
    gateway.reload()
    assert hop.wait()[0].tls
