"""Kernels of SEARCH: masks over packed records, and what is picked by them.

    Flow      records → match_records() → masks → combined → pick() → UIDs, numbers, keys
    Limits    none of their own: the caller gives some thousand records at a time
    Errors    ValueError for octets that are no whole number of items
    Standards RFC 9051 §6.4.4, RFC 5256 §2.2 (which date counts)

A mask is an octet a record, 0 or 1.  Records: store_index.pyx.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from records cimport range_t, record_t

cdef struct criteria_t:
    uint64_t must
    uint64_t must_not
    uint64_t modseq_low
    uint64_t modseq_high
    uint64_t message_low
    uint64_t message_high
    int64_t size_low
    int64_t size_high
    int64_t internal_low
    int64_t internal_high
    int64_t save_low
    int64_t save_high
    int64_t sent_low
    int64_t sent_high


include "octets.pxi"


# -- masks -----------------------------------------------------------------------------------------


def match_records(records, criteria):
    """The mask of the records that the criteria hold for: packed as server/imap/search_plan.py does it."""
    cdef _Octets octets = _Octets(records, sizeof(record_t))
    cdef _Octets wanted = _Octets(criteria, sizeof(criteria_t))
    if wanted.view.len != sizeof(criteria_t):
        raise ValueError(f"criteria have {sizeof(criteria_t)} octets")
    cdef criteria_t c
    memcpy(&c, wanted.view.buf, sizeof(criteria_t))
    cdef const record_t *r = <const record_t *>octets.view.buf
    cdef Py_ssize_t i, count = octets.count
    cdef bytes result = PyBytes_FromStringAndSize(NULL, count)
    cdef uint8_t *mask = <uint8_t *>PyBytes_AS_STRING(result)
    with nogil:
        for i in range(count):
            # `&` and no branch: whether a record matches cannot be foretold
            mask[i] = (
                ((r[i].flags & c.must) == c.must)
                & ((r[i].flags & c.must_not) == 0)
                & (r[i].modseq >= c.modseq_low)
                & (r[i].modseq <= c.modseq_high)
                & (r[i].message >= c.message_low)
                & (r[i].message <= c.message_high)
                & (<int64_t>r[i].size >= c.size_low)
                & (<int64_t>r[i].size <= c.size_high)
                & (r[i].internal_date >= c.internal_low)
                & (r[i].internal_date <= c.internal_high)
                & (<int64_t>r[i].save_date >= c.save_low)
                & (<int64_t>r[i].save_date <= c.save_high)
                & (<int64_t>r[i].sent_date >= c.sent_low)
                & (<int64_t>r[i].sent_date <= c.sent_high)
            )
    return result


def mask_ranges(records, ranges, uint32_t first=0):
    """The mask of the records in the ranges: of UIDs; of sequence numbers when first, the first record's, is given."""
    cdef _Octets octets = _Octets(records, sizeof(record_t))
    cdef _Octets wanted = _Octets(ranges, sizeof(range_t))
    cdef const record_t *r = <const record_t *>octets.view.buf
    cdef const range_t *pairs = <const range_t *>wanted.view.buf
    cdef Py_ssize_t i, at = 0, high, middle, count = octets.count
    cdef Py_ssize_t range_count = wanted.count
    cdef uint32_t number
    cdef bytes result = PyBytes_FromStringAndSize(NULL, count)
    cdef uint8_t *mask = <uint8_t *>PyBytes_AS_STRING(result)
    if count == 0:
        return result
    with nogil:
        # the first range that does not end before the first record
        number = first if first else r[0].uid
        high = range_count
        while at < high:
            middle = (at + high) >> 1
            if pairs[middle].last < number:
                at = middle + 1
            else:
                high = middle
        for i in range(count):
            number = <uint32_t>(first + i) if first else r[i].uid
            while at < range_count and pairs[at].last < number:
                at += 1
            mask[i] = at < range_count and number >= pairs[at].first
    return result


def mask_and(bytes a, bytes b):
    """What is in both masks."""
    return _combined(a, b, 0)


def mask_or(bytes a, bytes b):
    """What is in one of the masks or in both."""
    return _combined(a, b, 1)


def mask_without(bytes a, bytes b):
    """What is in a and not in b."""
    return _combined(a, b, 2)


cdef bytes _combined(bytes a, bytes b, int how):
    cdef Py_ssize_t i, count = PyBytes_GET_SIZE(a)
    if PyBytes_GET_SIZE(b) != count:
        raise ValueError("masks of different lengths")
    cdef bytes result = PyBytes_FromStringAndSize(NULL, count)
    cdef uint8_t *mask = <uint8_t *>PyBytes_AS_STRING(result)
    cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(a)
    cdef const uint8_t *q = <const uint8_t *>PyBytes_AS_STRING(b)
    with nogil:
        if how == 0:
            for i in range(count):
                mask[i] = p[i] & q[i]
        elif how == 1:
            for i in range(count):
                mask[i] = p[i] | q[i]
        else:
            for i in range(count):
                mask[i] = p[i] & (q[i] ^ 1)
    return result


def scatter_mask(bytes mask, bytes part):
    """A mask as long as `mask`: where that has its n-th 1, the n-th octet of part; 0 elsewhere."""
    cdef Py_ssize_t i, at = 0, count = PyBytes_GET_SIZE(mask), given = PyBytes_GET_SIZE(part)
    cdef bytes result = PyBytes_FromStringAndSize(NULL, count)
    cdef uint8_t *target = <uint8_t *>PyBytes_AS_STRING(result)
    cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(mask)
    cdef const uint8_t *q = <const uint8_t *>PyBytes_AS_STRING(part)
    for i in range(count):
        target[i] = 0
        if p[i]:
            if at < given:
                target[i] = q[at]
            at += 1
    if at != given:
        raise ValueError(f"{given} octets for {at} places")
    return result


# What pick() takes of a record, and its octets.
cdef enum:
    UID, NUMBER, MESSAGE, MODSEQ, SIZE, ARRIVAL, DATE
PICK_UID, PICK_NUMBER, PICK_MESSAGE, PICK_MODSEQ = UID, NUMBER, MESSAGE, MODSEQ
PICK_SIZE, PICK_ARRIVAL, PICK_DATE = SIZE, ARRIVAL, DATE


def pick(records, bytes mask, int what, uint32_t first=0):
    """One value of each record in the mask, joined: PICK_UID or PICK_NUMBER (from first on) u32, the others 64 bits.

    PICK_DATE: when it was sent, else when it arrived (RFC 5256 §2.2).
    """
    cdef _Octets octets = _Octets(records, sizeof(record_t))
    cdef const record_t *r = <const record_t *>octets.view.buf
    cdef Py_ssize_t i, at = 0, count = octets.count
    if PyBytes_GET_SIZE(mask) != count:
        raise ValueError("the mask is not of these records")
    if not UID <= what <= DATE:
        raise ValueError(f"{what} is nothing to pick")
    cdef const uint8_t *m = <const uint8_t *>PyBytes_AS_STRING(mask)
    cdef Py_ssize_t width = 4 if what <= NUMBER else 8
    cdef Py_ssize_t chosen = 0
    for i in range(count):
        chosen += m[i] != 0
    cdef bytes result = PyBytes_FromStringAndSize(NULL, chosen * width)
    cdef uint32_t *short = <uint32_t *>PyBytes_AS_STRING(result)
    cdef int64_t *long_ = <int64_t *>PyBytes_AS_STRING(result)
    with nogil:
        for i in range(count):
            if not m[i]:
                continue
            if what == UID:
                short[at] = r[i].uid
            elif what == NUMBER:
                short[at] = <uint32_t>(first + i)
            elif what == MESSAGE:
                long_[at] = <int64_t>r[i].message
            elif what == MODSEQ:
                long_[at] = <int64_t>r[i].modseq
            elif what == SIZE:
                long_[at] = r[i].size
            elif what == ARRIVAL:
                long_[at] = r[i].internal_date
            else:
                long_[at] = r[i].sent_date if r[i].sent_date else r[i].internal_date
            at += 1
    return result
