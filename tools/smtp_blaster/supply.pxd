# Types for the compiled form of supply.py (setup.py, COMPILED); the Python source stays the only source.

cdef class Message:
    cdef public long long number, start_ns
    cdef public object content
    cdef public bytes mail
    cdef public list rcpts, paths
    cdef public int how
    cdef public bint is_again, is_counted


cdef class Supply:
    cdef public long long limit, taken, offered, retry_ns
    cdef public bint is_open, stopped
    cdef object _mail, _schedule, _schedule_offered, _content
    cdef list _again, _mails, _rcpts, _forward
    cdef long long _part, _parts, _deadline_ns, _order, _recipients, _next_ns, _next_offered_ns

    cpdef take(self)
    cpdef bint is_ended(self)
    cpdef bint is_over(self, long long in_flight)
    cdef _message(self, long long number, long long start_ns)
