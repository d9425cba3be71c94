"""What the store keeps of a message for IMAP: a page of the interface, see __init__.pyi."""

from collections.abc import Callable
from typing import final

from typing_extensions import Buffer

from gateway._native import Part

@final
class FactsPacker:
    """Makes packed facts (gateway/mail/imap_facts.py).

    For what is more than ASCII it asks word(value, decode) and subject(value), whether a mark was removed; for a date
    in no usual form date(value).
    """

    def __init__(
        self,
        word: Callable[[bytes, bool], bytes],
        subject: Callable[[bytes], tuple[bytes, bool]],
        date: Callable[[bytes], int],
    ) -> None: ...
    def pack(
        self, parts: list[Part], octets: bytes | Callable[[int, int], Buffer], origin: bytes
    ) -> tuple[bytes, int, int]:
        """(packed facts, octets of the header section, seconds since 1970 of its Date or 0).

        octets: the content, or what is asked for the octets of headers.  Raises ValueError for parts of other content.
        """
