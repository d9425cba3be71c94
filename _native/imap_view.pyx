"""Kernels of a session's view: what changed between two states of a mailbox, and numbers against UIDs.

    Flow      chunks of records (store_index.pyx) in, chunks or packed numbers out; nothing is kept
    Errors    ValueError for octets that are no whole number of records, numbers or ranges
    Standards RFC 9051 §2.3.1 (UIDs and sequence numbers), §7.5.1 (EXPUNGE)

Numbers and UIDs are packed u32; ranges are pairs of u32, (first, last) inclusive, ascending and apart.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t

from records cimport first_range, first_record, range_t, record_t


include "octets.pxi"


def patch_records(records, changed, gone):
    """The records, without those in the ranges of gone, and with those of changed instead of the same UIDs.

    UIDs of changed that records lacks are left out.  Returns `records` itself when nothing is different.
    """
    cdef _Octets octets = _Octets(records, sizeof(record_t))
    cdef _Octets news = _Octets(changed, sizeof(record_t))
    cdef _Octets ranges = _Octets(gone, sizeof(range_t))
    cdef const record_t *source = <const record_t *>octets.view.buf
    cdef const record_t *new = <const record_t *>news.view.buf
    cdef const range_t *pairs = <const range_t *>ranges.view.buf
    cdef Py_ssize_t i, at, n, kept = 0, differences = 0
    cdef uint32_t uid
    if octets.count == 0:
        return records
    at = first_range(pairs, ranges.count, source[0].uid)
    n = first_record(new, news.count, source[0].uid)
    if (at == ranges.count or pairs[at].first > source[octets.count - 1].uid) and (
        n == news.count or new[n].uid > source[octets.count - 1].uid
    ):
        return records
    cdef bytes result = PyBytes_FromStringAndSize(NULL, octets.view.len)
    cdef record_t *target = <record_t *>PyBytes_AS_STRING(result)
    with nogil:
        for i in range(octets.count):
            uid = source[i].uid
            while at < ranges.count and pairs[at].last < uid:
                at += 1
            if at < ranges.count and pairs[at].first <= uid:
                differences += 1
                continue
            while n < news.count and new[n].uid < uid:
                n += 1
            if n < news.count and new[n].uid == uid:
                target[kept] = new[n]
                differences += 1
            else:
                target[kept] = source[i]
            kept += 1
    if not differences:
        return records
    return result if kept == octets.count else result[: kept * sizeof(record_t)]


def diff_records(old, new, bint keep, uint32_t old_number=0, uint32_t new_number=0):
    """What became of old records: (numbers, UIDs, result, numbers of the changed, the changed).

    The first two are of those that new lacks; the first of old has old_number.  result: new itself, or with keep also
    the records that are only in old.  Changed are those whose flags or modseq differ, as new has them; their numbers
    are those in result, whose first has new_number.
    """
    cdef _Octets olds = _Octets(old, sizeof(record_t))
    cdef _Octets news = _Octets(new, sizeof(record_t))
    cdef const record_t *a = <const record_t *>olds.view.buf
    cdef const record_t *b = <const record_t *>news.view.buf
    cdef Py_ssize_t i = 0, j = 0, at = 0, gone = 0, changed = 0
    cdef Py_ssize_t common = min(olds.count, news.count)
    cdef bytes positions = PyBytes_FromStringAndSize(NULL, olds.count * sizeof(uint32_t))
    cdef bytes uids = PyBytes_FromStringAndSize(NULL, olds.count * sizeof(uint32_t))
    cdef bytes changed_at = PyBytes_FromStringAndSize(NULL, common * sizeof(uint32_t))
    cdef bytes changed_records = PyBytes_FromStringAndSize(NULL, common * sizeof(record_t))
    cdef uint32_t *gone_at = <uint32_t *>PyBytes_AS_STRING(positions)
    cdef uint32_t *gone_uid = <uint32_t *>PyBytes_AS_STRING(uids)
    cdef uint32_t *where = <uint32_t *>PyBytes_AS_STRING(changed_at)
    cdef record_t *what = <record_t *>PyBytes_AS_STRING(changed_records)
    cdef bytes merged = None
    cdef record_t *target = NULL
    if keep:
        merged = PyBytes_FromStringAndSize(NULL, olds.view.len + news.view.len)
        target = <record_t *>PyBytes_AS_STRING(merged)
    with nogil:
        while i < olds.count or j < news.count:
            if j == news.count or (i < olds.count and a[i].uid < b[j].uid):
                gone_at[gone] = old_number + <uint32_t>i
                gone_uid[gone] = a[i].uid
                gone += 1
                if target != NULL:
                    target[at] = a[i]
                    at += 1
                i += 1
                continue
            if i < olds.count and a[i].uid == b[j].uid:
                if a[i].flags != b[j].flags or a[i].modseq != b[j].modseq:
                    where[changed] = new_number + <uint32_t>at
                    what[changed] = b[j]
                    changed += 1
                i += 1
            if target != NULL:
                target[at] = b[j]
            at += 1
            j += 1
    return (
        positions[: gone * sizeof(uint32_t)],
        uids[: gone * sizeof(uint32_t)],
        merged[: at * sizeof(record_t)] if keep else new,
        changed_at[: changed * sizeof(uint32_t)],
        changed_records[: changed * sizeof(record_t)],
    )


def select_records(records, ranges, uint32_t number):
    """(sequence numbers, records) of those in the ranges; number: of the first record.

    All of them: `records` itself is returned.
    """
    cdef _Octets octets = _Octets(records, sizeof(record_t))
    cdef _Octets wanted = _Octets(ranges, sizeof(range_t))
    cdef const record_t *source = <const record_t *>octets.view.buf
    cdef const range_t *pairs = <const range_t *>wanted.view.buf
    cdef Py_ssize_t i, at, found = 0
    if octets.count == 0:
        return b"", b""
    cdef bytes numbers = PyBytes_FromStringAndSize(NULL, octets.count * sizeof(uint32_t))
    cdef uint32_t *number_at = <uint32_t *>PyBytes_AS_STRING(numbers)
    cdef bytes result
    cdef record_t *target
    at = first_range(pairs, wanted.count, source[0].uid)
    for i in range(octets.count):
        while at < wanted.count and pairs[at].last < source[i].uid:
            at += 1
        if at == wanted.count:
            break
        if pairs[at].first <= source[i].uid:
            number_at[found] = number + <uint32_t>i
            found += 1
    if found == octets.count:
        return numbers, records
    result = PyBytes_FromStringAndSize(NULL, found * sizeof(record_t))
    target = <record_t *>PyBytes_AS_STRING(result)
    for i in range(found):
        target[i] = source[number_at[i] - number]
    return numbers[: found * sizeof(uint32_t)], result


def numbers_to_uids(list chunks, starts, ranges):
    """Ranges of sequence numbers as ranges of UIDs; starts: the number of each chunk's first record, and one behind.

    Raises IndexError for numbers that are not there.
    """
    cdef _Octets begins = _Octets(starts, sizeof(uint32_t))
    cdef _Octets wanted = _Octets(ranges, sizeof(range_t))
    cdef const uint32_t *start = <const uint32_t *>begins.view.buf
    cdef const range_t *pairs = <const range_t *>wanted.view.buf
    cdef Py_ssize_t i, chunk = 0, count = begins.count - 1
    cdef bytes result = PyBytes_FromStringAndSize(NULL, wanted.view.len)
    cdef range_t *target = <range_t *>PyBytes_AS_STRING(result)
    for i in range(wanted.count):
        if pairs[i].first < 1 or pairs[i].last < pairs[i].first or pairs[i].last >= start[count]:
            raise IndexError("no such message")
        while pairs[i].first >= start[chunk + 1]:
            chunk += 1
        target[i].first = uid_at(chunks[chunk], pairs[i].first - start[chunk])
        while pairs[i].last >= start[chunk + 1]:
            chunk += 1
        target[i].last = uid_at(chunks[chunk], pairs[i].last - start[chunk])
    return result


cdef uint32_t uid_at(bytes records, Py_ssize_t position) except? 0:
    if (position + 1) * <Py_ssize_t>sizeof(record_t) > PyBytes_GET_SIZE(records):
        raise IndexError("no such message")
    return (<const record_t *>PyBytes_AS_STRING(records))[position].uid


def uids_to_numbers(list chunks, starts, uids):
    """The sequence number of each UID (ascending), 0 for those that are not there."""
    cdef _Octets begins = _Octets(starts, sizeof(uint32_t))
    cdef _Octets wanted = _Octets(uids, sizeof(uint32_t))
    cdef const uint32_t *start = <const uint32_t *>begins.view.buf
    cdef const uint32_t *uid = <const uint32_t *>wanted.view.buf
    cdef Py_ssize_t i, at = 0, size = 0, chunk = -1, count = len(chunks)
    cdef bytes result = PyBytes_FromStringAndSize(NULL, wanted.view.len)
    cdef uint32_t *target = <uint32_t *>PyBytes_AS_STRING(result)
    cdef const record_t *records = NULL
    cdef bytes octets
    for i in range(wanted.count):
        while chunk < count and (size == 0 or records[size - 1].uid < uid[i]):
            chunk += 1
            if chunk == count:
                break
            octets = chunks[chunk]
            records = <const record_t *>PyBytes_AS_STRING(octets)
            size = PyBytes_GET_SIZE(octets) // <Py_ssize_t>sizeof(record_t)
            at = 0
        if chunk == count:
            target[i] = 0
            continue
        at += first_record(records + at, size - at, uid[i])
        target[i] = start[chunk] + <uint32_t>at if at < size and records[at].uid == uid[i] else 0
    return result


def records_but(numbers, records, uint64_t modseq):
    """(numbers, records) without the records that have this modseq; numbers: a u32 of each record."""
    cdef _Octets octets = _Octets(records, sizeof(record_t))
    cdef _Octets counted = _Octets(numbers, sizeof(uint32_t))
    cdef const record_t *source = <const record_t *>octets.view.buf
    cdef const uint32_t *number = <const uint32_t *>counted.view.buf
    cdef Py_ssize_t i, kept = 0
    if counted.count != octets.count:
        raise ValueError("each record has a number")
    cdef bytes kept_numbers = PyBytes_FromStringAndSize(NULL, counted.view.len)
    cdef bytes kept_records = PyBytes_FromStringAndSize(NULL, octets.view.len)
    cdef uint32_t *to_number = <uint32_t *>PyBytes_AS_STRING(kept_numbers)
    cdef record_t *to_record = <record_t *>PyBytes_AS_STRING(kept_records)
    for i in range(octets.count):
        if source[i].modseq != modseq:
            to_number[kept] = number[i]
            to_record[kept] = source[i]
            kept += 1
    return kept_numbers[: kept * sizeof(uint32_t)], kept_records[: kept * sizeof(record_t)]


def ranges_of_uids(uids):
    """UIDs (u32, ascending) as ranges."""
    cdef _Octets octets = _Octets(uids, sizeof(uint32_t))
    cdef const uint32_t *uid = <const uint32_t *>octets.view.buf
    cdef Py_ssize_t i, count = 0
    cdef bytes result = PyBytes_FromStringAndSize(NULL, octets.count * sizeof(range_t))
    cdef range_t *target = <range_t *>PyBytes_AS_STRING(result)
    for i in range(octets.count):
        if count and uid[i] == target[count - 1].last + 1:
            target[count - 1].last = uid[i]
        else:
            target[count].first = target[count].last = uid[i]
            count += 1
    return result[: count * sizeof(range_t)]
