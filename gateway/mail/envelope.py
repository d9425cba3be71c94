"""The envelope: who sent the mail, to whom it goes, and what the receiving session learnt on the way.

Owns      Envelope, Recipient, Facts; their packed form, which the spool keeps
Limits    none of them is ever part of a cycle (gc=False): a long queue costs the collector nothing
Errors    unpack() raises msgspec.DecodeError / ValidationError on anything pack() did not write
Standards RFC 5321 §2.3.1 (envelope), RFC 3461 §4 (NOTIFY, ORCPT, RET, ENVID), RFC 6152, RFC 3030, RFC 6531
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

# RFC 3461 §4.1.  0 means the client gave no NOTIFY: RFC 3461 §5.2.1 treats that as FAILURE and (by our choice) DELAY.
NOTIFY_DEFAULT = 0
NOTIFY_NEVER = 1
NOTIFY_SUCCESS = 2
NOTIFY_FAILURE = 4
NOTIFY_DELAY = 8

# RFC 3461 §4.3
RET_UNSPECIFIED = 0
RET_FULL = 1
RET_HDRS = 2

# RFC 6152 §2 and RFC 3030 §3
BODY_7BIT = 0
BODY_8BITMIME = 1
BODY_BINARYMIME = 2

NULL_REVERSE_PATH = ""  # RFC 5321 §4.5.5: MAIL FROM:<>


class Recipient(msgspec.Struct, array_like=True, gc=False):
    """One forward-path with what RFC 3461 says about it.  Its delivery state lives in the spool, by index."""

    forward_path: str  # mailbox "local-part@domain" as the client wrote it (no <>, no source route)
    notify: int = NOTIFY_DEFAULT
    orcpt: str = ""  # "addr-type;address", xtext decoded; "" when not given

    @property
    def domain(self) -> str:
        """The part behind the last "@", lower case; "" for the bare <Postmaster> of RFC 5321 §4.1.1.3."""
        return self.forward_path.rpartition("@")[2].lower() if "@" in self.forward_path else ""


def expanded(
    recipients: list[Recipient], expansions: Mapping[str, Sequence[str]]
) -> list[Recipient]:
    """RFC 5321 §3.9.1: what an alias stands for are recipients of their own, each once."""
    if not expansions:
        return recipients
    found: dict[str, Recipient] = {}
    for recipient in recipients:
        for target in expansions.get(recipient.forward_path, (recipient.forward_path,)):
            # RFC 3461 §5.2.7.1: each of them keeps what was asked of the alias.
            found.setdefault(target, Recipient(target, recipient.notify, recipient.orcpt))
    return list(found.values())


class Facts(msgspec.Struct, array_like=True, gc=False):
    """What the DATA decoder saw in its one pass.  Field order is that of DataDecoder.facts()."""

    size_octets: int = 0  # content, after dot-unstuffing
    header_octets: int = (
        0  # offset of the empty line's CRLF (RFC 5322 §2.1); size_octets when there is no body
    )
    lines: int = 0
    longest_line: int = 0  # octets without CRLF
    dot_lines: int = 0  # lines that begin with "." and must be stuffed for DATA
    received: int = 0  # Received fields in the header (RFC 5321 §6.3 loop detection)
    has_8bit: bool = False
    has_nul: bool = False
    bare_cr: int = 0  # as found; what was done about it is the listener's setting
    bare_lf: int = 0
    ends_with_crlf: bool = True


class Envelope(msgspec.Struct, array_like=True, gc=False):
    """Everything that is kept about a message beside its content."""

    reverse_path: str  # NULL_REVERSE_PATH or mailbox
    recipients: list[Recipient]
    received_at: int  # ns UTC
    body: int = BODY_7BIT
    smtputf8: bool = False
    ret: int = RET_UNSPECIFIED
    envid: str = ""  # xtext decoded
    client_address: str = ""  # "192.0.2.1:4711", "unix:" or "" for mail we made ourselves (DSNs)
    client_name: str = ""  # HELO/EHLO argument
    protocol: str = (
        ""  # RFC 3848 / RFC 6531 §4.3 "with" keyword: SMTP, ESMTP, ESMTPS, UTF8SMTP, LMTP …
    )
    session: str = ""
    message_id: str = ""  # header field Message-ID, for people and trace only
    durability: str = "fsync"  # inline | fsync | memory
    facts: Facts = msgspec.field(default_factory=Facts)

    @property
    def is_null(self) -> bool:
        """True for the null reverse-path: never answer it with a report (RFC 5321 §4.5.5)."""
        return self.reverse_path == NULL_REVERSE_PATH


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Envelope)


def pack(envelope: Envelope) -> bytes:
    """The octets that the spool keeps (MessagePack, positional; new fields are only ever added at the end)."""
    return _encoder.encode(envelope)


def unpack(octets: bytes | memoryview) -> Envelope:
    """The envelope that pack() was given."""
    return _decoder.decode(octets)
