"""SMTP grammar: command lines, paths, ESMTP parameters, replies, xtext.

    Owns      nothing that lives longer than a call, but for ReplyParser, which keeps one reply that is not whole yet
    Limits    the command line is the caller's; local part 64, domain 255, path 256 octets (RFC 5321 §4.5.3.1.1 to .3);
              reply line 2048 octets, reply 128 lines
    Errors    parse_command() returns ERROR with a reason and the offset of the next line: the caller never loses step.
              ReplyParser, parse_mailbox() and xtext_decode() raise ValueError
    Blocking  never; the GIL is kept (a command is shorter than its release)
    Security  every octet comes from strangers: no recursion, no allocation but for the result, all scans are linear
    Standards RFC 5321 §4.1, §4.2; RFC 6531 §3.3; RFC 3030 §2; RFC 3461 §4; RFC 2034
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeASCII, PyUnicode_DecodeUTF8
from libc.stdint cimport uint32_t
from libc.string cimport memchr, memcpy

cdef extern from "arpa/inet.h" nogil:
    int AF_INET6
    int inet_pton(int family, const char *text, void *address)

ctypedef const unsigned char *octets_t

# The verbs are dense, so that a session can dispatch by list index.
cdef enum:
    V_EHLO = 1
    V_HELO = 2
    V_LHLO = 3
    V_MAIL = 4
    V_RCPT = 5
    V_DATA = 6
    V_BDAT = 7
    V_RSET = 8
    V_NOOP = 9
    V_VRFY = 10
    V_EXPN = 11
    V_HELP = 12
    V_QUIT = 13
    V_STARTTLS = 14
    V_AUTH = 15
    V_XCLIENT = 16
    V_ETRN = 17
    V_UNKNOWN = 18
    V_ERROR = 19

EHLO = V_EHLO
HELO = V_HELO
LHLO = V_LHLO
MAIL = V_MAIL
RCPT = V_RCPT
DATA = V_DATA
BDAT = V_BDAT
RSET = V_RSET
NOOP = V_NOOP
VRFY = V_VRFY
EXPN = V_EXPN
HELP = V_HELP
QUIT = V_QUIT
STARTTLS = V_STARTTLS
AUTH = V_AUTH
XCLIENT = V_XCLIENT
ETRN = V_ETRN
UNKNOWN = V_UNKNOWN
ERROR = V_ERROR

cdef enum:
    R_LINE_TOO_LONG = 1
    R_SYNTAX = 2
    R_BARE_LF = 3
    R_NUL = 4
    R_EIGHT_BIT = 5
    R_BAD_PATH = 6
    R_BAD_PARAM = 7
    R_PATH_TOO_LONG = 8

LINE_TOO_LONG = R_LINE_TOO_LONG
SYNTAX = R_SYNTAX
BARE_LF = R_BARE_LF
NUL = R_NUL
EIGHT_BIT = R_EIGHT_BIT
BAD_PATH = R_BAD_PATH
BAD_PARAM = R_BAD_PARAM
PATH_TOO_LONG = R_PATH_TOO_LONG

cdef enum:
    MAX_LOCAL_PART = 64         # RFC 5321 §4.5.3.1.1
    MAX_DOMAIN = 255            # RFC 5321 §4.5.3.1.2
    MAX_PATH = 256              # RFC 5321 §4.5.3.1.3, with "<" and ">"
    MAX_REPLY_LINE = 2048       # RFC 5321 §4.5.3.1.5 says 512; servers send longer ones
    MAX_REPLY_LINES = 128

cdef enum:
    IS_ATEXT = 1
    IS_LET_DIG = 2
    IS_LDH = 4
    IS_QTEXT = 8
    IS_DCONTENT = 16
    IS_KEYWORD = 32
    IS_VALUE = 64
    IS_SPACE = 128

cdef unsigned char octet_class[256]


cdef void fill_octet_class() noexcept:
    cdef int c
    cdef int k
    for c in range(256):
        k = 0
        if c == 32 or c == 9:
            k |= IS_SPACE
        if c"0" <= c <= c"9" or c"A" <= c <= c"Z" or c"a" <= c <= c"z":
            k |= IS_ATEXT | IS_LET_DIG | IS_LDH | IS_KEYWORD
        if c == c"-":
            k |= IS_LDH | IS_KEYWORD
        if c == c"_":  # Deviation: RFC 5321 §4.1.2 has no "_" in a sub-domain, living mail does
            k |= IS_LET_DIG | IS_LDH
        if c < 128 and chr(c) in "!#$%&'*+-/=?^_`{|}~":
            k |= IS_ATEXT
        if c >= 128:  # RFC 6531 §3.3: atext, qtextSMTP, sub-domain and esmtp-value are extended by UTF8-non-ascii
            k |= IS_ATEXT | IS_LET_DIG | IS_LDH | IS_QTEXT | IS_VALUE
        if 32 <= c <= 126 and c != c'"' and c != c"\\":
            k |= IS_QTEXT
        if 33 <= c <= 90 or 94 <= c <= 126:
            k |= IS_DCONTENT
        # Deviation: RFC 5321 §4.1.2 has no "=" in esmtp-value; ORCPT of senders that forget xtext has
        if 33 <= c <= 126:
            k |= IS_VALUE
        octet_class[c] = k


fill_octet_class()

cdef tuple NO_PARAMS = ()


# -- grammar: each scanner returns the octet behind what it recognised, or NULL.  They borrow their octets. ------------

cdef inline octets_t scan_dot_string(octets_t p, octets_t end) noexcept nogil:
    # Dot-string = Atom *("."  Atom)
    cdef octets_t atom
    while True:
        atom = p
        while p < end and octet_class[p[0]] & IS_ATEXT:
            p += 1
        if p == atom:
            return NULL
        if p == end or p[0] != c".":
            return p
        p += 1


cdef octets_t scan_quoted_string(octets_t p, octets_t end) noexcept nogil:
    # Quoted-string = DQUOTE *QcontentSMTP DQUOTE
    p += 1
    while p < end:
        if octet_class[p[0]] & IS_QTEXT:
            p += 1
        elif p[0] == c'"':
            return p + 1
        elif p[0] == c"\\" and end - p > 1 and 32 <= p[1] <= 126:  # quoted-pairSMTP
            p += 2
        else:
            return NULL
    return NULL


cdef inline octets_t scan_domain(octets_t p, octets_t end) noexcept nogil:
    # Domain = sub-domain *("." sub-domain); sub-domain = Let-dig [Ldh-str]
    while True:
        if p == end or not octet_class[p[0]] & IS_LET_DIG:
            return NULL
        p += 1
        while p < end and octet_class[p[0]] & IS_LDH:
            p += 1
        if (p - 1)[0] == c"-":
            return NULL
        if p == end or p[0] != c".":
            return p
        p += 1


cdef bint is_ipv4(octets_t p, octets_t end) noexcept nogil:
    # IPv4-address-literal = Snum 3("."  Snum); Snum = 1*3DIGIT in 0..255
    cdef int group, value, digits
    for group in range(4):
        if group:
            if p == end or p[0] != c".":
                return False
            p += 1
        value = digits = 0
        while p < end and c"0" <= p[0] <= c"9" and digits < 4:
            value = value * 10 + (p[0] - c"0")
            digits += 1
            p += 1
        if not 1 <= digits <= 3 or value > 255:
            return False
    return p == end


cdef bint is_ipv6(octets_t p, octets_t end) noexcept nogil:
    # IPv6-addr.  Deviation: inet_pton() lets "::" stand for a single group, RFC 5321 §4.1.3 wants two.
    cdef char text[46]
    cdef char address[16]
    if end - p >= 46:
        return False
    memcpy(text, p, end - p)
    text[end - p] = 0
    return inet_pton(AF_INET6, text, address) == 1


cdef octets_t scan_address_literal(octets_t p, octets_t end) noexcept nogil:
    # address-literal = "[" ( IPv4-address-literal / IPv6-address-literal / General-address-literal ) "]"
    cdef octets_t inner = p + 1
    cdef octets_t close = <octets_t>memchr(inner, c"]", end - inner)
    cdef octets_t colon
    if close == NULL or close == inner:
        return NULL
    if is_ipv4(inner, close):
        return close + 1
    colon = <octets_t>memchr(inner, c":", close - inner)
    if colon == NULL or colon == inner:
        return NULL
    if (colon - inner == 4 and inner[0] | 32 == c"i" and inner[1] | 32 == c"p" and inner[2] | 32 == c"v"
            and inner[3] == c"6"):
        return close + 1 if is_ipv6(colon + 1, close) else NULL
    if (colon - 1)[0] == c"-" or colon + 1 == close:  # Standardized-tag = Ldh-str, which ends in a Let-dig
        return NULL
    p = inner
    while p < colon:
        if not octet_class[p[0]] & IS_KEYWORD:
            return NULL
        p += 1
    p = colon + 1
    while p < close:
        if not octet_class[p[0]] & IS_DCONTENT:
            return NULL
        p += 1
    return close + 1


cdef inline octets_t scan_mailbox(octets_t p, octets_t end, octets_t *at) noexcept nogil:
    # Mailbox = Local-part "@" ( Domain / address-literal ); *at is set to the "@"
    if p == end:
        return NULL
    p = scan_quoted_string(p, end) if p[0] == c'"' else scan_dot_string(p, end)
    if p == NULL or p == end or p[0] != c"@":
        return NULL
    at[0] = p
    p += 1
    if p < end and p[0] == c"[":
        return scan_address_literal(p, end)
    return scan_domain(p, end)


cdef octets_t scan_source_route(octets_t p, octets_t end) noexcept nogil:
    # A-d-l ":" with A-d-l = At-domain *("," At-domain).  RFC 5321 §4.1.2: must be accepted, should be ignored.
    while p < end and p[0] == c"@":
        p = scan_domain(p + 1, end)
        if p == NULL or p == end:
            return NULL
        if p[0] == c":":
            return p + 1
        if p[0] != c",":
            return NULL
        p += 1
    return NULL


cdef inline bint is_postmaster(octets_t p, octets_t end) noexcept nogil:
    cdef const char *name = "postmaster"
    cdef int i
    if end - p != 10:
        return False
    for i in range(10):
        if p[i] | 32 != <unsigned char>name[i]:
            return False
    return True


cdef struct Path:
    octets_t begin      # the mailbox, without source route; empty for <>
    octets_t end
    octets_t next       # behind the ">"


cdef int scan_path(octets_t p, octets_t end, bint forward, bint lenient, Path *path) noexcept nogil:
    # Reverse-path or Forward-path.  0, R_BAD_PATH or R_PATH_TOO_LONG.
    cdef octets_t start = p
    cdef octets_t at = NULL
    cdef octets_t q
    cdef bint angle = p < end and p[0] == c"<"
    if angle:
        p += 1
        if p < end and p[0] == c"@":
            p = scan_source_route(p, end)
            if p == NULL:
                return R_BAD_PATH
        elif p < end and p[0] == c">" and not forward:  # RFC 5321 §4.5.5: the null reverse-path
            path.begin = path.end = p
            path.next = p + 1
            return 0
    elif not lenient:
        return R_BAD_PATH
    path.begin = p
    q = scan_mailbox(p, end, &at)
    if q == NULL and forward:  # RFC 5321 §4.1.1.3: <Postmaster> without a domain
        q = p + 10
        if end - p < 10 or not is_postmaster(p, q):
            return R_BAD_PATH
        at = NULL
    elif q == NULL:
        return R_BAD_PATH
    path.end = q
    if angle:
        if q == end or q[0] != c">":
            return R_BAD_PATH
        q += 1
    elif q < end and not octet_class[q[0]] & IS_SPACE:
        return R_BAD_PATH
    path.next = q
    if at != NULL and (at - p > MAX_LOCAL_PART or path.end - at - 1 > MAX_DOMAIN or q - start > MAX_PATH):
        return R_PATH_TOO_LONG
    return 0


cdef bint is_utf8(octets_t p, octets_t end) noexcept nogil:
    # RFC 3629 §4: no overlong forms, no surrogates, nothing above U+10FFFF.
    cdef unsigned char c
    cdef int more
    while p < end:
        c = p[0]
        p += 1
        if c < 0x80:
            continue
        if 0xC2 <= c <= 0xDF:
            more = 1
        elif 0xE0 <= c <= 0xEF:
            more = 2
        elif 0xF0 <= c <= 0xF4:
            more = 3
        else:
            return False
        if end - p < more:
            return False
        if (c == 0xE0 and p[0] < 0xA0) or (c == 0xED and p[0] > 0x9F):
            return False
        if (c == 0xF0 and p[0] < 0x90) or (c == 0xF4 and p[0] > 0x8F):
            return False
        while more:
            if p[0] & 0xC0 != 0x80:
                return False
            p += 1
            more -= 1
    return True


cdef inline uint32_t four(octets_t p) noexcept nogil:
    # Four letters as one number, case folded.
    return ((<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]) | 0x20202020


cdef inline bint same_word(octets_t p, const char *lower, int n) noexcept nogil:
    cdef int i
    for i in range(n):
        if p[i] | 32 != <unsigned char>lower[i]:
            return False
    return True


cdef inline int verb_of(octets_t p, Py_ssize_t n) noexcept nogil:
    cdef uint32_t word
    if n == 4:
        word = four(p)
        if word == 0x6D61696C:  # mail
            return V_MAIL
        if word == 0x72637074:  # rcpt
            return V_RCPT
        if word == 0x64617461:  # data
            return V_DATA
        if word == 0x62646174:  # bdat
            return V_BDAT
        if word == 0x65686C6F:  # ehlo
            return V_EHLO
        if word == 0x71756974:  # quit
            return V_QUIT
        if word == 0x72736574:  # rset
            return V_RSET
        if word == 0x68656C6F:  # helo
            return V_HELO
        if word == 0x6C686C6F:  # lhlo
            return V_LHLO
        if word == 0x6E6F6F70:  # noop
            return V_NOOP
        if word == 0x76726679:  # vrfy
            return V_VRFY
        if word == 0x6578706E:  # expn
            return V_EXPN
        if word == 0x68656C70:  # help
            return V_HELP
        if word == 0x61757468:  # auth
            return V_AUTH
        if word == 0x6574726E:  # etrn
            return V_ETRN
    elif n == 8 and same_word(p, "starttls", 8):
        return V_STARTTLS
    elif n == 7 and same_word(p, "xclient", 7):
        return V_XCLIENT
    return V_UNKNOWN


cdef inline str text_of(octets_t p, octets_t end):
    return PyUnicode_DecodeUTF8(<const char *>p, end - p, NULL)


cdef tuple parse_params(octets_t p, octets_t end):
    # *(SP esmtp-param); None when one is not esmtp-keyword ["=" esmtp-value].  RFC 5321 §4.1.2.
    cdef list params = []
    cdef octets_t keyword
    cdef octets_t value
    while True:
        while p < end and octet_class[p[0]] & IS_SPACE:
            p += 1
        if p == end:
            return tuple(params)
        keyword = p
        while p < end and octet_class[p[0]] & IS_KEYWORD:
            p += 1
        if p == keyword or keyword[0] == c"-":
            return None
        name = PyUnicode_DecodeASCII(<const char *>keyword, p - keyword, NULL).upper()
        if p == end or octet_class[p[0]] & IS_SPACE:
            params.append((name, None))
            continue
        if p[0] != c"=":
            return None
        p += 1
        value = p
        while p < end and octet_class[p[0]] & IS_VALUE:
            p += 1
        if p == value or (p < end and not octet_class[p[0]] & IS_SPACE):
            return None
        params.append((name, text_of(value, p)))


cdef inline tuple refuse(Py_ssize_t next_pos, int reason, int verb):
    return (next_pos, V_ERROR, reason, verb)


cdef tuple parse_bdat(octets_t p, octets_t end, Py_ssize_t next_pos):
    # RFC 3030 §2: "BDAT" SP chunk-size [SP "LAST"]
    cdef Py_ssize_t size = 0
    cdef octets_t digits = p
    while p < end and c"0" <= p[0] <= c"9":
        if p - digits >= 18:  # below 2^63
            return refuse(next_pos, R_SYNTAX, V_BDAT)
        size = size * 10 + (p[0] - c"0")
        p += 1
    if p == digits:
        return refuse(next_pos, R_SYNTAX, V_BDAT)
    if p == end:
        return (next_pos, V_BDAT, size, False)
    if not octet_class[p[0]] & IS_SPACE:
        return refuse(next_pos, R_SYNTAX, V_BDAT)
    while octet_class[p[0]] & IS_SPACE:  # ends: trailing space was cut off
        p += 1
    if end - p == 4 and four(p) == 0x6C617374:  # last
        return (next_pos, V_BDAT, size, True)
    return refuse(next_pos, R_SYNTAX, V_BDAT)


def parse_command(bytes data not None, Py_ssize_t pos, Py_ssize_t max_octets, bint utf8=True, bint lenient=False):
    """The command line at `pos`: None (more data), or (next_pos, verb, a, b); see the .pyi.  O(line), borrows data."""
    cdef octets_t base = <octets_t>PyBytes_AS_STRING(data)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
    cdef Py_ssize_t n, i, next_pos
    cdef octets_t p, end, lf, word
    cdef unsigned char seen = 0
    cdef unsigned char control = 0
    cdef int verb, reason
    cdef Path path
    if pos < 0 or pos > size or max_octets < 2:
        raise ValueError("pos outside of data, or max_octets below 2")
    p = base + pos
    n = size - pos
    lf = <octets_t>memchr(p, 10, n if n < max_octets else max_octets)
    if lf == NULL:
        if n < max_octets:
            return None
        lf = <octets_t>memchr(p + max_octets, 10, n - max_octets)
        if lf == NULL:
            return refuse(size, R_LINE_TOO_LONG, -1)
        i = 0
        while i < 9 and not octet_class[p[i]] & IS_SPACE and p[i] != 10 and p[i] != 13:
            i += 1
        return refuse(lf + 1 - base, R_LINE_TOO_LONG, verb_of(p, i))
    next_pos = lf + 1 - base
    end = lf
    if end > p and (end - 1)[0] == 13:
        end -= 1

    for i in range(end - p):
        seen |= p[i]
        control |= (p[i] < 32) | (p[i] == 127)
    word = p
    while word < end and not octet_class[word[0]] & IS_SPACE:
        word += 1
    verb = verb_of(p, word - p)
    if end == lf:  # RFC 5321 §2.3.8: a line ends in CRLF and in nothing else
        return refuse(next_pos, R_BARE_LF, verb)
    if control:
        reason = 0
        for i in range(end - p):
            if p[i] == 0:
                return refuse(next_pos, R_NUL, verb)
            if (p[i] < 32 and p[i] != 9) or p[i] == 127:
                reason = R_SYNTAX
        if reason:
            return refuse(next_pos, reason, verb)
    if seen & 0x80 and not (utf8 and is_utf8(p, end)):
        return refuse(next_pos, R_EIGHT_BIT, verb)
    while end > word and octet_class[(end - 1)[0]] & IS_SPACE:
        end -= 1
    p = word
    while p < end and octet_class[p[0]] & IS_SPACE:
        p += 1

    if verb == V_MAIL or verb == V_RCPT:
        if verb == V_MAIL:
            if end - p < 5 or not same_word(p, "from", 4) or p[4] != c":":
                return refuse(next_pos, R_SYNTAX, verb)
            p += 5
        else:
            if end - p < 3 or not same_word(p, "to", 2) or p[2] != c":":
                return refuse(next_pos, R_SYNTAX, verb)
            p += 3
        while p < end and octet_class[p[0]] & IS_SPACE:  # not in the grammar, yet common
            p += 1
        reason = scan_path(p, end, verb == V_RCPT, lenient, &path)
        if reason:
            return refuse(next_pos, reason, verb)
        if path.next == end:
            return (next_pos, verb, text_of(path.begin, path.end), NO_PARAMS)
        params = parse_params(path.next, end) if octet_class[path.next[0]] & IS_SPACE else None
        if params is None:
            return refuse(next_pos, R_BAD_PARAM, verb)
        return (next_pos, verb, text_of(path.begin, path.end), params)
    if verb == V_BDAT:
        return parse_bdat(p, end, next_pos)
    if verb == V_DATA or verb == V_RSET or verb == V_QUIT or verb == V_STARTTLS:
        if p < end:  # RFC 5321 §4.1.1.4, §4.1.1.5, §4.1.1.10; RFC 3207 §4: no argument
            return refuse(next_pos, R_SYNTAX, verb)
        return (next_pos, verb, "", None)
    if verb == V_UNKNOWN:
        return (next_pos, verb, text_of(p, end), text_of(base + pos, word))
    return (next_pos, verb, text_of(p, end), None)


def skip_line(bytes data not None, Py_ssize_t pos):
    """Offset behind the next LF at or after pos; -1 when there is none."""
    cdef octets_t base = <octets_t>PyBytes_AS_STRING(data)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
    cdef octets_t lf
    if pos < 0 or pos > size:
        raise ValueError("pos outside of data")
    lf = <octets_t>memchr(base + pos, 10, size - pos)
    return -1 if lf == NULL else lf + 1 - base


def parse_mailbox(text):
    """(local_part, domain) of "local-part@domain", both as written.  Raises ValueError."""
    cdef bytes data = text.encode("utf-8") if isinstance(text, str) else bytes(text)
    cdef octets_t p = <octets_t>PyBytes_AS_STRING(data)
    cdef octets_t end = p + PyBytes_GET_SIZE(data)
    cdef octets_t at = NULL
    if scan_mailbox(p, end, &at) != end or not is_utf8(p, end):
        raise ValueError("not a mailbox")
    if at - p > MAX_LOCAL_PART or end - at - 1 > MAX_DOMAIN:
        raise ValueError("mailbox is too long")
    return text_of(p, at), text_of(at + 1, end)


# -- xtext -------------------------------------------------------------------------------------------------------------

cdef inline int hex_value(long c) noexcept nogil:
    if c"0" <= c <= c"9":
        return c - c"0"
    if c"A" <= c <= c"F":
        return c - c"A" + 10
    if c"a" <= c <= c"f":  # Deviation: RFC 3461 §4 has upper case only
        return c - c"a" + 10
    return -1


def xtext_decode(str text not None):
    """What was encoded.  Raises ValueError on bad xtext, and on octets that are controls or no UTF-8 when decoded.

    RFC 3461 §4, §4.4: only printable characters may be hidden in xtext; a CRLF would end up in a report's header.
    """
    cdef bytearray decoded = bytearray()
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t n = len(text)
    cdef long c
    cdef int high, low
    while i < n:
        c = <long><Py_UCS4>text[i]
        if c == c"+":
            high = hex_value(<long><Py_UCS4>text[i + 1]) if i + 1 < n else -1
            low = hex_value(<long><Py_UCS4>text[i + 2]) if i + 2 < n else -1
            if high < 0 or low < 0:
                raise ValueError("bad hexchar in xtext")
            high = high * 16 + low
            if high < 32 or high == 127:
                raise ValueError("control character in xtext")
            decoded.append(high)
            i += 3
            continue
        if c < 33 or c == c"=" or c == 127:
            raise ValueError("bad xchar in xtext")
        if c < 127:
            decoded.append(c)
        else:  # RFC 6533 §3: utf-8-addr-unitext
            decoded += text[i].encode("utf-8")
        i += 1
    return decoded.decode("utf-8")


def xtext_encode(str text not None):
    """xtext of the UTF-8 octets of text.  RFC 3461 §4."""
    cdef list out = []
    cdef unsigned char c
    for c in text.encode("utf-8"):
        if c < 33 or c > 126 or c == c"+" or c == c"=":
            out.append(f"+{c:02X}")
        else:
            out.append(chr(c))
    return "".join(out)


# -- replies -----------------------------------------------------------------------------------------------------------

# What a log line or a report must not contain becomes "?"; TAB becomes SP.
cdef bytes PRINTABLE = bytes(32 if c == 9 else 63 if c < 32 or c == 127 else c for c in range(256))


cdef inline str reply_text(octets_t p, octets_t end):
    cdef unsigned char odd = 0
    cdef Py_ssize_t i
    for i in range(end - p):
        odd |= (p[i] < 32) | (p[i] >= 127)
    if not odd:
        return PyUnicode_DecodeASCII(<const char *>p, end - p, NULL)
    return (<const char *>p)[:end - p].translate(PRINTABLE).decode("utf-8", "replace")


cdef inline octets_t scan_enhanced_status(octets_t p, octets_t end, unsigned char reply_class) noexcept nogil:
    # status-code = class "." subject "." detail, followed by SP or the end.  RFC 3463 §2, RFC 2034 §4.
    cdef int part
    cdef octets_t digits
    if p == end or p[0] != reply_class or not (p[0] == c"2" or p[0] == c"4" or p[0] == c"5"):
        return NULL
    p += 1
    for part in range(2):
        if p == end or p[0] != c".":
            return NULL
        p += 1
        digits = p
        while p < end and c"0" <= p[0] <= c"9":
            p += 1
        if not 1 <= p - digits <= 3:
            return NULL
    return p if p == end or p[0] == 32 else NULL


cdef class ReplyParser:
    """Replies of a server, from octets cut anywhere.  RFC 5321 §4.2.1.

    Any three digits are a code: what to make of 199 or 987 is the client's decision.  The code of a multi-line reply is
    that of its last line.  Deviation: a line may end in a bare LF.
    """

    cdef readonly bint broken   # garbage was seen: nothing more will be parsed
    cdef str _reason
    cdef bytes _rest            # begin of a line that is not whole yet
    cdef list _lines            # earlier lines of a multi-line reply
    cdef str _enhanced

    def __cinit__(self):
        self.broken = False
        self._reason = ""
        self._rest = b""
        self._lines = None
        self._enhanced = ""

    cdef list _fail(self, list replies, str reason):
        # What came before the garbage is reported first: it may be the 250 that ends our responsibility.
        self.broken = True
        self._reason = reason
        self._rest = b""
        self._lines = None
        if replies:
            return replies
        raise ValueError(reason)

    def feed(self, bytes data not None):
        """The replies that are whole now: [(code, enhanced, text)]; "\\n" between the lines of a text.

        Raises ValueError on what is no reply; replies in front of it are returned first (then `broken` is set).
        """
        cdef list replies = []
        cdef octets_t p
        cdef octets_t end
        cdef octets_t lf
        cdef octets_t stop
        cdef octets_t text
        cdef octets_t status
        cdef bint more
        cdef int code
        if self.broken:
            raise ValueError(self._reason)
        if self._rest:
            data = self._rest + data
            self._rest = b""
        p = <octets_t>PyBytes_AS_STRING(data)
        end = p + PyBytes_GET_SIZE(data)
        while p < end:
            lf = <octets_t>memchr(p, 10, end - p)
            if (end if lf == NULL else lf + 1) - p > MAX_REPLY_LINE:
                return self._fail(replies, "reply line is too long")
            if lf == NULL:
                self._rest = (<const char *>p)[:end - p]
                break
            stop = lf - 1 if lf > p and (lf - 1)[0] == 13 else lf
            if stop - p < 3 or not (c"0" <= p[0] <= c"9" and c"0" <= p[1] <= c"9" and c"0" <= p[2] <= c"9"):
                return self._fail(replies, "reply does not begin with a code")
            code = (p[0] - c"0") * 100 + (p[1] - c"0") * 10 + (p[2] - c"0")
            more = False
            text = p + 3
            if text < stop:
                if text[0] == c"-":
                    more = True
                elif text[0] != 32:
                    return self._fail(replies, "reply code is not followed by a space")
                text += 1
            status = scan_enhanced_status(text, stop, p[0])
            if status != NULL:
                if not self._enhanced:
                    self._enhanced = PyUnicode_DecodeASCII(<const char *>text, status - text, NULL)
                text = status + 1 if status < stop else stop
            if more:
                if self._lines is None:
                    self._lines = []
                self._lines.append(reply_text(text, stop))
                if len(self._lines) >= MAX_REPLY_LINES:
                    return self._fail(replies, "reply has too many lines")
            elif self._lines is None:
                replies.append((code, self._enhanced, reply_text(text, stop)))
                self._enhanced = ""
            else:
                self._lines.append(reply_text(text, stop))
                replies.append((code, self._enhanced, "\n".join(self._lines)))
                self._lines = None
                self._enhanced = ""
            p = lf + 1
        return replies
