# Address fields as ENVELOPE shows them; included by imap_facts.pyx.
#
# RFC 5322 §3.4 with the obsolete forms of §4.4: one pass over the tokens, with what the current address has so far.
# What is no address is read as well as it goes, what is left over is dropped.

cdef enum:
    ADDRESSES_MAX = 10000  # of one field

cdef struct place_t:  # in a buffer that may move
    Py_ssize_t start
    Py_ssize_t n  # -1: there is none

cdef struct address_t:
    place_t name
    place_t mailbox
    place_t host

cdef bint IS_ATOM[256]

cdef void fill_atoms():
    cdef int i
    for i in range(256):
        IS_ATOM[i] = i not in b' \t\r\n()<>@,;:"[]'

fill_atoms()


cdef class AddressReader:
    cdef buffer_t _spaced  # the words of the phrase or local part, with a space between them
    cdef buffer_t _tight  # the same without
    cdef buffer_t _domain
    cdef buffer_t _phrase
    cdef buffer_t _hops
    cdef buffer_t _comment  # the first one that is not empty
    cdef buffer_t _word
    cdef Py_ssize_t _words
    cdef Py_ssize_t _domain_words  # -1: no "@" was seen
    cdef Py_ssize_t _phrase_words  # -1: no "<" was seen
    cdef Py_ssize_t _route  # octets of _hops that are it; -1: there is none
    cdef bint _closed  # ">" was seen
    cdef bint _in_group
    cdef Py_ssize_t _found
    cdef buffer_t *_out
    cdef address_t *_first  # where the first address is to be kept, and
    cdef buffer_t *_kept  # where its octets are; or NULL

    def __dealloc__(self):
        free(self._spaced.p)
        free(self._tight.p)
        free(self._domain.p)
        free(self._phrase.p)
        free(self._hops.p)
        free(self._comment.p)
        free(self._word.p)

    cdef int format(self, span_t value, buffer_t *out, address_t *first, buffer_t *kept) except -1:
        # The addresses of an unfolded field value, as ENVELOPE has them, or NIL, go to the end of out.
        cdef Py_ssize_t start = out.n, i = 0, begin
        cdef octets_t p = value.p
        self._out, self._first, self._kept = out, first, kept
        self._found = 0
        self._in_group = False
        self._clear()
        put(out, b"(", 1)
        while i < value.n and self._found < ADDRESSES_MAX:
            if IS_ATOM[p[i]]:
                begin = i
                while i < value.n and IS_ATOM[p[i]]:
                    i += 1
                self._on_word(p + begin, i - begin)
            elif is_lwsp(p[i]):
                i += 1
            elif p[i] == c'"':
                i = self._on_quoted(p, i + 1, value.n)
            elif p[i] == c"(":
                i = self._on_comment(p, i, value.n)
            elif p[i] == c"[":
                begin = i
                while i < value.n and p[i] != c"]":
                    i += 1
                if i < value.n:
                    i += 1
                self._on_word(p + begin, i - begin)
            else:
                self._on_special(p[i])
                i += 1
        self._finish()
        if self._in_group:
            self._end_group()
        if self._found:
            put(out, b")", 1)
        else:
            out.n = start
            put(out, b"NIL", 3)
        return 0

    cdef void _clear(self) noexcept nogil:
        self._spaced.n = self._tight.n = self._phrase.n = self._comment.n = 0
        self._hops.n = 0
        self._words = 0
        self._domain_words = self._phrase_words = -1
        self._route = -1
        self._closed = False

    cdef Py_ssize_t _on_quoted(self, octets_t p, Py_ssize_t i, Py_ssize_t n) except -1:
        # i is behind the quote; returns where the string ends.
        cdef Py_ssize_t begin = i
        while i < n and p[i] != c'"' and p[i] != c"\\":
            i += 1
        if i < n and p[i] == c'"':
            self._on_word(p + begin, i - begin)
            return i + 1
        self._word.n = 0
        i = begin
        while i < n and p[i] != c'"':
            if p[i] == c"\\":
                if i + 1 == n:
                    break
                i += 1
            put(&self._word, p + i, 1)
            i += 1
        self._on_word(self._word.p, self._word.n)
        return i + 1 if i < n and p[i] == c'"' else i

    cdef Py_ssize_t _on_comment(self, octets_t p, Py_ssize_t i, Py_ssize_t n) except -1:
        cdef Py_ssize_t begin = i + 1, depth = 0, end
        cdef buffer_t *comment = &self._comment
        while i < n:
            if p[i] == c"\\":
                i += 1
            elif p[i] == c"(":
                depth += 1
            elif p[i] == c")":
                depth -= 1
                if depth == 0:
                    break
            i += 1
        end = i + 1
        i = min(i, n)
        if comment.n == 0:
            while begin < i:
                if p[begin] == c"\\" and begin + 1 < i:
                    begin += 1
                if comment.n or not is_space(p[begin]):
                    put(comment, p + begin, 1)
                begin += 1
            while comment.n and is_space(comment.p[comment.n - 1]):
                comment.n -= 1
        return end

    cdef int _on_word(self, octets_t p, Py_ssize_t n) except -1:
        if self._closed:
            return 0
        if self._domain_words >= 0:
            self._domain_words += 1
            return put(&self._domain, p, n)
        if self._words:
            put(&self._spaced, b" ", 1)
        self._words += 1
        put(&self._spaced, p, n)
        return put(&self._tight, p, n)

    cdef int _on_special(self, unsigned char c) except -1:
        cdef span_t none = span_t(NULL, 0)
        if c == c"<" and self._phrase_words < 0:
            self._phrase_words = self._words
            self._phrase.n = 0
            put(&self._phrase, self._spaced.p, self._spaced.n)
            self._forget_words()
            self._domain_words = -1
        elif c == c">":
            self._closed = True
        elif c == c"@" and not self._closed:
            if self._domain_words >= 0 and self._phrase_words < 0:
                self._domain_words += 1
                put(&self._domain, b"@", 1)
            else:
                self._domain_words = 0
                self._domain.n = 0
        elif c == c":" and self._phrase_words >= 0 and not self._closed:
            self._end_hop()
            self._route = self._hops.n
            self._forget_words()
        elif c == c":" and self._domain_words < 0 and not self._in_group:
            self._add(none, none, text_of(&self._spaced), none)
            self._in_group = True
            self._clear()
        elif c == c";":
            self._finish()
            if self._in_group:
                self._end_group()
                self._in_group = False
        elif c == c"," and self._phrase_words >= 0 and not self._closed:
            self._end_hop()
        elif c == c",":
            self._finish()
        return 0

    cdef void _forget_words(self) noexcept nogil:
        self._words = 0
        self._spaced.n = self._tight.n = 0

    cdef int _end_hop(self) except -1:
        # §4.4 obs-route: @one,@two:local@domain.
        if self._domain_words > 0:
            put(&self._hops, b",@", 2)
            put(&self._hops, self._domain.p, self._domain.n)
        self._domain_words = -1
        return 0

    cdef int _end_group(self) except -1:
        cdef span_t none = span_t(NULL, 0)
        return self._add(none, none, none, none)

    cdef int _finish(self) except -1:
        cdef span_t name = text_of(&self._phrase), route = span_t(NULL, 0), local, host = span_t(&NOTHING[0], 0)
        if self._words or self._domain_words >= 0 or self._phrase_words > 0:
            if name.n == 0:
                name = text_of(&self._comment)
            if name.n == 0:
                name.p = NULL
            if self._route >= 0:
                route = text_of(&self._hops)
                route.n = self._route
                if route.n:  # without the first comma
                    route = span_t(route.p + 1, route.n - 1)
            local = text_of(&self._tight)
            if self._domain_words < 0 and self._phrase_words < 0:
                local = text_of(&self._spaced)
            if self._domain_words > 0:  # else it is empty: NIL would mean a group
                host = text_of(&self._domain)
            self._add(name, route, local, host)
        self._clear()
        return 0

    cdef int _add(self, span_t name, span_t route, span_t mailbox, span_t host) except -1:
        # RFC 9051 §7.5.2.  host NIL: a group begins (mailbox is its name) or ends (mailbox NIL).
        cdef buffer_t *out = self._out
        put(out, b"(", 1)
        put_nstring(out, name)
        put(out, b" ", 1)
        put_nstring(out, route)
        put(out, b" ", 1)
        put_nstring(out, mailbox)
        put(out, b" ", 1)
        put_nstring(out, host)
        put(out, b")", 1)
        if self._found == 0 and self._first != NULL:
            self._first.name = self._keep(name)
            self._first.mailbox = self._keep(mailbox)
            self._first.host = self._keep(host)
        self._found += 1
        return 0

    cdef place_t _keep(self, span_t value) except *:
        cdef place_t place = place_t(self._kept.n, -1 if value.p == NULL else value.n)
        put(self._kept, value.p, value.n)
        return place
