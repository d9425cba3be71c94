/* The message index: one message of a mailbox, and the ranges that UID sets become.  Little endian, as on the disk.
 * What the fields mean is said in gateway/store/model.py.
 */
#ifndef GATEWAY_RECORDS_H
#define GATEWAY_RECORDS_H

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

#endif
