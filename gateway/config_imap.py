"""What can be configured about IMAP; see config_model.py.

Owns      ImapConfig
Standards RFC 9051 §4.3 (literals), §5.4 (autologout), RFC 7162 §4 (line length), RFC 7889 (APPENDLIMIT)
"""

from __future__ import annotations

from typing import Annotated

from gateway.config_fields import DAY_S, MIB
from gateway.config_fields import Section as _Section
from gateway.config_fields import count as _count
from gateway.config_fields import seconds as _seconds


class ImapConfig(_Section, frozen=True, kw_only=True):
    """What IMAP clients may do."""

    login_s: Annotated[
        float, _seconds(1.0, 3600.0, "wait for a client that has not logged in (Dovecot: 3 minutes)")
    ] = 180.0
    idle_s: Annotated[
        float,
        _seconds(1800.0, DAY_S, "wait for the next command, in IDLE too (RFC 9051 §5.4: at least 30 minutes)"),
    ] = 1860.0
    still_here_s: Annotated[
        float,
        _seconds(
            0.0,
            1800.0,
            'a client in IDLE is told "Still here" so often, lest a NAT forgets it; 0: never '
            "(Dovecot imap_idle_notify_interval 2 min)",
        ),
    ] = 120.0
    line_octets: Annotated[
        int,
        _count(8192, 16 * MIB, "longest command without its literals (RFC 7162 §4: at least 8192; Dovecot 64K)"),
    ] = 65_536
    literal_octets: Annotated[
        int,
        _count(4096, 64 * MIB, "all literals of one command together; APPEND's messages go by append_octets"),
    ] = 262_144
    append_octets: Annotated[
        int, _count(0, 2**32 - 1, "largest message of APPEND, APPENDLIMIT of RFC 7889; 0: limits.message_octets")
    ] = 0
