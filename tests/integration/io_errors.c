/* Input/output errors at a chosen call: preloaded (LD_PRELOAD) into a process and all that it starts.
 *
 * What changes a file below the directory named in the shared page is counted, over all processes, while `armed` is set;
 * call number `at` fails with EIO, and with `lasting` every later one too. The page is a file that whoever arms maps
 * as well; its name is in COLDFRAME_IO_ERRORS. Its layout is that of tests/integration/io_errors.py.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

struct page {
    int64_t armed, count, at, lasting;
    char below[1024], failed[1024];
};

static struct page *shared;

__attribute__((constructor)) static void begin(void)
{
    const char *name = getenv("COLDFRAME_IO_ERRORS");
    int fd = name ? open(name, O_RDWR | O_CLOEXEC) : -1;

    if (fd < 0)
        return;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (shared == MAP_FAILED)
        shared = NULL;
    close(fd);
}

static int fails(const char *call, const char *path)
{
    size_t length;
    int64_t number;

    if (!shared || !shared->armed)
        return 0;
    length = strlen(shared->below);
    if (strncmp(path, shared->below, length) || path[length] != '/' || !strncmp(path + length, "/libvirt/", 9))
        return 0;
    number = __atomic_fetch_add(&shared->count, 1, __ATOMIC_SEQ_CST);
    if (number != shared->at && !(shared->lasting && number > shared->at))
        return 0;
    if (number == shared->at)
        snprintf(shared->failed, sizeof shared->failed, "%s %s", call, path + length);
    errno = EIO;
    return 1;
}

static int fails_open(const char *call, int fd)
{
    char link[64], path[PATH_MAX];
    ssize_t length;

    if (!shared || !shared->armed)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return fails(call, path);
}

static int fails_at(const char *call, int fd, const char *name)
{
    char link[64], path[2 * PATH_MAX];
    ssize_t length;

    if (!shared || !shared->armed)
        return 0;
    if (name[0] == '/')
        return fails(call, name);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, PATH_MAX - 1);
    if (length < 0)
        return 0;
    snprintf(path + length, sizeof path - length, "/%s", name);
    return fails(call, path);
}

#define REAL(type, name) ((type)dlsym(RTLD_NEXT, #name))

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
        if (fails(#name, path)) \
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
ON_NAME(renameat2, (int fd, const char *path, int to, const char *target, unsigned int flags), (fd, path, to, target, flags))
ON_NAME(linkat, (int fd, const char *path, int to, const char *target, int flags), (fd, path, to, target, flags))
ON_NAME(mkdirat, (int fd, const char *path, mode_t mode), (fd, path, mode))
ON_NAME(unlinkat, (int fd, const char *path, int flags), (fd, path, flags))
