# Types for the compiled form of machine.py (setup.py, COMPILED); the Python source stays the only source.

cdef class Settings:
    cdef readonly bint literal_minus
    cdef readonly Py_ssize_t command_octets, compress_level, depth_max, errors_max, items_max, line_octets
    cdef readonly Py_ssize_t literal_octets, literals_max, login_octets, sasl_octets


cdef class ImapServerMachine:
    cdef readonly Settings settings
    cdef public bint closing
    cdef public Py_ssize_t errors, queued_octets
    cdef object _reader, _command, _deflate
    cdef int _mode
    cdef readonly bint _pending
    cdef bint _authenticated, _inflated
    cdef Py_ssize_t _literals, _streams
    cdef bytes _refusal
    cdef list _out, _clear

    cpdef receive_data(self, bytes data)
    cpdef list data_to_send(self)
    cpdef next_event(self)
    cpdef bint _inflate(self) except -1
    cpdef _next_command(self)
    cpdef untagged(self, bytes line)
    cpdef complete(self, bytes status, str text, bytes code=*)
    cpdef completed(self)
    cpdef stop(self, bytes last=*)
