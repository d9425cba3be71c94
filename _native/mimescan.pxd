# Declarations of mimescan.h.
from libc.stdint cimport uint64_t

cdef extern from "mimescan.h" nogil:
    ctypedef struct mime_counts:
        uint64_t lf
        uint64_t high
    void mime_count(bint simd, const unsigned char *p, size_t start, size_t end, mime_counts *c)
    size_t mime_find_dashes(bint simd, const unsigned char *p, size_t start, size_t n, mime_counts *c)
    bint mime_have_avx2()
