"""Kernels of SEARCH and SORT: masks over packed records, texts in one piece, the order of rows.

    Flow      records → match_records() → masks → combined → pick() → UIDs, numbers, keys
              texts (pack_texts(), gather_texts()) → find_texts(), rank_texts() → sort_order()
    Limits    none of their own: the caller gives some thousand records at a time
    Errors    ValueError for octets that are no whole number of items, or texts that are not as pack_texts() made them
    Standards RFC 9051 §6.4.4, RFC 5256 §3 (order)

A mask is an octet a record, 0 or 1.  Records: store_index.pyx.  Texts are a count, the offset behind each text (u32,
little endian) and the octets of all of them.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcmp, memcpy, memset

from records cimport range_t, record_t

cdef extern from "byteswap.h":
    uint64_t bswap_64(uint64_t) nogil

# Python.h asks for the functions of GNU.
cdef extern from "string.h":
    void *memmem(const void *, size_t, const void *, size_t) nogil

cdef extern from "stdlib.h":
    void qsort_r(void *, size_t, size_t, int (*)(const void *, const void *, void *) noexcept nogil, void *) nogil

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


cdef class _Octets:
    # A borrowed buffer, given back when this goes.
    cdef Py_buffer view

    def __cinit__(self, data, Py_ssize_t item):
        PyObject_GetBuffer(data, &self.view, PyBUF_SIMPLE)
        if self.view.len % item:
            raise ValueError(f"{self.view.len} octets are no whole number of {item}")

    def __dealloc__(self):
        PyBuffer_Release(&self.view)


# -- masks -----------------------------------------------------------------------------------------


def match_records(records, criteria):
    """The mask of the records that the criteria hold for: packed as protocol.imap.search.Criteria does it."""
    cdef _Octets octets = _Octets(records, sizeof(record_t))
    cdef _Octets wanted = _Octets(criteria, sizeof(criteria_t))
    if wanted.view.len != sizeof(criteria_t):
        raise ValueError(f"criteria have {sizeof(criteria_t)} octets")
    cdef criteria_t c
    memcpy(&c, wanted.view.buf, sizeof(criteria_t))
    cdef const record_t *r = <const record_t *>octets.view.buf
    cdef Py_ssize_t i, count = octets.view.len // sizeof(record_t)
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
    cdef Py_ssize_t i, at = 0, high, middle, count = octets.view.len // sizeof(record_t)
    cdef Py_ssize_t range_count = wanted.view.len // sizeof(range_t)
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
    cdef Py_ssize_t i, at = 0, count = octets.view.len // sizeof(record_t)
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


# -- texts -------------------------------------------------------------------------------------------


cdef struct texts_t:
    const uint32_t *ends
    const char *octets
    uint32_t count


cdef inline void use_texts(texts_t *texts, const char *p) noexcept nogil:
    memcpy(&texts.count, p, 4)
    texts.ends = <const uint32_t *>(p + 4)
    texts.octets = p + 4 + 4 * <Py_ssize_t>texts.count


cdef int read_texts(texts_t *texts, const char *p, Py_ssize_t n) except -1:
    # Borrows p.  Every offset is checked once, here.
    cdef uint32_t i, before = 0
    if n < 4:
        raise ValueError("these are no texts")
    use_texts(texts, p)
    if (n - 4) // 4 < texts.count:
        raise ValueError("these are no texts")
    for i in range(texts.count):
        if texts.ends[i] < before:
            raise ValueError("these are no texts")
        before = texts.ends[i]
    if 4 + 4 * <Py_ssize_t>texts.count + before != n:
        raise ValueError("these are no texts")
    return 0


cdef inline uint32_t text_start(const texts_t *texts, uint32_t at) noexcept nogil:
    return texts.ends[at - 1] if at else 0


def pack_texts(list texts):
    """These, in one piece."""
    cdef Py_ssize_t count = len(texts), octets = 0
    cdef bytes text
    for text in texts:
        octets += PyBytes_GET_SIZE(text)
    if octets > <Py_ssize_t>0xFFFFFFFF:
        raise ValueError("more than 4 GiB of texts")
    cdef bytes result = PyBytes_FromStringAndSize(NULL, 4 + 4 * count + octets)
    cdef uint32_t *head = <uint32_t *>PyBytes_AS_STRING(result)
    cdef char *start = PyBytes_AS_STRING(result) + 4 + 4 * count
    cdef char *p = start
    head[0] = <uint32_t>count
    for text in texts:
        memcpy(p, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))
        p += PyBytes_GET_SIZE(text)
        head += 1
        head[0] = <uint32_t>(p - start)
    return result


def unpack_texts(bytes data):
    """The list that pack_texts() was given."""
    cdef texts_t texts
    read_texts(&texts, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
    cdef uint32_t i
    return [
        PyBytes_FromStringAndSize(texts.octets + text_start(&texts, i), texts.ends[i] - text_start(&texts, i))
        for i in range(texts.count)
    ]


def count_blocks(keys, int shift):
    """{key >> shift: how many of the keys}, in the order they first come."""
    cdef _Octets octets = _Octets(keys, sizeof(uint64_t))
    cdef const uint64_t *k = <const uint64_t *>octets.view.buf
    cdef Py_ssize_t i = 0, start, count = octets.view.len // sizeof(uint64_t)
    cdef dict found = {}
    while i < count:
        start = i
        while i < count and k[i] >> shift == k[start] >> shift:
            i += 1
        block = k[start] >> shift
        found[block] = found.get(block, 0) + (i - start)
    return found


def gather_texts(keys, dict blocks, int shift):
    """The text of each key: number `key & (1 << shift) - 1` of the texts blocks[key >> shift]; empty without those."""
    cdef _Octets octets = _Octets(keys, sizeof(uint64_t))
    cdef const uint64_t *k = <const uint64_t *>octets.view.buf
    cdef Py_ssize_t i, total = 0, count = octets.view.len // sizeof(uint64_t)
    cdef uint64_t low = (<uint64_t>1 << shift) - 1, block = 0
    cdef uint32_t number, start
    cdef texts_t texts
    cdef bint known = False, there = False
    cdef set checked = set()
    cdef bytes found
    cdef const char **froms = <const char **>malloc((count + 1) * sizeof(char *))
    cdef bytes result
    cdef uint32_t *head
    cdef char *p
    cdef bytes lengths = PyBytes_FromStringAndSize(NULL, 4 * count)
    cdef uint32_t *length = <uint32_t *>PyBytes_AS_STRING(lengths)
    if froms == NULL:
        raise MemoryError
    try:
        for i in range(count):
            if not known or k[i] >> shift != block:
                block, known = k[i] >> shift, True
                given = blocks.get(block)
                there = given is not None
                if there:
                    found = given
                    if block in checked:
                        use_texts(&texts, PyBytes_AS_STRING(found))
                    else:
                        read_texts(&texts, PyBytes_AS_STRING(found), PyBytes_GET_SIZE(found))
                        checked.add(block)
            number = <uint32_t>(k[i] & low)
            length[i] = 0
            if there and number < texts.count:
                start = text_start(&texts, number)
                froms[i] = texts.octets + start
                length[i] = texts.ends[number] - start
                total += length[i]
        if total > <Py_ssize_t>0xFFFFFFFF:
            raise ValueError("more than 4 GiB of texts")
        result = PyBytes_FromStringAndSize(NULL, 4 + 4 * count + total)
        head = <uint32_t *>PyBytes_AS_STRING(result)
        head[0] = <uint32_t>count
        p = PyBytes_AS_STRING(result) + 4 + 4 * count
        total = 0
        for i in range(count):
            if length[i]:
                memcpy(p + total, froms[i], length[i])
            total += length[i]
            head[i + 1] = <uint32_t>total
        return result
    finally:
        free(<void *>froms)


def join_texts(list pieces):
    """The texts of all of these, one behind the other."""
    cdef texts_t texts
    cdef Py_ssize_t count = 0, octets = 0
    cdef bytes piece
    for piece in pieces:
        read_texts(&texts, PyBytes_AS_STRING(piece), PyBytes_GET_SIZE(piece))
        count += texts.count
        octets += texts.ends[texts.count - 1] if texts.count else 0
    if octets > <Py_ssize_t>0xFFFFFFFF or count > <Py_ssize_t>0xFFFFFFFF:
        raise ValueError("more than 4 GiB of texts")
    cdef bytes result = PyBytes_FromStringAndSize(NULL, 4 + 4 * count + octets)
    cdef uint32_t *head = <uint32_t *>PyBytes_AS_STRING(result)
    cdef char *p = PyBytes_AS_STRING(result) + 4 + 4 * count
    cdef uint32_t before = 0, i
    head[0] = <uint32_t>count
    for piece in pieces:
        use_texts(&texts, PyBytes_AS_STRING(piece))
        for i in range(texts.count):
            head += 1
            head[0] = before + texts.ends[i]
        if texts.count:
            memcpy(p + before, texts.octets, texts.ends[texts.count - 1])
            before += texts.ends[texts.count - 1]
    return result


def find_texts(bytes data, bytes wanted):
    """The mask of the texts that have the wanted octets in them; every text has none."""
    cdef texts_t texts
    read_texts(&texts, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
    cdef bytes result = PyBytes_FromStringAndSize(NULL, texts.count)
    cdef uint8_t *mask = <uint8_t *>PyBytes_AS_STRING(result)
    cdef const char *needle = PyBytes_AS_STRING(wanted)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(wanted), offset = 0, total
    cdef const char *hit
    cdef uint32_t at = 0
    memset(mask, size == 0, texts.count)
    if texts.count == 0 or size == 0:
        return result
    total = texts.ends[texts.count - 1]
    with nogil:
        while total - offset >= size:
            hit = <const char *>memmem(texts.octets + offset, total - offset, needle, size)
            if hit == NULL:
                break
            offset = hit - texts.octets
            while texts.ends[at] <= offset:
                at += 1
            if offset + size <= texts.ends[at]:
                mask[at] = 1
                offset = texts.ends[at]
            else:  # over the seam of two texts
                offset += 1
    return result


# -- order ---------------------------------------------------------------------------------------------


cdef struct word_t:
    uint64_t beginning  # the first octets, as a number in their order
    const char *text
    uint32_t size
    uint32_t at


cdef inline uint64_t beginning_of(const char *p, uint32_t n) noexcept nogil:
    cdef uint64_t value = 0
    memcpy(&value, p, 8 if n > 8 else n)
    return bswap_64(value)


cdef int compare_words(const void *a, const void *b, void *_) noexcept nogil:
    cdef const word_t *x = <const word_t *>a
    cdef const word_t *y = <const word_t *>b
    if x.beginning != y.beginning:
        return (x.beginning > y.beginning) - (x.beginning < y.beginning)
    cdef uint32_t size = x.size if x.size < y.size else y.size
    cdef int order = memcmp(x.text + 8, y.text + 8, size - 8) if size > 8 else 0
    if order:
        return order
    return (x.size > y.size) - (x.size < y.size)


cdef inline uint32_t find_word(const texts_t *texts, uint32_t at, int which, const char **word) noexcept nogil:
    # The length of the which-th word of a text; 0 when there is none.
    cdef const char *p = texts.octets + text_start(texts, at)
    cdef const char *end = texts.octets + texts.ends[at]
    cdef const char *stop
    while True:
        stop = <const char *>memchr(p, 0, end - p) if p < end else NULL
        if which == 0:
            word[0] = p
            return <uint32_t>((end if stop == NULL else stop) - p)
        if stop == NULL:
            word[0] = end
            return 0
        p = stop + 1
        which -= 1


def mask_words(bytes data, int which):
    """The mask of the texts whose which-th word, where NULs are between them, is not empty."""
    cdef texts_t texts
    read_texts(&texts, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
    cdef bytes result = PyBytes_FromStringAndSize(NULL, texts.count)
    cdef uint8_t *mask = <uint8_t *>PyBytes_AS_STRING(result)
    cdef const char *word
    cdef uint32_t i
    with nogil:
        for i in range(texts.count):
            mask[i] = find_word(&texts, i, which, &word) != 0
    return result


def rank_texts(bytes data, int which):
    """Each text's place in the order of octets, i64: its which-th word, where NULs are between them, is what counts.

    Equal ones have the same rank.  Rank 0 is for the empty ones alone.
    """
    cdef texts_t texts
    read_texts(&texts, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
    cdef uint32_t i
    cdef int64_t rank = 0
    cdef bytes result = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>texts.count * 8)
    cdef int64_t *ranks = <int64_t *>PyBytes_AS_STRING(result)
    cdef word_t *words = <word_t *>malloc((<size_t>texts.count + 1) * sizeof(word_t))
    if words == NULL:
        raise MemoryError
    with nogil:
        for i in range(texts.count):
            words[i].size = find_word(&texts, i, which, &words[i].text)
            words[i].beginning = beginning_of(words[i].text, words[i].size)
            words[i].at = i
        qsort_r(words, texts.count, sizeof(word_t), compare_words, NULL)
        for i in range(texts.count):
            if words[i].size and (i == 0 or compare_words(&words[i - 1], &words[i], NULL)):
                rank += 1
            ranks[words[i].at] = rank
    free(words)
    return result


cdef struct order_t:
    const int64_t **columns
    const uint8_t *reverse
    Py_ssize_t count


cdef int compare_rows(const void *a, const void *b, void *context) noexcept nogil:
    cdef const order_t *order = <const order_t *>context
    cdef uint32_t x = (<const uint32_t *>a)[0], y = (<const uint32_t *>b)[0]
    cdef int64_t left, right
    cdef Py_ssize_t i
    for i in range(order.count):
        left, right = order.columns[i][x], order.columns[i][y]
        if left != right:
            return (left > right) - (left < right) if not order.reverse[i] else (left < right) - (left > right)
    return (x > y) - (x < y)  # RFC 5256 §3: equal ones by sequence number


def sort_order(list columns, bytes reverse):
    """The order of the rows of these columns (i64 each), u32: the first column decides, then the second …

    reverse: an octet a column, 1 for descending.  Equal rows stay as they are.
    """
    cdef list held = [_Octets(column, sizeof(int64_t)) for column in columns]
    cdef Py_ssize_t i, count
    if not held or PyBytes_GET_SIZE(reverse) != len(held):
        raise ValueError("no columns, or not as many as directions")
    count = (<_Octets>held[0]).view.len // sizeof(int64_t)
    cdef order_t order
    cdef const int64_t *places[16]
    if len(held) > 16:
        raise ValueError("more than 16 columns")
    for i in range(len(held)):
        if (<_Octets>held[i]).view.len != count * <Py_ssize_t>sizeof(int64_t):
            raise ValueError("columns of different lengths")
        places[i] = <const int64_t *>(<_Octets>held[i]).view.buf
    order.columns, order.count = places, len(held)
    order.reverse = <const uint8_t *>PyBytes_AS_STRING(reverse)
    cdef bytes result = PyBytes_FromStringAndSize(NULL, count * sizeof(uint32_t))
    cdef uint32_t *rows = <uint32_t *>PyBytes_AS_STRING(result)
    with nogil:
        for i in range(count):
            rows[i] = <uint32_t>i
        qsort_r(rows, count, sizeof(uint32_t), compare_rows, &order)
    return result


def take_numbers(numbers, order):
    """numbers[order[0]], numbers[order[1]] …: all u32."""
    cdef _Octets given = _Octets(numbers, sizeof(uint32_t))
    cdef _Octets wanted = _Octets(order, sizeof(uint32_t))
    cdef const uint32_t *n = <const uint32_t *>given.view.buf
    cdef const uint32_t *at = <const uint32_t *>wanted.view.buf
    cdef Py_ssize_t i, size = given.view.len // sizeof(uint32_t), count = wanted.view.len // sizeof(uint32_t)
    cdef bytes result = PyBytes_FromStringAndSize(NULL, count * sizeof(uint32_t))
    cdef uint32_t *target = <uint32_t *>PyBytes_AS_STRING(result)
    for i in range(count):
        if at[i] >= size:
            raise ValueError(f"there is no number {at[i]}")
        target[i] = n[at[i]]
    return result
