# Types for the compiled form of login.py (setup.py, COMPILED); the Python source stays the only source.

from gateway.server.session cimport Session


cdef class LoginSession(Session):
    cdef public object login, peer
