"""Kernels over the message index: packed records of one mailbox, in ascending order of UID.

    Flow      a chunk of the index (bytes) → a new chunk, or what was asked of it; nothing is kept
    Limits    none of their own: a chunk has as many records as its octets say
    Errors    ValueError for octets that are no whole number of records, or ranges that are no pairs
    Standards RFC 9051 §2.3.2 (flags), RFC 7162 §3.1.3 (UNCHANGEDSINCE)

A record is 48 octets, little endian:
    uid u32 · size u32 · flags u64 · modseq u64 · message u64 · internal date i64 · save date u32 · sent date u32
Ranges are pairs of u32, (first, last) inclusive, ascending and apart: what UID sets become.
A change of a flag log is 32 octets: first UID u32 · last UID u32 · clear u64 · set u64 · modseq u64.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from records cimport first_range, first_record, flag_change_t, range_t, record_t

RECORD_OCTETS = sizeof(record_t)

cdef enum:
    SEEN = 1
    DELETED = 8
    KEYWORD_BIT = 8
    KEYWORDS_MAX = 56


include "octets.pxi"


cdef inline Py_ssize_t seek(const range_t *ranges, Py_ssize_t at, Py_ssize_t count, uint32_t uid) noexcept nogil:
    # The first range from `at` on that does not end before uid.
    while at < count and ranges[at].last < uid:
        at += 1
    return at


def store_flags(
    records, ranges, uint64_t clear, uint64_t set, uint64_t modseq, uint64_t unchanged_since
):
    """Flags become (flags & ~clear) | set in all records of the ranges; a changed record gets the modseq.

    Records changed after unchanged_since are left alone (2**64 - 1: none are).  Returns (records, or None when
    nothing changed; the changed records; UIDs left alone as u32; how many more are without \\Seen, with \\Deleted).
    """
    cdef _Octets octets = _Octets(records, sizeof(record_t))
    cdef _Octets wanted = _Octets(ranges, sizeof(range_t))
    cdef const record_t *source = <const record_t *>octets.view.buf
    cdef const range_t *pairs = <const range_t *>wanted.view.buf
    cdef Py_ssize_t count = octets.count
    cdef Py_ssize_t range_count = wanted.count
    cdef Py_ssize_t i, at, changed = 0, failed = 0, unseen = 0, deleted = 0
    cdef uint64_t flags
    if count == 0:
        return None, b"", b"", 0, 0
    cdef Py_ssize_t most = count
    if range_count == 1 and pairs[0].last - pairs[0].first < <size_t>count:
        most = pairs[0].last - pairs[0].first + 1
    cdef bytes result = PyBytes_FromStringAndSize(NULL, octets.view.len)
    cdef bytes touched = PyBytes_FromStringAndSize(NULL, most * sizeof(record_t))
    cdef bytes refused = PyBytes_FromStringAndSize(NULL, most * sizeof(uint32_t))
    cdef record_t *target = <record_t *>PyBytes_AS_STRING(result)
    cdef record_t *touched_records = <record_t *>PyBytes_AS_STRING(touched)
    cdef uint32_t *refused_uids = <uint32_t *>PyBytes_AS_STRING(refused)
    with nogil:
        memcpy(target, source, octets.view.len)
        at = first_range(pairs, range_count, source[0].uid)
        i = first_record(source, count, pairs[at].first) if at < range_count else count
        for i in range(i, count):
            at = seek(pairs, at, range_count, source[i].uid)
            if at == range_count:
                break
            if source[i].uid < pairs[at].first:
                continue
            if source[i].modseq > unchanged_since:
                refused_uids[failed] = source[i].uid
                failed += 1
                continue
            flags = (source[i].flags & ~clear) | set
            if flags != source[i].flags:
                unseen += <Py_ssize_t>(source[i].flags & SEEN) - <Py_ssize_t>(flags & SEEN)
                deleted += <Py_ssize_t>(flags & DELETED) // DELETED - <Py_ssize_t>(source[i].flags & DELETED) // DELETED
                target[i].flags = flags
                target[i].modseq = modseq
                touched_records[changed] = target[i]
                changed += 1
    return (
        result if changed else None,
        touched if changed == most else touched[: changed * sizeof(record_t)],
        refused[: failed * sizeof(uint32_t)],
        unseen,
        deleted,
    )


def apply_flag_log(records, log):
    """The records with these changes of flags, in their order, each to records of a lower modseq than its own.

    A change that a record has had already, or that came before what the record is now, does nothing to it.  Returns
    `records` itself when nothing is different.
    """
    cdef _Octets octets = _Octets(records, sizeof(record_t))
    cdef _Octets changes = _Octets(log, sizeof(flag_change_t))
    cdef const record_t *source = <const record_t *>octets.view.buf
    cdef const flag_change_t *change = <const flag_change_t *>changes.view.buf
    cdef Py_ssize_t i, at
    cdef uint64_t flags
    cdef bytes result = None
    cdef record_t *target = NULL
    for i in range(changes.count):
        for at in range(first_record(source, octets.count, change[i].first), octets.count):
            if source[at].uid > change[i].last:
                break
            flags = (source[at].flags & ~change[i].clear) | change[i].set
            if source[at].modseq >= change[i].modseq or flags == source[at].flags:
                continue
            if target == NULL:
                result = PyBytes_FromStringAndSize(<const char *>source, octets.view.len)
                target = <record_t *>PyBytes_AS_STRING(result)
                source = target
            target[at].flags = flags
            target[at].modseq = change[i].modseq
    return records if result is None else result


def split_records(records, ranges, uint64_t must=0):
    """(records outside of the ranges or without a flag of must, the others): kept and removed, in order."""
    cdef _Octets octets = _Octets(records, sizeof(record_t))
    cdef _Octets wanted = _Octets(ranges, sizeof(range_t))
    cdef const record_t *source = <const record_t *>octets.view.buf
    cdef const range_t *pairs = <const range_t *>wanted.view.buf
    cdef Py_ssize_t count = octets.count
    cdef Py_ssize_t range_count = wanted.count
    cdef Py_ssize_t i, at, kept = 0, removed = 0
    if count == 0:
        return b"", b""
    cdef bytes stay = PyBytes_FromStringAndSize(NULL, octets.view.len)
    cdef bytes leave = PyBytes_FromStringAndSize(NULL, octets.view.len)
    cdef record_t *stays = <record_t *>PyBytes_AS_STRING(stay)
    cdef record_t *leaves = <record_t *>PyBytes_AS_STRING(leave)
    with nogil:
        at = first_range(pairs, range_count, source[0].uid)
        for i in range(count):
            at = seek(pairs, at, range_count, source[i].uid)
            if at < range_count and source[i].uid >= pairs[at].first and source[i].flags & must == must:
                leaves[removed] = source[i]
                removed += 1
            else:
                stays[kept] = source[i]
                kept += 1
    return stay[: kept * sizeof(record_t)], leave[: removed * sizeof(record_t)]


def copy_records(records, uint32_t first_uid, uint64_t modseq, uint32_t save_date, keyword_bits=None):
    """The records as they are in another mailbox: UIDs from first_uid on, that modseq and save date.

    keyword_bits: the bit that each keyword of theirs (bit 8, 9 …) has there, an octet each; None: the same.
    """
    cdef _Octets octets = _Octets(records, sizeof(record_t))
    cdef const record_t *source = <const record_t *>octets.view.buf
    cdef Py_ssize_t count = octets.count
    cdef Py_ssize_t i, bit, bits = 0
    cdef bytes result = PyBytes_FromStringAndSize(NULL, octets.view.len)
    cdef record_t *target = <record_t *>PyBytes_AS_STRING(result)
    cdef const unsigned char *to = NULL
    cdef uint64_t flags
    if keyword_bits is not None:
        to = keyword_bits
        bits = len(keyword_bits)
        if bits > KEYWORDS_MAX:
            raise ValueError(f"{bits} keywords")
    for i in range(count):
        target[i] = source[i]
        target[i].uid = first_uid + <uint32_t>i
        target[i].modseq = modseq
        target[i].save_date = save_date
        if to != NULL and source[i].flags >> KEYWORD_BIT:
            flags = source[i].flags & ((1 << KEYWORD_BIT) - 1)
            for bit in range(bits):
                if source[i].flags >> (KEYWORD_BIT + bit) & 1:
                    flags |= <uint64_t>1 << (to[bit] & 63)
            target[i].flags = flags
    return result


def or_flags(records):
    """The flags that any of the records has."""
    cdef _Octets octets = _Octets(records, sizeof(record_t))
    cdef const record_t *source = <const record_t *>octets.view.buf
    cdef Py_ssize_t i
    cdef uint64_t flags = 0
    for i in range(octets.count):
        flags |= source[i].flags
    return flags


def find_records(records, uint64_t must=0, uint64_t must_not=0, uint64_t modseq_above=0):
    """UIDs, as u32, of the records with all flags of must, none of must_not, and a modseq above that."""
    cdef _Octets octets = _Octets(records, sizeof(record_t))
    cdef const record_t *source = <const record_t *>octets.view.buf
    cdef Py_ssize_t count = octets.count
    cdef Py_ssize_t i, found = 0
    cdef bytes result = PyBytes_FromStringAndSize(NULL, count * sizeof(uint32_t))
    cdef uint32_t *uids = <uint32_t *>PyBytes_AS_STRING(result)
    with nogil:
        for i in range(count):
            uids[found] = source[i].uid
            found += (
                (source[i].flags & must) == must
                and not source[i].flags & must_not
                and source[i].modseq > modseq_above
            )
    return result[: found * sizeof(uint32_t)]


def sum_records(records):
    """(records, without \\Seen, with \\Deleted, octets of their messages, highest modseq, first UID without \\Seen or 0)."""
    cdef _Octets octets = _Octets(records, sizeof(record_t))
    cdef const record_t *source = <const record_t *>octets.view.buf
    cdef Py_ssize_t count = octets.count
    cdef Py_ssize_t i
    cdef uint64_t unseen = 0, deleted = 0, size = 0, modseq = 0
    cdef uint32_t first_unseen = 0
    with nogil:
        for i in range(count):
            size += source[i].size
            if not source[i].flags & SEEN:
                unseen += 1
                if first_unseen == 0:
                    first_unseen = source[i].uid
            deleted += (source[i].flags & DELETED) != 0
            if source[i].modseq > modseq:
                modseq = source[i].modseq
    return count, unseen, deleted, size, modseq, first_unseen


def records_ascend(records, uint32_t above=0):
    """True when the UIDs ascend strictly, all of them above that one."""
    cdef _Octets octets = _Octets(records, sizeof(record_t))
    cdef const record_t *source = <const record_t *>octets.view.buf
    cdef Py_ssize_t count = octets.count
    cdef Py_ssize_t i
    for i in range(count):
        if source[i].uid <= above:
            return False
        above = source[i].uid
    return True


def record_column(records, str column):
    """One field of all records: b"".join of u32 (uid, size, save_date, sent_date) or 64-bit values (the others)."""
    cdef _Octets octets = _Octets(records, sizeof(record_t))
    cdef const record_t *source = <const record_t *>octets.view.buf
    cdef Py_ssize_t count = octets.count
    cdef Py_ssize_t i, offset, width
    if column == "uid":
        offset, width = 0, 4
    elif column == "size":
        offset, width = 4, 4
    elif column == "flags":
        offset, width = 8, 8
    elif column == "modseq":
        offset, width = 16, 8
    elif column == "message":
        offset, width = 24, 8
    elif column == "internal_date":
        offset, width = 32, 8
    elif column == "save_date":
        offset, width = 40, 4
    elif column == "sent_date":
        offset, width = 44, 4
    else:
        raise ValueError(f"records have no {column!r}")
    cdef bytes result = PyBytes_FromStringAndSize(NULL, count * width)
    cdef char *target = PyBytes_AS_STRING(result)
    cdef const char *at = <const char *>source + offset
    with nogil:
        if width == 4:
            for i in range(count):
                (<uint32_t *>target)[i] = (<const uint32_t *>at)[0]
                at += sizeof(record_t)
        else:
            for i in range(count):
                (<uint64_t *>target)[i] = (<const uint64_t *>at)[0]
                at += sizeof(record_t)
    return result
