"""What the store keeps of a message for IMAP: ENVELOPE, BODYSTRUCTURE, sort keys, references, places of parts.

    Flow      Part (mime.pyx), header octets → FactsPacker.pack() → packed facts (gateway/mail/imap_facts.py)
    Limits    ADDRESSES_MAX of a field, REFERENCES_MAX of a message, SUBJECT_OCTETS of a subject that is a sort key
    Errors    ValueError for parts that are not of these octets
    Security  octets of the sender reach the wire only as quoted strings and literals; all is linear in the header
    Standards RFC 9051 §7.5.2 (ENVELOPE, BODYSTRUCTURE), RFC 5256 §2 (sort keys, references), RFC 5957, RFC 5322 §3
    Bugs      of repeated fields the first one counts (RFC 5322 §3.6 allows no second)

What is not ASCII, or has encoded-words, is text of some charset: then the functions that Python gave are asked.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memchr, memcmp, memcpy, memset, strlen

from fieldscan cimport is_lwsp, is_wsp, lower, next_field, same_ignoring_case, skip_cfws, trim_value, unfold
from imapstring cimport imap_string_form, imap_string_measure, imap_string_put

ctypedef const unsigned char *octets_t

cdef struct span_t:
    octets_t p  # NULL: there is none
    Py_ssize_t n

cdef struct buffer_t:
    unsigned char *p
    Py_ssize_t n
    Py_ssize_t room

cdef enum:
    VERSION = 1
    SECTIONS = 6
    ROOM = 512  # octets a buffer begins with: what most need
    REFERENCES_MAX = 100  # of a long thread the first and the newest matter
    MSG_ID_MAX = 998  # octets
    SUBJECT_OCTETS = 4096  # in Python, each mark that is removed costs a pass

cdef struct head_t:  # in front of packed facts
    unsigned char version
    unsigned char unused[3]
    uint32_t header
    uint32_t lengths[SECTIONS]

cdef struct place_of_part_t:  # in the section PARTS
    int32_t parent
    unsigned char encoding
    unsigned char unused[3]
    uint32_t header_start
    uint32_t header_end
    uint32_t body_start
    uint32_t body_end

cdef enum:  # fields
    DATE, SUBJECT, FROM, SENDER, REPLY_TO, TO, CC, BCC, IN_REPLY_TO, MESSAGE_ID, REFERENCES
    TYPE, ENCODING, ID, DESCRIPTION, MD5, DISPOSITION, LANGUAGE, LOCATION
    FIELDS

cdef list _NAMES = [
    b"date", b"subject", b"from", b"sender", b"reply-to", b"to", b"cc", b"bcc", b"in-reply-to", b"message-id",
    b"references", b"content-type", b"content-transfer-encoding", b"content-id", b"content-description",
    b"content-md5", b"content-disposition", b"content-language", b"content-location",
]

cdef enum:
    NAME_MAX = 25
    NAMES_ALIKE = 3

cdef const char *NAMES[FIELDS]
cdef int BY_LENGTH[NAME_MAX + 1][NAMES_ALIKE]  # fields whose names are so long; -1 behind them


cdef void fill_names():
    cdef int field, length, at
    for length in range(NAME_MAX + 1):
        for at in range(NAMES_ALIKE):
            BY_LENGTH[length][at] = -1
    for field in range(FIELDS):
        NAMES[field] = PyBytes_AS_STRING(_NAMES[field])
        at = 0
        while BY_LENGTH[len(_NAMES[field])][at] >= 0:
            at += 1
        BY_LENGTH[len(_NAMES[field])][at] = field


fill_names()

cdef const char **ENCODINGS = ["7BIT", "8BIT", "BINARY", "QUOTED-PRINTABLE", "BASE64"]
cdef bytes US_ASCII = b'("CHARSET" "US-ASCII")'  # RFC 2045 §5.2
cdef bytes EMPTY_PART = b'("TEXT" "PLAIN" ("CHARSET" "US-ASCII") NIL NIL "7BIT" 0 0 NIL NIL NIL NIL)'  # one is required


cdef inline unsigned char upper(unsigned char c) noexcept nogil:
    return c - 32 if c"a" <= c <= c"z" else c


# -- octets ----------------------------------------------------------------------------------------------------------


cdef unsigned char *extend(buffer_t *b, Py_ssize_t more) except NULL:
    # Where so many octets go, which are the buffer's from now on.  Earlier pointers into it are not valid any more.
    cdef Py_ssize_t room
    cdef unsigned char *p
    if b.n + more > b.room or b.p == NULL:
        room = 2 * (b.n + more) + ROOM
        p = <unsigned char *>realloc(b.p, room)
        if p == NULL:
            raise MemoryError
        b.p = p
        b.room = room
    b.n += more
    return b.p + b.n - more


cdef int put(buffer_t *b, const void *p, Py_ssize_t n) except -1:
    if n:
        memcpy(extend(b, n), p, n)
    return 0


cdef int put_bytes(buffer_t *b, bytes octets) except -1:
    return put(b, PyBytes_AS_STRING(octets), PyBytes_GET_SIZE(octets))


cdef int put_string(buffer_t *b, octets_t p, Py_ssize_t n) except -1:
    cdef imap_string_form form = imap_string_measure(p, n)
    imap_string_put(extend(b, form.size), p, n, form)
    return 0


cdef int put_nstring(buffer_t *b, span_t value) except -1:
    if value.p == NULL:
        return put(b, b"NIL", 3)
    return put_string(b, value.p, value.n)


cdef int put_number(buffer_t *b, int64_t value) except -1:
    cdef char digits[24]
    return put(b, digits, snprintf(digits, sizeof(digits), "%lld", <long long>value))


cdef inline bint is_space(unsigned char c) noexcept nogil:
    # What bytes.strip() takes away.
    return c == c" " or 9 <= c <= 13


cdef unsigned char NOTHING[1]


cdef span_t text_of(buffer_t *b) noexcept nogil:
    # What is in it; nothing is no NIL.
    cdef span_t text = span_t(b.p, b.n)
    if text.p == NULL:
        text.p = NOTHING
    return text


cdef span_t stripped(octets_t p, Py_ssize_t n) noexcept nogil:
    # As bytes.strip() does.
    while n and is_space(p[0]):
        p += 1
        n -= 1
    while n and is_space(p[n - 1]):
        n -= 1
    return span_t(p, n)


cdef span_t upto(span_t value, unsigned char c) noexcept nogil:
    cdef octets_t found = <octets_t>memchr(value.p, c, value.n) if value.n else NULL
    return value if found == NULL else span_t(value.p, found - value.p)


include "imap_address.pxi"
include "imap_sort_key.pxi"


# -- fields ----------------------------------------------------------------------------------------------------------

cdef struct fields_t:
    span_t values[FIELDS]


cdef class _Header:
    # The values of the fields that matter, unfolded, of one part's header.
    cdef fields_t fields
    cdef object _octets  # what they lie in
    cdef list _unfolded

    cdef int read(self, octets_t p, Py_ssize_t n) except -1:
        cdef Py_ssize_t at = 0, colon = 0, end = 0, length
        cdef int i, field
        while next_field(p, &at, n, &colon, &end):
            length = colon - at
            while length and is_wsp(p[at + length - 1]):
                length -= 1
            if length <= NAME_MAX:
                for i in range(NAMES_ALIKE):
                    field = BY_LENGTH[length][i]
                    if field < 0:
                        break
                    if self.fields.values[field].p == NULL and same_ignoring_case(p + at, NAMES[field], length):
                        self.fields.values[field] = self._value(p + colon + 1, end - colon - 1)
                        break
            at = end
        return 0

    cdef span_t _value(self, octets_t p, Py_ssize_t n) except *:
        cdef bytes value
        cdef unsigned char *out
        if not trim_value(&p, &n):
            return span_t(p, n)
        value = PyBytes_FromStringAndSize(NULL, n)
        if self._unfolded is None:
            self._unfolded = []
        self._unfolded.append(value)
        out = <unsigned char *>PyBytes_AS_STRING(value)
        return span_t(out, unfold(p, n, out))


# -- a message -------------------------------------------------------------------------------------------------------

cdef struct part_t:
    int parent, encoding
    int64_t header_start, header_end, body_start, body_end, lines
    octets_t media_type
    Py_ssize_t media_octets


cdef class _Packing:
    # One message.
    cdef FactsPacker _packer
    cdef list _parts
    cdef object _octets
    cdef octets_t _content  # NULL: _octets is asked
    cdef Py_ssize_t _content_octets
    cdef part_t *_part
    cdef int _count
    cdef buffer_t _out
    cdef buffer_t _text
    cdef buffer_t _kept  # of first addresses
    cdef address_t _first[3]  # From, To, Cc

    def __dealloc__(self):
        free(self._part)
        free(self._out.p)
        free(self._text.p)
        free(self._kept.p)

    cdef int start(self, FactsPacker packer, list parts, object octets) except -1:
        cdef int i
        cdef part_t *into
        self._packer, self._parts, self._octets = packer, parts, octets
        if PyBytes_CheckExact(octets):
            self._content = <octets_t>PyBytes_AS_STRING(octets)
            self._content_octets = PyBytes_GET_SIZE(octets)
        self._count = <int>len(parts)
        if self._count == 0:
            raise ValueError("a message has one part at least")
        self._part = <part_t *>calloc(self._count, sizeof(part_t))
        if self._part == NULL:
            raise MemoryError
        for i in range(self._count):
            part = parts[i]
            into = &self._part[i]
            into.parent = part.parent
            into.encoding = part.encoding
            into.header_start = part.header_start
            into.header_end = part.header_end
            into.body_start = part.body_start
            into.body_end = part.body_end
            into.lines = part.lines
            media_type = <bytes?>part.media_type  # the part keeps it
            into.media_type = <octets_t>PyBytes_AS_STRING(media_type)
            into.media_octets = PyBytes_GET_SIZE(media_type)
        return 0

    cdef _Header header(self, int64_t start, int64_t end):
        cdef _Header header = _Header()
        if self._content != NULL:
            if not 0 <= start <= end <= self._content_octets:
                raise ValueError("the parts are not of this content")
            header.read(self._content + start, end - start)
        else:
            octets = bytes(self._octets(start, end))
            header._octets = octets
            header.read(<octets_t>PyBytes_AS_STRING(octets), PyBytes_GET_SIZE(octets))
        return header

    cdef object pack(self, bytes origin):
        cdef head_t head
        cdef part_t *top = &self._part[0]
        cdef _Header header = self.header(0, top.header_end)
        cdef fields_t *fields = &header.fields
        cdef Py_ssize_t ends[SECTIONS + 1]
        cdef buffer_t *out = &self._out
        cdef int i
        memset(&head, 0, sizeof(head))
        head.version = VERSION
        head.header = <uint32_t>top.body_start
        extend(out, sizeof(head))
        ends[0] = out.n
        self._envelope(fields, True)
        ends[1] = out.n
        self._structure(0, header)
        ends[2] = out.n
        self._sort_keys(fields)
        ends[3] = out.n
        self._thread(fields)
        ends[4] = out.n
        self._places()
        ends[5] = out.n
        put_bytes(out, origin)
        ends[6] = out.n
        for i in range(SECTIONS):
            head.lengths[i] = <uint32_t>(ends[i + 1] - ends[i])
        memcpy(out.p, &head, sizeof(head))
        packed = PyBytes_FromStringAndSize(<const char *>out.p, out.n)
        return packed, top.body_start, self._sent_date(fields.values[DATE])

    cdef int _places(self) except -1:
        cdef place_of_part_t place
        cdef int i
        memset(&place, 0, sizeof(place))
        for i in range(self._count):
            place.parent = self._part[i].parent
            place.encoding = <unsigned char>self._part[i].encoding
            place.header_start = <uint32_t>self._part[i].header_start
            place.header_end = <uint32_t>self._part[i].header_end
            place.body_start = <uint32_t>self._part[i].body_start
            place.body_end = <uint32_t>self._part[i].body_end
            put(&self._out, &place, sizeof(place))
        return 0

    cdef object _sent_date(self, span_t value):
        cdef int64_t at
        if value.n == 0:
            return 0
        at = parse_date(value.p, value.n)
        if at < 0:
            return self._packer.date(value.p[:value.n])
        return at if at < 1 << 32 else 0

    # -- ENVELOPE ----------------------------------------------------------------------------------------------------

    cdef int _envelope(self, fields_t *fields, bint is_top) except -1:
        # RFC 9051 §7.5.2: date, subject, from, sender, reply-to, to, cc, bcc, in-reply-to, message-id.
        cdef buffer_t *out = &self._out
        cdef Py_ssize_t from_, from_end, start
        cdef int field
        put(out, b"(", 1)
        put_nstring(out, fields.values[DATE])
        put(out, b" ", 1)
        put_nstring(out, fields.values[SUBJECT])
        put(out, b" ", 1)
        from_ = out.n
        self._address_field(fields, FROM, 0 if is_top else -1)
        from_end = out.n
        for field in range(SENDER, REPLY_TO + 1):
            put(out, b" ", 1)
            start = out.n
            self._address_field(fields, field, -1)
            if out.n == start + 3:  # NIL: it is From
                out.n = start
                extend(out, from_end - from_)
                memcpy(out.p + start, out.p + from_, from_end - from_)
        put(out, b" ", 1)
        self._address_field(fields, TO, 1 if is_top else -1)
        put(out, b" ", 1)
        self._address_field(fields, CC, 2 if is_top else -1)
        put(out, b" ", 1)
        self._address_field(fields, BCC, -1)
        put(out, b" ", 1)
        put_nstring(out, fields.values[IN_REPLY_TO])
        put(out, b" ", 1)
        put_nstring(out, fields.values[MESSAGE_ID])
        return put(out, b")", 1)

    cdef int _address_field(self, fields_t *fields, int field, int keep) except -1:
        # keep: the first address is wanted for the sort keys.
        cdef address_t *first = NULL
        if keep >= 0:
            first = &self._first[keep]
            first.name.n = first.mailbox.n = first.host.n = -1
        if fields.values[field].p == NULL:
            return put(&self._out, b"NIL", 3)
        return self._packer.addresses.format(fields.values[field], &self._out, first, &self._kept)

    # -- BODYSTRUCTURE -----------------------------------------------------------------------------------------------

    cdef int _structure(self, int index, _Header header) except -1:
        # Returns the index behind the parts that lie in this one: parts follow what they lie in.
        cdef part_t *part = &self._part[index]
        cdef fields_t *fields = &header.fields
        cdef buffer_t *out = &self._out
        cdef _Header inner
        cdef octets_t slash = <octets_t>memchr(part.media_type, c"/", part.media_octets)
        cdef Py_ssize_t media = part.media_octets if slash == NULL else slash - part.media_type
        cdef int following = index + 1
        put(out, b"(", 1)
        if media == 9 and same_ignoring_case(part.media_type, b"multipart", 9):
            while following < self._count and self._part[following].parent == index:
                inner = self.header(self._part[following].header_start, self._part[following].header_end)
                following = self._structure(following, inner)
            if following == index + 1:
                put_bytes(out, EMPTY_PART)
            put(out, b" ", 1)
            self._put_upper(part.media_type + media, part.media_octets - media)
            put(out, b" ", 1)
            self._parameters(fields.values[TYPE])
            put(out, b" ", 1)
            self._extension(fields)
            put(out, b")", 1)
            return following
        self._basic(part, media, fields)
        if following < self._count and self._part[following].parent == index and (
            media == 7 and same_ignoring_case(part.media_type, b"message", 7)
        ):
            inner = self.header(self._part[following].header_start, self._part[following].header_end)
            put(out, b" ", 1)
            self._envelope(&inner.fields, False)
            put(out, b" ", 1)
            following = self._structure(following, inner)
            put(out, b" ", 1)
            put_number(out, part.lines)
        elif media == 4 and same_ignoring_case(part.media_type, b"text", 4):
            put(out, b" ", 1)
            put_number(out, part.lines)
        put(out, b" ", 1)
        put_nstring(out, fields.values[MD5])
        put(out, b" ", 1)
        self._extension(fields)
        put(out, b")", 1)
        return following

    cdef int _basic(self, part_t *part, Py_ssize_t media, fields_t *fields) except -1:
        # body-fields with the media type in front.
        cdef buffer_t *out = &self._out
        cdef span_t encoding = span_t(<octets_t>b"7BIT", 4)
        cdef Py_ssize_t start
        self._put_upper(part.media_type, media)
        put(out, b" ", 1)
        self._put_upper(part.media_type + media, part.media_octets - media)
        put(out, b" ", 1)
        start = out.n
        self._parameters(fields.values[TYPE])
        if out.n == start + 3 and part.media_octets == 10 and same_ignoring_case(part.media_type, b"text/plain", 10):
            out.n = start
            put_bytes(out, US_ASCII)
        put(out, b" ", 1)
        put_nstring(out, fields.values[ID])
        put(out, b" ", 1)
        put_nstring(out, fields.values[DESCRIPTION])
        put(out, b" ", 1)
        if part.encoding < 5:
            put_string(out, <octets_t>ENCODINGS[part.encoding], strlen(ENCODINGS[part.encoding]))
        else:
            if fields.values[ENCODING].p != NULL:
                encoding = stripped(fields.values[ENCODING].p, fields.values[ENCODING].n)
            put_string(out, encoding.p, encoding.n)
        put(out, b" ", 1)
        return put_number(out, part.body_end - part.body_start)

    cdef int _put_upper(self, octets_t p, Py_ssize_t n) except -1:
        # As a string; a "/" in front is none of it.
        cdef Py_ssize_t i
        cdef unsigned char *text
        if n and p[0] == c"/":
            p += 1
            n -= 1
        self._text.n = 0
        text = extend(&self._text, n)
        for i in range(n):
            text[i] = upper(p[i])
        return put_string(&self._out, text, n)

    cdef int _extension(self, fields_t *fields) except -1:
        # Disposition, language, location.
        cdef buffer_t *out = &self._out
        cdef span_t kind, value = fields.values[DISPOSITION]
        kind = upto(value, c";")
        kind = stripped(kind.p, kind.n)
        if value.p != NULL and kind.n:
            put(out, b"(", 1)
            put_string(out, kind.p, kind.n)
            put(out, b" ", 1)
            self._parameters(value)
            put(out, b") ", 2)
        else:
            put(out, b"NIL ", 4)
        self._languages(fields.values[LANGUAGE])
        put(out, b" ", 1)
        return put_nstring(out, fields.values[LOCATION])

    cdef int _languages(self, span_t value) except -1:
        cdef buffer_t *out = &self._out
        cdef Py_ssize_t start = out.n
        cdef span_t word, one
        while value.n:
            word = upto(value, c",")
            one = stripped(word.p, word.n)
            if one.n:
                put(out, b"(" if out.n == start else b" ", 1)
                put_string(out, one.p, one.n)
            value.p += word.n
            value.n -= word.n
            if value.n:
                value.p += 1
                value.n -= 1
        return put(out, b"NIL", 3) if out.n == start else put(out, b")", 1)

    cdef int _parameters(self, span_t value) except -1:
        # RFC 2045 §5.1 of a whole field value; what cannot be read is left out.
        cdef buffer_t *out = &self._out
        cdef octets_t p = value.p
        cdef Py_ssize_t n = value.n, i = 0, name, name_end, start = out.n
        while i < n:
            if p[i] != c";":
                i += 1
                continue
            i += 1
            name = i
            while name < n and is_wsp(p[name]):
                name += 1
            name_end = name
            while name_end < n and not is_space(p[name_end]) and p[name_end] not in (c"=", c";", c'"'):
                name_end += 1
            if name_end == name:
                continue
            i = name_end
            while i < n and is_wsp(p[i]):
                i += 1
            if i == n or p[i] != c"=":
                i = name_end
                continue
            i += 1
            while i < n and is_wsp(p[i]):
                i += 1
            put(out, b"(" if out.n == start else b" ", 1)
            put_string(out, p + name, name_end - name)
            put(out, b" ", 1)
            if i < n and p[i] == c'"':
                i = self._quoted(p, i + 1, n)
            else:
                name = i
                while i < n and p[i] != c";" and not is_space(p[i]):
                    i += 1
                put_string(out, p + name, i - name)
        return put(out, b"NIL", 3) if out.n == start else put(out, b")", 1)

    cdef Py_ssize_t _quoted(self, octets_t p, Py_ssize_t i, Py_ssize_t n) except -1:
        # The quoted string whose inside begins there, as a string; returns where it ends.
        self._text.n = 0
        extend(&self._text, n - i)  # room
        self._text.n = 0
        while i < n and p[i] != c'"':
            if p[i] == c"\\":
                if i + 1 == n:
                    break
                i += 1
            self._text.p[self._text.n] = p[i]
            self._text.n += 1
            i += 1
        put_string(&self._out, self._text.p, self._text.n)
        return i + 1 if i < n and p[i] == c'"' else i

    # -- sort keys ---------------------------------------------------------------------------------------------------

    cdef int _sort_keys(self, fields_t *fields) except -1:
        # Subject, whether it has a reply mark, mailboxes of From, To, Cc (RFC 5256 §3), display of From, To (RFC 5957).
        cdef buffer_t *out = &self._out
        cdef span_t subject = fields.values[SUBJECT]
        cdef int i
        subject.n = min(subject.n, SUBJECT_OCTETS)
        if is_plain(subject.p, subject.n, True):
            self._plain_subject(subject)
        else:
            key, is_reply = self._packer.subject(subject.p[:subject.n])
            self._put_without_nul(key)
            put(out, b"\0001", 2 if is_reply else 1)
        for i in range(3):
            put(out, b"\0", 1)
            self._put_word(self._kept.p + self._first[i].mailbox.start, self._first[i].mailbox.n, False)
        for i in range(2):
            put(out, b"\0", 1)
            self._put_display(&self._first[i])
        return 0

    cdef int _plain_subject(self, span_t subject) except -1:
        cdef Py_ssize_t i, n = 0
        cdef unsigned char *text
        cdef unsigned char c
        cdef octets_t p
        cdef bint is_reply
        self._text.n = 0
        text = extend(&self._text, subject.n)
        for i in range(subject.n):
            c = subject.p[i]
            if is_lwsp(c):
                if n and text[n - 1] == c" ":
                    continue
                c = c" "
            text[n] = c
            n += 1
        p = text
        is_reply = base_subject(&p, &n)
        self._put_plain(p, n)
        return put(&self._out, b"\0001", 2 if is_reply else 1)

    cdef int _put_display(self, address_t *address) except -1:
        # RFC 5957 §3: the display name, else the address.
        cdef octets_t kept = self._kept.p
        if address.name.n > 0:
            return self._put_word(kept + address.name.start, address.name.n, True)
        if address.host.n <= 0:
            return self._put_word(kept + address.mailbox.start, address.mailbox.n, False)
        self._text.n = 0
        put(&self._text, kept + address.mailbox.start, max(0, address.mailbox.n))
        put(&self._text, b"@", 1)
        put(&self._text, kept + address.host.start, address.host.n)
        return self._put_word(self._text.p, self._text.n, False)

    cdef int _put_word(self, octets_t p, Py_ssize_t n, bint decode) except -1:
        # As i;unicode-casemap compares it; decode: there may be encoded-words.
        if n <= 0:
            return 0
        if is_plain(p, n, decode):
            return self._put_plain(p, n)
        return self._put_without_nul(self._packer.word(p[:n], decode))

    cdef int _put_plain(self, octets_t p, Py_ssize_t n) except -1:
        cdef buffer_t *out = &self._out
        cdef unsigned char *text = extend(out, n)
        cdef Py_ssize_t i, length = 0
        for i in range(n):
            text[length] = upper(p[i])
            length += p[i] != 0
        out.n -= n - length
        return 0

    cdef int _put_without_nul(self, bytes word) except -1:
        return put_bytes(&self._out, word.replace(b"\0", b""))

    # -- references --------------------------------------------------------------------------------------------------

    cdef int _thread(self, fields_t *fields) except -1:
        # The Message-ID, then the references, oldest first (RFC 5256 §3).
        cdef span_t value = fields.values[MESSAGE_ID], left, one
        cdef Py_ssize_t count = 0, at = 0
        if next_id(&value, &one):
            self._put_id(one)
        value = left = fields.values[REFERENCES]
        while next_id(&left, &one):
            count += 1
        if count == 0:  # then the first of In-Reply-To
            value = fields.values[IN_REPLY_TO]
        while next_id(&value, &one):
            if at == 0 or at > count - REFERENCES_MAX:
                put(&self._out, b"\0", 1)
                self._put_id(one)
            at += 1
            if count == 0:
                break
        return 0

    cdef int _put_id(self, span_t one) except -1:
        # Without the white space that folding left within (RFC 5322 §4.5.4).
        cdef buffer_t *out = &self._out
        cdef unsigned char *text = extend(out, one.n)
        cdef Py_ssize_t i, length = 0
        for i in range(one.n):
            text[length] = one.p[i]
            length += not is_space(one.p[i])
        out.n -= one.n - length
        return 0


cdef bint is_plain(octets_t p, Py_ssize_t n, bint decode) noexcept nogil:
    # True for ASCII; with decode, without encoded-words.
    cdef Py_ssize_t i
    cdef unsigned char high = 0
    for i in range(n):
        high |= p[i]
        if p[i] == c"=" and decode and i + 1 < n and p[i + 1] == c"?":
            return False
    return high < 128


cdef bint next_id(span_t *value, span_t *found) noexcept nogil:
    # The next <msg-id> of the value, without <>; the value is what is left behind it.  False: there is none.
    cdef octets_t p = value.p
    cdef Py_ssize_t n = value.n, i = 0, start, spaces, ats
    while i < n:
        if p[i] != c"<":
            i += 1
            continue
        start = i = i + 1
        spaces = ats = 0
        while i < n and p[i] != c"<" and p[i] != c">":
            spaces += is_space(p[i])
            ats += p[i] == c"@"
            i += 1
        if i == n or p[i] == c"<" or i == start or i - start > MSG_ID_MAX or (spaces and not ats):
            continue
        found[0] = span_t(p + start, i - start)
        value[0] = span_t(p + i, n - i)
        return True
    return False


cdef class FactsPacker:
    """Packs facts; word(), subject() and date() of gateway/mail/imap_facts.py do what is more than ASCII."""

    cdef object word
    cdef object subject
    cdef object date
    cdef AddressReader addresses  # of whoever has the GIL: it calls nothing that could give that away

    def __init__(self, word, subject, date):
        self.addresses = AddressReader()
        self.word = word
        self.subject = subject
        self.date = date

    def pack(self, list parts not None, octets, bytes origin not None):
        """(packed facts, octets of the header section, seconds since 1970 of its Date or 0)."""
        cdef _Packing packing = _Packing()
        packing.start(self, parts, octets)
        return packing.pack(origin)
