/* The functions of bytescan_kernels for one instruction set.  bytescan.h defines what differs and includes this once
 * for each:
 *
 *     KERNEL(function)    its name            TARGET         the functions' attribute
 *     VECTOR              octets at a time    EQUAL, FLAGS   compare with one octet, and what that gives
 *     FOUL(x, y, lf)      flags of the octets x that are foul; y are those before them, lf = EQUAL(x, LF)
 *     MASK(flags)         one bit per octet   HIGH(vector)   one bit per octet, from its high bit
 */

#define WIDTH sizeof(VECTOR)
#define PARTS (BYTESCAN_BLOCK / WIDTH)

static inline __attribute__((always_inline)) TARGET VECTOR KERNEL(load)(const uint8_t *p)
{
    VECTOR v;
    memcpy(&v, p, WIDTH);
    return v;
}

static inline __attribute__((always_inline)) TARGET uint64_t KERNEL(mask)(const FLAGS *flags)
{
    uint64_t mask = 0;
    for (size_t k = 0; k < PARTS; k++)
        mask |= MASK(flags[k]) << (k * WIDTH % 64);
    return mask;
}

static inline __attribute__((always_inline)) TARGET int KERNEL(any)(const FLAGS *flags)
{
    FLAGS any = flags[0];
    for (size_t k = 1; k < PARTS; k++)
        any |= flags[k];
    return MASK(any) != 0;
}

static TARGET size_t KERNEL(copy_clean)(const uint8_t *restrict p, uint8_t *restrict out, size_t n, int64_t at,
                                        line_facts *restrict facts)
{
    if (n < BYTESCAN_BLOCK)
        return 0;
    line_facts seen = *facts;
    int64_t column = at - seen.line_start;
    uint64_t fresh = ~UINT64_C(0); /* the octets of the block that were not looked at before */
    VECTOR high = {0};
    size_t i = 0;
    for (;;) {
        FLAGS lf[PARTS], foul[PARTS];
        VECTOR octets[PARTS];
        for (size_t k = 0; k < PARTS; k++) {
            const uint8_t *q = p + i + k * WIDTH;
            VECTOR x = KERNEL(load)(q), y = KERNEL(load)(q - 1);
            memcpy(out + i + k * WIDTH, &x, WIDTH);
            octets[k] = x;
            lf[k] = EQUAL(x, '\n');
            foul[k] = FOUL(x, y, lf[k]);
        }
        uint64_t ends = KERNEL(mask)(lf) & fresh;
        if (BYTESCAN_UNLIKELY(KERNEL(any)(foul))) {
            int clean = __builtin_ctzll(KERNEL(mask)(foul));
            uint64_t bits = (UINT64_C(1) << clean) - 1;
            if (ends & bits)
                bytescan_note_lines(&seen, ends & bits, &column);
            else
                column += BYTESCAN_BLOCK;
            column -= BYTESCAN_BLOCK - clean;
            for (size_t k = 0; k < PARTS; k++)
                seen.has_8bit |= (HIGH(octets[k]) << (k * WIDTH % 64) & bits) != 0;
            i += (size_t)clean;
            break;
        }
        for (size_t k = 0; k < PARTS; k++)
            high |= octets[k];
        bytescan_note_lines(&seen, ends, &column);
        i += BYTESCAN_BLOCK;
        if (BYTESCAN_UNLIKELY(i + BYTESCAN_BLOCK > n)) {
            if (i == n)
                break;
            /* The last block overlaps the one before: what they share is copied twice and counted once. */
            size_t overlap = i + BYTESCAN_BLOCK - n;
            fresh = ~UINT64_C(0) << overlap;
            column -= (int64_t)overlap;
            i -= overlap;
        }
    }
    seen.has_8bit |= HIGH(high) != 0;
    seen.line_start = at + (int64_t)i - column;
    *facts = seen;
    return i;
}

static TARGET size_t KERNEL(find_dot)(const uint8_t *p, size_t n)
{
    size_t i = 0;
    for (; i + BYTESCAN_BLOCK <= n; i += BYTESCAN_BLOCK) {
        FLAGS dot[PARTS];
        for (size_t k = 0; k < PARTS; k++) {
            const uint8_t *q = p + i + k * WIDTH;
            dot[k] = EQUAL(KERNEL(load)(q), '.') & EQUAL(KERNEL(load)(q - 1), '\n');
        }
        if (BYTESCAN_UNLIKELY(KERNEL(any)(dot)))
            return i + (size_t)__builtin_ctzll(KERNEL(mask)(dot));
    }
    while (i < n && !bytescan_dot(p[(ptrdiff_t)i - 1], p[i]))
        i++;
    return i;
}

static TARGET size_t KERNEL(find_foul)(const uint8_t *p, size_t n)
{
    size_t i = 0;
    for (; i + BYTESCAN_BLOCK <= n; i += BYTESCAN_BLOCK) {
        FLAGS foul[PARTS];
        for (size_t k = 0; k < PARTS; k++) {
            const uint8_t *q = p + i + k * WIDTH;
            VECTOR x = KERNEL(load)(q), y = KERNEL(load)(q - 1);
            foul[k] = (EQUAL(x, '\n') ^ EQUAL(y, '\r')) | (EQUAL(x, '.') & EQUAL(y, '\n'));
        }
        if (BYTESCAN_UNLIKELY(KERNEL(any)(foul)))
            return i + (size_t)__builtin_ctzll(KERNEL(mask)(foul));
    }
    while (i < n && !bytescan_foul(p[(ptrdiff_t)i - 1], p[i]))
        i++;
    return i;
}

#undef KERNEL
#undef TARGET
#undef VECTOR
#undef FLAGS
#undef EQUAL
#undef FOUL
#undef MASK
#undef HIGH
#undef WIDTH
#undef PARTS
