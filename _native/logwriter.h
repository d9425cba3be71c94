/* The thread that makes a log durable: takes groups of records, fills in their CRCs, writes and syncs them in the
   order given, and says so through an eventfd.  It never sees Python.

   Record on disk (little endian, starts on a multiple of 8, groups start on a multiple of LW_BLOCK):
       0  u64 mark      random, new with every use of a segment: neither stale octets nor a sender can imitate it
       8  u32 crc       CRC-32C of octets 0-7 and 12-end
      12  u32 length    of the payload
      16  u32 sequence  of the segment
      20  u8  type, u24 group (counts the writes of this segment)
      24  u64 number    of the message
      32  payload, then zeros up to a multiple of 8
   A group is filled up to a block with one PAD record, or with zeros when no header fits.

   Locking: everything in struct lw below `mutex` is under it; an open group belongs to the loop's thread, a taken one
   to the writer's. */
#ifndef GATEWAY_LOGWRITER_H
#define GATEWAY_LOGWRITER_H

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
#include "crc32c.h"

#define LW_HEADER 32
#define LW_BLOCK 4096
#define LW_PAD 1 /* record type */

enum { LW_FDATASYNC = 0, LW_DSYNC = 1, LW_DIRECT = 2 }; /* how a group reaches the disk */

struct lw_group {
    struct lw_group *next;
    unsigned char *data;
    size_t capacity;
    size_t used;   /* without the padding */
    size_t padded; /* what is written */
    uint64_t offset;
    uint32_t sequence;
    uint32_t index; /* within the segment */
    int fd;
    int method;
    int error;
};

struct lw {
    pthread_t thread;
    pthread_mutex_t mutex;
    uint32_t asleep;      /* futex: 1 while the writer waits for something ready, or stop */
    pthread_cond_t idle;  /* lw_drain(): a group was finished */
    int draining;
    struct lw_group *ready_first, *ready_last;
    struct lw_group *done_first, *done_last;
    struct lw_group *taken;
    size_t pending; /* octets of ready and taken groups; read without the mutex */
    int signalled;  /* the eventfd was written and lw_reap() not called since */
    int stop;
    uint64_t syncs; /* groups done; read without the mutex */
    int event;
    int failed;               /* a group of failed_sequence failed: those behind it are not written */
    uint32_t failed_sequence;
    struct lw_group *spare;   /* loop's thread only */
    int spares;
    size_t capacity;
};

static inline void lw_put32(unsigned char *p, uint32_t v) { memcpy(p, &v, 4); }
static inline void lw_put64(unsigned char *p, uint64_t v) { memcpy(p, &v, 8); }
static inline uint32_t lw_get32(const unsigned char *p) { uint32_t v; memcpy(&v, p, 4); return v; }
static inline uint64_t lw_get64(const unsigned char *p) { uint64_t v; memcpy(&v, p, 8); return v; }

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the log is little endian and read in place"
#endif

static inline size_t lw_align8(size_t n) { return (n + 7) & ~(size_t)7; }
static inline size_t lw_align_block(size_t n) { return (n + LW_BLOCK - 1) & ~(size_t)(LW_BLOCK - 1); }

static inline void lw_put_header(unsigned char *p, uint64_t mark, uint32_t length, uint32_t sequence, uint32_t index,
                                 uint8_t type, uint64_t number)
{
    lw_put64(p, mark);
    lw_put32(p + 8, 0);
    lw_put32(p + 12, length);
    lw_put32(p + 16, sequence);
    lw_put32(p + 20, (uint32_t)type | index << 8);
    lw_put64(p + 24, number);
}

static inline uint32_t lw_record_crc(const unsigned char *p, uint32_t length)
{
    return crc32c(crc32c(0, p, 8), p + 12, LW_HEADER - 12 + (size_t)length);
}

/* True when the `room` octets at p begin with a whole, undamaged record of that segment. */
static inline int lw_record_valid(const unsigned char *p, size_t room, uint64_t mark, uint32_t sequence)
{
    if (room < LW_HEADER || lw_get64(p) != mark || lw_get32(p + 16) != sequence)
        return 0;
    uint32_t length = lw_get32(p + 12);
    return length <= room - LW_HEADER && lw_get32(p + 8) == lw_record_crc(p, length);
}

/* Pads the group to whole blocks.  The space for it is there: see lw_new_group(). */
static void lw_pad(struct lw_group *g, uint64_t mark)
{
    size_t end = lw_align_block(g->used), rest = end - g->used;
    memset(g->data + g->used, 0, rest);
    if (rest >= LW_HEADER)
        lw_put_header(g->data + g->used, mark, (uint32_t)(rest - LW_HEADER), g->sequence, g->index, LW_PAD, 0);
    g->padded = end;
}

static void lw_fill_crcs(struct lw_group *g)
{
    size_t p = 0;
    while (p + LW_HEADER <= g->padded) {
        uint32_t length = lw_get32(g->data + p + 12);
        lw_put32(g->data + p + 8, lw_record_crc(g->data + p, length));
        p += lw_align8(LW_HEADER + (size_t)length);
    }
}

/* 0 or an errno.  Short writes go on; on an O_DIRECT file from the last whole block. */
static int lw_write(struct lw_group *g)
{
    size_t p = 0;
    while (p < g->padded) {
        struct iovec piece = {g->data + p, g->padded - p};
        ssize_t n = g->method == LW_DSYNC ? pwritev2(g->fd, &piece, 1, (off_t)(g->offset + p), RWF_DSYNC)
                                          : pwrite(g->fd, piece.iov_base, piece.iov_len, (off_t)(g->offset + p));
        if (n < 0) {
            if (errno == EINTR)
                continue;
            return errno;
        }
        if (g->method == LW_DIRECT && p + (size_t)n < g->padded)
            n &= ~(ssize_t)(LW_BLOCK - 1);
        if (n == 0)
            return ENOSPC; /* a file system that takes nothing and names no reason */
        p += (size_t)n;
    }
    if (g->method == LW_FDATASYNC)
        while (fdatasync(g->fd) < 0)
            if (errno != EINTR)
                return errno;
    return 0;
}

static void lw_signal(struct lw *w)
{
    uint64_t one = 1;
    while (write(w->event, &one, 8) < 0 && errno == EINTR)
        ;
}

/* A bare futex: a condition variable costs a second system call each time, for the mutex it takes again. */
static void lw_sleep(struct lw *w)
{
    w->asleep = 1;
    pthread_mutex_unlock(&w->mutex);
    while (__atomic_load_n(&w->asleep, __ATOMIC_ACQUIRE))
        syscall(SYS_futex, &w->asleep, FUTEX_WAIT_PRIVATE, 1, NULL, NULL, 0);
    pthread_mutex_lock(&w->mutex);
}

/* Call with the mutex held; the answer goes to lw_wake() when it is not. */
static int lw_rouse(struct lw *w)
{
    int asleep = (int)w->asleep;
    if (asleep)
        __atomic_store_n(&w->asleep, 0, __ATOMIC_RELEASE);
    return asleep;
}

static void lw_wake(struct lw *w, int asleep)
{
    if (asleep)
        syscall(SYS_futex, &w->asleep, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void *lw_main(void *argument)
{
    struct lw *w = argument;
    pthread_setname_np(pthread_self(), "spool-writer");
    pthread_mutex_lock(&w->mutex);
    for (;;) {
        while (!w->ready_first && !w->stop)
            lw_sleep(w);
        struct lw_group *g = w->ready_first;
        if (!g)
            break;
        if (!(w->ready_first = g->next))
            w->ready_last = NULL;
        g->next = NULL;
        w->taken = g;
        int skip = w->failed && w->failed_sequence == g->sequence;
        pthread_mutex_unlock(&w->mutex);

        if (skip)
            g->error = ECANCELED;
        else {
            lw_fill_crcs(g);
            g->error = lw_write(g);
        }

        pthread_mutex_lock(&w->mutex);
        w->taken = NULL;
        __atomic_fetch_sub(&w->pending, g->padded, __ATOMIC_RELAXED);
        __atomic_fetch_add(&w->syncs, 1, __ATOMIC_RELAXED);
        if (g->error && !skip) {
            w->failed = 1;
            w->failed_sequence = g->sequence;
        }
        if (w->done_last)
            w->done_last->next = g;
        else
            w->done_first = g;
        w->done_last = g;
        if (w->draining)
            pthread_cond_signal(&w->idle);
        if (!w->signalled) {
            w->signalled = 1;
            pthread_mutex_unlock(&w->mutex);
            lw_signal(w);
            pthread_mutex_lock(&w->mutex);
        }
    }
    pthread_mutex_unlock(&w->mutex);
    return NULL;
}

static void lw_free_group(struct lw_group *g)
{
    if (g) {
        munmap(g->data, g->capacity);
        free(g);
    }
}

/* A group with room for `need` octets of records and their padding, or NULL (no memory). */
static struct lw_group *lw_new_group(struct lw *w, size_t need)
{
    struct lw_group *g = w->spare;
    need = lw_align_block(need) + LW_BLOCK;
    if (g && need <= g->capacity) {
        w->spare = g->next;
        w->spares--;
    } else {
        g = malloc(sizeof *g);
        if (!g)
            return NULL;
        g->capacity = need > w->capacity ? need : w->capacity;
        g->data = mmap(NULL, g->capacity, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (g->data == MAP_FAILED) {
            free(g);
            return NULL;
        }
    }
    g->next = NULL;
    g->used = g->padded = 0;
    g->error = 0;
    return g;
}

/* Keeps up to two ordinary groups for the next use. */
static void lw_recycle_group(struct lw *w, struct lw_group *g)
{
    if (w->spares < 2 && g->capacity == w->capacity) {
        g->next = w->spare;
        w->spare = g;
        w->spares++;
    } else
        lw_free_group(g);
}

/* Hands a padded group over.  Costs a system call only when the writer sleeps. */
static void lw_submit(struct lw *w, struct lw_group *g)
{
    pthread_mutex_lock(&w->mutex);
    g->next = NULL;
    if (w->ready_last)
        w->ready_last->next = g;
    else
        w->ready_first = g;
    w->ready_last = g;
    __atomic_fetch_add(&w->pending, g->padded, __ATOMIC_RELAXED);
    int asleep = lw_rouse(w);
    pthread_mutex_unlock(&w->mutex);
    lw_wake(w, asleep);
}

/* Takes back the last group handed over, so that it may grow; NULL when the writer has begun them all. */
static struct lw_group *lw_withdraw(struct lw *w)
{
    pthread_mutex_lock(&w->mutex);
    struct lw_group *g = w->ready_last, *before = NULL;
    if (g) {
        if (w->ready_first != g)
            for (before = w->ready_first; before->next != g; before = before->next)
                ;
        w->ready_last = before;
        if (before)
            before->next = NULL;
        else
            w->ready_first = NULL;
        __atomic_fetch_sub(&w->pending, g->padded, __ATOMIC_RELAXED);
    }
    pthread_mutex_unlock(&w->mutex);
    return g;
}

static size_t lw_pending(struct lw *w) { return __atomic_load_n(&w->pending, __ATOMIC_RELAXED); }
static uint64_t lw_syncs(struct lw *w) { return __atomic_load_n(&w->syncs, __ATOMIC_RELAXED); }

/* Everything finished since the last call, in order; resets the eventfd. */
static struct lw_group *lw_reap(struct lw *w)
{
    uint64_t count;
    /* Read before the list is taken: what is finished from here on either is in the list or signals again. */
    while (read(w->event, &count, 8) < 0 && errno == EINTR)
        ;
    pthread_mutex_lock(&w->mutex);
    struct lw_group *g = w->done_first;
    w->done_first = w->done_last = NULL;
    w->signalled = 0;
    pthread_mutex_unlock(&w->mutex);
    return g;
}

/* Waits until nothing is ready or taken. */
static void lw_drain(struct lw *w)
{
    pthread_mutex_lock(&w->mutex);
    w->draining = 1;
    while (w->ready_first || w->taken)
        pthread_cond_wait(&w->idle, &w->mutex);
    w->draining = 0;
    pthread_mutex_unlock(&w->mutex);
}

/* 0 or an errno. */
static int lw_start(struct lw *w, size_t capacity)
{
    memset(w, 0, sizeof *w);
    w->capacity = lw_align_block(capacity);
    w->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (w->event < 0)
        return errno;
    pthread_mutex_init(&w->mutex, NULL);
    pthread_cond_init(&w->idle, NULL);
    sigset_t all, before;
    sigfillset(&all); /* signals are the main thread's */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&w->thread, NULL, lw_main, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error)
        close(w->event);
    return error;
}

/* Writes what is ready, ends the thread, frees everything. */
static void lw_stop(struct lw *w)
{
    pthread_mutex_lock(&w->mutex);
    w->stop = 1;
    int asleep = lw_rouse(w);
    pthread_mutex_unlock(&w->mutex);
    lw_wake(w, asleep);
    pthread_join(w->thread, NULL);
    for (struct lw_group *g = w->done_first, *next; g; g = next) {
        next = g->next;
        lw_free_group(g);
    }
    for (struct lw_group *g = w->spare, *next; g; g = next) {
        next = g->next;
        lw_free_group(g);
    }
    close(w->event);
    pthread_mutex_destroy(&w->mutex);
    pthread_cond_destroy(&w->idle);
}

#endif
