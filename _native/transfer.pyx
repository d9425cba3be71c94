"""Content-Transfer-Encodings: base64 both ways, and quoted-printable encoding.

Quoted-printable decoding is left to binascii: a kernel was 2.5 to 3.5 times as fast, too little to keep.

    Limits    none of its own: what comes out is at most 3.2 times what goes in
    Errors    ValueError for base64 that ends inside a group, as binascii has it
    Standards RFC 2045 §6.7 (quoted-printable), §6.8 (base64)

Decoding takes what binascii takes (non-strict) and gives the same octets.  Every function takes any buffer;
simd=False is the portable path.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer

from transfer_kernels cimport (
    base64_decode, base64_encode, base64_encoded_octets, qp_encode, qp_encoded_octets, transfer_have_avx2,
    transfer_init,
)

ctypedef const unsigned char *octets_t
ctypedef unsigned char *room_t

cdef extern from *:
    """
    /* What was written of a result made in its largest size: shrunk in place, no second copy.  Steals result. */
    static PyObject *shortened(PyObject *result, Py_ssize_t length) {
        if (result != NULL)
            _PyBytes_Resize(&result, length);
        return result;
    }
    static PyObject *new_bytes(Py_ssize_t room) { return PyBytes_FromStringAndSize(NULL, room); }
    """
    ctypedef struct PyObject
    PyObject *new_bytes(Py_ssize_t room)
    object shortened(PyObject *result, Py_ssize_t length)
    char *PyBytes_AS_STRING(PyObject *o)
    void Py_DECREF(PyObject *o)

transfer_init()
cdef bint SIMD = transfer_have_avx2()


cdef PyObject *room_for(Py_ssize_t octets) except NULL:
    return new_bytes(octets)


def encode_base64(data, bint lf=False, bint end=True, bint simd=True):
    """Lines of 76 characters with CRLF (lf: LF) between them, and behind the last when end is set."""
    cdef Py_buffer view
    cdef PyObject *result
    cdef size_t length
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        result = room_for(base64_encoded_octets(view.len) + 8)
        length = base64_encode(
            simd and SIMD, <octets_t>view.buf, view.len, <room_t>PyBytes_AS_STRING(result), end, lf
        )
        return shortened(result, length)
    finally:
        PyBuffer_Release(&view)


def decode_base64(data, bint simd=True):
    """The octets; characters outside the alphabet are passed over, padding ends the data."""
    cdef Py_buffer view
    cdef PyObject *result
    cdef size_t length
    cdef int held = 0
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        result = room_for(view.len // 4 * 3 + 40)
        length = base64_decode(
            simd and SIMD, <octets_t>view.buf, view.len, <room_t>PyBytes_AS_STRING(result), &held
        )
        if held:
            Py_DECREF(result)
            raise ValueError(f"base64 ends with {held} characters of a group of 4")
        return shortened(result, length)
    finally:
        PyBuffer_Release(&view)


def encode_quoted_printable(data, bint lf=False, bint simd=True):
    """data as text with CRLF line ends (lf: LF), no line longer than 76; other CR and LF are encoded."""
    cdef Py_buffer view
    cdef PyObject *result
    cdef size_t length
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        result = room_for(qp_encoded_octets(view.len))
        length = qp_encode(simd and SIMD, <octets_t>view.buf, view.len, <room_t>PyBytes_AS_STRING(result), lf)
        return shortened(result, length)
    finally:
        PyBuffer_Release(&view)
