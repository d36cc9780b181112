/* Preloaded into a process under attack: system calls on files below one folder fail, kill, signal, wait or have a
 * source change under them, at a chosen call. What is attacked and what must hold afterwards is attack_outputs.py's.
 *
 * Built with: cc -shared -fPIC -O1 -o attack_calls.so attack_calls.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { WRITE = 1, SYNC = 2, NAME = 4, OPEN = 8, READ = 16, LOCK = 32 };
enum action { NOTHING, FAIL, FAIL_ONCE, KILL_BEFORE, KILL_AFTER, SIGNAL, SHRINK, REWRITE, SHORT };
enum { MOST_DESCRIPTORS = 4096 };

static char folder[4096], victim[4096];
static int armed, kinds, action, error_number, signal_number, delay_us;
static long count, at;
static unsigned seed;
static unsigned char watched[MOST_DESCRIPTORS];

/* Watch files below `prefix`; at call number `nth` (from 1) of one of the `which` kinds do `what`. 0 only counts. */
void attack_arm(const char *prefix, const char *source, int which, int what, long nth, int number, int delay, unsigned s) {
    strncpy(folder, prefix, sizeof folder - 1);
    strncpy(victim, source, sizeof victim - 1);
    kinds = which; action = what; at = nth; error_number = number; signal_number = number; delay_us = delay; seed = s;
    count = 0;
    memset(watched, 0, sizeof watched);
    armed = 1;
}

long attack_count(void) { return count; }

void attack_disarm(void) { armed = 0; }

static int below(const char *path) {
    char full[8192];
    if (!armed || !path) return 0;
    if (path[0] == '/') return strncmp(path, folder, strlen(folder)) == 0;
    if (!getcwd(full, 4096)) return 0;
    return strncmp(full, folder, strlen(folder)) == 0;
}

static int is_watched(int fd) { return armed && fd >= 0 && fd < MOST_DESCRIPTORS && watched[fd]; }

static void change_source(int what) {
    struct stat status;
    static int (*real_open)(const char *, int, ...);
    static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
    if (!real_open) real_open = dlsym(RTLD_NEXT, "open");
    if (!real_pwrite) real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    int fd = real_open(victim, O_RDWR);
    if (fd < 0) return;
    if (fstat(fd, &status) == 0) {
        if (what == SHRINK) {
            if (truncate(victim, status.st_size / 2)) {}
        } else {
            char bytes[64];
            memset(bytes, 0x5a, sizeof bytes);
            for (off_t place = status.st_size / 4; place + 64 < status.st_size; place += status.st_size / 8 + 1)
                if (real_pwrite(fd, bytes, sizeof bytes, place) < 0) break;
        }
    }
    close(fd);
}

/* 1 where the call is to fail with errno set. */
static int before(int kind) {
    if (!(kind & kinds)) return 0;
    long number = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
    if (delay_us) {
        unsigned mixed = (seed + (unsigned)number * 2654435761u) ^ (seed >> 7);
        mixed ^= mixed >> 15; mixed *= 2246822519u; mixed ^= mixed >> 13;
        usleep(mixed % (unsigned)delay_us);
    }
    int hit = number == at;
    switch (action) {
    case FAIL: if (at && number >= at) { errno = error_number; return 1; } break;
    case FAIL_ONCE: if (hit) { errno = error_number; return 1; } break;
    case KILL_BEFORE: if (hit) kill(getpid(), SIGKILL); break;
    case SIGNAL: if (hit) kill(getpid(), signal_number); break;
    case SHRINK: case REWRITE: if (hit) change_source(action); break;
    default: break;
    }
    return 0;
}

static void after(int kind) {
    if ((kind & kinds) && action == KILL_AFTER && count == at) kill(getpid(), SIGKILL);
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = dlsym(RTLD_NEXT, name)

static int opened(int fd, int is_below) {
    if (fd >= 0 && fd < MOST_DESCRIPTORS) watched[fd] = (unsigned char)is_below;
    return fd;
}

static mode_t mode_of(int flags, va_list list) {
    return (flags & (O_CREAT | 0x400000)) ? va_arg(list, mode_t) : 0;
}

#define OPENS(function) \
    int function(const char *path, int flags, ...) { \
        REAL(int, #function, const char *, int, ...); \
        va_list list; va_start(list, flags); mode_t mode = mode_of(flags, list); va_end(list); \
        int is_below = below(path), kind = (flags & O_CREAT) ? NAME : OPEN; \
        if (is_below && before(kind)) return -1; \
        int fd = opened(real(path, flags, mode), is_below); \
        if (is_below) after(kind); \
        return fd; \
    }
OPENS(open)
OPENS(open64)

#define OPENS_AT(function) \
    int function(int at_fd, const char *path, int flags, ...) { \
        REAL(int, #function, int, const char *, int, ...); \
        va_list list; va_start(list, flags); mode_t mode = mode_of(flags, list); va_end(list); \
        int is_below = below(path), kind = (flags & O_CREAT) ? NAME : OPEN; \
        if (is_below && before(kind)) return -1; \
        int fd = opened(real(at_fd, path, flags, mode), is_below); \
        if (is_below) after(kind); \
        return fd; \
    }
OPENS_AT(openat)
OPENS_AT(openat64)

int close(int fd) {
    REAL(int, "close", int);
    if (fd >= 0 && fd < MOST_DESCRIPTORS) watched[fd] = 0;
    return real(fd);
}

#define ON_DESCRIPTOR(type, function, kind, signature, arguments, ...) \
    type function signature { \
        REAL(type, #function, __VA_ARGS__); \
        int is_ours = is_watched(fd); \
        if (is_ours && before(kind)) return -1; \
        type result = real arguments; \
        if (is_ours) after(kind); \
        return result; \
    }

#define WRITES(function, signature, arguments, ...) \
    ssize_t function signature { \
        REAL(ssize_t, #function, __VA_ARGS__); \
        int is_ours = is_watched(fd); \
        if (is_ours && before(WRITE)) return -1; \
        if (is_ours && action == SHORT && size > 1) size = 1 + size / 2; \
        ssize_t result = real arguments; \
        if (is_ours) after(WRITE); \
        return result; \
    }
WRITES(write, (int fd, const void *buffer, size_t size), (fd, buffer, size), int, const void *, size_t)
WRITES(pwrite, (int fd, const void *buffer, size_t size, off_t place), (fd, buffer, size, place), int, const void *, size_t, off_t)
WRITES(pwrite64, (int fd, const void *buffer, size_t size, off_t place), (fd, buffer, size, place), int, const void *, size_t, off_t)
ON_DESCRIPTOR(int, ftruncate, WRITE, (int fd, off_t size), (fd, size), int, off_t)
ON_DESCRIPTOR(int, ftruncate64, WRITE, (int fd, off_t size), (fd, size), int, off_t)
ON_DESCRIPTOR(int, fsync, SYNC, (int fd), (fd), int)
ON_DESCRIPTOR(int, fdatasync, SYNC, (int fd), (fd), int)
ON_DESCRIPTOR(int, flock, LOCK, (int fd, int operation), (fd, operation), int, int)
ON_DESCRIPTOR(ssize_t, read, READ, (int fd, void *buffer, size_t size), (fd, buffer, size), int, void *, size_t)
ON_DESCRIPTOR(ssize_t, pread, READ, (int fd, void *buffer, size_t size, off_t place), (fd, buffer, size, place), int, void *, size_t, off_t)
ON_DESCRIPTOR(ssize_t, pread64, READ, (int fd, void *buffer, size_t size, off_t place), (fd, buffer, size, place), int, void *, size_t, off_t)

#define ON_PATH(function, path, signature, arguments, ...) \
    int function signature { \
        REAL(int, #function, __VA_ARGS__); \
        int is_ours = below(path); \
        if (is_ours && before(NAME)) return -1; \
        int result = real arguments; \
        if (is_ours) after(NAME); \
        return result; \
    }
ON_PATH(rename, to, (const char *from, const char *to), (from, to), const char *, const char *)
ON_PATH(renameat, to, (int a, const char *from, int b, const char *to), (a, from, b, to), int, const char *, int, const char *)
ON_PATH(unlink, path, (const char *path), (path), const char *)
ON_PATH(unlinkat, path, (int fd, const char *path, int flags), (fd, path, flags), int, const char *, int)
ON_PATH(mkdir, path, (const char *path, mode_t mode), (path, mode), const char *, mode_t)
ON_PATH(mkdirat, path, (int fd, const char *path, mode_t mode), (fd, path, mode), int, const char *, mode_t)
ON_PATH(rmdir, path, (const char *path), (path), const char *)
ON_PATH(link, to, (const char *from, const char *to), (from, to), const char *, const char *)
ON_PATH(symlink, to, (const char *from, const char *to), (from, to), const char *, const char *)
ON_PATH(chmod, path, (const char *path, mode_t mode), (path, mode), const char *, mode_t)
