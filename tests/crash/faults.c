/* Preloaded into a process under test: knows every named point of the spool's write path, and makes the system calls
   there fail, come up short, or be the last.

   FAULT_CONTROL  a file of struct control that the test maps and changes while the process runs.  Every field is 0 for
                  "leave it alone".  A failure with a count happens that many times; a count of 0 means always.
   FAULT_SETTLED  a file that gets every RESULT and SETTLED record once it is on disk (struct settled)

   A point is a system call, told from others by the file, the octets and the thread: the program under test knows
   nothing of it.  What each one is: POINTS in faults.py, in the same order. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    ANY = 1, /* whichever comes next */
    LOCK, CREATE, ALLOCATE, PROBE, FILL, HEADER_COPY, HEADER, HEADER_REUSE, DIRECTORY_SYNC,
    MESSAGE, CHUNK, CHUNKS_END, GROUP_SYNC, COMPLETION, REPLY, NEXT_HOP_REPLY, RESULT, UPDATE, SETTLED, CUT,
    COMPACTION_READ, COMPACTION_COPY, REMOVE,
    RECOVERY_OPEN, RECOVERY_READ, RECOVERY_SET_ASIDE, RECOVERY_REMOVE,
    ADOPT_LOCK, ADOPT_COPY, ADOPT_SETTLE, ADOPT_REMOVE, ADOPT_LOCK_REMOVE, ADOPT_END,
    POINTS
};
enum { BEFORE, AFTER, MIDWAY, WHENS };
enum { PROCESS, PARENT, EVERYTHING };
#define BIT(point) (1ull << (point))
#define DEATHS 4096

struct death {
    int64_t at_ns; /* CLOCK_MONOTONIC */
    int32_t pid, point, when, scope;
};

struct control {
    int32_t write_errno, write_count;
    int32_t sync_errno, sync_count;
    int32_t allocate_errno, allocate_count;
    int32_t unlink_errno, unlink_count;
    int32_t rename_errno, rename_count;
    int32_t open_errno, open_count;
    int32_t read_errno, read_count;
    int32_t short_octets; /* a write takes at most so many */
    int32_t refuse_direct, refuse_dsync;
    int32_t point, when, scope; /* where SIGKILL comes, and to whom ... */
    int32_t countdown;          /* ... at this occurrence from now */
    int32_t hits[POINTS];
    int32_t kills[POINTS][WHENS];
    int32_t deaths;
    struct death death[DEATHS];
};

static struct control *control;
static int settled_fd = -1;
static char own[PATH_MAX];     /* directory of the partition this process owns */
static char adopted[PATH_MAX]; /* and of the one it takes over right now */
static int64_t started_ms;     /* since 1970 */

__attribute__((constructor)) static void start(void)
{
    const char *path = getenv("FAULT_CONTROL"), *settled = getenv("FAULT_SETTLED");
    int fd = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped != MAP_FAILED)
        control = mapped;
    syscall(SYS_close, fd);
    if (settled)
        settled_fd = (int)syscall(SYS_openat, AT_FDCWD, settled, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
}

static int64_t now_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

/* -- deaths -- */

static void die(int point, int when)
{
    int n = __atomic_fetch_add(&control->deaths, 1, __ATOMIC_RELAXED) % DEATHS, scope = control->scope;
    control->death[n] = (struct death){now_ns(CLOCK_MONOTONIC), getpid(), point, when, scope};
    __atomic_fetch_add(&control->kills[point][when], 1, __ATOMIC_RELAXED);
    control->point = 0;
    kill(scope == PROCESS ? getpid() : scope == PARENT ? getppid() : 0, SIGKILL);
}

/* 1 when this is where it ends, and midway is asked for: the caller does half of it and calls die(). */
static int reached(uint64_t points, int when)
{
    if (!control || !points)
        return 0;
    for (int point = ANY + 1; when == BEFORE && point < POINTS; point++)
        if (points & BIT(point))
            __atomic_fetch_add(&control->hits[point], 1, __ATOMIC_RELAXED);
    int point = control->point;
    if (!point || (point != ANY && !(points & BIT(point))))
        return 0;
    int wanted = control->when;
    if (wanted != when && !(wanted == MIDWAY && when == BEFORE))
        return 0;
    if (__atomic_sub_fetch(&control->countdown, 1, __ATOMIC_RELAXED) != 0)
        return 0;
    if (point == ANY)
        point = __builtin_ctzll(points);
    if (wanted == MIDWAY)
        return point;
    die(point, when);
    return 0;
}

static int fails(int32_t *error, int32_t *count)
{
    int e = *error;
    if (!e)
        return 0;
    if (*count > 0 && --*count == 0)
        *error = 0;
    errno = e;
    return 1;
}

/* -- what is what -- */

#define REAL(name) static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name)

static int ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

static int path_of(int fd, char *path)
{
    char link[64];
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, PATH_MAX - 1);
    errno = saved;
    path[n > 0 ? n : 0] = 0;
    return n > 0;
}

static int is_log(int fd, char *path) { return control && path_of(fd, path) && ends_with(path, ".log"); }

static int is_in(const char *path, const char *directory)
{
    size_t n = strlen(directory);
    return n && strncmp(path, directory, n) == 0 && path[n] == '/' && !strchr(path + n + 1, '/');
}

static int on_main_thread(void) { return (pid_t)syscall(SYS_gettid) == getpid(); }

static int on_writer_thread(void)
{
    char name[16] = "";
    prctl(PR_GET_NAME, name);
    return strcmp(name, "spool-writer") == 0;
}

/* <directory>/lock is opened: the first one of a process is its own partition's, others are taken over. */
static uint64_t locking(const char *path)
{
    char directory[PATH_MAX];
    snprintf(directory, sizeof directory, "%s", path);
    directory[strlen(path) - 5] = 0;
    const char *name = strrchr(directory, '/');
    if (!name || name[1] < '0' || name[1] > '9')
        return 0; /* not a partition's */
    if (!own[0]) {
        memcpy(own, directory, sizeof own);
        started_ms = now_ns(CLOCK_REALTIME) / 1000000;
        return BIT(LOCK);
    }
    if (strcmp(own, directory) == 0)
        return BIT(LOCK);
    memcpy(adopted, directory, sizeof adopted);
    return BIT(ADOPT_LOCK);
}

static uint64_t opening(const char *path, int flags)
{
    if (ends_with(path, "/lock"))
        return flags & O_CREAT ? locking(path) : 0;
    if (strstr(path, "/damaged/") && flags & O_CREAT)
        return BIT(RECOVERY_SET_ASIDE);
    if (!ends_with(path, ".log") || !(is_in(path, own) || is_in(path, adopted)))
        return 0;
    if (flags & O_CREAT)
        return BIT(CREATE);
    return (flags & O_ACCMODE) == O_RDONLY && on_main_thread() ? BIT(RECOVERY_OPEN) : 0;
}

static uint32_t get32(const unsigned char *p) { uint32_t v; memcpy(&v, p, 4); return v; }
static uint64_t get64(const unsigned char *p) { uint64_t v; memcpy(&v, p, 8); return v; }

/* Numbers that this process wrote; forgetful, so a copy may pass for a first write, never the other way round. */
static int written_before(uint64_t number)
{
    static uint64_t seen[1 << 16];
    uint64_t *place = &seen[(number * 0x9E3779B97F4A7C15ull) >> 48];
    int known = *place == number || (int64_t)(number >> 19) + 1577836800000ll < started_ms;
    *place = number;
    return known;
}

/* The points in a group of records; format: _native/logwriter.h. */
static uint64_t group(const unsigned char *p, size_t n, const char *path)
{
    static const uint64_t kinds[] = {
        [3] = BIT(CHUNK), [5] = BIT(RESULT), [6] = BIT(UPDATE), [7] = BIT(SETTLED), [8] = BIT(CUT),
    };
    uint64_t points = 0;
    for (size_t at = 0; at + 32 <= n; at += ((size_t)32 + get32(p + at + 12) + 7) & ~(size_t)7) {
        int kind = p[at + 20];
        if (kind == 2 || kind == 4) {
            if (written_before(get64(p + at + 24)))
                points |= adopted[0] ? BIT(ADOPT_COPY) : BIT(COMPACTION_COPY);
            else
                points |= kind == 2 ? BIT(MESSAGE) : BIT(CHUNKS_END);
        } else if (kind == 7 && is_in(path, adopted))
            points |= BIT(ADOPT_SETTLE);
        else if (kind < 9)
            points |= kinds[kind];
    }
    return points;
}

/* The points of a write of n octets at `at` to a segment. */
static uint64_t writing(int fd, const unsigned char *p, size_t n, off64_t at, const char *path)
{
    struct stat about;
    if (n < 64 || fstat(fd, &about))
        return 0;
    if (memcmp(p, "GWSPOOL1", 8) == 0) {
        char link[64], old[8] = "";
        if (at)
            return BIT(HEADER_COPY);
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        int again = (int)syscall(SYS_openat, AT_FDCWD, link, O_RDONLY | O_CLOEXEC);
        ssize_t got = syscall(SYS_pread64, again, old, 8, 0);
        syscall(SYS_close, again);
        return got == 8 && memcmp(old, "GWSPOOL1", 8) == 0 ? BIT(HEADER_REUSE) : BIT(HEADER);
    }
    if (get64(p) == 0)
        return n == 4096 && at == about.st_size - 4096 ? BIT(PROBE) : BIT(FILL);
    return group(p, n, path);
}

struct settled {
    char magic[8];
    int64_t at_ns; /* CLOCK_MONOTONIC, when it was on disk */
    uint64_t number;
    uint32_t kind, octets; /* RESULT or SETTLED; the payload follows */
};

static void note_settled(const unsigned char *p, size_t n, const char *path)
{
    if (settled_fd < 0 || !is_in(path, own) || memcmp(p, "GWSPOOL1", 8) == 0)
        return;
    for (size_t at = 0; at + 32 <= n; at += ((size_t)32 + get32(p + at + 12) + 7) & ~(size_t)7) {
        int kind = p[at + 20];
        if (kind != 5 && kind != 7)
            continue;
        struct settled head = {"SETTLED", now_ns(CLOCK_MONOTONIC), get64(p + at + 24), (uint32_t)kind,
                               get32(p + at + 12)};
        struct iovec parts[] = {{&head, sizeof head}, {(void *)(p + at + 32), head.octets}};
        syscall(SYS_writev, settled_fd, parts, 2);
    }
}

/* -- writes -- */

typedef ssize_t writer(int, const struct iovec *, int, off64_t, int);

static ssize_t plain(int fd, const struct iovec *v, int n, off64_t at, int flags)
{
    static __typeof__(&pwrite64) real;
    (void)n, (void)flags;
    if (!real)
        real = dlsym(RTLD_NEXT, "pwrite64");
    return real(fd, v->iov_base, v->iov_len, at);
}

static ssize_t limited(int fd, const void *p, size_t n, off64_t at, int flags, writer *real)
{
    char path[PATH_MAX];
    struct iovec piece = {(void *)p, n};
    if (!is_log(fd, path))
        return real(fd, &piece, 1, at, flags);
    uint64_t points = writing(fd, p, n, at, path);
    int point = reached(points, BEFORE);
    if (point) { /* some sectors of it, then the end */
        piece.iov_len = (size_t)now_ns(CLOCK_MONOTONIC) % n;
        piece.iov_len &= ~(size_t)(fcntl(fd, F_GETFL) & O_DIRECT ? 511 : 0);
        if (piece.iov_len)
            real(fd, &piece, 1, at, flags);
        die(point, MIDWAY);
    }
    if (fails(&control->write_errno, &control->write_count))
        return -1;
    if (control->short_octets && n > (size_t)control->short_octets) {
        piece.iov_len = (size_t)control->short_octets;
        if (fcntl(fd, F_GETFL) & O_DIRECT)
            piece.iov_len &= ~(size_t)511; /* whole sectors, as the kernel would */
    }
    ssize_t done = real(fd, &piece, 1, at, flags);
    if (done == (ssize_t)n)
        note_settled(p, n, path);
    reached(points, AFTER);
    return done;
}

ssize_t pwrite64(int fd, const void *p, size_t n, off64_t at) { return limited(fd, p, n, at, 0, plain); }
ssize_t pwrite(int fd, const void *p, size_t n, off_t at) { return limited(fd, p, n, at, 0, plain); }

ssize_t pwritev64v2(int fd, const struct iovec *v, int n, off64_t at, int flags)
{
    REAL(pwritev64v2);
    if (n != 1)
        return real(fd, v, n, at, flags);
    char path[PATH_MAX];
    if (flags & RWF_DSYNC && control && control->refuse_dsync && is_log(fd, path)) {
        errno = EOPNOTSUPP;
        return -1;
    }
    return limited(fd, v->iov_base, v->iov_len, at, flags, real);
}
ssize_t pwritev2(int fd, const struct iovec *v, int n, off_t at, int flags) { return pwritev64v2(fd, v, n, at, flags); }

int fdatasync(int fd)
{
    REAL(fdatasync);
    char path[PATH_MAX];
    if (!is_log(fd, path))
        return real(fd);
    uint64_t points = on_writer_thread() ? BIT(GROUP_SYNC) : 0;
    int point = reached(points, BEFORE);
    if (point)
        die(point, MIDWAY);
    if (fails(&control->sync_errno, &control->sync_count))
        return -1;
    int result = real(fd);
    reached(points, AFTER);
    return result;
}

int posix_fallocate64(int fd, off64_t at, off64_t n)
{
    REAL(posix_fallocate64);
    char path[PATH_MAX];
    if (!is_log(fd, path))
        return real(fd, at, n);
    int point = reached(BIT(ALLOCATE), BEFORE);
    if (point) {
        real(fd, at, n / 2);
        die(point, MIDWAY);
    }
    if (fails(&control->allocate_errno, &control->allocate_count))
        return errno;
    int result = real(fd, at, n);
    reached(BIT(ALLOCATE), AFTER);
    return result;
}
int posix_fallocate(int fd, off_t at, off_t n) { return posix_fallocate64(fd, at, n); }

/* -- reads -- */

ssize_t preadv64v2(int fd, const struct iovec *v, int n, off64_t at, int flags)
{
    REAL(preadv64v2);
    char path[PATH_MAX];
    if (!is_log(fd, path))
        return real(fd, v, n, at, flags);
    int point = reached(BIT(RECOVERY_READ), BEFORE);
    if (point)
        die(point, MIDWAY);
    if (fails(&control->read_errno, &control->read_count))
        return -1;
    ssize_t result = real(fd, v, n, at, flags);
    reached(BIT(RECOVERY_READ), AFTER);
    return result;
}
ssize_t preadv2(int fd, const struct iovec *v, int n, off_t at, int flags) { return preadv64v2(fd, v, n, at, flags); }

ssize_t pread64(int fd, void *p, size_t n, off64_t at)
{
    REAL(pread64);
    char path[PATH_MAX];
    if (!is_log(fd, path))
        return real(fd, p, n, at);
    int point = reached(BIT(COMPACTION_READ), BEFORE);
    if (point)
        die(point, MIDWAY);
    if (fails(&control->read_errno, &control->read_count))
        return -1;
    ssize_t result = real(fd, p, n, at);
    reached(BIT(COMPACTION_READ), AFTER);
    return result;
}
ssize_t pread(int fd, void *p, size_t n, off_t at) { return pread64(fd, p, n, at); }

/* -- peers: the reply that makes the mail ours, and the one that makes it the next hop's -- */

ssize_t write(int fd, const void *p, size_t n)
{
    REAL(write);
    uint64_t points = 0;
    if (control && own[0]) {
        if (n == 8 && on_writer_thread())
            points = BIT(COMPLETION);
        else if (n > 24 && memmem(p, n, "Ok: queued as ", 14))
            points = BIT(REPLY);
    }
    int point = reached(points, BEFORE);
    if (point)
        die(point, MIDWAY);
    ssize_t result = real(fd, p, n);
    reached(points, AFTER);
    return result;
}

ssize_t read(int fd, void *p, size_t n)
{
    REAL(read);
    ssize_t result = real(fd, p, n);
    static const char taken[] = "250 2.0.0 Ok\r\n"; /* what smtp-blaster's sink answers to content */
    if (control && own[0] && result >= 14 && memmem(p, (size_t)result, taken, 14)) {
        int point = reached(BIT(NEXT_HOP_REPLY), BEFORE);
        if (point)
            die(point, MIDWAY);
        reached(BIT(NEXT_HOP_REPLY), AFTER);
    }
    return result;
}

/* -- names -- */

int fsync(int fd)
{
    REAL(fsync);
    char path[PATH_MAX];
    uint64_t points = 0;
    if (control && own[0] && path_of(fd, path) && (strcmp(path, own) == 0 || strcmp(path, adopted) == 0))
        points = BIT(DIRECTORY_SYNC);
    int point = reached(points, BEFORE);
    if (point)
        die(point, MIDWAY);
    if (points && fails(&control->sync_errno, &control->sync_count))
        return -1;
    int result = real(fd);
    reached(points, AFTER);
    return result;
}

static uint64_t removing(const char *path)
{
    if (!control)
        return 0;
    if (adopted[0] && ends_with(path, "/lock"))
        return BIT(ADOPT_LOCK_REMOVE);
    if (!ends_with(path, ".log"))
        return 0;
    return is_in(path, adopted) ? BIT(ADOPT_REMOVE) : on_main_thread() ? BIT(RECOVERY_REMOVE) : BIT(REMOVE);
}

int unlink(const char *path)
{
    REAL(unlink);
    uint64_t points = removing(path);
    int point = reached(points, BEFORE);
    if (point)
        die(point, MIDWAY);
    if (points && fails(&control->unlink_errno, &control->unlink_count))
        return -1;
    int result = real(path);
    reached(points, AFTER);
    return result;
}

int rmdir(const char *path)
{
    REAL(rmdir);
    uint64_t points = control && adopted[0] && strcmp(path, adopted) == 0 ? BIT(ADOPT_END) : 0;
    int point = reached(points, BEFORE);
    if (point)
        die(point, MIDWAY);
    int result = real(path);
    reached(points, AFTER);
    if (points)
        adopted[0] = 0;
    return result;
}

int rename(const char *old, const char *new)
{
    REAL(rename);
    uint64_t points = control && ends_with(old, ".log") ? BIT(RECOVERY_SET_ASIDE) : 0;
    int point = reached(points, BEFORE);
    if (point)
        die(point, MIDWAY);
    if (points && fails(&control->rename_errno, &control->rename_count))
        return -1;
    int result = real(old, new);
    reached(points, AFTER);
    return result;
}

static int opened(int at, const char *path, int flags, mode_t mode)
{
    static int (*real)(int, const char *, int, ...);
    if (!real)
        real = dlsym(RTLD_NEXT, "openat64");
    if (!control)
        return real(at, path, flags, mode);
    uint64_t points = opening(path, flags);
    int point = reached(points, BEFORE);
    if (point)
        die(point, MIDWAY);
    if (control->refuse_direct && flags & O_DIRECT) {
        errno = EINVAL;
        return -1;
    }
    if (points & BIT(RECOVERY_OPEN) && fails(&control->open_errno, &control->open_count))
        return -1;
    int fd = real(at, path, flags, mode);
    reached(points, AFTER);
    return fd;
}

#define OPEN_ARGUMENTS                                                                                                 \
    va_list more;                                                                                                      \
    va_start(more, flags);                                                                                             \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;                                            \
    va_end(more)

int open64(const char *path, int flags, ...) { OPEN_ARGUMENTS; return opened(AT_FDCWD, path, flags, mode); }
int open(const char *path, int flags, ...) { OPEN_ARGUMENTS; return opened(AT_FDCWD, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { OPEN_ARGUMENTS; return opened(at, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { OPEN_ARGUMENTS; return opened(at, path, flags, mode); }
