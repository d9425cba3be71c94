"""The dialogue that goes well, spoken without Python: command, positive reply, next command, up to the final dot.

Owns      Wire (an epoll of its own on the loop's thread), Leg (one connection's part of it)
Flow      Session.begin → Leg.begin → send, recv, Tally.record … → Session.on_taken; whatever is not one whole positive
          line goes back: Session.take_over, which goes on where the leg stood
Limits    plain TCP and no PIPELINING; a reply line READ_MAX; _run() gives the loop its turn after SLICE_NS
Errors    none: errors of a socket are left for the transport to find
Blocking  never

The transport keeps the socket; while a leg is in, it does not read, and has nothing to write.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINTR, errno
from libc.string cimport memchr, memset

from smtp_blaster.tally cimport Tally
from smtp_blaster.tally import DATA as _DATA, DOT as _DOT, MAIL as _MAIL, RCPT as _RCPT

cdef extern from "sys/epoll.h" nogil:
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int maxevents, int timeout)
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL
    unsigned int EPOLLIN, EPOLLOUT

cdef extern from "sys/socket.h" nogil:
    ssize_t recv(int fd, void *buffer, size_t octets, int flags)
    ssize_t send(int fd, const void *buffer, size_t octets, int flags)
    int MSG_DONTWAIT, MSG_NOSIGNAL

cdef extern from "sys/uio.h" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "sys/socket.h" nogil:
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    ssize_t sendmsg(int fd, const msghdr *message, int flags)

cdef extern from "time.h" nogil:
    ctypedef long time_t
    struct timespec:
        time_t tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *time)
    int CLOCK_MONOTONIC

cdef extern from "unistd.h" nogil:
    int close(int fd)

cdef enum:
    EVENTS_MAX = 64
    READ_MAX = 4096
    PARTS_MAX = 8       # buffers that one sendmsg takes
    SLICE_NS = 1000000

# As C integers; tally.py is where they are.
cdef Py_ssize_t MAIL = _MAIL
cdef Py_ssize_t RCPT = _RCPT
cdef Py_ssize_t DATA = _DATA
cdef Py_ssize_t DOT = _DOT


cdef inline long long now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <long long>now.tv_sec * 1000000000 + now.tv_nsec


cdef class Wire:
    """All legs of a loop."""

    def __cinit__(self, loop):
        self._loop = loop
        self._legs = set()
        self._epoll = epoll_create1(EPOLL_CLOEXEC)
        if self._epoll < 0:
            raise OSError(errno, "epoll_create1")
        loop.add_reader(self._epoll, self._run)

    def close(self):
        """Every leg has left."""
        if self._epoll >= 0:
            self._loop.remove_reader(self._epoll)
            close(self._epoll)
            self._epoll = -1

    def join(self, int fd, session, Tally tally not None):
        """A leg for this socket; its transport must not read any more."""
        cdef Leg leg = Leg.__new__(Leg)
        leg._fd = fd
        leg._wire = self
        leg._tally = tally
        leg._session = session
        cdef epoll_event event
        event.events = EPOLLIN
        event.data.ptr = <void *>leg
        if epoll_ctl(self._epoll, EPOLL_CTL_ADD, fd, &event) < 0:
            raise OSError(errno, "epoll_ctl")
        leg._is_in = True
        self._legs.add(leg)
        return leg

    def _run(self):
        cdef epoll_event events[EVENTS_MAX]
        cdef int found, index
        cdef long long until = now_ns() + SLICE_NS
        cdef Leg leg
        cdef bint goes_on = True
        found = epoll_wait(self._epoll, events, EVENTS_MAX, 0)
        while found > 0:
            # What one event does may end another's leg: so all are held until the last was heard.
            legs = []
            for index in range(found):
                legs.append(<object>events[index].data.ptr)
            for index in range(found):
                leg = legs[index]
                leg._on_event(events[index].events)
                # A session that did something else may have left work for the loop.
                goes_on = goes_on and leg._is_in and leg.sent_ns != 0
            # One alone was answered before another: the next is not there yet, either.
            if found == 1 or not goes_on or now_ns() > until:
                return
            found = epoll_wait(self._epoll, events, EVENTS_MAX, 0)


cdef class Leg:
    """One connection; a transaction at a time."""

    cpdef begin(self, list commands, list content, bint chunking):
        """Say the commands, then the content, each behind the positive reply to what went before."""
        self._commands = commands
        self._out = content
        self._chunking = chunking
        self._count = len(commands)
        self._index = 0
        self._offset = 0
        if not self._command():
            self._hand_back(b"")

    cpdef end(self):
        """The session goes on by itself, wherever it stands."""
        if self._is_in:
            self._hand_back(b"")

    cdef Py_ssize_t _due(self):
        # What the next reply answers.
        if self._index == 0:
            return MAIL
        if self._index >= self._count:
            return DOT
        return DATA if self._index == self._count - 1 and not self._chunking else RCPT

    cdef _on_event(self, unsigned int events):
        if not self._is_in:
            return
        if self._wants_write and events & EPOLLOUT:
            if not self._flush():
                self._hand_back(b"")
                return
        if events & ~EPOLLOUT:
            self._on_readable()

    cdef _on_readable(self):
        cdef unsigned char line[READ_MAX]
        cdef ssize_t octets = recv(self._fd, line, READ_MAX, MSG_DONTWAIT)
        cdef long long now
        cdef Py_ssize_t stage
        if octets < 0 and (errno == EAGAIN or errno == EINTR):
            return
        if octets <= 0 or not self._is_taken(line, octets):
            self._hand_back(PyBytes_FromStringAndSize(<char *>line, octets if octets > 0 else 0))
            return
        now = now_ns()
        stage = self._due()
        self._tally.record(stage, now - self.sent_ns)
        if stage == DOT:
            self.sent_ns = 0
            self._session.on_taken(PyBytes_FromStringAndSize(<char *>line, octets), now)
            return
        self._index += 1
        if not (self._flush() if self._index == self._count else self._command()):
            self._hand_back(b"")

    cdef bint _is_taken(self, const unsigned char *line, Py_ssize_t octets):
        # One whole line, and the code that lets the dialogue go on (RFC 5321 §4.3.2).
        if self.sent_ns == 0 or self._wants_write or octets < 6 or octets == READ_MAX:
            return False
        if line[0] != (c"3" if self._due() == DATA else c"2") or line[3] != c" ":
            return False
        return memchr(line, c"\n", octets) == line + octets - 1

    cdef bint _command(self):
        # False when it could not be sent; what is sent by half cannot be helped: the socket is full of short commands.
        cdef bytes command = self._commands[self._index]
        self.sent_ns = now_ns()
        return send(
            self._fd, PyBytes_AS_STRING(command), PyBytes_GET_SIZE(command), MSG_DONTWAIT | MSG_NOSIGNAL
        ) == PyBytes_GET_SIZE(command)

    cdef bint _flush(self):
        # What is left of the content; False when the connection is gone.
        cdef iovec parts[PARTS_MAX]
        cdef msghdr message
        cdef Py_ssize_t skip = self._offset
        cdef Py_ssize_t left = 0
        cdef Py_ssize_t count = 0
        cdef ssize_t sent
        cdef bytes part
        if skip == 0:
            self.sent_ns = now_ns()
        for part in self._out:  # the list keeps them alive
            if skip >= PyBytes_GET_SIZE(part):
                skip -= PyBytes_GET_SIZE(part)
                continue
            parts[count].iov_base = PyBytes_AS_STRING(part) + skip
            parts[count].iov_len = PyBytes_GET_SIZE(part) - skip
            left += parts[count].iov_len
            count += 1
            skip = 0
        memset(&message, 0, sizeof(message))
        message.msg_iov = parts
        message.msg_iovlen = count
        sent = sendmsg(self._fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent < 0:
            if errno != EAGAIN:
                return False
            sent = 0
        self._offset += sent
        return self._watch(sent < left)

    cdef bint _watch(self, bint wants_write):
        cdef epoll_event event
        if wants_write != self._wants_write:
            self._wants_write = wants_write
            event.events = EPOLLIN | (EPOLLOUT if wants_write else 0)
            event.data.ptr = <void *>self
            return epoll_ctl(self._wire._epoll, EPOLL_CTL_MOD, self._fd, &event) == 0
        return True

    cdef _hand_back(self, bytes data):
        session, self._session = self._session, None
        rest = []
        self._is_in = False
        # A socket that was closed before its leg left stays with the epoll while another process has it too, be that
        # only between fork and exec: then its events still name this leg, which lives as long as the wire.
        if epoll_ctl(self._wire._epoll, EPOLL_CTL_DEL, self._fd, NULL) == 0:
            self._wire._legs.discard(self)
        if not self.sent_ns:
            session.take_over(-1, 0, rest, data)
            return
        if self._index == self._count:
            skip = self._offset
            for part in self._out:
                if skip < len(part):
                    rest.append(part[skip:])
                skip = max(0, skip - len(part))
        session.take_over(self._index, self.sent_ns, rest, data)
