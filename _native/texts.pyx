"""Many short texts in one piece: looked through, ranked, and rows put in order.

    Flow      pack_texts(), gather_texts() → find_texts(), mask_words(), rank_texts() → sort_order() → take_numbers()
    Limits    none of their own; texts of 4 GiB together
    Errors    ValueError for octets that are no whole number of items, or texts that are not as pack_texts() made them
    Standards RFC 5256 §3 (order)

Texts are a count, the offset behind each text (u32, little endian) and the octets of all of them.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcmp, memcpy, memset

cdef extern from "byteswap.h":
    uint64_t bswap_64(uint64_t) nogil

# Python.h asks for the functions of GNU.
cdef extern from "string.h":
    void *memmem(const void *, size_t, const void *, size_t) nogil

cdef extern from "stdlib.h":
    void qsort_r(void *, size_t, size_t, int (*)(const void *, const void *, void *) noexcept nogil, void *) nogil


include "octets.pxi"


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


cdef enum:
    DIGIT_BITS = 11
    DIGITS = 1 << DIGIT_BITS
    PASSES = 6  # of DIGIT_BITS each: 64 bits

cdef struct row_t:
    uint64_t key
    uint32_t at


cdef row_t *sort_rows(row_t *rows, row_t *room, uint32_t count) noexcept nogil:
    # By key, equal ones stay in their order.  Returns rows or room, whichever it is in.  From the last digit to the
    # first; a digit that is the same in all rows costs nothing but its counts.
    cdef uint32_t counts[PASSES][DIGITS]
    cdef uint32_t i, before, number
    cdef int at
    cdef row_t *other
    memset(counts, 0, sizeof(counts))
    for i in range(count):
        for at in range(PASSES):
            counts[at][(rows[i].key >> (at * DIGIT_BITS)) & (DIGITS - 1)] += 1
    for at in range(PASSES):
        if count == 0 or counts[at][(rows[0].key >> (at * DIGIT_BITS)) & (DIGITS - 1)] == count:
            continue
        before = 0
        for i in range(<uint32_t>DIGITS):
            number = counts[at][i]
            counts[at][i] = before
            before += number
        for i in range(count):
            number = (rows[i].key >> (at * DIGIT_BITS)) & (DIGITS - 1)
            room[counts[at][number]] = rows[i]
            counts[at][number] += 1
        other = rows
        rows, room = room, other
    return rows


cdef struct word_t:
    const char *text
    uint32_t size


cdef inline uint64_t beginning_of(const word_t *word) noexcept nogil:
    # The first octets as a number in their order.
    cdef uint64_t value = 0
    memcpy(&value, word.text, 8 if word.size > 8 else word.size)
    return bswap_64(value)


cdef int compare_rows(const void *a, const void *b, void *context) noexcept nogil:
    # Of words with the same beginning; equal ones stay in their order.
    cdef uint32_t i = (<const row_t *>a).at, j = (<const row_t *>b).at
    cdef const word_t *x = <const word_t *>context + i
    cdef const word_t *y = <const word_t *>context + j
    cdef uint32_t size = x.size if x.size < y.size else y.size
    cdef int order = memcmp(x.text + 8, y.text + 8, size - 8) if size > 8 else 0
    if order:
        return order
    if x.size != y.size:
        return (x.size > y.size) - (x.size < y.size)
    return (i > j) - (i < j)


cdef inline bint same_words(const word_t *x, const word_t *y) noexcept nogil:
    return x.size == y.size and memcmp(x.text, y.text, x.size) == 0


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
    cdef uint32_t i = 0, start, count = texts.count
    cdef int64_t rank = 0
    cdef bytes result = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>count * 8)
    cdef int64_t *ranks = <int64_t *>PyBytes_AS_STRING(result)
    cdef word_t *words = <word_t *>malloc((<size_t>count + 1) * sizeof(word_t))
    cdef row_t *memory = <row_t *>malloc((2 * <size_t>count + 1) * sizeof(row_t))
    cdef row_t *rows
    if words == NULL or memory == NULL:
        free(words)
        free(memory)
        raise MemoryError
    with nogil:
        for i in range(count):
            words[i].size = find_word(&texts, i, which, &words[i].text)
            memory[i].key, memory[i].at = beginning_of(&words[i]), i
        rows = sort_rows(memory, memory + count, count)
        i = 0
        while i < count:
            start = i
            while i < count and rows[i].key == rows[start].key:
                i += 1
            if i - start > 1:
                qsort_r(rows + start, i - start, sizeof(row_t), compare_rows, words)
        for i in range(count):
            if words[rows[i].at].size and (i == 0 or not same_words(&words[rows[i - 1].at], &words[rows[i].at])):
                rank += 1
            ranks[rows[i].at] = rank
    free(words)
    free(memory)
    return result


def sort_order(list columns, bytes reverse):
    """The order of the rows of these columns (i64 each), u32: the first column decides, then the second …

    reverse: an octet a column, 1 for descending.  Equal rows stay as they are (RFC 5256 §3).
    """
    cdef list held = [_Octets(column, sizeof(int64_t)) for column in columns]
    cdef Py_ssize_t at, total
    if not held or PyBytes_GET_SIZE(reverse) != len(held):
        raise ValueError("no columns, or not as many as directions")
    total = (<_Octets>held[0]).view.len // sizeof(int64_t)
    for one in held:
        if (<_Octets>one).view.len != total * <Py_ssize_t>sizeof(int64_t):
            raise ValueError("columns of different lengths")
    if total > <Py_ssize_t>0xFFFFFFFF:
        raise ValueError("too many rows")
    cdef bytes result = PyBytes_FromStringAndSize(NULL, total * sizeof(uint32_t))
    cdef uint32_t *order = <uint32_t *>PyBytes_AS_STRING(result)
    cdef row_t *memory = <row_t *>malloc((2 * <size_t>total + 1) * sizeof(row_t))
    cdef row_t *rows = memory
    cdef const int64_t *values
    cdef uint64_t lowest, key
    cdef bint descending
    cdef uint32_t i, count = <uint32_t>total
    if memory == NULL:
        raise MemoryError
    for i in range(count):
        memory[i].at = i
    for at in range(len(held) - 1, -1, -1):  # the least important first
        values = <const int64_t *>(<_Octets>held[at]).view.buf
        descending = reverse[at] != 0
        with nogil:
            lowest = <uint64_t>-1
            for i in range(count):
                key = <uint64_t>values[i] ^ (<uint64_t>1 << 63)  # in the order of unsigned numbers
                key = ~key if descending else key
                lowest = key if key < lowest else lowest
            for i in range(count):
                key = <uint64_t>values[rows[i].at] ^ (<uint64_t>1 << 63)
                rows[i].key = (~key if descending else key) - lowest
            rows = sort_rows(rows, memory + count if rows == memory else memory, count)
    for i in range(count):
        order[i] = rows[i].at
    free(memory)
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
