# Declarations of bytescan.h: what a name means is said there.

from libc.stdint cimport int64_t, uint8_t

cdef extern from "bytescan.h" nogil:
    enum: BYTESCAN_BLOCK

    ctypedef struct line_facts:
        int64_t lines
        int64_t longest
        int64_t line_start
        int has_8bit

    ctypedef struct bytescan_kernels:
        const char *name
        size_t (*copy_clean)(const uint8_t *p, uint8_t *out, size_t n, int64_t at, line_facts *facts) noexcept nogil
        size_t (*find_dot)(const uint8_t *p, size_t n) noexcept nogil
        size_t (*find_foul)(const uint8_t *p, size_t n) noexcept nogil

    const bytescan_kernels bytescan_all[]

    int bytescan_available() noexcept
