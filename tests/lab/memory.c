/* Memory that runs out: preloaded (LD_PRELOAD) into a process and all that it starts.
 *
 * LAB_MEMORY names a file of three numbers of 64 bits, which is mapped: how many allocations are still to succeed, how
 * many fail after those, and how many have failed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

struct page {
    int64_t left, failing, failed;
};

static struct page *page;

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *old, size_t size);

__attribute__((constructor)) static void begin(void)
{
    const char *name = getenv("LAB_MEMORY");
    int fd = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
    void *found = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    page = found == MAP_FAILED ? NULL : found;
    if (fd >= 0)
        close(fd);
}

static int is_short(void)
{
    if (!page || __atomic_load_n(&page->failing, __ATOMIC_SEQ_CST) <= 0)
        return 0;
    if (__atomic_fetch_sub(&page->left, 1, __ATOMIC_SEQ_CST) > 0)
        return 0;
    if (__atomic_fetch_sub(&page->failing, 1, __ATOMIC_SEQ_CST) <= 0)
        return 0;
    __atomic_fetch_add(&page->failed, 1, __ATOMIC_SEQ_CST);
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t size)
{
    return is_short() ? NULL : __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    return is_short() ? NULL : __libc_calloc(count, size);
}

void *realloc(void *old, size_t size)
{
    return is_short() ? NULL : __libc_realloc(old, size);
}
