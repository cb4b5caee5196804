/* A disk that fails, for LD_PRELOAD: counts the calls that change files below one folder, and acts at the n-th of them.

   Counted are opens for writing, writes, renames, links, unlinks, mkdirs, truncations and syncs of files below the folder.
   At call `at` the process is killed, before the call or after half of the bytes of a write, or the call fails with an errno,
   once or from then on. A failing write of a full disk first writes half of its bytes, as a real one does. With a log, each call
   is a line "number name path size". Reads, files elsewhere, and forked processes are left alone.

   Armed by `attack_arm(...)` or, in a process of its own, by ATTACK_ROOT, ATTACK_AT, ATTACK_DO (count, kill, half, fail),
   ATTACK_ERRNO, ATTACK_ONCE and ATTACK_LOG. Compiles as C and as C++. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#ifdef __cplusplus
#define EXPORT extern "C" __attribute__((visibility("default")))
#else
#define EXPORT __attribute__((visibility("default")))
#endif

enum { COUNT, KILL, HALF, FAIL };
enum { OPEN, CREATE, WRITE, RENAME, UNLINK, MKDIR, TRUNCATE, SYNC };

static char root[PATH_MAX];
static size_t root_length;
static long at, counted;
static int action, error, once, failures, log_file = -1, armed_pid;
static __thread int inside; /* within a hooked call: what it calls itself is not counted */

static void here(int folder, const char *path, char *out) { /* an absolute path without links in its folders */
    char joined[2 * PATH_MAX], parent[PATH_MAX], link[64];
    if (path[0] == '/') {
        snprintf(joined, sizeof joined, "%s", path);
    } else if (folder == AT_FDCWD) {
        if (!getcwd(parent, sizeof parent)) parent[0] = 0;
        snprintf(joined, sizeof joined, "%s/%s", parent, path);
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t length = readlink(link, parent, sizeof parent - 1);
        parent[length < 0 ? 0 : length] = 0;
        snprintf(joined, sizeof joined, "%s/%s", parent, path);
    }
    char *slash = strrchr(joined, '/');
    while (slash && slash > joined && !slash[1]) { *slash = 0; slash = strrchr(joined, '/'); }
    if (slash && slash != joined) {
        *slash = 0;
        if (realpath(joined, parent)) { snprintf(out, PATH_MAX, "%.2000s/%.2000s", parent, slash + 1); return; }
        *slash = '/';
    }
    snprintf(out, PATH_MAX, "%.4000s", joined);
}

static int of_file(int file, char *out) { /* the path of an open file; 0 if it has none */
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, out, PATH_MAX - 1);
    if (length <= 0 || out[0] != '/') return 0;
    out[length] = 0;
    return 1;
}

static int below(const char *path) {
    return !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

static int applies(int kind) { /* does a disk in this state refuse this kind of call? */
    switch (error) {
        case ENOSPC: case EDQUOT: return kind == CREATE || kind == WRITE || kind == MKDIR;
        case EFBIG: return kind == WRITE || kind == TRUNCATE;
        case EROFS: return kind != SYNC;
        default: return 1;
    }
}

static void die(void) { syscall(SYS_kill, syscall(SYS_getpid), SIGKILL); for (;;) pause(); }

/* Count a call. 0: go on; 1: it fails (errno is set); 2: write half of the bytes, then die; 3: write half, then report that. */
static int count(int kind, const char *name, const char *path, size_t size) {
    if (!armed_pid || inside || !below(path) || armed_pid != syscall(SYS_getpid)) return 0;
    long number = __atomic_add_fetch(&counted, 1, __ATOMIC_SEQ_CST);
    if (log_file >= 0) {
        char line[PATH_MAX + 128];
        int length = snprintf(line, sizeof line, "%ld %s %s %zu\n", number, name, path + root_length, size);
        syscall(SYS_write, log_file, line, length);
    }
    if (action == COUNT || number < at) return 0;
    if (action == FAIL) {
        if (!applies(kind) || (once && failures)) return 0;
        int first = !failures++;
        errno = error;
        return first && !once && kind == WRITE && size > 1 && (error == ENOSPC || error == EFBIG) ? 3 : 1;
    }
    if (number > at) return 0;
    if (action == HALF && kind == WRITE && size > 1) return 2;
    die();
    return 1;
}

EXPORT void attack_arm(const char *folder, long number, int act, int code, int only_once, const char *log) {
    inside = 1;
    if (!realpath(folder, root)) snprintf(root, sizeof root, "%s", folder);
    root_length = strlen(root);
    at = number, action = act, error = code, once = only_once, counted = failures = 0;
    if (log && *log) log_file = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    armed_pid = (int)syscall(SYS_getpid);
    inside = 0;
}

EXPORT void attack_disarm(void) { armed_pid = 0; }
EXPORT long attack_count(void) { return counted; }

__attribute__((constructor)) static void from_environment(void) {
    const char *folder = getenv("ATTACK_ROOT"), *what = getenv("ATTACK_DO"), *number = getenv("ATTACK_AT");
    const char *code = getenv("ATTACK_ERRNO"), *only = getenv("ATTACK_ONCE");
    if (!folder || !what) return;
    int act = !strcmp(what, "kill") ? KILL : !strcmp(what, "half") ? HALF : !strcmp(what, "fail") ? FAIL : COUNT;
    attack_arm(folder, number ? atol(number) : 0, act, code ? atoi(code) : 0, only && *only == '1', getenv("ATTACK_LOG"));
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

static int count_open(int folder, const char *path, int flags) {
    if (!armed_pid || inside || !(flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))) return 0;
    char whole[PATH_MAX];
    struct stat found;
    int kept = errno;
    here(folder, path, whole);
    int is_there = !lstat(whole, &found);
    errno = kept;
    return count(is_there && !(flags & O_TMPFILE & ~O_DIRECTORY) ? OPEN : CREATE, is_there ? "open" : "create", whole, 0);
}

#define MODE \
    va_list rest; va_start(rest, flags); \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? (mode_t)va_arg(rest, int) : 0; va_end(rest)

#define HOOK_OPEN(name) \
    EXPORT int name(const char *path, int flags, ...) { \
        MODE; REAL(int, name, const char *, int, ...); \
        return count_open(AT_FDCWD, path, flags) ? -1 : real(path, flags, mode); }
#define HOOK_OPENAT(name) \
    EXPORT int name(int folder, const char *path, int flags, ...) { \
        MODE; REAL(int, name, int, const char *, int, ...); \
        return count_open(folder, path, flags) ? -1 : real(folder, path, flags, mode); }
#define HOOK_CREAT(name) \
    EXPORT int name(const char *path, mode_t mode) { \
        REAL(int, name, const char *, mode_t); \
        return count_open(AT_FDCWD, path, O_WRONLY | O_CREAT) ? -1 : real(path, mode); }
#define HOOK_FOPEN(name) \
    EXPORT FILE *name(const char *path, const char *mode) { \
        REAL(FILE *, name, const char *, const char *); \
        int writes = strpbrk(mode, "wa+") != NULL; \
        if (writes && count_open(AT_FDCWD, path, O_WRONLY)) return NULL; \
        inside++; FILE *file = real(path, mode); inside--; \
        return file; }
HOOK_OPEN(open)
HOOK_OPEN(open64)
HOOK_OPENAT(openat)
HOOK_OPENAT(openat64)
HOOK_CREAT(creat)
HOOK_CREAT(creat64)
HOOK_FOPEN(fopen)
HOOK_FOPEN(fopen64)

static int count_file(int kind, const char *name, int file, size_t size) {
    char path[PATH_MAX];
    int kept = errno;
    if (!armed_pid || inside || !of_file(file, path)) { errno = kept; return 0; }
    errno = kept;
    return count(kind, name, path, size);
}

#define HOOK_WRITE(name, label, PARAMETERS, HALF_CALL, WHOLE_CALL, ...) \
    EXPORT ssize_t name PARAMETERS { \
        REAL(ssize_t, name, __VA_ARGS__); \
        int verdict = count_file(WRITE, label, file, size); \
        if (verdict == 1) return -1; \
        if (verdict >= 2) { ssize_t half = HALF_CALL; if (verdict == 2) die(); return half; } \
        return WHOLE_CALL; }
HOOK_WRITE(write, "write", (int file, const void *bytes, size_t size), real(file, bytes, size / 2), real(file, bytes, size),
           int, const void *, size_t)
HOOK_WRITE(pwrite, "write", (int file, const void *bytes, size_t size, off_t where), real(file, bytes, size / 2, where),
           real(file, bytes, size, where), int, const void *, size_t, off_t)
HOOK_WRITE(pwrite64, "write", (int file, const void *bytes, size_t size, off64_t where), real(file, bytes, size / 2, where),
           real(file, bytes, size, where), int, const void *, size_t, off64_t)
HOOK_WRITE(sendfile, "write", (int file, int source, off_t *where, size_t size), real(file, source, where, size / 2),
           real(file, source, where, size), int, int, off_t *, size_t)
HOOK_WRITE(sendfile64, "write", (int file, int source, off64_t *where, size_t size), real(file, source, where, size / 2),
           real(file, source, where, size), int, int, off64_t *, size_t)

EXPORT ssize_t writev(int file, const struct iovec *parts, int n) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    size_t size = 0;
    for (int i = 0; i < n; i++) size += parts[i].iov_len;
    int verdict = count_file(WRITE, "write", file, size);
    if (verdict == 1) return -1;
    if (verdict >= 2) { ssize_t half = real(file, parts, n / 2); if (verdict == 2) die(); return half; }
    return real(file, parts, n);
}

EXPORT size_t fwrite(const void *bytes, size_t each, size_t n, FILE *stream) {
    REAL(size_t, fwrite, const void *, size_t, size_t, FILE *);
    int verdict = armed_pid && !inside ? count_file(WRITE, "write", fileno(stream), each * n) : 0;
    if (verdict == 1) return 0;
    if (verdict >= 2) { size_t half = real(bytes, each, n / 2, stream); fflush(stream); if (verdict == 2) die(); return half; }
    return real(bytes, each, n, stream);
}

#define HOOK_FILE(kind, name, size, PARAMETERS, CALL, ...) \
    EXPORT int name PARAMETERS { \
        REAL(int, name, __VA_ARGS__); \
        return count_file(kind, #name, file, size) ? -1 : CALL; }
HOOK_FILE(TRUNCATE, ftruncate, (size_t)length, (int file, off_t length), real(file, length), int, off_t)
HOOK_FILE(TRUNCATE, ftruncate64, (size_t)length, (int file, off64_t length), real(file, length), int, off64_t)
HOOK_FILE(SYNC, fsync, 0, (int file), real(file), int)
HOOK_FILE(SYNC, fdatasync, 0, (int file), real(file), int)

static int count_path(int kind, const char *name, int folder, const char *path) {
    char whole[PATH_MAX];
    int kept = errno;
    if (!armed_pid || inside) return 0;
    here(folder, path, whole);
    errno = kept;
    return count(kind, name, whole, 0);
}

#define HOOK_PATH(kind, name, folder, path, PARAMETERS, CALL, ...) \
    EXPORT int name PARAMETERS { \
        REAL(int, name, __VA_ARGS__); \
        return count_path(kind, #name, folder, path) ? -1 : CALL; }
HOOK_PATH(TRUNCATE, truncate, AT_FDCWD, path, (const char *path, off_t length), real(path, length), const char *, off_t)
HOOK_PATH(TRUNCATE, truncate64, AT_FDCWD, path, (const char *path, off64_t length), real(path, length), const char *, off64_t)
HOOK_PATH(UNLINK, unlink, AT_FDCWD, path, (const char *path), real(path), const char *)
HOOK_PATH(UNLINK, rmdir, AT_FDCWD, path, (const char *path), real(path), const char *)
HOOK_PATH(UNLINK, unlinkat, folder, path, (int folder, const char *path, int flags), real(folder, path, flags), int,
          const char *, int)
HOOK_PATH(MKDIR, mkdir, AT_FDCWD, path, (const char *path, mode_t mode), real(path, mode), const char *, mode_t)
HOOK_PATH(MKDIR, mkdirat, folder, path, (int folder, const char *path, mode_t mode), real(folder, path, mode), int,
          const char *, mode_t)
HOOK_PATH(RENAME, rename, AT_FDCWD, to, (const char *from, const char *to), real(from, to), const char *, const char *)
HOOK_PATH(RENAME, renameat, there, to, (int folder, const char *from, int there, const char *to),
          real(folder, from, there, to), int, const char *, int, const char *)
HOOK_PATH(RENAME, renameat2, there, to, (int folder, const char *from, int there, const char *to, unsigned flags),
          real(folder, from, there, to, flags), int, const char *, int, const char *, unsigned)
HOOK_PATH(CREATE, link, AT_FDCWD, to, (const char *from, const char *to), real(from, to), const char *, const char *)
HOOK_PATH(CREATE, symlink, AT_FDCWD, to, (const char *from, const char *to), real(from, to), const char *, const char *)
