/* Faults of the system below one folder, for tests: loaded with LD_PRELOAD, armed by a call of faults_arm().

   mode 1: SIGKILL before the call number `at` that changes something below the folder
   mode 2: the call number `at` (reading, writing, syncing) fails with EIO; mode 3: that one and all that follow do
   mode 4: after `at` bytes written there is no space left on the device
   mode 5: only count; faults_count() and faults_bytes() tell */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static int mode;
static long at, calls, bytes;

void faults_arm(const char *path, int how, long where) {
    snprintf(folder, sizeof folder, "%s", path);
    at = where; calls = bytes = 0; mode = how;
}
long faults_count(void) { return calls; }
long faults_bytes(void) { return bytes; }

static int below(const char *path) { size_t n = strlen(folder); return !strncmp(path, folder, n) && (path[n] == '/' || !path[n]); }
static int of_descriptor(int fd) {
    char link[64], name[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, name, sizeof name - 1);
    if (n < 0) return 0;
    name[n] = 0;
    return below(name);
}
static int of_path(int directory, const char *path) {
    if (!path) return 0;
    if (*path == '/') return below(path);
    if (directory != AT_FDCWD) return of_descriptor(directory);
    char name[PATH_MAX];
    return getcwd(name, sizeof name) && below(name);
}

enum { READS, CHANGES, WRITES };
/* Returns -1 with errno set if the call shall fail. */
static int fault(int kind) {
    if (mode == 1 && kind == READS) return 0;
    if (mode == 4) return 0;
    long n = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
    if (mode == 1 && n == at) raise(SIGKILL);
    if ((mode == 2 && n == at) || (mode == 3 && n >= at)) { errno = EIO; return -1; }
    return 0;
}
/* How many of n bytes there is room for; -1 with errno if none. */
static ssize_t room(size_t n) {
    long before = __atomic_fetch_add(&bytes, (long)n, __ATOMIC_SEQ_CST);
    if (mode != 4 || before + (long)n <= at) return (ssize_t)n;
    if (before < at) return at - before;
    errno = ENOSPC;
    return -1;
}

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

ssize_t write(int fd, const void *data, size_t n) {
    REAL(ssize_t, "write", int, const void *, size_t);
    if (!mode || !of_descriptor(fd)) return real(fd, data, n);
    if (fault(WRITES)) return -1;
    ssize_t m = room(n);
    return m < 0 ? -1 : real(fd, data, (size_t)m);
}
#define PWRITE(name, offset_type) \
ssize_t name(int fd, const void *data, size_t n, offset_type where) { \
    REAL(ssize_t, #name, int, const void *, size_t, offset_type); \
    if (!mode || !of_descriptor(fd)) return real(fd, data, n, where); \
    if (fault(WRITES)) return -1; \
    ssize_t m = room(n); \
    return m < 0 ? -1 : real(fd, data, (size_t)m, where); \
}
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)
ssize_t writev(int fd, const struct iovec *parts, int n) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    if (!mode || !of_descriptor(fd)) return real(fd, parts, n);
    if (n < 1) return real(fd, parts, n);
    return write(fd, parts[0].iov_base, parts[0].iov_len);
}
#define READ(name, list, call) \
ssize_t name list { \
    REAL(ssize_t, #name, TYPES); \
    if (mode && of_descriptor(fd) && fault(READS)) return -1; \
    return real call; \
}
#define TYPES int, void *, size_t
READ(read, (int fd, void *data, size_t n), (fd, data, n))
#undef TYPES
#define TYPES int, void *, size_t, off_t
READ(pread, (int fd, void *data, size_t n, off_t where), (fd, data, n, where))
READ(pread64, (int fd, void *data, size_t n, off_t where), (fd, data, n, where))
#undef TYPES
#define TYPES int, const struct iovec *, int, off_t
READ(preadv, (int fd, const struct iovec *parts, int n, off_t where), (fd, parts, n, where))
READ(preadv64, (int fd, const struct iovec *parts, int n, off_t where), (fd, parts, n, where))
#undef TYPES

#define SIMPLE(name, where, TYPES_, list, call) \
int name list { \
    static int (*real)TYPES_; if (!real) real = (int (*)TYPES_)dlsym(RTLD_NEXT, #name); \
    if (mode && (where) && fault(CHANGES)) return -1; \
    return real call; \
}
SIMPLE(fsync, of_descriptor(fd), (int), (int fd), (fd))
SIMPLE(fdatasync, of_descriptor(fd), (int), (int fd), (fd))
SIMPLE(syncfs, of_descriptor(fd), (int), (int fd), (fd))
SIMPLE(ftruncate, of_descriptor(fd), (int, off_t), (int fd, off_t n), (fd, n))
SIMPLE(ftruncate64, of_descriptor(fd), (int, off64_t), (int fd, off64_t n), (fd, n))
SIMPLE(rename, of_path(AT_FDCWD, b), (const char *, const char *), (const char *a, const char *b), (a, b))
SIMPLE(renameat, of_path(e, b), (int, const char *, int, const char *), (int d, const char *a, int e, const char *b), (d, a, e, b))
SIMPLE(renameat2, of_path(e, b), (int, const char *, int, const char *, unsigned), (int d, const char *a, int e, const char *b, unsigned f), (d, a, e, b, f))
SIMPLE(link, of_path(AT_FDCWD, b), (const char *, const char *), (const char *a, const char *b), (a, b))
SIMPLE(linkat, of_path(e, b), (int, const char *, int, const char *, int), (int d, const char *a, int e, const char *b, int f), (d, a, e, b, f))
SIMPLE(unlink, of_path(AT_FDCWD, a), (const char *), (const char *a), (a))
SIMPLE(unlinkat, of_path(d, a), (int, const char *, int), (int d, const char *a, int f), (d, a, f))
SIMPLE(rmdir, of_path(AT_FDCWD, a), (const char *), (const char *a), (a))
SIMPLE(mkdir, of_path(AT_FDCWD, a), (const char *, mode_t), (const char *a, mode_t m), (a, m))
SIMPLE(mkdirat, of_path(d, a), (int, const char *, mode_t), (int d, const char *a, mode_t m), (d, a, m))

static int creates(int flags) { return (flags & O_CREAT) || (flags & O_ACCMODE) != O_RDONLY; }
#define OPEN(name) \
int name(const char *path, int flags, ...) { \
    REAL(int, #name, const char *, int, ...); \
    va_list rest; va_start(rest, flags); mode_t m = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0; va_end(rest); \
    if (mode && of_path(AT_FDCWD, path) && fault(creates(flags) ? CHANGES : READS)) return -1; \
    return real(path, flags, m); \
}
OPEN(open)
OPEN(open64)
#define OPENAT(name) \
int name(int d, const char *path, int flags, ...) { \
    REAL(int, #name, int, const char *, int, ...); \
    va_list rest; va_start(rest, flags); mode_t m = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0; va_end(rest); \
    if (mode && of_path(d, path) && fault(creates(flags) ? CHANGES : READS)) return -1; \
    return real(d, path, flags, m); \
}
OPENAT(openat)
OPENAT(openat64)
