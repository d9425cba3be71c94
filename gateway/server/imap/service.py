"""What the IMAP sessions of one listener share.

Owns      ImapService
"""

from __future__ import annotations

import msgspec

from gateway.config_imap import ImapConfig
from gateway.protocol.imap.machine import Settings
from gateway.server.imap.notify_hub import Hubs
from gateway.server.imap.previews import Previews
from gateway.server.imap.watch import Watches
from gateway.server.login import LoginService


class ImapService(LoginService, kw_only=True):
    """Given to each session of the listener."""

    config: ImapConfig
    settings: Settings  # of the protocol's machine
    watches: Watches  # one for the worker
    hubs: Hubs  # the same
    previews: Previews  # the same
    version: str  # ours: what ID tells
    append_octets: int  # largest message of APPEND
    starttls: bool = False  # the listener offers it
    preauth: str = ""  # who every client of this listener is; "": it has to log in
    announced: dict[object, bytes] = msgspec.field(default_factory=dict)  # capability.py's
