# Dates and base subjects; included by imap_facts.pyx.


cdef int number(octets_t p, Py_ssize_t *at, Py_ssize_t n, int digits_max) noexcept nogil:
    # The digits from *at on; -1 when there are none, or too many.
    cdef int value = 0
    cdef Py_ssize_t start = at[0]
    while at[0] < n and c"0" <= p[at[0]] <= c"9":
        value = value * 10 + p[at[0]] - c"0"
        at[0] += 1
        if at[0] - start > digits_max:
            return -1
    return value if at[0] > start else -1


cdef int64_t days_before(int64_t year, int month, int day) noexcept nogil:
    # Days from 1970-01-01 to that day of the Gregorian calendar, counted from March on.
    cdef int64_t y = year - (month <= 2)
    cdef int64_t era = y // 400 if y >= 0 else (y - 399) // 400
    cdef int64_t year_of_era = y - era * 400
    cdef int64_t day_of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719468


cdef int64_t parse_date(octets_t p, Py_ssize_t n) noexcept nogil:
    # Seconds since 1970 of an RFC 5322 §3.3 date-time with a numeric zone or GMT; -1 for everything else.
    cdef Py_ssize_t i = 0
    cdef int day, month = -1, year, hour, minute, second = 0, zone = 0, sign
    cdef unsigned char name[3]
    i = skip_cfws(p, i, n)
    if i + 4 < n and p[i + 3] == c",":
        i = skip_cfws(p, i + 4, n)
    day = number(p, &i, n, 2)
    i = skip_cfws(p, i, n)
    if day < 1 or day > 31 or i + 3 > n:
        return -1
    name[0], name[1], name[2] = lower(p[i]), lower(p[i + 1]), lower(p[i + 2])
    for month in range(12):
        if memcmp(name, <const char *>b"janfebmaraprmayjunjulaugsepoctnovdec" + 3 * month, 3) == 0:
            break
    else:
        return -1
    i = skip_cfws(p, i + 3, n)
    year = number(p, &i, n, 4)
    if year < 1900:
        return -1
    i = skip_cfws(p, i, n)
    hour = number(p, &i, n, 2)
    if hour < 0 or hour > 23 or i == n or p[i] != c":":
        return -1
    i += 1
    minute = number(p, &i, n, 2)
    if minute < 0 or minute > 59:
        return -1
    if i < n and p[i] == c":":
        i += 1
        second = number(p, &i, n, 2)
        if second < 0 or second > 60:
            return -1
    i = skip_cfws(p, i, n)
    if i + 5 <= n and (p[i] == c"+" or p[i] == c"-"):
        sign = -1 if p[i] == c"-" else 1
        i += 1
        zone = number(p, &i, n, 4)
        if zone < 0 or zone % 100 > 59:
            return -1
        zone = sign * (zone // 100 * 3600 + zone % 100 * 60)
    elif i + 3 <= n and lower(p[i]) == c"g" and lower(p[i + 1]) == c"m" and lower(p[i + 2]) == c"t":
        i += 3
    else:
        return -1
    if skip_cfws(p, i, n) != n:
        return -1
    return days_before(year, month + 1, day) * 86400 + hour * 3600 + minute * 60 + second - zone


cdef inline bint is_text_space(unsigned char c) noexcept nogil:
    # Of ASCII, what str.strip() takes away.
    return c == c" " or 9 <= c <= 13 or 28 <= c <= 31


cdef Py_ssize_t skip_spaces(octets_t p, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    while i < n and is_text_space(p[i]):
        i += 1
    return i


cdef Py_ssize_t skip_blob(octets_t p, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    # Offset behind "[…]" and the spaces after it, or i.
    cdef Py_ssize_t end = i + 1
    if i == n or p[i] != c"[":
        return i
    while end < n and p[end] != c"[" and p[end] != c"]":
        end += 1
    return skip_spaces(p, end + 1, n) if end < n and p[end] == c"]" else i


cdef Py_ssize_t skip_leader(octets_t p, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    # subj-leader: offset behind it, or i.
    cdef Py_ssize_t start = i, blob
    while (blob := skip_blob(p, i, n)) > i:
        i = blob
    if i + 2 > n:
        return start
    if same_ignoring_case(p + i, b"re", 2):
        i += 2
    elif same_ignoring_case(p + i, b"fw", 2):
        i += 2
        i += i < n and lower(p[i]) == c"d"
    else:
        return start
    i = skip_blob(p, skip_spaces(p, i, n), n)
    return i + 1 if i < n and p[i] == c":" else start


cdef bint base_subject(octets_t *from_, Py_ssize_t *length) noexcept nogil:
    # RFC 5256 §2.1 of ASCII text whose spaces are single: it is narrowed; True when a reply or forward mark was there.
    cdef octets_t p = from_[0]
    cdef Py_ssize_t start = 0, end = length[0], at, blob
    cdef bint is_reply = False
    while True:
        while start < end and is_text_space(p[end - 1]):
            end -= 1
        start = skip_spaces(p, start, end)
        if end > start and p[end - 1] == c")":  # step 2
            while end > start:
                if is_text_space(p[end - 1]):
                    end -= 1
                elif end - start >= 5 and same_ignoring_case(p + end - 5, b"(fwd)", 5):
                    end -= 5
                    is_reply = True
                else:
                    break
        while True:  # steps 3 to 5
            start = skip_spaces(p, start, end)
            at = skip_leader(p, start, end)
            if at > start:
                start = at
                is_reply = True
                continue
            while start < (blob := skip_blob(p, start, end)) < end:  # unless it is all there is
                start = blob
            break
        if end - start >= 6 and p[end - 1] == c"]" and same_ignoring_case(p + start, b"[fwd:", 5):  # step 6
            start += 5
            end -= 1
            is_reply = True
            continue
        from_[0], length[0] = p + start, end - start
        return is_reply
