# Declarations of fieldscan.h.
cdef extern from "fieldscan.h" nogil:
    unsigned char lower(unsigned char c)
    bint is_wsp(unsigned char c)
    bint is_lwsp(unsigned char c)
    bint is_token(unsigned char c)
    bint same_ignoring_case(const unsigned char *p, const char *lower_case, Py_ssize_t n)
    Py_ssize_t field_colon(const unsigned char *p, Py_ssize_t n)
    Py_ssize_t skip_cfws(const unsigned char *p, Py_ssize_t i, Py_ssize_t n)
    bint trim_value(const unsigned char **p, Py_ssize_t *n)
    Py_ssize_t unfold(const unsigned char *p, Py_ssize_t n, unsigned char *out)
    bint next_field(const unsigned char *p, Py_ssize_t *at, Py_ssize_t n, Py_ssize_t *colon, Py_ssize_t *end)
