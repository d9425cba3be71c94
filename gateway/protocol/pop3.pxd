# Types for the compiled form of pop3.py (setup.py, COMPILED); the Python source stays the only source.

cdef class Settings:
    cdef readonly str hostname, implementation
    cdef readonly bint stls
    cdef readonly Py_ssize_t login_delay_s, line_octets, sasl_octets, errors_max
    cdef dict _capa


cdef class Pop3ServerMachine:
    cdef readonly Settings settings
    cdef readonly bint tls, utf8, closing
    cdef readonly str timestamp
    cdef public bint passwords
    cdef public tuple mechanisms
    cdef readonly Py_ssize_t errors, maildrop_messages, maildrop_octets, deleted_count, deleted_octets, queued_octets
    cdef bytes _data
    cdef Py_ssize_t _pos
    cdef bint _skipping
    cdef int _mode, _pending
    cdef list _out
    cdef object _listing, _user, _sizes, _unique_id, _encoder
    cdef bytearray _deleted
    cdef tuple _resume

    cpdef receive_data(self, bytes data)
    cpdef list data_to_send(self)
    cpdef next_event(self)
    cpdef bytes _next_line(self)
    cpdef _on_command(self, bytes line)
    cpdef begin_content(self, Py_ssize_t octets)
    cpdef content(self, slices)
    cpdef end_content(self)
    cpdef _ask(self, str keyword, str argument, int least, int most)
    cpdef _with_table(self, str keyword, list words)
    cpdef _say(self, bytes octets)
    cpdef _wait(self, int kind, a=*, b=*)
