/* Octet searches of the MIME scanner: count LF and 8-bit octets, find line starts that look like "--".
 *
 * Both functions borrow their input for the call, allocate nothing, need no GIL, and are O(n).  On x86 an AVX2
 * path is chosen at run time; the portable path gives the same results (tests run both).
 */
#ifndef GATEWAY_MIMESCAN_H
#define GATEWAY_MIMESCAN_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    uint64_t lf;   /* LF octets */
    uint64_t high; /* octets above 127 */
} mime_counts;

static void mime_count_portable(const unsigned char *p, size_t from, size_t to, mime_counts *c) {
    uint64_t lf = 0, high = 0;
    for (size_t i = from; i < to; i++) {
        lf += p[i] == '\n';
        high += p[i] >> 7;
    }
    c->lf += lf;
    c->high += high;
}

/* Offset just behind the next LF at or after `from` whose following octets are "--" as far as they are
 * there (so an LF at the end of the input counts); n when there is none.  Counts [from, result). */
static size_t mime_find_dashes_portable(const unsigned char *p, size_t from, size_t n, mime_counts *c) {
    size_t i = from;
    while (i < n) {
        const unsigned char *lf = (const unsigned char *)memchr(p + i, '\n', n - i);
        if (lf == NULL)
            break;
        size_t next = (size_t)(lf - p) + 1;
        if ((next >= n || p[next] == '-') && (next + 1 >= n || p[next + 1] == '-')) {
            mime_count_portable(p, from, next, c);
            return next;
        }
        i = next;
    }
    mime_count_portable(p, from, n, c);
    return n;
}

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define MIME_AVX2 1

__attribute__((target("avx2,popcnt,bmi"))) static void
mime_count_avx2(const unsigned char *p, size_t from, size_t to, mime_counts *c) {
    const __m256i lf_octets = _mm256_set1_epi8('\n');
    uint64_t lf = 0, high = 0;
    size_t i = from;
    for (; i + 32 <= to; i += 32) {
        __m256i v = _mm256_loadu_si256((const __m256i *)(p + i));
        lf += (uint64_t)_mm_popcnt_u32((unsigned)_mm256_movemask_epi8(_mm256_cmpeq_epi8(v, lf_octets)));
        high += (uint64_t)_mm_popcnt_u32((unsigned)_mm256_movemask_epi8(v));
    }
    for (; i < to; i++) {
        lf += p[i] == '\n';
        high += p[i] >> 7;
    }
    c->lf += lf;
    c->high += high;
}

__attribute__((target("avx2,popcnt,bmi"))) static size_t
mime_find_dashes_avx2(const unsigned char *p, size_t from, size_t n, mime_counts *c) {
    const __m256i lf_octets = _mm256_set1_epi8('\n'), dashes = _mm256_set1_epi8('-');
    uint64_t lf = 0, high = 0;
    size_t i = from;
    for (; i + 34 <= n; i += 32) {
        __m256i v = _mm256_loadu_si256((const __m256i *)(p + i));
        __m256i line_end = _mm256_cmpeq_epi8(v, lf_octets);
        __m256i first = _mm256_cmpeq_epi8(_mm256_loadu_si256((const __m256i *)(p + i + 1)), dashes);
        __m256i second = _mm256_cmpeq_epi8(_mm256_loadu_si256((const __m256i *)(p + i + 2)), dashes);
        unsigned ends = (unsigned)_mm256_movemask_epi8(line_end);
        unsigned highs = (unsigned)_mm256_movemask_epi8(v);
        unsigned found =
            (unsigned)_mm256_movemask_epi8(_mm256_and_si256(line_end, _mm256_and_si256(first, second)));
        if (found) {
            unsigned upto = found ^ (found - 1); /* bits up to and with the first one found */
            c->lf += lf + (uint64_t)_mm_popcnt_u32(ends & upto);
            c->high += high + (uint64_t)_mm_popcnt_u32(highs & upto);
            return i + (size_t)__builtin_ctz(found) + 1;
        }
        lf += (uint64_t)_mm_popcnt_u32(ends);
        high += (uint64_t)_mm_popcnt_u32(highs);
    }
    c->lf += lf;
    c->high += high;
    return mime_find_dashes_portable(p, i, n, c);
}

static int mime_have_avx2(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("bmi");
}
#else
static int mime_have_avx2(void) { return 0; }
#endif

static inline void mime_count(int simd, const unsigned char *p, size_t from, size_t to, mime_counts *c) {
#ifdef MIME_AVX2
    if (simd) {
        mime_count_avx2(p, from, to, c);
        return;
    }
#endif
    (void)simd;
    mime_count_portable(p, from, to, c);
}

static inline size_t mime_find_dashes(int simd, const unsigned char *p, size_t from, size_t n, mime_counts *c) {
#ifdef MIME_AVX2
    if (simd)
        return mime_find_dashes_avx2(p, from, n, c);
#endif
    (void)simd;
    return mime_find_dashes_portable(p, from, n, c);
}

#endif
