"""IMAP as a server reads it: commands out of octets that are cut anywhere, and a cursor over each command.

    Owns      ImapReader (framing: lines and literals), ImapCommand (the cursor, in imap_cursor.pxi), modified UTF-7
    Flow      feed() → read(): a whole command, a literal to decide about, or need of more; the cursor's methods are the
              rules of the RFC's grammar
    Limits    text of a command, its nesting, its items: given to the reader.  Literals are the caller's decision
    Errors    ImapSyntaxError from the cursor, its text is for the tagged BAD.  The reader never raises for what a peer
              sends, and never loses step: what is refused is consumed to the end of the command
    Blocking  never; the GIL is kept.  Every octet is looked at a bounded number of times
    Security  every octet comes from strangers: no recursion; memory is the command's octets and no more
    Standards RFC 9051 §4, §9; RFC 3501 §5.1.3 (modified UTF-7); RFC 7888 (LITERAL+); RFC 3516 (literal8); RFC 4466
"""

from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeASCII, PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memchr, memcmp, memcpy, memmove

from fieldscan cimport lower

ctypedef const unsigned char *octets_t

# What read() returns.
cdef enum:
    R_MORE = 0
    R_COMMAND = 1
    R_LITERAL = 2
    R_REFUSED = 3
    R_TOO_LONG = 4

NEED_MORE = R_MORE
COMMAND = R_COMMAND
LITERAL = R_LITERAL
REFUSED = R_REFUSED
COMMAND_TOO_LONG = R_TOO_LONG

cdef enum:
    IN_TEXT = 0
    IN_LITERAL = 1
    IN_STREAM = 2
    SKIPPING_TEXT = 3
    SKIPPING_LITERAL = 4
    AT_LITERAL = 5              # read() said LITERAL, and nobody decided yet

cdef enum:
    TAIL_OCTETS = 32            # of a skipped line: a literal's announcement is shorter

include "imap_cursor.pxi"


# -- the reader ----------------------------------------------------------------------------------------------------------

cdef class ImapReader:
    """Finds the commands in what the client sends; see the interface page."""

    cdef public bint utf8
    cdef public Py_ssize_t text_octets_max
    cdef public Py_ssize_t items_max
    cdef public int depth_max
    cdef readonly ImapCommand command
    cdef readonly uint64_t literal_size
    cdef readonly bint literal_synchronizing
    cdef bytes data
    cdef Py_ssize_t pos
    cdef int state
    cdef uint64_t left          # of the literal being read
    cdef Py_ssize_t text_octets # of the command so far
    cdef Py_ssize_t line        # where the line being read begins in the command
    cdef object target
    cdef unsigned char tail[TAIL_OCTETS]
    cdef int tail_octets

    def __init__(self, Py_ssize_t text_octets_max, Py_ssize_t items_max=10_000, int depth_max=32):
        self.text_octets_max = text_octets_max
        self.items_max = items_max
        self.depth_max = depth_max
        self.data = b""

    @property
    def unread_octets(self):
        return PyBytes_GET_SIZE(self.data) - self.pos

    def feed(self, bytes data not None):
        """What came next."""
        if self.pos < PyBytes_GET_SIZE(self.data):
            data = self.data[self.pos:] + data
        self.data = data
        self.pos = 0

    def clear(self):
        """Forget all input."""
        self.data = b""
        self.pos = 0
        self.forget()

    def take_rest(self):
        """All input that was not read."""
        cdef bytes rest = self.data[self.pos:]
        self.data = b""
        self.pos = 0
        return rest

    cdef void forget(self):
        self.command = None
        self.target = None
        self.state = IN_TEXT
        self.text_octets = self.line = 0
        self.tail_octets = 0

    cdef ImapCommand fresh(self):
        cdef ImapCommand command = ImapCommand.__new__(ImapCommand)
        command.utf8 = self.utf8
        command.items_max = self.items_max
        command.depth_max = self.depth_max
        return command

    def read(self):
        """What comes next; see the interface page."""
        cdef octets_t p
        cdef octets_t found
        cdef Py_ssize_t left, n
        cdef literal_t literal
        cdef ImapCommand command
        if self.state == AT_LITERAL:
            raise ValueError("the literal was neither accepted nor refused")
        if self.state == IN_TEXT and self.command is not None and self.line == -1:
            self.forget()  # what read() returned last
        while True:
            left = PyBytes_GET_SIZE(self.data) - self.pos
            if left == 0 and not (self.left == 0 and self.state in (IN_LITERAL, IN_STREAM, SKIPPING_LITERAL)):
                self.data = b""
                self.pos = 0
                return R_MORE
            p = <octets_t>PyBytes_AS_STRING(self.data) + self.pos
            if self.state == IN_TEXT:
                found = <octets_t>memchr(p, c"\n", left)
                n = found - p + 1 if found != NULL else left
                self.text_octets += n
                command = self.command
                if self.text_octets > self.text_octets_max:
                    if command is None:
                        command = self.command = self.fresh()
                    self.keep_tail(command.base + self.line, command.stop - self.line)
                    if command.tag is None:
                        command.append(p, n - (self.text_octets - self.text_octets_max))
                        command.begin()
                    command.drop()
                    self.state = SKIPPING_TEXT
                    return R_TOO_LONG
                if found == NULL:
                    if command is None:
                        command = self.command = self.fresh()
                    command.append(p, n)
                    self.pos += n
                    continue
                if command is None and not self.announces(p, n, &literal):
                    # The whole command in one piece, as nearly always: no octet is copied.
                    command = self.command = self.fresh()
                    command.keep = self.data
                    command.base = p
                    command.stop = n
                    self.pos += n
                    self.finish(0)
                    command.begin()
                    return R_COMMAND
                if command is None:
                    command = self.command = self.fresh()
                command.append(p, n)
                self.pos += n
                if not self.announces(command.base + self.line, command.stop - self.line, &literal):
                    self.finish(self.line)
                    if command.tag is None:
                        command.begin()
                    return R_COMMAND
                if command.tag is None:
                    command.begin()
                command.pending = True
                self.literal_size = literal.size
                self.literal_synchronizing = literal.synchronizing
                self.state = AT_LITERAL
                return R_LITERAL
            n = <Py_ssize_t>min(<uint64_t>left, self.left)
            if self.state == IN_LITERAL:
                self.command.append(p, n)
            elif self.state == IN_STREAM:
                if n:
                    self.left -= n
                    self.pos += n
                    if n == PyBytes_GET_SIZE(self.data):
                        self.target.write(self.data)
                    else:
                        self.target.write(memoryview(self.data)[self.pos - n:self.pos])
                    if self.left:
                        continue
                    n = 0
                self.target = None
            elif self.state == SKIPPING_TEXT:
                found = <octets_t>memchr(p, c"\n", left)
                n = found - p + 1 if found != NULL else left
                self.pos += n
                self.keep_tail(p, n)
                if found == NULL:
                    continue
                if self.announces(self.tail, self.tail_octets, &literal) and not literal.synchronizing:
                    self.tail_octets = 0
                    self.left = literal.size
                    self.state = SKIPPING_LITERAL
                    continue
                # RFC 9051 §4.3: a client whose synchronizing literal gets a tagged response sends no octets of it
                self.finish(-1)
                return R_REFUSED
            self.pos += n
            self.left -= n
            if self.left == 0:
                if self.state == SKIPPING_LITERAL:
                    self.state = SKIPPING_TEXT
                else:
                    self.state = IN_TEXT
                    self.line = self.command.stop

    cdef bint announces(self, octets_t p, Py_ssize_t n, literal_t *literal) noexcept:
        # The line with its end: is there a literal to come?
        n -= 1
        if n and p[n - 1] == c"\r":
            n -= 1
        return find_announcement(p, n, literal)

    cdef void keep_tail(self, octets_t p, Py_ssize_t n) noexcept:
        # The last octets of the line that is being skipped.
        cdef Py_ssize_t old
        if n == 0:
            return
        if n >= TAIL_OCTETS:
            memcpy(self.tail, p + n - TAIL_OCTETS, TAIL_OCTETS)
            self.tail_octets = TAIL_OCTETS
            return
        old = min(<Py_ssize_t>self.tail_octets, TAIL_OCTETS - n)
        memmove(self.tail, self.tail + self.tail_octets - old, old)
        memcpy(self.tail + old, p, n)
        self.tail_octets = <int>(old + n)

    cdef void finish(self, Py_ssize_t line):
        # The command is whole; its last line begins at `line`, whose end and trailing blanks go.  -1: it was refused.
        cdef ImapCommand command = self.command
        if line >= 0:
            command.stop -= 1
            if command.stop > line and command.base[command.stop - 1] == c"\r":
                command.stop -= 1
            while command.stop > line and command.base[command.stop - 1] == c" ":
                command.stop -= 1
        self.state = IN_TEXT
        self.line = -1
        self.tail_octets = 0


    def accept_inline(self):
        """The literal becomes part of the command."""
        if self.state != AT_LITERAL:
            raise ValueError("there is no literal to decide about")
        self.command.pending = False
        self.left = self.literal_size
        self.state = IN_LITERAL

    def accept_target(self, target):
        """The literal's octets go to target.write()."""
        if self.state != AT_LITERAL:
            raise ValueError("there is no literal to decide about")
        cdef ImapCommand command = self.command
        command.pending = False
        if command.targets is None:
            command.targets = []
        command.targets.append((command.stop, target))
        self.target = target
        self.left = self.literal_size
        self.state = IN_STREAM

    def refuse(self):
        """The literal is not taken: the rest of the command is passed over.

        True: the command is over, the client waits for its tagged response.  False: read() says REFUSED then.
        """
        if self.state != AT_LITERAL:
            raise ValueError("there is no literal to decide about")
        self.tail_octets = 0
        if self.literal_synchronizing:
            self.finish(-1)
            return True
        self.left = self.literal_size
        self.state = SKIPPING_LITERAL
        return False

    def read_line(self, Py_ssize_t octets_max):
        """The next line without its end; None: more is needed; True: it is longer, and skipped when its end comes."""
        cdef Py_ssize_t left = PyBytes_GET_SIZE(self.data) - self.pos, n
        cdef octets_t p = <octets_t>PyBytes_AS_STRING(self.data) + self.pos
        cdef octets_t found = <octets_t>memchr(p, c"\n", left)
        n = found - p if found != NULL else left
        if n > octets_max:
            if found != NULL:
                self.pos += n + 1
                return True
            # Enough to know; one octet stands for what was read, so that the line stays too long.
            self.data = self.data[self.pos:self.pos + octets_max + 1]
            self.pos = 0
            return None
        if found == NULL:
            return None
        self.pos += n + 1
        return p[:n - 1] if n and p[n - 1] == c"\r" else p[:n]
