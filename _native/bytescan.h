/* Scanning of mail octets in blocks of 64, shared by the kernels.  No Python.h.
 *
 * A line ends with CRLF (RFC 5321 §2.3.8).  An octet is "foul" when it may need work:
 *     an LF without a CR before it, whatever follows a CR and is not LF, a "." that follows an LF, a NUL.
 * What to do about it is for the caller: these functions only run over the octets before it.
 *
 * Each function exists once per instruction set (bytescan_kernels.h is their one source).  The best one that the
 * machine has is chosen when the module is imported.  Every function reads p[-1], which must be the octet before p,
 * and borrows its pointers for the call only; all are O(n), allocate nothing and need no GIL.
 */
#ifndef BYTESCAN_H
#define BYTESCAN_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define BYTESCAN_BLOCK 64
#define BYTESCAN_UNLIKELY(x) __builtin_expect(!!(x), 0)

/* What is known of lines; offsets count content octets from the start of the message. */
typedef struct {
    int64_t lines;      /* ended so far */
    int64_t longest;    /* octets without the line end; of the current line a lower bound */
    int64_t line_start; /* where the current line begins */
    int has_8bit;
} line_facts;

typedef struct {
    const char *name;
    /* Copies octets up to the first foul one and notes their lines; at is the content offset of p[0].  Returns how
     * many were copied, 0 also when n < BYTESCAN_BLOCK.  Up to BYTESCAN_BLOCK octets behind them may be overwritten,
     * never beyond out[n]. */
    size_t (*copy_clean)(const uint8_t *p, uint8_t *out, size_t n, int64_t at, line_facts *facts);
    /* Offset of the first "." that follows an LF; n when there is none. */
    size_t (*find_dot)(const uint8_t *p, size_t n);
    /* Offset of the first octet that is foul for another reason than being NUL; n when there is none. */
    size_t (*find_foul)(const uint8_t *p, size_t n);
} bytescan_kernels;

static inline int64_t bytescan_trailing_zeros(uint64_t bits) { return bits ? __builtin_ctzll(bits) : 64; }

static inline int64_t bytescan_leading_zeros(uint64_t bits) { return bits ? __builtin_clzll(bits) : 64; }

/* Notes the LFs of a block of 64 octets, each of which follows a CR.  *column is how many octets of the current line
 * come before the block, and afterwards before the next one. */
static inline __attribute__((always_inline)) void
bytescan_note_lines(line_facts *facts, uint64_t lf, int64_t *column)
{
    /* Without an LF this is a lower bound for the line that goes on: its last octet may be the CR of its end. */
    int64_t length = *column + bytescan_trailing_zeros(lf) - 1;
    facts->longest = length > facts->longest ? length : facts->longest;
    facts->lines += __builtin_popcountll(lf);
    /* A line that begins and ends within one block has at most 61 octets. */
    if (BYTESCAN_UNLIKELY(facts->longest < BYTESCAN_BLOCK - 3)) {
        for (uint64_t rest = lf; rest & (rest - 1); rest &= rest - 1) {
            length = __builtin_ctzll(rest & (rest - 1)) - __builtin_ctzll(rest) - 2;
            facts->longest = length > facts->longest ? length : facts->longest;
        }
    }
    int64_t after = bytescan_leading_zeros(lf), on = *column + 64;
    *column = lf ? after : on;
}

static inline int bytescan_dot(uint8_t before, uint8_t octet) { return before == '\n' && octet == '.'; }

static inline int bytescan_foul(uint8_t before, uint8_t octet)
{
    return (octet == '\n') != (before == '\r') || bytescan_dot(before, octet);
}

/* -- vectors that every compiler target has: one mask bit per octet, from its high bit --------------------------- */

typedef uint8_t bytescan_v16 __attribute__((vector_size(16)));

static inline uint64_t bytescan_mask_portable(bytescan_v16 v)
{
    uint64_t half[2], mask = 0;
    memcpy(half, &v, sizeof half);
    for (int k = 0; k < 2; k++) {
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        half[k] = __builtin_bswap64(half[k]);
#endif
        mask |= (((half[k] >> 7 & UINT64_C(0x0101010101010101)) * UINT64_C(0x0102040810204080)) >> 56) << (8 * k);
    }
    return mask;
}

#define KERNEL(function) bytescan_portable_##function
#define TARGET
#define VECTOR bytescan_v16
#define FLAGS bytescan_v16
#define EQUAL(v, octet) ((FLAGS)((v) == (octet)))
#define FOUL(x, y, lf) (((lf) ^ EQUAL(y, '\r')) | (EQUAL(x, '.') & EQUAL(y, '\n')) | EQUAL(x, 0))
#define MASK(flags) bytescan_mask_portable(flags)
#define HIGH(v) bytescan_mask_portable(v)
#include "bytescan_kernels.h"

#if defined(__x86_64__)

#define KERNEL(function) bytescan_sse2_##function
#define TARGET
#define VECTOR bytescan_v16
#define FLAGS bytescan_v16
#define EQUAL(v, octet) ((FLAGS)((v) == (octet)))
#define FOUL(x, y, lf) (((lf) ^ EQUAL(y, '\r')) | (EQUAL(x, '.') & EQUAL(y, '\n')) | EQUAL(x, 0))
#define MASK(flags) ((uint64_t)(uint16_t)_mm_movemask_epi8((__m128i)(flags)))
#define HIGH(v) MASK(v)
#include "bytescan_kernels.h"

typedef uint8_t bytescan_v32 __attribute__((vector_size(32)));

#define KERNEL(function) bytescan_avx2_##function
#define TARGET __attribute__((target("avx2,bmi,bmi2,lzcnt,popcnt")))
#define VECTOR bytescan_v32
#define FLAGS bytescan_v32
#define EQUAL(v, octet) ((FLAGS)((v) == (octet)))
#define FOUL(x, y, lf) (((lf) ^ EQUAL(y, '\r')) | (EQUAL(x, '.') & EQUAL(y, '\n')) | EQUAL(x, 0))
#define MASK(flags) ((uint64_t)(uint32_t)_mm256_movemask_epi8((__m256i)(flags)))
#define HIGH(v) MASK(v)
#include "bytescan_kernels.h"

typedef uint8_t bytescan_v64 __attribute__((vector_size(64)));

/* Zero and not zero are told apart in the vectors (lesser of octet and 1): moves between mask and general registers
 * are what costs most here. */
static inline __attribute__((always_inline, target("avx512f,avx512bw"))) uint64_t
bytescan_avx512_foul(__m512i x, __m512i y)
{
    const __m512i one = _mm512_set1_epi8(1);
    __m512i x_lf = _mm512_xor_si512(x, _mm512_set1_epi8('\n')); /* zero where x is LF; and so on */
    __m512i y_lf = _mm512_xor_si512(y, _mm512_set1_epi8('\n'));
    __m512i y_cr = _mm512_xor_si512(y, _mm512_set1_epi8('\r'));
    __m512i dot = _mm512_ternarylogic_epi64(x, y_lf, _mm512_set1_epi8('.'), 0xDE); /* (x ^ '.') | y_lf */
    __m512i a = _mm512_min_epu8(x_lf, one);
    __m512i b = _mm512_min_epu8(y_cr, one);
    __m512i c = _mm512_min_epu8(_mm512_min_epu8(x, dot), one);
    return _mm512_test_epi8_mask(_mm512_ternarylogic_epi64(a, b, c, 0x7D), one); /* (a ^ b) | ~c */
}

#define KERNEL(function) bytescan_avx512_##function
#define TARGET __attribute__((target("avx512f,avx512bw,avx2,bmi,bmi2,lzcnt,popcnt")))
#define VECTOR bytescan_v64
#define FLAGS uint64_t
#define EQUAL(v, octet) ((FLAGS)_mm512_cmpeq_epi8_mask((__m512i)(v), _mm512_set1_epi8(octet)))
#define FOUL(x, y, lf) bytescan_avx512_foul((__m512i)(x), (__m512i)(y))
#define MASK(flags) (flags)
#define HIGH(v) ((uint64_t)_mm512_movepi8_mask((__m512i)(v)))
#include "bytescan_kernels.h"

#endif

/* -- choice ------------------------------------------------------------------------------------------------------ */

#define BYTESCAN_ENTRY(isa) {#isa, bytescan_##isa##_copy_clean, bytescan_##isa##_find_dot, bytescan_##isa##_find_foul}

static const bytescan_kernels bytescan_all[] = {
    BYTESCAN_ENTRY(portable),
#if defined(__x86_64__)
    BYTESCAN_ENTRY(sse2),
    BYTESCAN_ENTRY(avx2),
    BYTESCAN_ENTRY(avx512),
#endif
};

/* How many of bytescan_all this machine can run, from the front; the last of them is the fastest. */
static inline int bytescan_available(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt")))
        return 2;
    return __builtin_cpu_supports("avx512bw") ? 4 : 3;
#else
    return 1;
#endif
}

#endif
