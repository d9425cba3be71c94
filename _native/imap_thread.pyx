"""THREAD: messages → threads → the response, as one pass over arrays.

    Flow      thread_references() or thread_by_subject() → b"(2)(3 6 (4 23)(44 7 96))"
    Limits    WORDS_MAX messages and references; ANCESTORS_MAX: a link that could close a loop longer than that is not made
    Errors    ValueError for columns of different lengths, or texts that are not as pack_texts() made them
    Security  Message-IDs are the senders' to choose: they are hashed with a seed that is the caller's secret
    Standards RFC 5256 §3 (ORDEREDSUBJECT, REFERENCES); REFS is REFERENCES without subjects, the newest thread last
    Bugs      none known

The id of a message and those of its references are words of one text, with NULs between them: imap_facts.py, THREAD.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

# Python.h asks for the functions of GNU.
cdef extern from "stdlib.h":
    void qsort_r(void *, size_t, size_t, int (*)(const void *, const void *, void *) noexcept nogil, void *) nogil

cdef enum:
    ANCESTORS_MAX = 10_000
    WORDS_MAX = 8_000_000
    NONE = -1

cdef struct node_t:
    int32_t parent
    int32_t child       # the first
    int32_t last        # child
    int32_t next        # sibling
    int32_t previous
    int32_t message     # row, NONE: nobody has this id, or a dummy
    int64_t date        # of what it is sorted by, once known
    int64_t number      # the same: what decides between equal dates

cdef struct id_t:
    const char *text
    uint32_t size
    uint32_t hash
    int32_t node

cdef struct forest_t:
    node_t *nodes
    int32_t count
    id_t *ids           # open addressing; mask + 1 places
    uint64_t mask
    uint64_t seed
    int32_t root        # a node that is above all others


cdef inline uint64_t hash_id(const char *p, uint32_t n, uint64_t seed) noexcept nogil:
    # Eight octets a step, multiplied and folded; the seed makes collisions hard to prepare.
    cdef uint64_t h = seed ^ (n * <uint64_t>0x9E3779B97F4A7C15u), word
    while n >= 8:
        memcpy(&word, p, 8)
        h = (h ^ word) * <uint64_t>0xD6E8FEB86659FD93u
        h ^= h >> 32
        h += seed
        p += 8
        n -= 8
    word = 0
    memcpy(&word, p, n)
    h = (h ^ word) * <uint64_t>0xD6E8FEB86659FD93u
    h ^= h >> 32
    h *= <uint64_t>0xD6E8FEB86659FD93u
    return h ^ (h >> 32)


cdef inline int32_t new_node(forest_t *f, int32_t message) noexcept nogil:
    cdef node_t *node = &f.nodes[f.count]
    node.parent = node.child = node.last = node.next = node.previous = NONE
    node.message = message
    node.date = node.number = 0
    f.count += 1
    return f.count - 1


cdef int32_t node_of(forest_t *f, const char *p, uint32_t n) noexcept nogil:
    # The container of an id; it is made when there is none.
    cdef uint64_t h = hash_id(p, n, f.seed), at = h & f.mask
    while f.ids[at].node != NONE:
        if f.ids[at].hash == <uint32_t>(h >> 32) and f.ids[at].size == n and memcmp(f.ids[at].text, p, n) == 0:
            return f.ids[at].node
        at = (at + 1) & f.mask
    f.ids[at].text, f.ids[at].size, f.ids[at].hash = p, n, <uint32_t>(h >> 32)
    f.ids[at].node = new_node(f, NONE)
    return f.ids[at].node


cdef inline void unlink(node_t *nodes, int32_t at) noexcept nogil:
    cdef node_t *node = &nodes[at]
    if node.parent == NONE:
        return
    if node.previous != NONE:
        nodes[node.previous].next = node.next
    else:
        nodes[node.parent].child = node.next
    if node.next != NONE:
        nodes[node.next].previous = node.previous
    else:
        nodes[node.parent].last = node.previous
    node.parent = node.next = node.previous = NONE


cdef inline void append(node_t *nodes, int32_t parent, int32_t at) noexcept nogil:
    cdef node_t *node = &nodes[at]
    node.parent, node.previous, node.next = parent, nodes[parent].last, NONE
    if node.previous != NONE:
        nodes[node.previous].next = at
    else:
        nodes[parent].child = at
    nodes[parent].last = at


cdef bint would_loop(const node_t *nodes, int32_t parent, int32_t child) noexcept nogil:
    cdef int steps = 0
    if parent == child:
        return True
    if nodes[child].child == NONE:
        return False
    while parent != NONE:
        if parent == child or steps == ANCESTORS_MAX:
            return True
        parent = nodes[parent].parent
        steps += 1
    return False


cdef void link_messages(
    forest_t *f, const uint32_t *ends, const char *octets, uint32_t count, int32_t *own
) noexcept nogil:
    # RFC 5256 §3, REFERENCES step 1.
    cdef uint32_t i, start, end, at, word
    cdef int32_t node, before, this
    for i in range(count):
        start = ends[i - 1] if i else 0
        end = ends[i]
        at = start
        while at < end and octets[at] != 0:
            at += 1
        node = node_of(f, octets + start, at - start) if at > start else new_node(f, NONE)
        if f.nodes[node].message != NONE:  # without an id, or with one that another has: it is unique
            node = new_node(f, NONE)
        f.nodes[node].message = <int32_t>i
        own[i] = node
    for i in range(count):
        this = own[i]
        start = ends[i - 1] if i else 0
        end = ends[i]
        at = start
        while at < end and octets[at] != 0:
            at += 1
        before = NONE
        while at < end:
            word = at + 1
            at = word
            while at < end and octets[at] != 0:
                at += 1
            if at == word:
                continue
            node = node_of(f, octets + word, at - word)
            if before != NONE and f.nodes[node].parent == NONE and not would_loop(f.nodes, before, node):  # 1.A
                append(f.nodes, before, node)
            before = node
        if f.nodes[this].parent != before:  # 1.B
            unlink(f.nodes, this)
            if before != NONE and not would_loop(f.nodes, before, this):
                append(f.nodes, before, this)


cdef void prune(forest_t *f) noexcept nogil:
    # Step 3, from the leaves up: a dummy gives its place to its children; at the top only to a single one.
    cdef node_t *nodes = f.nodes
    cdef int32_t at = nodes[f.root].child, following, parent, child, after
    cdef bint entering = True
    while at != f.root:
        if entering and nodes[at].child != NONE:
            at = nodes[at].child
            continue
        # `at` and all below it is done but for itself
        parent, following = nodes[at].parent, nodes[at].next
        if nodes[at].message == NONE:
            if nodes[at].child == NONE:
                unlink(nodes, at)
            elif parent != f.root or nodes[at].child == nodes[at].last:
                # its children take its place, in order
                child = nodes[at].child
                after = nodes[at].previous
                nodes[child].previous = after
                if after != NONE:
                    nodes[after].next = child
                else:
                    nodes[parent].child = child
                nodes[nodes[at].last].next = following
                if following != NONE:
                    nodes[following].previous = nodes[at].last
                else:
                    nodes[parent].last = nodes[at].last
                while child != following:
                    nodes[child].parent = parent
                    child = nodes[child].next
        if following != NONE:
            at, entering = following, True
        else:
            at, entering = parent, False


cdef int compare_siblings(const void *a, const void *b, void *context) noexcept nogil:
    cdef const node_t *nodes = <const node_t *>context
    cdef const node_t *x = &nodes[(<const int32_t *>a)[0]]
    cdef const node_t *y = &nodes[(<const int32_t *>b)[0]]
    if x.date != y.date:
        return (x.date > y.date) - (x.date < y.date)
    return (x.number > y.number) - (x.number < y.number)


cdef void sort_children(forest_t *f, int32_t parent, int32_t *room) noexcept nogil:
    cdef node_t *nodes = f.nodes
    cdef int32_t child = nodes[parent].child, count = 0, i
    cdef bint in_order = True
    while child != NONE:
        room[count] = child
        if count and compare_siblings(&room[count - 1], &room[count], nodes) > 0:
            in_order = False
        count += 1
        child = nodes[child].next
    if in_order:
        return
    qsort_r(room, count, sizeof(int32_t), compare_siblings, nodes)
    nodes[parent].child = nodes[parent].last = NONE
    for i in range(count):
        append(nodes, parent, room[i])


cdef void date_nodes(forest_t *f, const int64_t *dates) noexcept nogil:
    cdef int32_t i
    for i in range(f.count):
        if f.nodes[i].message != NONE:
            f.nodes[i].date = dates[f.nodes[i].message]
            f.nodes[i].number = f.nodes[i].message


cdef void sort_all(forest_t *f, int32_t *room, bint newest) noexcept nogil:
    # Step 6: the youngest siblings first.  A dummy counts as its first child; newest: a thread as its newest message.
    cdef node_t *nodes = f.nodes
    cdef int32_t at = nodes[f.root].child, child
    cdef bint entering = True
    if at == NONE:
        return
    while True:
        if entering and at != f.root and nodes[at].child != NONE:
            at = nodes[at].child
            continue
        if at == f.root:
            break
        if nodes[at].child != NONE:
            sort_children(f, at, room)
            if nodes[at].message == NONE and not newest:
                nodes[at].date = nodes[nodes[at].child].date
                nodes[at].number = nodes[nodes[at].child].number
        if nodes[at].next != NONE:
            at, entering = nodes[at].next, True
        else:
            at, entering = nodes[at].parent, False
    if newest:
        newest_dates(f)
    sort_children(f, f.root, room)


cdef void newest_dates(forest_t *f) noexcept nogil:
    # Each node of the top has the date of the newest message of its thread.
    cdef node_t *nodes = f.nodes
    cdef int32_t top = nodes[f.root].child, at
    cdef bint entering
    while top != NONE:
        at, entering = top, True
        if nodes[top].message == NONE:
            nodes[top].date = nodes[nodes[top].child].date
            nodes[top].number = nodes[nodes[top].child].number
        while True:
            if entering and compare_siblings(&at, &top, nodes) > 0:
                nodes[top].date, nodes[top].number = nodes[at].date, nodes[at].number
            if entering and nodes[at].child != NONE:
                at = nodes[at].child
            elif at == top:
                break
            elif nodes[at].next != NONE:
                at, entering = nodes[at].next, True
            else:
                at, entering = nodes[at].parent, False
        top = nodes[top].next


cdef inline int32_t subject_message(const node_t *nodes, int32_t at) noexcept nogil:
    return nodes[at].message if nodes[at].message != NONE else nodes[nodes[at].child].message


cdef void merge_subjects(
    forest_t *f, const int64_t *subjects, const uint8_t *replies, int32_t *table
) noexcept nogil:
    # Step 5.  table: a node for each subject's rank, NONE at first.
    cdef node_t *nodes = f.nodes
    cdef int32_t at = nodes[f.root].child, following, other, child, dummy
    cdef int64_t subject
    cdef bint here, there
    while at != NONE:  # 5.B
        subject = subjects[subject_message(nodes, at)]
        if subject:
            other = table[subject]
            if other == NONE:
                table[subject] = at
            elif nodes[other].message != NONE and (
                nodes[at].message == NONE
                or (replies[nodes[other].message] and not replies[nodes[at].message])
            ):
                table[subject] = at
        at = nodes[at].next
    at = nodes[f.root].child
    while at != NONE:  # 5.C
        following = nodes[at].next
        subject = subjects[subject_message(nodes, at)]
        other = table[subject] if subject else at
        if other != at:
            here, there = nodes[at].message == NONE, nodes[other].message == NONE
            if here and there:
                child = nodes[at].child
                while child != NONE:
                    dummy = nodes[child].next
                    unlink(nodes, child)
                    append(nodes, other, child)
                    child = dummy
                unlink(nodes, at)
            elif there or (not here and replies[nodes[at].message] and not replies[nodes[other].message]):
                unlink(nodes, at)
                append(nodes, other, at)
            else:
                # the dummy takes the place of what the table had
                dummy = new_node(f, NONE)
                replace(nodes, other, dummy)
                unlink(nodes, at)
                append(nodes, dummy, other)
                append(nodes, dummy, at)
                table[subject] = dummy
        at = following


cdef inline void replace(node_t *nodes, int32_t old, int32_t new) noexcept nogil:
    cdef node_t *node = &nodes[old]
    nodes[new].parent, nodes[new].next, nodes[new].previous = node.parent, node.next, node.previous
    if node.previous != NONE:
        nodes[node.previous].next = new
    else:
        nodes[node.parent].child = new
    if node.next != NONE:
        nodes[node.next].previous = new
    else:
        nodes[node.parent].last = new
    node.parent = node.next = node.previous = NONE


# -- the response -----------------------------------------------------------------------------------------

cdef inline char *write_number(char *p, uint32_t value) noexcept nogil:
    cdef char digits[10]
    cdef int n = 0
    while True:
        digits[n] = <char>(48 + value % 10)
        value //= 10
        n += 1
        if value == 0:
            break
    while n:
        n -= 1
        p[0] = digits[n]
        p += 1
    return p


cdef char *write_threads(const forest_t *f, const uint32_t *numbers, char *p) noexcept nogil:
    # RFC 5256 §4: an only child follows its parent; of several, each is in parentheses.
    cdef const node_t *nodes = f.nodes
    cdef int32_t at = nodes[f.root].child
    cdef bint alone, entering = True
    while at != NONE and at != f.root:
        alone = nodes[at].parent != f.root and nodes[at].next == NONE and nodes[at].previous == NONE
        if entering:
            if not alone:
                p[0] = 40
                p += 1
            if nodes[at].message != NONE:
                p = write_number(p, numbers[nodes[at].message])
                if nodes[at].child != NONE:
                    p[0] = 32
                    p += 1
            if nodes[at].child != NONE:
                at = nodes[at].child
                continue
        if not alone:
            p[0] = 41
            p += 1
        if nodes[at].next != NONE:
            at, entering = nodes[at].next, True
        else:
            at, entering = nodes[at].parent, False
    return p


cdef bytes formatted(const forest_t *f, const uint32_t *numbers):
    # A node takes a number, a space and two parentheses at most.
    cdef char *buffer = <char *>malloc(<size_t>f.count * 13 + 1)
    if buffer == NULL:
        raise MemoryError
    cdef char *end
    with nogil:
        end = write_threads(f, numbers, buffer)
    cdef bytes result = PyBytes_FromStringAndSize(buffer, end - buffer)
    free(buffer)
    return result


def thread_references(
    bytes numbers, bytes references, bytes dates, bytes subjects, bytes replies, uint64_t seed, bint newest=False
):
    """The threads of RFC 5256 REFERENCES, as they are answered.

    A row is a message, in ascending order: number u32, the text of references (Message-ID, NUL, its references), date
    i64, rank of its base subject i64 (0: none), reply 0 or 1.  newest: THREAD=REFS, subjects and replies are not used.
    """
    cdef uint32_t count
    cdef Py_ssize_t size = PyBytes_GET_SIZE(references)
    if size < 4:
        raise ValueError("these are no texts")
    memcpy(&count, PyBytes_AS_STRING(references), 4)
    if (size - 4) // 4 < count:
        raise ValueError("these are no texts")
    cdef const uint32_t *ends = <const uint32_t *>(PyBytes_AS_STRING(references) + 4)
    cdef const char *octets = PyBytes_AS_STRING(references) + 4 + 4 * <Py_ssize_t>count
    cdef uint32_t i, before = 0, words = 0
    for i in range(count):
        if ends[i] < before or ends[i] > size - 4 - 4 * <Py_ssize_t>count:
            raise ValueError("these are no texts")
        before = ends[i]
    if PyBytes_GET_SIZE(numbers) != 4 * <Py_ssize_t>count or PyBytes_GET_SIZE(dates) != 8 * <Py_ssize_t>count or (
        not newest
        and (PyBytes_GET_SIZE(subjects) != 8 * <Py_ssize_t>count or PyBytes_GET_SIZE(replies) != <Py_ssize_t>count)
    ):
        raise ValueError("columns of different lengths")
    cdef const int64_t *rank = <const int64_t *>PyBytes_AS_STRING(subjects)
    if not newest:
        for i in range(count):
            if not 0 <= rank[i] <= count:
                raise ValueError("a subject's rank is above the number of messages")
    if count == 0:
        return b""
    cdef forest_t f
    cdef uint64_t places = 16
    cdef const int64_t *date = <const int64_t *>PyBytes_AS_STRING(dates)
    cdef const uint8_t *reply = <const uint8_t *>PyBytes_AS_STRING(replies)
    cdef int32_t *own = NULL
    cdef int32_t *room = NULL
    f.nodes, f.ids, f.count, f.seed = NULL, NULL, 0, seed
    try:
        for i in range(before):
            words += octets[i] == 0
        if <uint64_t>count + words > WORDS_MAX:
            raise ValueError(f"more than {WORDS_MAX} messages and references")
        while places < 2 * (<uint64_t>count + words):
            places *= 2
        f.mask = places - 1
        # at most: a node for each word, for each message, for each pair of merged subjects, and the root
        f.nodes = <node_t *>malloc((<size_t>words + 3 * <size_t>count + 2) * sizeof(node_t))
        f.ids = <id_t *>malloc(places * sizeof(id_t))
        own = <int32_t *>malloc((<size_t>count + 1) * sizeof(int32_t))
        room = <int32_t *>malloc((<size_t>words + 3 * <size_t>count + 2) * sizeof(int32_t))
        if f.nodes == NULL or f.ids == NULL or own == NULL or room == NULL:
            raise MemoryError
        with nogil:
            build(&f, ends, octets, count, own, places)
            prune(&f)
            date_nodes(&f, date)
            sort_all(&f, room, newest)  # step 4
            if not newest:
                for i in range(count + 1):
                    own[i] = NONE
                merge_subjects(&f, rank, reply, own)
                sort_all(&f, room, False)
        return formatted(&f, <const uint32_t *>PyBytes_AS_STRING(numbers))
    finally:
        free(f.nodes)
        free(f.ids)
        free(own)
        free(room)


cdef void build(
    forest_t *f, const uint32_t *ends, const char *octets, uint32_t count, int32_t *own, uint64_t places
) noexcept nogil:
    cdef uint64_t at
    cdef int32_t i, last
    for at in range(places):
        f.ids[at].node = NONE
    link_messages(f, ends, octets, count, own)
    last = f.count
    f.root = new_node(f, NONE)
    for i in range(last):  # step 2
        if f.nodes[i].parent == NONE:
            append(f.nodes, f.root, i)


def thread_by_subject(bytes numbers, bytes dates, bytes subjects):
    """The threads of RFC 5256 ORDEREDSUBJECT, as they are answered; rows as in thread_references()."""
    cdef Py_ssize_t i, count = PyBytes_GET_SIZE(numbers) // 4
    if PyBytes_GET_SIZE(dates) != 8 * count or PyBytes_GET_SIZE(subjects) != 8 * count or PyBytes_GET_SIZE(numbers) % 4:
        raise ValueError("columns of different lengths")
    cdef const int64_t *rank = <const int64_t *>PyBytes_AS_STRING(subjects)
    cdef const int64_t *date = <const int64_t *>PyBytes_AS_STRING(dates)
    for i in range(count):
        if not 0 <= rank[i] <= count:
            raise ValueError("a subject's rank is above the number of messages")
    if count == 0:
        return b""
    cdef forest_t f
    cdef int32_t *room = <int32_t *>malloc((count + 1) * sizeof(int32_t))
    cdef int32_t *first = <int32_t *>malloc((count + 1) * sizeof(int32_t))
    f.nodes, f.count, f.ids = <node_t *>malloc((count + 1) * sizeof(node_t)), 0, NULL
    try:
        if f.nodes == NULL or room == NULL or first == NULL:
            raise MemoryError
        with nogil:
            for i in range(count):
                new_node(&f, <int32_t>i)
                room[i] = <int32_t>i
                first[i] = NONE
            first[count] = NONE
            f.root = new_node(&f, NONE)
            date_nodes(&f, date)
            qsort_r(room, count, sizeof(int32_t), compare_siblings, f.nodes)
            for i in range(count):  # by date: the first of a subject is the thread, the others are its children
                if first[rank[room[i]]] == NONE:
                    first[rank[room[i]]] = room[i]
                    append(f.nodes, f.root, room[i])
                else:
                    append(f.nodes, first[rank[room[i]]], room[i])
        return formatted(&f, <const uint32_t *>PyBytes_AS_STRING(numbers))
    finally:
        free(f.nodes)
        free(room)
        free(first)
