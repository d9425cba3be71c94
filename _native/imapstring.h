/* IMAP's string: quoted where it can be, else a literal (RFC 9051 §4.3).
 *
 * Borrows its input for the call, allocates nothing, needs no GIL; O(n).  A NUL is left out: CHAR8 has none (§9).
 */
#ifndef GATEWAY_IMAPSTRING_H
#define GATEWAY_IMAPSTRING_H

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define IMAP_QUOTED_MAX 1024 /* octets; a longer string is a literal */

/* 2: must be escaped in a quoted string; 4: needs a literal */
static const unsigned char IMAP_STRING_KIND[256] = {
    [0] = 4, ['\n'] = 4, ['\r'] = 4, ['"'] = 2, ['\\'] = 2, [0x80 ... 0xFF] = 4,
};

typedef struct {
    ptrdiff_t size; /* octets it takes on the wire */
    ptrdiff_t kept; /* octets of the literal; -1: it is quoted */
    ptrdiff_t escapes;
} imap_string_form;

static inline imap_string_form imap_string_measure(const unsigned char *p, ptrdiff_t n) {
    imap_string_form form = {0, -1, 0};
    unsigned kinds = 0;
    char head[32];
    for (ptrdiff_t i = 0; i < n; i++) {
        unsigned kind = IMAP_STRING_KIND[p[i]];
        kinds |= kind;
        form.escapes += kind == 2;
    }
    if (!(kinds & 4) && n <= IMAP_QUOTED_MAX) {
        form.size = n + form.escapes + 2;
        return form;
    }
    form.kept = n;
    if (kinds & 4)
        for (ptrdiff_t i = 0; i < n; i++)
            form.kept -= p[i] == 0;
    form.size = snprintf(head, sizeof head, "{%td}\r\n", form.kept) + form.kept;
    return form;
}

/* Writes form.size octets; returns where they end. */
static inline unsigned char *imap_string_put(unsigned char *out, const unsigned char *p, ptrdiff_t n,
                                             imap_string_form form) {
    char head[32];
    if (form.kept >= 0) {
        int length = snprintf(head, sizeof head, "{%td}\r\n", form.kept);
        memcpy(out, head, length);
        out += length;
        if (form.kept == n) {
            memcpy(out, p, n);
            return out + n;
        }
        for (ptrdiff_t i = 0; i < n; i++)
            if (p[i])
                *out++ = p[i];
        return out;
    }
    *out++ = '"';
    if (form.escapes == 0) {
        memcpy(out, p, n);
        out += n;
    } else {
        for (ptrdiff_t i = 0; i < n; i++) {
            if (IMAP_STRING_KIND[p[i]] == 2)
                *out++ = '\\';
            *out++ = p[i];
        }
    }
    *out++ = '"';
    return out;
}

#endif
