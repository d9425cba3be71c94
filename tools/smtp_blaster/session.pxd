# Types for the compiled form of session.py (setup.py, COMPILED); the Python source stays the only source.

cimport cython

from smtp_blaster.speaker cimport Speaker
from smtp_blaster.supply cimport Message
from smtp_blaster.wire cimport Leg


ctypedef long long longlong


cdef class Session(Speaker):
    cdef object _ledger, _parser, _behind, _exchange
    cdef Leg _leg
    cdef Message _following
    cdef bint _lmtp, _chunking, _pipelining, _eight_bit, _content_sent, _is_closing, _is_whole, _is_plain
    cdef long long _asked, _dots, _mail_code
    cdef list _recipients, _taken, _refused, _transient

    @cython.locals(size=Py_ssize_t, last=Py_ssize_t, ends=bint)
    cpdef data_received(self, bytes data)
    cdef _expect(self, long long stage, long long now)
    cdef _answered(self)
    @cython.locals(stage=longlong, code=longlong, now=longlong)
    cdef _on_positive(self, bytes data)
    @cython.locals(stage=longlong, now=longlong, sent=longlong)
    cdef _on_reply(self, long long code, str enhanced, str text)
    cdef _on_mail(self, long long code)
    cdef _on_rcpt(self, long long code)
    cdef _on_data(self, long long code)
    cdef _on_dot(self, long long code, long long now)
    cdef _send(self, long long stage, bytes octets)
    cdef _set(self, Message message)
    cdef bytes _mail(self, Message message)
    cdef bytes _head(self, Message message)
    cdef list _transaction(self, Message message, long long now)
    cdef _refuse(self, long long index, long long code)
    cdef _end(self, long long now)
    cdef _settle(self, Message message, long long how, list left, long long now)
    cdef _count(self, Message message, long long now)
    cpdef begin(self, Message message)
    cdef _begin_leg(self, Leg leg, Message message)
    @cython.locals(message=Message)
    cpdef on_taken(self, bytes line, long long now)
    cdef _count_dot(self, bytes line)
