# A borrowed buffer of whole items: included where it is needed, a class of each module's own.

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer


cdef class _Octets:
    # Given back when this goes.
    cdef Py_buffer view
    cdef Py_ssize_t count  # items

    def __cinit__(self, data, Py_ssize_t item):
        PyObject_GetBuffer(data, &self.view, PyBUF_SIMPLE)
        if self.view.len % item:
            raise ValueError(f"{self.view.len} octets are no whole number of {item}")
        self.count = self.view.len // item

    def __dealloc__(self):
        PyBuffer_Release(&self.view)
