# Types for the compiled form of session.py (setup.py, COMPILED); the Python source stays the only source.

from gateway.net.connection cimport Connection


cdef class Session:
    cdef public object machine, _service, _until_read
    cdef public Connection _connection
    cdef public str account_name, client, client_ip, session_id
    cdef public bint _counted, _pumping, _waiting, _writable
    cdef public str _reason, _tls_text
    cdef public double _started
    cdef public set _tasks

    cpdef on_event(self, int kind, a, b)
    cpdef double idle_s(self)
    cpdef receive(self, bytes data)
    cpdef pump(self)
    cpdef wait(self)
    cpdef resume(self)
    cpdef flush(self)
    cpdef bint _write(self) except -1
