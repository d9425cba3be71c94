/* The message index: one message of a mailbox, and the ranges that UID sets become.  Little endian, as on the disk.
 * What the fields mean is said in gateway/store/model.py.
 */
#ifndef GATEWAY_RECORDS_H
#define GATEWAY_RECORDS_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint32_t uid;
    uint32_t size;
    uint64_t flags;
    uint64_t modseq;
    uint64_t message;
    int64_t internal_date;
    uint32_t save_date;
    uint32_t sent_date;
} record_t;

/* first to last, both included; ranges ascend and are apart */
typedef struct {
    uint32_t first;
    uint32_t last;
} range_t;

/* A change of flags that is not in the chunks of the index yet: (flags & ~clear) | set for UIDs first to last. */
typedef struct {
    uint32_t first;
    uint32_t last;
    uint64_t clear;
    uint64_t set;
    uint64_t modseq;
} flag_change_t;

/* The first range that does not end before uid, by halves; count: there is none. */
static inline ptrdiff_t first_range(const range_t *ranges, ptrdiff_t count, uint32_t uid) {
    ptrdiff_t low = 0, high = count;
    while (low < high) {
        ptrdiff_t middle = (low + high) >> 1;
        if (ranges[middle].last < uid)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The first record that is not below uid, in the same way. */
static inline ptrdiff_t first_record(const record_t *records, ptrdiff_t count, uint32_t uid) {
    ptrdiff_t low = 0, high = count;
    while (low < high) {
        ptrdiff_t middle = (low + high) >> 1;
        if (records[middle].uid < uid)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

#endif
