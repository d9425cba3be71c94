# Declarations of records.h.

from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from "records.h" nogil:
    ctypedef struct record_t:
        uint32_t uid
        uint32_t size
        uint64_t flags
        uint64_t modseq
        uint64_t message
        int64_t internal_date
        uint32_t save_date
        uint32_t sent_date

    ctypedef struct range_t:
        uint32_t first
        uint32_t last

    ctypedef struct flag_change_t:
        uint32_t first
        uint32_t last
        uint64_t clear
        uint64_t set
        uint64_t modseq

    Py_ssize_t first_range(const range_t *ranges, Py_ssize_t count, uint32_t uid)
    Py_ssize_t first_record(const record_t *records, Py_ssize_t count, uint32_t uid)
