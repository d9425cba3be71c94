# The cursor over one command, and what it needs: included by imap.pyx.

cdef enum:
    NAME_OCTETS = 64            # no command has a longer name
    DIGITS_MAX = 19             # of a number that fits in 64 bits for sure

# RFC 9051 §9.  Such numbers are Python's own when they are written out.
cdef uint64_t NUMBER_MAX = <uint32_t>-1
cdef uint64_t NUMBER64_MAX = <uint64_t>-1 >> 1

cdef enum:
    IS_ATOM = 1                 # ATOM-CHAR
    IS_ASTRING = 2              # ASTRING-CHAR
    IS_LIST = 4                 # list-char
    IS_TAG = 8
    IS_WORD = 16                # of a keyword of the grammar: up to a bracket
    IS_QUOTED = 32              # stands for itself in a quoted string

cdef uint8_t KIND[256]


cdef void fill_kinds():
    # RFC 9051 §9: atom-specials, resp-specials, list-wildcards, quoted-specials
    cdef int i
    for i in range(256):
        KIND[i] = 0
        if 0x20 < i < 0x7F:
            if chr(i) not in '(){%*"\\]':
                KIND[i] |= IS_ATOM
            if chr(i) not in '(){%*"\\':
                KIND[i] |= IS_ASTRING
            if chr(i) not in '(){"\\':
                KIND[i] |= IS_LIST
            if chr(i) not in '(){%*"\\+':
                KIND[i] |= IS_TAG
            if chr(i) not in '()[]<>{"\\':
                KIND[i] |= IS_WORD
        if i not in (0, 10, 13) and chr(i) not in '"\\':
            KIND[i] |= IS_QUOTED


fill_kinds()


class ImapSyntaxError(ValueError):
    """The command is not what the grammar wants; the text says what was expected where, and goes out as BAD."""


cdef struct literal_t:
    uint64_t size
    Py_ssize_t at               # of its "{" or "~{"
    bint synchronizing
    bint binary                 # literal8


cdef bint find_announcement(octets_t p, Py_ssize_t n, literal_t *literal) noexcept nogil:
    # True when the line, its end removed, announces a literal: "{" number ["+"] "}" (RFC 9051 §4.3, RFC 7888 §4).
    cdef Py_ssize_t i = n, digits
    if i < 3 or p[i - 1] != c"}":
        return False
    i -= 1
    literal.synchronizing = p[i - 1] != c"+"
    if not literal.synchronizing:
        i -= 1
    digits = i
    while i > 0 and c"0" <= p[i - 1] <= c"9":
        i -= 1
    if i == digits or i == 0 or p[i - 1] != c"{":
        return False
    literal.at = i - 1
    literal.binary = literal.at > 0 and p[literal.at - 1] == c"~"
    if literal.binary:
        literal.at -= 1
    while i < digits and p[i] == c"0":
        i += 1
    literal.size = NUMBER64_MAX  # more is as good as endless
    if digits - i <= DIGITS_MAX:
        literal.size = 0
        while i < digits:
            literal.size = literal.size * 10 + (p[i] - c"0")
            i += 1
        literal.size = min(literal.size, NUMBER64_MAX)
    return True


cdef class ImapCommand:
    """One command; see the interface page."""

    cdef readonly bytes tag
    cdef readonly bytes name
    cdef readonly bint utf8
    cdef octets_t base          # the octets: of `keep`, or `owned`
    cdef Py_ssize_t at
    cdef Py_ssize_t stop
    cdef Py_ssize_t arguments   # where they begin
    cdef Py_ssize_t items
    cdef Py_ssize_t items_max
    cdef int depth
    cdef int depth_max
    cdef bytes keep
    cdef unsigned char *owned
    cdef Py_ssize_t capacity
    cdef bint pending           # the octets end with the announcement of a literal that is to come
    cdef list targets           # of literals that went elsewhere: [(offset behind the announcement, target)]
    cdef Py_ssize_t target

    def __dealloc__(self):
        free(self.owned)

    # -- for the reader ---------------------------------------------------------------------------

    cdef int append(self, octets_t p, Py_ssize_t n) except -1:
        cdef Py_ssize_t wanted = self.stop + n, capacity
        cdef unsigned char *grown
        if wanted > self.capacity:
            capacity = max(256, wanted + (wanted >> 1))
            grown = <unsigned char *>realloc(self.owned, capacity)
            if grown == NULL:
                raise MemoryError
            self.owned = grown
            self.capacity = capacity
            self.base = grown
        memcpy(self.owned + self.stop, p, n)
        self.stop += n
        return 0

    cdef void drop(self) noexcept:
        # The octets are not needed any more: tag and name stay.
        free(self.owned)
        self.owned = NULL
        self.base = NULL
        self.keep = None
        self.capacity = self.stop = self.at = self.arguments = 0

    cdef int begin(self) except -1:
        # Read tag and name; what cannot be read stays b"".
        cdef octets_t p = self.base
        cdef Py_ssize_t i = 0, start
        cdef unsigned char name[NAME_OCTETS]
        cdef Py_ssize_t n = 0
        self.tag = self.name = b""
        while i < self.stop and KIND[p[i]] & IS_TAG:
            i += 1
        self.at = self.arguments = i
        if i == 0 or i == self.stop or p[i] != c" ":
            return 0
        self.tag = p[:i]
        while True:
            i += 1
            start = n
            while i < self.stop and KIND[p[i]] & IS_ATOM and n < NAME_OCTETS - 1:
                name[n] = p[i] - 32 if c"a" <= p[i] <= c"z" else p[i]
                n += 1
                i += 1
            if n == start or (i < self.stop and p[i] not in (c" ", c"\r", c"\n")):
                return 0
            if n == 3 and i < self.stop and p[i] == c" " and memcmp(name, <const char *>b"UID", 3) == 0:
                name[n] = c" "
                n += 1
                continue
            break
        self.name = name[:n]
        self.at = self.arguments = i
        return 0

    cdef object wrong(self, str expected):
        return ImapSyntaxError(f"{expected} expected at octet {self.at + 1} of the command")

    # -- plain steps ------------------------------------------------------------------------------

    @property
    def held_octets(self):
        return self.stop

    def rewind(self):
        """The cursor goes back to the beginning of the arguments."""
        self.at = self.arguments
        self.items = self.depth = 0
        self.target = 0

    def space(self):
        """Pass one SP."""
        if self.at == self.stop or self.base[self.at] != c" ":
            raise self.wrong("space")
        self.at += 1
        self.items += 1
        if self.items > self.items_max:
            raise ImapSyntaxError(f"Too many items: a command has {self.items_max} at most")

    cdef bint take(self, bytes token) except -1:
        cdef octets_t wanted = <octets_t>PyBytes_AS_STRING(token)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(token), i
        if self.stop - self.at < n:
            return False
        for i in range(n):
            if lower(self.base[self.at + i]) != lower(wanted[i]):
                return False
        self.at += n
        if n == 1:
            if wanted[0] == c"(":
                self.depth += 1
                if self.depth > self.depth_max:
                    raise ImapSyntaxError(f"Too deep: parentheses nest {self.depth_max} deep at most")
            elif wanted[0] == c")":
                self.depth -= 1
        return True

    def accept(self, bytes token not None):
        """Pass token if it comes next (letters in any case); True when it did."""
        return self.take(token)

    def expect(self, bytes token not None):
        """Pass token, which must come next."""
        if not self.take(token):
            raise self.wrong(token.decode("ascii", "replace"))

    def peek(self):
        """The next octet, -1 at the end."""
        return self.base[self.at] if self.at < self.stop else -1

    def at_end(self):
        return self.at == self.stop

    def rest(self):
        """The octets that were not passed yet; the cursor stays."""
        return self.base[self.at:self.stop]

    def end(self):
        """Nothing may be left."""
        if self.at != self.stop:
            raise self.wrong("end of the command")

    # -- words ------------------------------------------------------------------------------------

    cdef bytes run(self, uint8_t kind, str expected):
        cdef Py_ssize_t i = self.at
        while i < self.stop and KIND[self.base[i]] & kind:
            i += 1
        if i == self.at:
            raise self.wrong(expected)
        cdef bytes found = self.base[self.at:i]
        self.at = i
        return found

    def atom(self):
        return self.run(IS_ATOM, "atom")

    def word(self):
        """A keyword in upper case, up to SP or a bracket."""
        return self.run(IS_WORD, "word").upper()

    def flag(self):
        cdef Py_ssize_t start = self.at
        if self.at < self.stop and self.base[self.at] == c"\\":
            self.at += 1
        while self.at < self.stop and KIND[self.base[self.at]] & IS_ATOM:
            self.at += 1
        if self.at == start or (self.at == start + 1 and self.base[start] == c"\\"):
            self.at = start
            raise self.wrong("flag")
        return PyUnicode_DecodeASCII(<char *>self.base + start, self.at - start, NULL)

    def flag_list(self):
        cdef list flags = []
        self.expect(b"(")
        if self.take(b")"):
            return flags
        while True:
            flags.append(self.flag())
            if self.take(b")"):
                return flags
            self.space()

    def initial_response(self):
        """The initial response of AUTHENTICATE (RFC 4959 §3): None without one, b"" for "="."""
        if self.at == self.stop:
            return None
        self.space()
        cdef bytes text = self.run(IS_ATOM, "base64")
        self.end()
        if text == b"=":
            return b""
        try:
            return a2b_base64(text, strict_mode=True)
        except (Base64Error, ValueError):
            raise ImapSyntaxError("The initial response is not base64") from None

    # -- strings ----------------------------------------------------------------------------------

    cdef bytes quoted(self):
        # RFC 9051 §4.3: also UTF-8; what is no UTF-8 needs a literal.
        cdef Py_ssize_t start = self.at + 1, i = start, escapes = 0
        cdef unsigned char seen = 0
        cdef bytes found
        cdef unsigned char *out
        while True:
            while i < self.stop and KIND[self.base[i]] & IS_QUOTED:
                seen |= self.base[i]
                i += 1
            if i < self.stop and self.base[i] == c'"':
                break
            if i + 1 < self.stop and self.base[i] == c"\\" and self.base[i + 1] in (c'"', c"\\"):
                escapes += 1
                i += 2
                continue
            self.at = i
            raise self.wrong("closing quote")
        self.at = i + 1
        if not escapes:
            found = self.base[start:i]
        else:
            found = PyBytes_FromStringAndSize(NULL, i - start - escapes)
            out = <unsigned char *>PyBytes_AS_STRING(found)
            while start < i:
                if self.base[start] == c"\\":
                    start += 1
                out[0] = self.base[start]
                out += 1
                start += 1
        if seen & 0x80:
            try:
                found.decode()
            except UnicodeDecodeError:
                raise ImapSyntaxError("A quoted string is UTF-8: send other octets in a literal") from None
        return found

    cdef object read_literal(self):
        # The octets of the literal that begins here, or what they were written to.
        cdef octets_t p = self.base
        cdef Py_ssize_t start = self.at, i = start
        cdef uint64_t size = 0
        cdef bint binary = p[i] == c"~"
        cdef bytes found
        i += 1 + binary
        while i < self.stop and c"0" <= p[i] <= c"9" and size < (<uint64_t>1 << 59):
            size = size * 10 + (p[i] - c"0")
            i += 1
        if i < self.stop and p[i] == c"+":
            i += 1
        if i >= self.stop or p[i] != c"}" or p[i - 1] == c"{":
            raise self.wrong("literal")
        i += 1
        if i < self.stop and p[i] == c"\r":
            i += 1
        if i >= self.stop or p[i] != c"\n":
            raise self.wrong("literal")
        i += 1
        if self.targets is not None and self.target < len(self.targets) and self.targets[self.target][0] == i:
            target = self.targets[self.target][1]
            self.target += 1
            self.at = i
            return target
        if size > <uint64_t>(self.stop - i) or (self.pending and i == self.stop):
            raise ImapSyntaxError("Literal too long here")
        found = p[i:i + <Py_ssize_t>size]
        if not binary and memchr(PyBytes_AS_STRING(found), 0, <size_t>size) != NULL:
            raise ImapSyntaxError("A literal has no NUL: binary data needs a literal8, ~{size}")  # RFC 9051 §9, CHAR8
        self.at = i + <Py_ssize_t>size
        return found

    cdef bint is_literal(self) noexcept:
        cdef octets_t p = self.base
        return self.at < self.stop and (
            p[self.at] == c"{" or (p[self.at] == c"~" and self.at + 1 < self.stop and p[self.at + 1] == c"{")
        )

    cdef bytes read_string(self, str expected):
        if self.at < self.stop and self.base[self.at] == c'"':
            return self.quoted()
        if not self.is_literal():
            raise self.wrong(expected)
        found = self.read_literal()
        if type(found) is not bytes:
            raise ImapSyntaxError("Literal too long here")
        return <bytes>found

    def string(self):
        return self.read_string("string")

    def astring(self):
        if self.at < self.stop and KIND[self.base[self.at]] & IS_ASTRING and not self.is_literal():
            return self.run(IS_ASTRING, "string")
        return self.read_string("string or atom")

    def nstring(self):
        """A string, None for NIL."""
        if self.take(b"NIL"):
            return None
        return self.read_string("string or NIL")

    def literal(self):
        if not self.is_literal():
            raise self.wrong("literal")
        return self.read_literal()

    def awaits_literal(self):
        """True when the literal that is to come begins here."""
        cdef literal_t literal
        cdef Py_ssize_t n = self.stop
        if not self.pending:
            return False
        n -= 1
        if n > 0 and self.base[n - 1] == c"\r":
            n -= 1
        return find_announcement(self.base, n, &literal) and literal.at == self.at

    # -- names of mailboxes -----------------------------------------------------------------------

    cdef str name_of(self, bytes octets):
        cdef octets_t p = <octets_t>PyBytes_AS_STRING(octets)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(octets), i
        cdef unsigned char seen = 0
        cdef str name
        cdef Py_UCS4 letter
        for i in range(n):
            if p[i] < 0x20 or p[i] == 0x7F:
                raise ImapSyntaxError("A mailbox name has no control characters")
            seen |= p[i]
        if seen & 0x80:
            # RFC 6855 §3, RFC 9051 §5.1: UTF-8 where the client enabled it
            if not self.utf8:
                raise ImapSyntaxError("UTF-8 in a mailbox name: ENABLE UTF8=ACCEPT or IMAP4rev2 first")
            try:
                name = PyUnicode_DecodeUTF8(<char *>p, n, NULL)
            except UnicodeDecodeError:
                raise ImapSyntaxError("A mailbox name is UTF-8") from None
        elif self.utf8 or memchr(p, c"&", n) == NULL:
            return PyUnicode_DecodeASCII(<char *>p, n, NULL)
        else:
            try:
                name = decode_utf7(octets)
            except ValueError as error:
                raise ImapSyntaxError(f"A mailbox name is modified UTF-7: {error}") from None
        for letter in name:
            if letter < 0x20 or 0x7F <= letter < 0xA0 or letter == 0x2028 or letter == 0x2029:
                raise ImapSyntaxError("A mailbox name has no control characters")
        return name

    def mailbox(self):
        cdef str name = self.name_of(self.astring())
        if len(name) == 5 and name.upper() == "INBOX":  # RFC 9051 §5.1
            return "INBOX"
        return name

    def list_mailbox(self):
        """A pattern of LIST: "%" and "*" may stand in an atom."""
        if self.at < self.stop and KIND[self.base[self.at]] & IS_LIST and not self.is_literal():
            return self.name_of(self.run(IS_LIST, "pattern"))
        return self.name_of(self.read_string("pattern"))

    # -- numbers ----------------------------------------------------------------------------------

    cdef uint64_t digits(self, uint64_t largest, str expected) except? 0:
        cdef uint64_t value = 0, digit
        cdef Py_ssize_t i = self.at
        while i < self.stop and c"0" <= self.base[i] <= c"9":
            digit = self.base[i] - c"0"
            if value > (largest - digit) // 10:
                raise ImapSyntaxError(f"Number too large at octet {self.at + 1} of the command")
            value = value * 10 + digit
            i += 1
        if i == self.at:
            raise self.wrong(expected)
        self.at = i
        return value

    def number(self):
        return self.digits(NUMBER_MAX, "number")

    def nz_number(self):
        if self.at < self.stop and self.base[self.at] == c"0":
            raise self.wrong("number above 0")
        return self.digits(NUMBER_MAX, "number above 0")

    def number64(self):
        return self.digits(NUMBER64_MAX, "number")

    def sequence_set(self):
        """Pairs of u32 as sent, 0 for "*"; None for "$"."""
        cdef octets_t p = self.base
        cdef Py_ssize_t i = self.at, end = self.stop, k = 0, start, last
        cdef uint64_t value
        cdef uint32_t digit
        cdef uint32_t *out
        if i < end and p[i] == c"$":  # RFC 5182 §2.1
            self.at += 1
            return None
        # A range has two octets at least, "1,": as many as there are octets left is more than enough.
        out = <uint32_t *>malloc(4 * (end - i + 2))
        if out == NULL:
            raise MemoryError
        try:
            while True:
                start = i
                value = 0
                last = min(end, i + 11)
                while i < last:
                    digit = p[i] - c"0"
                    if digit > 9:
                        break
                    value = value * 10 + digit
                    i += 1
                if i > start and p[start] != c"0":
                    if value > NUMBER_MAX:
                        self.at = start
                        raise ImapSyntaxError(f"Number too large at octet {self.at + 1} of the command")
                elif i == start and i < end and p[i] == c"*":
                    i += 1
                else:
                    self.at = start
                    raise self.wrong("number of a sequence set")
                out[k] = <uint32_t>value
                k += 1
                if i < end and p[i] == c":" and k & 1:
                    i += 1
                    continue
                if k & 1:
                    out[k] = <uint32_t>value
                    k += 1
                if i == end or p[i] != c",":
                    break
                i += 1
            if i < end and (p[i] == c":" or p[i] == c"*" or c"0" <= p[i] <= c"9"):
                self.at = i
                raise self.wrong("comma")
            self.at = i
            return PyBytes_FromStringAndSize(<char *>out, 4 * k)
        finally:
            free(out)

    # -- dates ------------------------------------------------------------------------------------

    cdef int64_t day(self, bint fixed) except? -1:
        # dd-Mon-yyyy from the cursor on, as days since 1970.  fixed: two characters for the day, SP for a zero.
        cdef octets_t p = self.base
        cdef Py_ssize_t i = self.at
        cdef int day = 0, month, year = 0, digits = 0
        cdef unsigned char name[3]
        if fixed and i < self.stop and p[i] == c" ":
            i += 1
            digits = 1
        while i < self.stop and c"0" <= p[i] <= c"9" and digits < 2:
            day = day * 10 + (p[i] - c"0")
            digits += 1
            i += 1
        if digits == 0 or (fixed and digits != 2) or self.stop - i < 9 or p[i] != c"-" or p[i + 4] != c"-":
            raise self.wrong("date")
        name[0], name[1], name[2] = lower(p[i + 1]), lower(p[i + 2]), lower(p[i + 3])
        for month in range(12):
            if memcmp(name, <const char *>b"janfebmaraprmayjunjulaugsepoctnovdec" + 3 * month, 3) == 0:
                break
        else:
            raise self.wrong("date")
        for digits in range(4):
            if not c"0" <= p[i + 5 + digits] <= c"9":
                raise self.wrong("date")
            year = year * 10 + (p[i + 5 + digits] - c"0")
        if day < 1 or day > days_of(year, month + 1):
            raise self.wrong("date that exists")
        self.at = i + 9
        return days_before(year, month + 1, day)

    def date(self):
        """Midnight of that day in seconds since 1970."""
        cdef bint quote = self.take(b'"')
        cdef int64_t days = self.day(False)
        if quote:
            self.expect(b'"')
        return days * 86400

    cdef int two(self, int largest) except -1:
        cdef octets_t p = self.base + self.at
        if self.stop - self.at < 2 or not (c"0" <= p[0] <= c"9" and c"0" <= p[1] <= c"9"):
            raise self.wrong("two digits")
        cdef int value = (p[0] - c"0") * 10 + (p[1] - c"0")
        if value > largest:
            raise self.wrong(f"number up to {largest}")
        self.at += 2
        return value

    def date_time(self):
        """Seconds since 1970 (UTC)."""
        cdef int64_t seconds
        cdef int sign
        self.expect(b'"')
        seconds = self.day(True) * 86400
        self.expect(b" ")
        seconds += self.two(23) * 3600
        self.expect(b":")
        seconds += self.two(59) * 60
        self.expect(b":")
        seconds += self.two(60)  # RFC 9051 does not forbid a leap second
        self.expect(b" ")
        sign = 1 if self.take(b"+") else -1
        if sign < 0:
            self.expect(b"-")
        seconds -= sign * self.two(23) * 3600
        seconds -= sign * self.two(59) * 60
        self.expect(b'"')
        return seconds


cdef int days_of(int year, int month) noexcept nogil:
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    return 30 if month in (4, 6, 9, 11) else 31


cdef int64_t days_before(int64_t year, int month, int day) noexcept nogil:
    # Days from 1970-01-01 to that day of the Gregorian calendar, counted from March on.
    cdef int64_t y = year - (month <= 2)
    cdef int64_t era = y // 400 if y >= 0 else (y - 399) // 400
    cdef int64_t year_of_era = y - era * 400
    cdef int64_t day_of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719468


# -- modified UTF-7 (RFC 3501 §5.1.3) ------------------------------------------------------------------------------------

def encode_utf7(str name not None):
    """A mailbox's name as clients without UTF-8 know it."""
    if name.isascii() and name.isprintable() and "&" not in name:
        return name.encode()
    cdef bytearray out = bytearray()
    cdef list shifted = []
    cdef Py_UCS4 letter
    for letter in name:
        if 0x20 <= letter <= 0x7E:
            if shifted:
                out += shift_of(shifted)
                shifted = []
            out += b"&-" if letter == c"&" else b"%c" % <int>letter
        else:
            shifted.append(letter)
    if shifted:
        out += shift_of(shifted)
    return bytes(out)


cdef bytes shift_of(list letters):
    cdef bytes octets = "".join(letters).encode("utf-16-be", "surrogatepass")
    return b"&" + b2a_base64(octets, newline=False).rstrip(b"=").replace(b"/", b",") + b"-"


def decode_utf7(bytes octets not None):
    """The name; raises ValueError for everything that encode_utf7() does not write."""
    cdef list parts = []
    cdef Py_ssize_t at = 0, start, end
    cdef bytes inner
    try:
        while True:
            start = octets.find(b"&", at)
            if start < 0:
                parts.append(octets[at:].decode("ascii"))
                break
            parts.append(octets[at:start].decode("ascii"))
            end = octets.find(b"-", start)
            if end < 0:
                raise ValueError("the shift has no end")
            inner = octets[start + 1:end].replace(b",", b"/")
            if inner:
                parts.append(a2b_base64(inner + b"=" * ((4 - len(inner) % 4) % 4), strict_mode=True).decode("utf-16-be"))
            else:
                parts.append("&")
            at = end + 1
    except (Base64Error, UnicodeDecodeError):
        raise ValueError("the shift is no UTF-16 in base64") from None
    cdef str name = "".join(parts)
    # One name has one form: no shift where none is needed, none cut in two, no bits left over.
    if encode_utf7(name) != octets:
        raise ValueError("the name is written in a longer way than need be")
    return name
