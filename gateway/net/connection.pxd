# Types for the compiled form of connection.py (setup.py, COMPILED); the Python source stays the only source.

cdef class Connection:
    cdef public double deadline
    cdef public bint closed, reading
    cdef public object handler, transport, tls
    cdef object _sweep
    cdef bint _yielding

    cpdef write(self, bytes data)
    cpdef set_deadline(self, double seconds)
    cpdef pause_reading(self)
    cpdef resume_reading(self)
    cpdef close(self)
