/* base64 (RFC 4648 §4, lines by RFC 2045 §6.8) and quoted-printable encoding (RFC 2045 §6.7), portable and AVX2.
 *
 * All functions borrow their buffers for the call, allocate nothing, need no GIL, and are O(n).  Room the caller
 * must give is stated with each.  The vector forms are the published ones of Mula and Lemire, "Faster Base64
 * Encoding and Decoding using AVX2 Instructions" (2018).
 */
#ifndef GATEWAY_TRANSFER_KERNELS_H
#define GATEWAY_TRANSFER_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define TRANSFER_AVX2 1
#define AVX2_CODE __attribute__((target("avx2,bmi"))) static
static int transfer_have_avx2(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi");
}
#else
static int transfer_have_avx2(void) { return 0; }
#endif

static const char base64_alphabet[64 + 1] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
static unsigned char base64_values[256]; /* 255: not of the alphabet */

static void transfer_init(void) {
    memset(base64_values, 255, sizeof base64_values);
    for (int i = 0; i < 64; i++)
        base64_values[(unsigned char)base64_alphabet[i]] = (unsigned char)i;
}

/* -- base64 encode ------------------------------------------------------------------------------------------- */

/* Octets of one line (or less) as base64 without line end; returns the length written, 4 for each begun 3. */
static size_t base64_encode_scalar(const unsigned char *p, size_t n, unsigned char *out) {
    unsigned char *start = out;
    size_t i = 0;
    for (; i + 3 <= n; i += 3, out += 4) {
        uint32_t v = (uint32_t)p[i] << 16 | (uint32_t)p[i + 1] << 8 | p[i + 2];
        out[0] = (unsigned char)base64_alphabet[v >> 18];
        out[1] = (unsigned char)base64_alphabet[v >> 12 & 63];
        out[2] = (unsigned char)base64_alphabet[v >> 6 & 63];
        out[3] = (unsigned char)base64_alphabet[v & 63];
    }
    if (i < n) {
        uint32_t v = (uint32_t)p[i] << 16 | (i + 1 < n ? (uint32_t)p[i + 1] << 8 : 0);
        out[0] = (unsigned char)base64_alphabet[v >> 18];
        out[1] = (unsigned char)base64_alphabet[v >> 12 & 63];
        out[2] = i + 1 < n ? (unsigned char)base64_alphabet[v >> 6 & 63] : '=';
        out[3] = '=';
        out += 4;
    }
    return (size_t)(out - start);
}

#ifdef TRANSFER_AVX2
AVX2_CODE __m256i base64_encode_block(__m256i v) {
    /* each lane: 12 octets → 16 characters */
    const __m256i spread = _mm256_setr_epi8(1, 0, 2, 1, 4, 3, 5, 4, 7, 6, 8, 7, 10, 9, 11, 10, 1, 0, 2, 1, 4, 3, 5, 4,
                                            7, 6, 8, 7, 10, 9, 11, 10);
    const __m256i offsets = _mm256_setr_epi8(65, 71, -4, -4, -4, -4, -4, -4, -4, -4, -4, -4, -19, -16, 0, 0, 65, 71, -4,
                                             -4, -4, -4, -4, -4, -4, -4, -4, -4, -19, -16, 0, 0);
    __m256i high, low, range;
    v = _mm256_shuffle_epi8(v, spread);
    high = _mm256_mulhi_epu16(_mm256_and_si256(v, _mm256_set1_epi32(0x0fc0fc00)), _mm256_set1_epi32(0x04000040));
    low = _mm256_mullo_epi16(_mm256_and_si256(v, _mm256_set1_epi32(0x003f03f0)), _mm256_set1_epi32(0x01000010));
    v = _mm256_or_si256(high, low); /* values 0..63 */
    range = _mm256_subs_epu8(v, _mm256_set1_epi8(51));
    range = _mm256_sub_epi8(range, _mm256_cmpgt_epi8(v, _mm256_set1_epi8(25)));
    return _mm256_add_epi8(v, _mm256_shuffle_epi8(offsets, range));
}

/* A line of 57 octets → 76 characters; reads 60 octets and writes 80. */
AVX2_CODE void base64_encode_line(const unsigned char *p, unsigned char *out) {
    for (int i = 0; i < 2; i++) {
        __m256i v = _mm256_inserti128_si256(
            _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(p + 24 * i))),
            _mm_loadu_si128((const __m128i *)(p + 24 * i + 12)), 1);
        _mm256_storeu_si256((__m256i *)(out + 32 * i), base64_encode_block(v));
    }
    __m256i last = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(p + 44)));
    last = _mm256_bsrli_epi128(last, 4);
    _mm_storeu_si128((__m128i *)(out + 64), _mm256_castsi256_si128(base64_encode_block(last)));
}
#endif

/* Lines of 76 characters, each but the last ended by CRLF (the last too when `end`); `lf` makes it LF.
 * Room: base64_encoded_octets(n) + 8.  Returns the octets written. */
static size_t base64_encoded_octets(size_t n) { return (n + 2) / 3 * 4 + 2 * ((n + 56) / 57); }

static size_t base64_encode(int simd, const unsigned char *p, size_t n, unsigned char *out, int end, int lf) {
    unsigned char *start = out;
    while (n) {
        size_t take = n < 57 ? n : 57;
#ifdef TRANSFER_AVX2
        if (simd && n >= 60) {
            base64_encode_line(p, out);
            out += 76;
        } else
#endif
            out += base64_encode_scalar(p, take, out);
        (void)simd;
        p += take;
        n -= take;
        if (n || end) {
            if (!lf)
                *out++ = '\r';
            *out++ = '\n';
        }
    }
    return (size_t)(out - start);
}

/* -- base64 decode ------------------------------------------------------------------------------------------- */

#ifdef TRANSFER_AVX2
/* 32 characters: bit i of the result is set when p[i] is of the alphabet; all set: 24 octets are at out (32 written). */
AVX2_CODE uint32_t base64_decode_block(const unsigned char *p, unsigned char *out) {
    const __m256i low_classes =
        _mm256_setr_epi8(0x15, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x13, 0x1a, 0x1b, 0x1b, 0x1b, 0x1a,
                         0x15, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x13, 0x1a, 0x1b, 0x1b, 0x1b, 0x1a);
    const __m256i high_classes = _mm256_setr_epi8(
        0x10, 0x10, 0x01, 0x02, 0x04, 0x08, 0x04, 0x08, 0x10, 0x10, 0x10, 0x10, 0x10, 0x10, 0x10, 0x10, 0x10, 0x10, 0x01,
        0x02, 0x04, 0x08, 0x04, 0x08, 0x10, 0x10, 0x10, 0x10, 0x10, 0x10, 0x10, 0x10);
    const __m256i rolls = _mm256_setr_epi8(0, 16, 19, 4, -65, -65, -71, -71, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 19, 4, -65, -65,
                                           -71, -71, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m256i pack = _mm256_setr_epi8(2, 1, 0, 6, 5, 4, 10, 9, 8, 14, 13, 12, -1, -1, -1, -1, 2, 1, 0, 6, 5, 4, 10, 9,
                                          8, 14, 13, 12, -1, -1, -1, -1);
    const __m256i slash = _mm256_set1_epi8('/'), nibble = _mm256_set1_epi8(0x0f);
    __m256i v = _mm256_loadu_si256((const __m256i *)p);
    __m256i high = _mm256_and_si256(_mm256_srli_epi32(v, 4), nibble);
    __m256i bad = _mm256_and_si256(_mm256_shuffle_epi8(low_classes, _mm256_and_si256(v, nibble)),
                                   _mm256_shuffle_epi8(high_classes, high));
    uint32_t good = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(bad, _mm256_setzero_si256()));
    if (good == 0xffffffffu) {
        __m256i roll = _mm256_shuffle_epi8(rolls, _mm256_add_epi8(_mm256_cmpeq_epi8(v, slash), high));
        v = _mm256_add_epi8(v, roll);
        v = _mm256_madd_epi16(_mm256_maddubs_epi16(v, _mm256_set1_epi32(0x01400140)), _mm256_set1_epi32(0x00011000));
        v = _mm256_shuffle_epi8(v, pack);
        v = _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(0, 1, 2, 4, 5, 6, 3, 7));
        _mm256_storeu_si256((__m256i *)out, v);
    }
    return good;
}
#endif

/* Decodes until the input or the padding ends; characters outside the alphabet are passed over.  Room: n / 4 * 3 + 40.
 * *open is the number of characters of an unfinished group (0: all well).  Returns the octets written. */
static size_t base64_decode(int simd, const unsigned char *p, size_t n, unsigned char *out, int *open) {
    unsigned char *start = out;
    size_t i = 0;
    uint32_t group = 0;
    int held = 0, pads = 0;
    while (i < n) {
        if (held == 0) {
#ifdef TRANSFER_AVX2
            while (simd && i + 32 <= n) {
                uint32_t good = base64_decode_block(p + i, out);
                if (good != 0xffffffffu)
                    break;
                i += 32;
                out += 24;
                pads = 0;
            }
#endif
            while (i + 4 <= n) {
                uint32_t a = base64_values[p[i]], b = base64_values[p[i + 1]], c = base64_values[p[i + 2]],
                         d = base64_values[p[i + 3]];
                if ((a | b | c | d) > 63)
                    break;
                uint32_t v = a << 18 | b << 12 | c << 6 | d;
                out[0] = (unsigned char)(v >> 16);
                out[1] = (unsigned char)(v >> 8);
                out[2] = (unsigned char)v;
                out += 3;
                i += 4;
                pads = 0;
                if (simd && i + 32 <= n && p[i] == '\r') /* the common line end: on with whole blocks */
                    break;
            }
            (void)simd;
            if (i >= n)
                break;
        }
        unsigned char value = base64_values[p[i]];
        if (value < 64) {
            group = group << 6 | value;
            pads = 0;
            if (++held == 4) {
                out[0] = (unsigned char)(group >> 16);
                out[1] = (unsigned char)(group >> 8);
                out[2] = (unsigned char)group;
                out += 3;
                group = 0;
                held = 0;
            }
        } else if (p[i] == '=' && held >= 2 && held + ++pads >= 4) {
            *out++ = (unsigned char)(held == 2 ? group >> 4 : group >> 10);
            if (held == 3)
                *out++ = (unsigned char)(group >> 2);
            *open = 0;
            return (size_t)(out - start);
        }
        i++;
    }
    *open = held;
    return (size_t)(out - start);
}

/* -- quoted-printable ---------------------------------------------------------------------------------------- */

/* Octets from i on that need no encoding, at most to n. */
static size_t qp_plain_run_portable(const unsigned char *p, size_t i, size_t n) {
    size_t from = i;
    while (i < n && ((p[i] >= 32 && p[i] <= 126 && p[i] != '=') || p[i] == '\t'))
        i++;
    return i - from;
}

#ifdef TRANSFER_AVX2
AVX2_CODE size_t qp_plain_run_avx2(const unsigned char *p, size_t i, size_t n) {
    size_t from = i;
    for (; i + 32 <= n; i += 32) {
        __m256i v = _mm256_loadu_si256((const __m256i *)(p + i));
        /* signed: octets above 127 are below 32 too */
        __m256i bad = _mm256_or_si256(_mm256_cmpgt_epi8(_mm256_set1_epi8(32), v),
                                      _mm256_or_si256(_mm256_cmpeq_epi8(v, _mm256_set1_epi8(127)),
                                                      _mm256_cmpeq_epi8(v, _mm256_set1_epi8('='))));
        bad = _mm256_andnot_si256(_mm256_cmpeq_epi8(v, _mm256_set1_epi8('\t')), bad);
        uint32_t found = (uint32_t)_mm256_movemask_epi8(bad);
        if (found)
            return i - from + (size_t)__builtin_ctz(found);
    }
    return i - from + qp_plain_run_portable(p, i, n);
}
#endif

static size_t qp_plain_run(int simd, const unsigned char *p, size_t i, size_t n) {
#ifdef TRANSFER_AVX2
    if (simd)
        return qp_plain_run_avx2(p, i, n);
#endif
    (void)simd;
    return qp_plain_run_portable(p, i, n);
}

/* Room for qp_encode: every octet as =XX, soft line ends, and the blocks copied over the end. */
static size_t qp_encoded_octets(size_t n) { return 3 * n + 3 * (3 * n / 72) + 64; }

/* Lines end with CRLF in input and output (LF when `lf`); any other CR or LF is an octet to encode.  No line is
 * longer than 76.  A line made by a soft line end never begins with "-": it could be taken for a delimiter. */
static size_t qp_encode(int simd, const unsigned char *p, size_t n, unsigned char *out, int lf) {
    static const char digits[] = "0123456789ABCDEF";
    unsigned char *start = out;
    size_t i = 0, column = 0;
    int soft = 0; /* the current output line began with a soft line end */
    while (i < n) {
        size_t run = qp_plain_run(simd, p, i, n);
        size_t at = i + run;
        int line_end = at < n && (lf ? p[at] == '\n' : p[at] == '\r' && at + 1 < n && p[at + 1] == '\n');
        int ends = line_end || at == n;
        /* white space must not end a line */
        if (ends && run && (p[at - 1] == ' ' || p[at - 1] == '\t')) {
            at--;
            run--;
            ends = line_end = 0;
        }
        while (run) {
            size_t room = 76 - column;
            size_t take = run;
            if (soft && column == 0 && p[i] == '-')
                break;
            if (run > room || (run == room && !ends))
                take = room - 1;
            memcpy(out, p + i, take);
            out += take;
            i += take;
            run -= take;
            column += take;
            if (run) {
                *out++ = '=';
                if (!lf)
                    *out++ = '\r';
                *out++ = '\n';
                column = 0;
                soft = 1;
            }
        }
        if (run == 0 && ends) {
            if (line_end) {
                if (!lf)
                    *out++ = '\r';
                *out++ = '\n';
                i = at + (lf ? 1 : 2);
                column = 0;
                soft = 0;
            }
            continue;
        }
        /* one octet as =XX; it fits exactly only when the line ends behind it */
        size_t after = i + 1;
        int last = after == n || (lf ? p[after] == '\n' : p[after] == '\r' && after + 1 < n && p[after + 1] == '\n');
        if (column + 3 > (last ? 76u : 75u)) {
            *out++ = '=';
            if (!lf)
                *out++ = '\r';
            *out++ = '\n';
            column = 0;
            soft = 1;
        }
        out[0] = '=';
        out[1] = (unsigned char)digits[p[i] >> 4];
        out[2] = (unsigned char)digits[p[i] & 15];
        out += 3;
        column += 3;
        i++;
    }
    return (size_t)(out - start);
}

#endif
