/* Preloaded into a program: writes down every call that changes a directory tree or makes a change durable.

   POWERLOSS_DIRECTORY  what below it happens is recorded (an absolute path without symbolic links)
   POWERLOSS_TRACE      the file of events, only ever appended to; format: struct event below, read by powerloss.py
   POWERLOSS_MARKS      what is written to this file is an event, too: what the program told somebody by then

   Every call is two events, one before and one after it: whatever lies between them may have reached the disk or not.
   Not seen: stores through mmap, stdio's own writes, io_uring, clone and copy ranges.  powerloss.py notices, because
   the tree it rebuilds then differs from the real one. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, WRITE, DATASYNC, SYNC, TRUNCATE, ALLOCATE, RENAME, UNLINK, MKDIR, RMDIR, LINK, MARK };
enum { BEGIN = 0, END = 1 };
enum { DURABLE = 1, ZEROS = 2, EMPTIED = 4 };

struct event {
    uint32_t octets; /* of the event: this, the paths, the data */
    uint8_t kind, phase;
    uint16_t flags;
    uint64_t call; /* both events of a call have it */
    uint64_t file; /* inode */
    int64_t offset, length;
    int32_t result; /* of the call, or -errno */
    uint32_t path_octets;
};

static int trace = -1;
static char root[PATH_MAX], marks[PATH_MAX];
static size_t root_octets;
static uint32_t calls;

#define REAL(name) static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void start(void)
{
    const char *path = getenv("POWERLOSS_TRACE"), *directory = getenv("POWERLOSS_DIRECTORY");
    const char *told = getenv("POWERLOSS_MARKS");
    if (!path || !directory)
        return;
    snprintf(root, sizeof root, "%s", directory);
    root_octets = strlen(root);
    snprintf(marks, sizeof marks, "%s", told ? told : "");
    trace = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
}

static int inside(const char *path)
{
    return strncmp(path, root, root_octets) == 0 && (path[root_octets] == '/' || !path[root_octets]);
}

/* The path of a descriptor when it is ours to watch, else 0; *mark when it is the file of marks. */
static int watched(int fd, char *path, int *mark)
{
    char link[64];
    if (trace < 0 || fd == trace)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, PATH_MAX - 1);
    if (n <= 0)
        return 0;
    path[n] = 0;
    *mark = marks[0] && strcmp(path, marks) == 0;
    return *mark || inside(path);
}

/* An absolute path of what the caller named; 0 when it is not inside. */
static int named(int at, const char *path, char *out)
{
    int saved = errno;
    if (trace < 0 || !path)
        return 0;
    if (path[0] == '/')
        snprintf(out, PATH_MAX, "%s", path);
    else {
        char base[PATH_MAX], link[64];
        ssize_t n = -1;
        if (at == AT_FDCWD) {
            if (getcwd(base, sizeof base))
                n = (ssize_t)strlen(base);
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", at);
            n = readlink(link, base, sizeof base - 1);
        }
        if (n < 0) {
            errno = saved;
            return 0;
        }
        base[n] = 0;
        if (snprintf(out, PATH_MAX, "%s/%s", base, path) >= PATH_MAX)
            return 0;
    }
    errno = saved;
    return inside(out);
}

static int all_zeros(const unsigned char *p, size_t n)
{
    return n == 0 || (p[0] == 0 && memcmp(p, p + 1, n - 1) == 0);
}

static void put(struct event *e, const char *path, const char *second, const void *data, size_t octets)
{
    int saved = errno;
    if (e->kind == WRITE && octets && all_zeros(data, octets)) {
        e->flags |= ZEROS;
        octets = 0;
    }
    size_t first = path ? strlen(path) + 1 : 0, other = second ? strlen(second) + 1 : 0;
    e->path_octets = (uint32_t)(first + other);
    e->octets = (uint32_t)(sizeof *e + first + other + octets);
    struct iovec parts[] = {{e, sizeof *e}, {(void *)path, first}, {(void *)second, other}, {(void *)data, octets}};
    if (syscall(SYS_writev, trace, parts, 4) != (long)e->octets)
        _exit(86); /* a trace with a hole proves nothing */
    errno = saved;
}

static void begin(struct event *e, int kind)
{
    memset(e, 0, sizeof *e);
    e->kind = (uint8_t)kind;
    e->call = (uint64_t)getpid() << 32 | __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
}

static void end(struct event *e, long result)
{
    e->phase = END;
    e->result = result < 0 ? -errno : (int32_t)result;
    put(e, NULL, NULL, NULL, 0);
}

static uint64_t inode(int fd)
{
    struct stat about;
    int saved = errno;
    uint64_t number = fstat(fd, &about) ? 0 : about.st_ino;
    errno = saved;
    return number;
}

/* -- data -- */

/* 1 when the write is recorded; end() is then the caller's. */
static int write_begins(struct event *e, int fd, const struct iovec *v, int n, off64_t at, int flags)
{
    char path[PATH_MAX];
    int mark;
    if (!watched(fd, path, &mark))
        return 0;
    size_t octets = 0, done = 0;
    for (int i = 0; i < n; i++)
        octets += v[i].iov_len;
    unsigned char *data = n == 1 ? v[0].iov_base : malloc(octets ? octets : 1);
    for (int i = 0; n != 1 && i < n; done += v[i].iov_len, i++)
        memcpy(data + done, v[i].iov_base, v[i].iov_len);
    begin(e, mark ? MARK : WRITE);
    e->file = inode(fd);
    e->length = (int64_t)octets;
    int how = fcntl(fd, F_GETFL);
    if (at < 0) {
        struct stat about;
        at = how & O_APPEND && !fstat(fd, &about) ? about.st_size : lseek(fd, 0, SEEK_CUR);
    }
    e->offset = at;
    if (how & O_DSYNC || flags & (RWF_DSYNC | RWF_SYNC))
        e->flags |= DURABLE;
    put(e, NULL, NULL, data, octets);
    if (n != 1)
        free(data);
    return 1;
}

#define WRITES(call, vector, n, at, how)                                                                               \
    struct event e;                                                                                                    \
    int seen = trace >= 0 && write_begins(&e, fd, vector, n, at, how);                                                 \
    ssize_t result = call;                                                                                             \
    if (seen)                                                                                                          \
        end(&e, result);                                                                                               \
    return result

ssize_t write(int fd, const void *p, size_t n)
{
    REAL(write);
    struct iovec one = {(void *)p, n};
    WRITES(real(fd, p, n), &one, 1, -1, 0);
}

ssize_t writev(int fd, const struct iovec *v, int n)
{
    REAL(writev);
    WRITES(real(fd, v, n), v, n, -1, 0);
}

ssize_t pwrite64(int fd, const void *p, size_t n, off64_t at)
{
    REAL(pwrite64);
    struct iovec one = {(void *)p, n};
    WRITES(real(fd, p, n, at), &one, 1, at, 0);
}
ssize_t pwrite(int fd, const void *p, size_t n, off_t at) { return pwrite64(fd, p, n, at); }

ssize_t pwritev64v2(int fd, const struct iovec *v, int n, off64_t at, int flags)
{
    REAL(pwritev64v2);
    WRITES(real(fd, v, n, at, flags), v, n, at, flags);
}
ssize_t pwritev2(int fd, const struct iovec *v, int n, off_t at, int flags) { return pwritev64v2(fd, v, n, at, flags); }
ssize_t pwritev64(int fd, const struct iovec *v, int n, off64_t at) { return pwritev64v2(fd, v, n, at, 0); }
ssize_t pwritev(int fd, const struct iovec *v, int n, off_t at) { return pwritev64v2(fd, v, n, at, 0); }

/* What is done to a descriptor as a whole.  kind TRUNCATE and ALLOCATE say how long it is then. */
#define ON_FILE(kind_, at, n, call)                                                                                    \
    char path[PATH_MAX];                                                                                               \
    int mark, seen = watched(fd, path, &mark) && !mark;                                                                \
    struct event e;                                                                                                    \
    if (seen) {                                                                                                        \
        begin(&e, kind_);                                                                                              \
        e.file = inode(fd);                                                                                            \
        e.offset = at;                                                                                                 \
        e.length = n;                                                                                                  \
        put(&e, path, NULL, NULL, 0);                                                                                  \
    }                                                                                                                  \
    int result = call;                                                                                                 \
    if (seen)                                                                                                          \
        end(&e, result);                                                                                               \
    return result

int fdatasync(int fd)
{
    REAL(fdatasync);
    ON_FILE(DATASYNC, 0, 0, real(fd));
}

int fsync(int fd)
{
    REAL(fsync);
    ON_FILE(SYNC, 0, 0, real(fd));
}

int ftruncate64(int fd, off64_t n)
{
    REAL(ftruncate64);
    ON_FILE(TRUNCATE, 0, n, real(fd, n));
}
int ftruncate(int fd, off_t n) { return ftruncate64(fd, n); }

/* posix_fallocate() returns its errno. */
int posix_fallocate64(int fd, off64_t at, off64_t n)
{
    REAL(posix_fallocate64);
    ON_FILE(ALLOCATE, at, n, real(fd, at, n));
}
int posix_fallocate(int fd, off_t at, off_t n) { return posix_fallocate64(fd, at, n); }

/* -- names -- */

#define ON_NAMES(kind_, at, first, at2, second, call)                                                                  \
    char from[PATH_MAX], to[PATH_MAX];                                                                                 \
    const char *other = second;                                                                                        \
    int seen = named(at, first, from) + (other && named(at2, other, to));                                              \
    struct event e;                                                                                                    \
    if (seen) {                                                                                                        \
        begin(&e, kind_);                                                                                              \
        put(&e, from, other ? to : NULL, NULL, 0);                                                                     \
    }                                                                                                                  \
    int result = call;                                                                                                 \
    if (seen)                                                                                                          \
        end(&e, result);                                                                                               \
    return result

int unlink(const char *path)
{
    REAL(unlink);
    ON_NAMES(UNLINK, AT_FDCWD, path, 0, NULL, real(path));
}

int unlinkat(int at, const char *path, int flags)
{
    REAL(unlinkat);
    ON_NAMES(flags & AT_REMOVEDIR ? RMDIR : UNLINK, at, path, 0, NULL, real(at, path, flags));
}

int rmdir(const char *path)
{
    REAL(rmdir);
    ON_NAMES(RMDIR, AT_FDCWD, path, 0, NULL, real(path));
}

int mkdir(const char *path, mode_t mode)
{
    REAL(mkdir);
    ON_NAMES(MKDIR, AT_FDCWD, path, 0, NULL, real(path, mode));
}

int rename(const char *old, const char *new)
{
    REAL(rename);
    ON_NAMES(RENAME, AT_FDCWD, old, AT_FDCWD, new, real(old, new));
}

int renameat(int at, const char *old, int at2, const char *new)
{
    REAL(renameat);
    ON_NAMES(RENAME, at, old, at2, new, real(at, old, at2, new));
}

int link(const char *old, const char *new)
{
    REAL(link);
    ON_NAMES(LINK, AT_FDCWD, old, AT_FDCWD, new, real(old, new));
}

static int opened(int at, const char *name, int flags, mode_t mode)
{
    static int (*real)(int, const char *, int, ...);
    char path[PATH_MAX];
    struct event e;
    if (!real)
        real = dlsym(RTLD_NEXT, "openat64");
    int seen = flags & (O_CREAT | O_TRUNC) && named(at, name, path);
    if (seen) {
        begin(&e, OPEN);
        e.flags = flags & O_TRUNC ? EMPTIED : 0;
        put(&e, path, NULL, NULL, 0);
    }
    int fd = real(at, name, flags, mode);
    if (seen) {
        e.file = fd < 0 ? 0 : inode(fd);
        end(&e, fd);
    }
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
