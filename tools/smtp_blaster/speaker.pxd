# Types for the compiled form of speaker.py (setup.py, COMPILED); the Python source stays the only source.

from smtp_blaster.supply cimport Message, Supply
from smtp_blaster.tally cimport Tally


cdef class Speaker:
    cdef public object transport, closed, _source
    cdef public bint is_secure
    cdef public long long done, _remaining, _stage, _sent_ns, _began_ns
    cdef public Supply _supply
    cdef public Tally _tally
    cdef public Message _first, _message

    cpdef begin(self, Message message)
    cpdef _next(self)
