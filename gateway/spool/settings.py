"""Every bound of the spool: unit in the name, default, and where the default comes from.

Errors    problems() names what cannot work together; nothing is raised here
"""

from __future__ import annotations

import msgspec

MIB = 1024 * 1024

WRITE_METHODS = ("auto", "direct", "dsync", "fdatasync")
WORKERS_MAX = 256  # a queue id has 8 bits for the worker


class SpoolSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[spool] of the configuration."""

    # One file of the log.  Large enough that switching is rare (0.5 s at 100 MB/s), small enough that a start-up
    # scan and a compaction of one are short.
    segment_octets: int = 64 * MIB
    # Segments kept ready beside the one being written; the last of them is kept for results.  Two cover the time
    # that preparing a third takes, measured 0.1-0.2 s.
    spare_segments: int = 2
    # A sealed segment whose live mail is less than this share of it is copied forward and reused.  With a quarter
    # the log is at most four times the mail in it, and an octet is copied 1.3 times on average.
    compact_below: float = 0.25
    # The same when the disk is short: more copying, less space.
    compact_below_when_full: float = 0.75
    # Octets that compaction copies in one turn of the loop: below a millisecond, 10 us a message.
    compact_step_octets: int = 64 * 1024
    # No new segment is made when the file system would have less than this left; then new mail gets 452 4.3.1 while
    # results are still written.  Postfix's queue_minfree advice: at least 1.5 times the largest message.
    min_free_octets: int = 256 * MIB
    # Bodies of active messages kept in memory for delivery; what does not fit is read back from the log.
    memory_octets: int = 64 * MIB
    # Messages (not recipients) in the spool of one worker.  About 1.5 KiB of memory each.
    messages_max: int = 1_000_000
    # A message larger than this goes into the log in pieces of it while it arrives.  Equals the decoder's chunk.
    chunk_octets: int = 256 * 1024
    # A message being received may have this much in memory that is not yet on disk before its sender is paused ...
    message_pending_octets: int = 1 * MIB
    # ... and all of them together this much (16 large messages at once).
    pending_octets: int = 16 * MIB
    # Messages whose small content waits for the disk: above this, 452 at once instead of a longer wait.
    commit_pending_octets: int = 64 * MIB
    # Staging memory for one write to the disk.  1 MiB keeps a sync below 0.5 ms; larger ones gain nothing (measured).
    group_octets: int = 1 * MIB
    # While the loop has other sockets to serve, a group waits for what they bring, at most so long; an idle loop never
    # waits.  With 20 busy sessions groups grow from 4 to 14 messages and a message costs a tenth less CPU (measured).
    gather_s: float = 0.0005
    # Results wait this long for a commit to ride with before they get a write of their own.
    results_delay_s: float = 0.005
    # How often a sick disk is tried again.
    probe_interval_s: float = 1.0
    # auto: O_DIRECT|O_DSYNC, or pwritev2(RWF_DSYNC), or pwrite+fdatasync: the first the file system takes.
    write_method: str = "auto"

    def problems(self) -> list[str]:
        """What is wrong with these values, as "key: what is allowed"; empty when they work."""
        found = []
        for key in self.__struct_fields__:
            value = getattr(self, key)
            if isinstance(value, int | float) and value < 0:
                found.append(f"{key}: not negative")
        if not 64 * 1024 <= self.segment_octets <= 1024 * MIB or self.segment_octets % 4096:
            found.append("segment_octets: a multiple of 4096 from 65536 to 1073741824")
        if not 2 <= self.spare_segments <= 64:
            found.append("spare_segments: 2 to 64")
        if not 0 <= self.compact_below <= self.compact_below_when_full < 1:
            found.append("compact_below: 0 <= compact_below <= compact_below_when_full < 1")
        if not 1024 <= self.chunk_octets <= self.segment_octets // 8:
            found.append("chunk_octets: 1024 to an eighth of segment_octets")
        if self.message_pending_octets < self.chunk_octets:
            found.append("message_pending_octets: at least chunk_octets")
        if not 8192 <= self.group_octets <= 16 * MIB:
            found.append("group_octets: 8192 to 16777216")
        if self.probe_interval_s <= 0:
            found.append("probe_interval_s: above 0")
        if self.write_method not in WRITE_METHODS:
            found.append(f"write_method: one of {', '.join(WRITE_METHODS)}")
        return found
