# Types for the compiled form of smtp_server.py (setup.py, COMPILED); the Python source stays the only source.

cdef class Settings:
    cdef readonly str hostname
    cdef readonly bint lmtp, starttls, xclient, dsn, auth, normalize
    cdef readonly Py_ssize_t max_message_octets, line_octets, recipients_max, transactions_max
    cdef readonly Py_ssize_t junk_commands_max, chunk_octets, errors_max
    cdef dict _ehlo


cdef class SmtpServerMachine:
    cdef readonly Settings settings
    cdef readonly bint tls, xclient_allowed, esmtp, authenticated
    cdef public tuple mechanisms
    cdef readonly Py_ssize_t errors, junk, transactions
    cdef readonly object decoder, reverse_path, mail
    cdef readonly list recipients
    cdef readonly str greeted
    cdef bytes _data
    cdef Py_ssize_t _pos, _bdat_left, _excuses
    cdef list _out
    cdef int _mode, _pending
    cdef readonly bint closing
    cdef bint _bdat_last, _put_off
    cdef object _sender, _recipient, _bdat_refusal

    cpdef receive_data(self, bytes data)
    cpdef next_event(self)
    cpdef bytes data_to_send(self)
    cpdef reply(self, reply)
    cpdef accept_content(self, bytes encoded)
    cpdef start_data(self)
    cpdef challenge(self, bytes octets)
    cpdef _read_auth(self)
    cpdef say(self, reply)
    cpdef _drop_transaction(self)
    cpdef _end_transaction(self)
    cpdef _new_decoder(self)
