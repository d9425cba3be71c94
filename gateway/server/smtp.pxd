# Types for the compiled form of smtp.py (setup.py, COMPILED); the Python source stays the only source.

from gateway.net.connection cimport Connection
from gateway.protocol.smtp_server cimport SmtpServerMachine


cdef class SmtpSession:
    cdef readonly str client, client_ip, session_id
    cdef readonly SmtpServerMachine machine
    cdef Connection _connection
    cdef object _service, _timer, _stamp, _incoming, _submission
    cdef list _inline_chunks
    cdef dict _expansions
    cdef str _tls_text, _reason, _proto
    cdef bint _arriving, _asking, _counted, _waiting, _writable, _may_relay
    cdef double _data_started, _content_ended, _started
    cdef Py_ssize_t _data_octets, _buffered, _accepted, _errors, _inline_octets, _passing_octets

    cpdef receive(self, bytes data)
    cpdef _pump(self)
    cpdef _flush(self)
    cpdef _count_buffered(self, Py_ssize_t octets)
    cpdef _expect(self, bint arriving)
    cpdef _resume(self)
    cpdef _abort_incoming(self)
    cpdef _answer_rcpt(self, recipient, refusal)
    cpdef _resolved(self, recipient, resolution)
    cpdef _answered(self)
    cpdef _log_accepted(self, str queue_id, envelope)
