# Types for the compiled form of tally.py (setup.py, COMPILED); the Python source stays the only source.

cpdef long long index_of(long long ns)


cdef class Tally:
    cdef public long long accepted, refused, broken, retried, in_flight, recipients_accepted, octets, late_starts
    cdef public long long measure_from_ns, last_ns
    cdef public dict interval, answers
    cdef long long[::1] _counts

    cpdef record(self, long long stage, long long ns)
    cpdef begin(self, long long start_ns, bint late)
    cpdef end(self, long long how, long long start_ns, long long now_ns, long long octets)
    cpdef reply(self, long long stage, long long code, str enhanced, str text)
