/* System calls that fail at a chosen moment: preloaded (LD_PRELOAD) into a process and all that it starts.
 *
 * Calls of the chosen groups are counted, over all processes, while `armed` is set; call number `at` fails with `error`,
 * and with `lasting` every later one too. Where `error` is 0 the process that makes the call is killed instead, as the
 * kernel does where memory is short. With `program` only calls of that program count. The page is a piece of System V
 * shared memory, which a confined process can reach too; its id is in COLDFRAME_FAULTY. Its layout is that of
 * tests/integration/faulty.py.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define CHANGES 1     /* what changes a file below the directory */
#define DESCRIPTORS 2 /* what makes a descriptor */
#define PROCESSES 4   /* what makes a process or a thread */

struct page {
    int64_t armed, count, at, lasting, calls, error, tester;
    char below[1024], failed[1024], program[64];
};

static struct page *shared;
static pid_t (*real_vfork)(void);

#define REAL(type, name) ((type)dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void begin(void)
{
    const char *id = getenv("COLDFRAME_FAULTY");
    void *found = id ? shmat(atoi(id), NULL, 0) : (void *)-1;

    real_vfork = REAL(pid_t(*)(void), vfork);
    shared = found == (void *)-1 ? NULL : found;
}

static int counts(int calls)
{
    return shared && shared->armed && (shared->calls & calls) &&
           (!shared->program[0] || !strcmp(shared->program, program_invocation_short_name));
}

/* Count a call that counts, and tell whether it fails. */
static int fails(const char *call, const char *what)
{
    int64_t number = __atomic_fetch_add(&shared->count, 1, __ATOMIC_SEQ_CST);

    if (number != shared->at && !(shared->lasting && number > shared->at))
        return 0;
    if (number == shared->at)
        snprintf(shared->failed, sizeof shared->failed, "%s %s %s", program_invocation_short_name, call, what);
    if (!shared->error)
        raise(SIGKILL);
    errno = shared->error;
    return 1;
}

/* Return what follows the directory in a path of the agent's; the directory `libvirt` stands for another program. */
static const char *ours(const char *path)
{
    size_t length = strlen(shared->below);

    if (strncmp(path, shared->below, length) || path[length] != '/' || !strncmp(path + length, "/libvirt/", 9))
        return NULL;
    return path + length;
}

static int fails_on(const char *call, const char *path)
{
    const char *rest = counts(CHANGES) ? ours(path) : NULL;

    return rest && fails(call, rest);
}

static int fails_at(const char *call, int fd, const char *name)
{
    char link[64], path[2 * PATH_MAX];
    ssize_t length;

    if (!counts(CHANGES))
        return 0;
    if (name[0] == '/')
        return fails_on(call, name);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, PATH_MAX - 1);
    if (length < 0)
        return 0;
    snprintf(path + length, sizeof path - length, "%s%s", name[0] ? "/" : "", name);
    return fails_on(call, path);
}

static int fails_open(const char *call, int fd)
{
    return fails_at(call, fd, "");
}

#define ON_FD(result, name, parameters, arguments) \
    result name parameters \
    { \
        if (fails_open(#name, fd)) \
            return -1; \
        return REAL(result(*) parameters, name) arguments; \
    }

#define ON_PATH(name, parameters, arguments) \
    int name parameters \
    { \
        if (fails_on(#name, path)) \
            return -1; \
        return REAL(int (*) parameters, name) arguments; \
    }

ON_FD(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size))
ON_FD(ssize_t, writev, (int fd, const struct iovec *parts, int count), (fd, parts, count))
ON_FD(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
ON_FD(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
ON_FD(ssize_t, pwritev, (int fd, const struct iovec *parts, int count, off_t at), (fd, parts, count, at))
ON_FD(ssize_t, pwritev64, (int fd, const struct iovec *parts, int count, off64_t at), (fd, parts, count, at))
ON_FD(int, fsync, (int fd), (fd))
ON_FD(int, fdatasync, (int fd), (fd))
ON_FD(int, ftruncate, (int fd, off_t size), (fd, size))
ON_FD(int, ftruncate64, (int fd, off64_t size), (fd, size))
ON_FD(int, fallocate, (int fd, int mode, off_t at, off_t size), (fd, mode, at, size))
ON_FD(int, fallocate64, (int fd, int mode, off64_t at, off64_t size), (fd, mode, at, size))
ON_FD(int, fchmod, (int fd, mode_t mode), (fd, mode))
ON_FD(int, fchown, (int fd, uid_t user, gid_t group), (fd, user, group))
ON_PATH(rename, (const char *path, const char *to), (path, to))
ON_PATH(link, (const char *path, const char *to), (path, to))
ON_PATH(unlink, (const char *path), (path))
ON_PATH(mkdir, (const char *path, mode_t mode), (path, mode))
ON_PATH(rmdir, (const char *path), (path))
ON_PATH(chmod, (const char *path, mode_t mode), (path, mode))

/* Names below an open directory: what the agent does below directories that others own, and shutil.rmtree. */
#define ON_NAME(name, parameters, arguments) \
    int name parameters \
    { \
        if (fails_at(#name, fd, path)) \
            return -1; \
        return REAL(int (*) parameters, name) arguments; \
    }

ON_NAME(renameat, (int fd, const char *path, int to, const char *target), (fd, path, to, target))
ON_NAME(renameat2, (int fd, const char *path, int to, const char *target, unsigned flags), (fd, path, to, target, flags))
ON_NAME(linkat, (int fd, const char *path, int to, const char *target, int flags), (fd, path, to, target, flags))
ON_NAME(mkdirat, (int fd, const char *path, mode_t mode), (fd, path, mode))
ON_NAME(unlinkat, (int fd, const char *path, int flags), (fd, path, flags))

/* Descriptors. What the main thread of the tester opens is the test's own: the agent opens files in other threads. Of a
 * walk from directory to directory (O_PATH) the beginning counts, and what it leads to. */
static int fails_to_open(const char *call, const char *path, int flags)
{
    if (!counts(DESCRIPTORS) || !strncmp(path, "/dev/", 5) || gettid() == shared->tester)
        return 0;
    if (flags & O_PATH && path[0] != '/')
        return 0;
    if (path[0] == '/' && !strncmp(path, shared->below, strlen(shared->below)) && !ours(path))
        return 0;
    return fails(call, path);
}

static int fails_to_make(const char *call)
{
    return counts(DESCRIPTORS) && fails(call, "");
}

#define OPEN(name, parameters, arguments) \
    int name parameters \
    { \
        mode_t mode; \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
        if (fails_to_open(#name, path, flags)) \
            return -1; \
        return REAL(int (*) parameters, name) arguments; \
    }

OPEN(open, (const char *path, int flags, ...), (path, flags, mode))
OPEN(open64, (const char *path, int flags, ...), (path, flags, mode))
OPEN(openat, (int fd, const char *path, int flags, ...), (fd, path, flags, mode))
OPEN(openat64, (int fd, const char *path, int flags, ...), (fd, path, flags, mode))

DIR *opendir(const char *path)
{
    if (fails_to_open("opendir", path, 0))
        return NULL;
    return REAL(DIR *(*)(const char *), opendir)(path);
}

#define MAKES(name, parameters, arguments) \
    int name parameters \
    { \
        if (fails_to_make(#name)) \
            return -1; \
        return REAL(int (*) parameters, name) arguments; \
    }

MAKES(pipe, (int pair[2]), (pair))
MAKES(pipe2, (int pair[2], int flags), (pair, flags))
MAKES(socket, (int domain, int type, int protocol), (domain, type, protocol))
MAKES(eventfd, (unsigned int value, int flags), (value, flags))
MAKES(dup, (int fd), (fd))

/* pidfd_open and Landlock's rules have no function in the C library. */
long syscall(long number, ...)
{
    long a[6];
    va_list rest;

    va_start(rest, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(rest, long);
    va_end(rest);
    if ((number == SYS_pidfd_open || number == SYS_landlock_create_ruleset) && fails_to_make("syscall"))
        return -1;
    return REAL(long (*)(long, ...), syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

/* Processes and threads. */
static int fails_to_begin(const char *call)
{
    return counts(PROCESSES) && fails(call, "");
}

pid_t fork(void)
{
    return fails_to_begin("fork") ? -1 : REAL(pid_t(*)(void), fork)();
}

/* A child that shares our stack must not return through a frame of ours: the compiler makes the last call a jump. */
pid_t vfork(void)
{
    if (fails_to_begin("vfork"))
        return -1;
    return real_vfork();
}

int pthread_create(pthread_t *thread, const pthread_attr_t *with, void *(*run)(void *), void *of)
{
    if (fails_to_begin("pthread_create"))
        return errno;
    return REAL(int (*)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *), pthread_create)(
        thread, with, run, of);
}
