"""What a sink is told, what it says of itself afterwards, and one message as it came: values only."""

from __future__ import annotations

import msgspec

from smtp_blaster.sink_faults import Fault


class SinkPlan(msgspec.Struct, frozen=True, kw_only=True):
    address: str = "127.0.0.1:0"
    messages: int = 0  # stop after so many; 0 = no limit
    duration_s: float = 0.0  # stop after so long; 0 = no limit
    eod: str = "strict"  # which octets end the data: sink_content
    faults: tuple[Fault, ...] = ()
    without: tuple[str, ...] = ()  # extensions not offered
    seed: int = 1
    max_message_octets: int = 256 * 1024 * 1024
    max_connections: int = 0  # at once, in each process; 421 to the others; 0 = no limit
    max_recipients: int = 0  # of a message; 452 to the others; 0 = no limit
    receive_buffer_octets: int = 0  # of each connection: how much it may take in ahead; 0 = the system's
    ledger: str = ""
    append: bool = False  # go on with the ledger of a sink that was killed
    ledger_group: str = ""  # the same for all processes that write to this ledger
    certificate: str = ""  # with key: STARTTLS is offered
    key: str = ""
    tls: str = "starttls"  # starttls | implicit
    auth: tuple[str, ...] = ()  # "any", or USER:PASSWORD; AUTH is offered
    require_auth: bool = False  # before MAIL
    backlog: int = 1024
    shared_port: bool = False  # others listen at the same address (SO_REUSEPORT)


class SinkResult(msgspec.Struct, kw_only=True):
    messages: int
    recipients: int
    octets: int  # of content
    connections: int
    connections_refused: int  # beyond max_connections
    commands: dict[str, int]
    faults: dict[str, int]  # by fault, as --fault has it
    seconds: float
    seed: int


class Receipt(msgspec.Struct):
    """One message as it came."""

    client: str  # host:port
    hello: str
    protocol: str  # SMTP | LMTP
    mail: str  # argument of MAIL, parameters included
    rcpts: list[str]  # forward-paths, without brackets and parameters
    rcpt_lines: list[str]  # arguments of RCPT as they came
    content: bytes  # without the dots of transparency
    bdat: bool
    tls: bool
    user: str = ""  # who authenticated
