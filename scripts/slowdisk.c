/* Makes the write-ahead log of a database slow: preloaded into the server by show_record.py, which switches it on with a file.
 * Every write and sync of a file named *-wal first waits SLOWDISK_MS milliseconds while the file SLOWDISK_FLAG exists. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static void wait_for_disk(int fd) {
    const char *flag = getenv("SLOWDISK_FLAG"), *ms = getenv("SLOWDISK_MS");
    char link[64], path[4096];
    if (!flag || !ms || access(flag, F_OK) != 0) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path);
    if (length < 4 || memcmp(path + length - 4, "-wal", 4) != 0) return;
    long wait = atol(ms);
    struct timespec time = {wait / 1000, wait % 1000 * 1000000};
    nanosleep(&time, NULL);
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(real))dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *bytes, size_t count) {
    REAL(write);
    wait_for_disk(fd);
    return real(fd, bytes, count);
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) {
    REAL(pwrite);
    wait_for_disk(fd);
    return real(fd, bytes, count, at);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    REAL(pwrite64);
    wait_for_disk(fd);
    return real(fd, bytes, count, at);
}

int fsync(int fd) {
    REAL(fsync);
    wait_for_disk(fd);
    return real(fd);
}

int fdatasync(int fd) {
    REAL(fdatasync);
    wait_for_disk(fd);
    return real(fd);
}
