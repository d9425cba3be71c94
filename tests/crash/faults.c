/* Preloaded into a process under test: makes system calls on *.log files fail, come up short, or be the last.

   FAULT_CONTROL names a file of struct control that the test maps and changes while the process runs.  Every field
   is 0 for "leave it alone".  A failure with a count happens that many times; a count of 0 means always. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

struct control {
    int32_t write_errno, write_count;
    int32_t sync_errno, sync_count;
    int32_t allocate_errno, allocate_count;
    int32_t unlink_errno, unlink_count;
    int32_t short_octets; /* a write takes at most so many */
    int32_t refuse_direct, refuse_dsync;
    int32_t kill_at;      /* SIGKILL at this call from now, ... */
    int32_t kill_after;   /* ... after it was done instead of before */
    int32_t calls;        /* counts writes and syncs on log files */
};

static struct control *control;

__attribute__((constructor)) static void start(void)
{
    const char *path = getenv("FAULT_CONTROL");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *mapped = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped != MAP_FAILED)
        control = mapped;
    close(fd);
}

static int is_log(int fd)
{
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    return control && n > 4 && memcmp(path + n - 4, ".log", 4) == 0;
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

static void maybe_die(int after)
{
    if (control->kill_at > 0 && control->kill_after == after && --control->kill_at == 0)
        kill(getpid(), SIGKILL);
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name)

static ssize_t limited(int fd, const void *p, size_t n, off64_t at, ssize_t (*real)(int, const void *, size_t, off64_t))
{
    if (!is_log(fd))
        return real(fd, p, n, at);
    control->calls++;
    maybe_die(0);
    if (fails(&control->write_errno, &control->write_count))
        return -1;
    if (control->short_octets && n > (size_t)control->short_octets) {
        n = control->short_octets;
        if (fcntl(fd, F_GETFL) & O_DIRECT)
            n &= ~(size_t)511; /* whole sectors, as the kernel would */
    }
    ssize_t done = real(fd, p, n, at);
    maybe_die(1);
    return done;
}

ssize_t pwrite(int fd, const void *p, size_t n, off_t at) { REAL(pwrite64); return limited(fd, p, n, at, real); }
ssize_t pwrite64(int fd, const void *p, size_t n, off64_t at) { REAL(pwrite64); return limited(fd, p, n, at, real); }

static ssize_t pwritev2_any(int fd, const struct iovec *v, int n, off64_t at, int flags)
{
    REAL(pwritev64v2);
    if (!is_log(fd))
        return real(fd, v, n, at, flags);
    control->calls++;
    if ((flags & RWF_DSYNC) && control->refuse_dsync) {
        errno = EOPNOTSUPP;
        return -1;
    }
    maybe_die(0);
    if (fails(&control->write_errno, &control->write_count))
        return -1;
    struct iovec piece = v[0];
    if (control->short_octets && piece.iov_len > (size_t)control->short_octets)
        piece.iov_len = control->short_octets;
    ssize_t done = real(fd, &piece, 1, at, flags);
    maybe_die(1);
    return done;
}

ssize_t pwritev2(int fd, const struct iovec *v, int n, off_t at, int flags) { return pwritev2_any(fd, v, n, at, flags); }
ssize_t pwritev64v2(int fd, const struct iovec *v, int n, off64_t at, int flags) { return pwritev2_any(fd, v, n, at, flags); }

int fdatasync(int fd)
{
    REAL(fdatasync);
    if (!is_log(fd))
        return real(fd);
    control->calls++;
    maybe_die(0);
    if (fails(&control->sync_errno, &control->sync_count))
        return -1;
    int result = real(fd);
    maybe_die(1);
    return result;
}

int posix_fallocate(int fd, off_t at, off_t n)
{
    REAL(posix_fallocate64);
    return is_log(fd) && fails(&control->allocate_errno, &control->allocate_count) ? errno : real(fd, at, n);
}
int posix_fallocate64(int fd, off64_t at, off64_t n) { return posix_fallocate(fd, at, n); }

int unlink(const char *path)
{
    REAL(unlink);
    size_t n = strlen(path);
    if (control && n > 4 && strcmp(path + n - 4, ".log") == 0 && fails(&control->unlink_errno, &control->unlink_count))
        return -1;
    return real(path);
}

static int opened(const char *path, int flags, mode_t mode, int (*real)(const char *, int, ...))
{
    if (control && control->refuse_direct && (flags & O_DIRECT)) {
        errno = EINVAL;
        return -1;
    }
    return real(path, flags, mode);
}

int open(const char *path, int flags, ...)
{
    REAL(open64);
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    return opened(path, flags, mode, real);
}

int open64(const char *path, int flags, ...)
{
    REAL(open64);
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    return opened(path, flags, mode, real);
}
