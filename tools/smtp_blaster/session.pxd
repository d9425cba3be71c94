# Types for the compiled form of session.py (setup.py, COMPILED); the Python source stays the only source.

from smtp_blaster.supply cimport Message, Supply
from smtp_blaster.tally cimport Tally


cdef class Session:
    cdef public object transport, closed
    cdef public bint is_secure
    cdef public long long done
    cdef object _source, _ledger, _parser, _awaited, _exchange
    cdef Supply _supply
    cdef Tally _tally
    cdef Message _first, _message, _following
    cdef bint _lmtp, _chunking, _pipelining, _eight_bit, _content_sent, _is_closing
    cdef long long _remaining, _asked, _dots, _mail_code, _began_ns
    cdef list _recipients, _taken, _refused, _transient

    cdef _on_reply(self, long long code, str enhanced, str text)
    cdef _on_mail(self, long long code)
    cdef _on_rcpt(self, long long code)
    cdef _on_data(self, long long code)
    cdef _on_dot(self, long long code, str enhanced, str text, long long asked, long long now)
    cdef _send(self, long long stage, bytes octets)
    cdef _next(self)
    cdef _set(self, Message message)
    cdef bytes _mail(self, Message message)
    cdef bytes _head(self, Message message)
    cdef list _transaction(self, Message message, long long now)
    cdef _refuse(self, long long index, long long code)
    cdef _end(self, long long now)
    cdef _settle(self, Message message, long long how, list left, long long now)
    cdef _count(self, Message message, long long now)
    cpdef begin(self, Message message)
