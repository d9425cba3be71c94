/* Lexical rules of header fields: names, tokens, white space and comments (RFC 5322 §2.2 §3.2, RFC 2045 §5.1).
 *
 * All functions borrow their input for the call, allocate nothing and need no GIL.
 */
#ifndef GATEWAY_FIELDSCAN_H
#define GATEWAY_FIELDSCAN_H

#include <stddef.h>
#include <string.h>

static inline unsigned char lower(unsigned char c) { return c >= 'A' && c <= 'Z' ? c | 0x20 : c; }

static inline int is_wsp(unsigned char c) { return c == ' ' || c == '\t'; }

static inline int is_lwsp(unsigned char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

/* RFC 2045 §5.1 token; octets above 127 are let through */
static inline int is_token(unsigned char c) {
    return c > 32 && c != 127 && memchr("()<>@,;:\\\"/[]?=", c, 15) == NULL;
}

static inline int same_ignoring_case(const unsigned char *p, const char *lower_case, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++)
        if (lower(p[i]) != (unsigned char)lower_case[i])
            return 0;
    return 1;
}

/* Offset of the ":" when a line begins with a field name (RFC 5322 §2.2; WSP before the colon: §4.5), else -1. */
static inline ptrdiff_t field_colon(const unsigned char *p, ptrdiff_t n) {
    ptrdiff_t i = 0;
    while (i < n && p[i] >= 33 && p[i] <= 126 && p[i] != ':')
        i++;
    if (i == 0)
        return -1;
    while (i < n && is_wsp(p[i]))
        i++;
    return i < n && p[i] == ':' ? i : -1;
}

/* Offset behind white space and (nested (comments)) (RFC 5322 §3.2.2). */
static inline ptrdiff_t skip_cfws(const unsigned char *p, ptrdiff_t i, ptrdiff_t n) {
    ptrdiff_t nested = 0;
    for (; i < n; i++) {
        if (nested) {
            if (p[i] == '\\')
                i++;
            else if (p[i] == '(')
                nested++;
            else if (p[i] == ')')
                nested--;
        } else if (p[i] == '(') {
            nested = 1;
        } else if (!is_lwsp(p[i])) {
            break;
        }
    }
    return i < n ? i : n;
}

/* A field's value without the white space around it; 1: it has line ends within, see unfold(). */
static inline int trim_value(const unsigned char **p, ptrdiff_t *n) {
    while (*n && is_lwsp(**p)) {
        ++*p;
        --*n;
    }
    while (*n && is_lwsp((*p)[*n - 1]))
        --*n;
    return *n && memchr(*p, '\n', *n) != NULL;
}

/* RFC 5322 §2.2.3: a trimmed value without the line ends that white space follows.  out: n octets; how many it took. */
static inline ptrdiff_t unfold(const unsigned char *p, ptrdiff_t n, unsigned char *out) {
    ptrdiff_t length = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        if (p[i] == '\n' || (p[i] == '\r' && p[i + 1] == '\n'))
            continue; /* p[n - 1] is not white space, so p[i + 1] is there */
        out[length++] = p[i];
    }
    return length;
}

/* The field that begins at *at: offsets of its colon and of its end; *at moves to it.  0: no more. */
static inline int next_field(const unsigned char *p, ptrdiff_t *at, ptrdiff_t n, ptrdiff_t *colon, ptrdiff_t *end) {
    ptrdiff_t start = *at;
    while (start < n) {
        const unsigned char *found = memchr(p + start, '\n', n - start);
        ptrdiff_t line_end = found == NULL ? n : found - p + 1;
        *colon = field_colon(p + start, line_end - start);
        if (*colon < 0) {
            if (start == 0 && line_end >= 5 && memcmp(p, "From ", 5) == 0) {
                start = line_end;
                continue;
            }
            return 0;
        }
        *colon += start;
        while (line_end < n && is_wsp(p[line_end])) {
            found = memchr(p + line_end, '\n', n - line_end);
            line_end = found == NULL ? n : found - p + 1;
        }
        *end = line_end;
        *at = start;
        return 1;
    }
    return 0;
}

#endif
