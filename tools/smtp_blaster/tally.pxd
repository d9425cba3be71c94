# Types for the compiled form of tally.py (setup.py, COMPILED); the Python source stays the only source.

cimport cython

ctypedef long long longlong

cdef long long _highest_ns, _sub_buckets, _half_bits, _buckets, _accepted, _refused, _message

@cython.locals(shift=int)
cpdef long long index_of(long long ns)


cdef class Tally:
    cdef public long long accepted, refused, broken, retried, in_flight, recipients_accepted, octets, late_starts
    cdef public long long measure_from_ns, last_ns
    cdef public dict interval, answers
    cdef dict _alike
    cdef long long[::1] _counts

    @cython.locals(index=Py_ssize_t)
    cpdef record(self, Py_ssize_t stage, long long ns)
    cpdef begin(self, long long start_ns, bint late)
    cpdef end(self, long long how, long long start_ns, long long now_ns, long long octets)
    cpdef reply(self, long long stage, long long code, str enhanced, str text)
    @cython.locals(first=Py_ssize_t, index=Py_ssize_t, count=longlong)
    cpdef dict counts(self, Py_ssize_t stage)
    cpdef bint reply_again(self, bytes line)
