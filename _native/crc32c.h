/* CRC-32C (Castagnoli, RFC 3720 appendix B.4): crc32c(0, "123456789", 9) == 0xE3069283.

   crc32c(crc, p, n) continues a CRC: crc32c(crc32c(0, a, na), b, nb) is that of a and b joined.
   SSE4.2 or the ARMv8 CRC extension where the processor has it (asked once), else eight tables.
   No Python, no allocation, no lock: call it from any thread, after crc32c_init(). */
#ifndef GATEWAY_CRC32C_H
#define GATEWAY_CRC32C_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <sys/auxv.h>
#include <asm/hwcap.h>
#endif

#define CRC32C_POLYNOMIAL 0x82F63B78u /* 0x1EDC6F41 with its bits reversed */
#define CRC32C_LANE 1024              /* octets of each of the three lanes that hide the instruction's latency */

typedef uint32_t (*crc32c_function)(uint32_t crc, const unsigned char *p, size_t n);

static uint32_t crc32c_table[8][256];
static uint32_t crc32c_skip[4][256]; /* moves a CRC over CRC32C_LANE zero octets */
static crc32c_function crc32c_best;

static uint32_t crc32c_portable(uint32_t crc, const unsigned char *p, size_t n)
{
    crc = ~crc;
    for (; n && ((uintptr_t)p & 7); n--)
        crc = crc32c_table[0][(crc ^ *p++) & 0xFF] ^ (crc >> 8);
    for (; n >= 8; n -= 8, p += 8) {
        uint32_t low = crc ^ ((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
        crc = crc32c_table[7][low & 0xFF] ^ crc32c_table[6][(low >> 8) & 0xFF] ^
              crc32c_table[5][(low >> 16) & 0xFF] ^ crc32c_table[4][low >> 24] ^
              crc32c_table[3][p[4]] ^ crc32c_table[2][p[5]] ^ crc32c_table[1][p[6]] ^ crc32c_table[0][p[7]];
    }
    for (; n; n--)
        crc = crc32c_table[0][(crc ^ *p++) & 0xFF] ^ (crc >> 8);
    return ~crc;
}

#if defined(__x86_64__)
#define CRC32C_HARDWARE __attribute__((target("sse4.2")))
#define CRC32C_STEP8(crc, v) _mm_crc32_u64((crc), (v))
#define CRC32C_STEP1(crc, v) _mm_crc32_u8((crc), (v))
#elif defined(__aarch64__)
#define CRC32C_HARDWARE __attribute__((target("+crc")))
#define CRC32C_STEP8(crc, v) __crc32cd((crc), (v))
#define CRC32C_STEP1(crc, v) __crc32cb((crc), (v))
#endif

#ifdef CRC32C_HARDWARE
static inline uint32_t crc32c_skip_lane(uint32_t crc)
{
    return crc32c_skip[0][crc & 0xFF] ^ crc32c_skip[1][(crc >> 8) & 0xFF] ^
           crc32c_skip[2][(crc >> 16) & 0xFF] ^ crc32c_skip[3][crc >> 24];
}

static inline uint64_t crc32c_load(const unsigned char *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

CRC32C_HARDWARE static uint32_t crc32c_hardware(uint32_t start, const unsigned char *p, size_t n)
{
    uint64_t crc = (uint32_t)~start;
    for (; n && ((uintptr_t)p & 7); n--)
        crc = CRC32C_STEP1((uint32_t)crc, *p++);
    while (n >= 3 * CRC32C_LANE) {
        uint64_t second = 0, third = 0;
        for (size_t i = 0; i < CRC32C_LANE; i += 8) {
            crc = CRC32C_STEP8(crc, crc32c_load(p + i));
            second = CRC32C_STEP8(second, crc32c_load(p + CRC32C_LANE + i));
            third = CRC32C_STEP8(third, crc32c_load(p + 2 * CRC32C_LANE + i));
        }
        crc = crc32c_skip_lane((uint32_t)crc) ^ second;
        crc = crc32c_skip_lane((uint32_t)crc) ^ third;
        p += 3 * CRC32C_LANE;
        n -= 3 * CRC32C_LANE;
    }
    for (; n >= 8; n -= 8, p += 8)
        crc = CRC32C_STEP8(crc, crc32c_load(p));
    for (; n; n--)
        crc = CRC32C_STEP1((uint32_t)crc, *p++);
    return (uint32_t)~crc;
}

static int crc32c_has_hardware(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_supports("sse4.2") != 0;
#else
    return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0;
#endif
}
#endif

/* Fills the tables and chooses the function.  Call once, before any thread. */
static void crc32c_init(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (crc & 1 ? CRC32C_POLYNOMIAL : 0);
        crc32c_table[0][i] = crc;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int t = 1; t < 8; t++)
            crc32c_table[t][i] = crc32c_table[0][crc32c_table[t - 1][i] & 0xFF] ^ (crc32c_table[t - 1][i] >> 8);
    for (int byte = 0; byte < 4; byte++)
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t crc = i << (8 * byte);
            for (int zero = 0; zero < CRC32C_LANE; zero++)
                crc = crc32c_table[0][crc & 0xFF] ^ (crc >> 8);
            crc32c_skip[byte][i] = crc;
        }
    crc32c_best = crc32c_portable;
#ifdef CRC32C_HARDWARE
    if (crc32c_has_hardware())
        crc32c_best = crc32c_hardware;
#endif
}

static inline uint32_t crc32c(uint32_t crc, const void *p, size_t n)
{
    return crc32c_best(crc, (const unsigned char *)p, n);
}

#endif
