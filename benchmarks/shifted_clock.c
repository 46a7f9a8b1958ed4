/* A host whose clock is apart, for LD_PRELOAD: CLOCK_REALTIME and kernel receive stamps are
   shifted by SHIFT_NS + SHIFT_PPM x 1e-6 x (CLOCK_MONOTONIC - SHIFT_FROM_NS). No namespace of Linux has
   a wall clock of its own.

   cc -std=c11 -O2 -Wall -Wextra -shared -fPIC -o shifted_clock.so shifted_clock.c */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

static long long of(const char *name) { const char *text = getenv(name); return text ? atoll(text) : 0; }

static long long base_ns, from_ns, ppm;
__attribute__((constructor)) static void begin(void)
{
    base_ns = of("SHIFT_NS"), ppm = of("SHIFT_PPM"), from_ns = of("SHIFT_FROM_NS");
}

static void shift(struct timespec *at)
{
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    long long ns = at->tv_sec * SECOND + at->tv_nsec + base_ns;
    ns += (now.tv_sec * SECOND + now.tv_nsec - from_ns) / 1000000 * ppm;
    at->tv_sec = ns / SECOND, at->tv_nsec = ns % SECOND;
}

int clock_gettime(clockid_t id, struct timespec *at)
{
    int failed = (int)syscall(SYS_clock_gettime, id, at);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) shift(at);
    return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone)
{
    (void)zone;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec, at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    static ssize_t (*real)(int, struct msghdr *, int);
    if (!real) real = (ssize_t (*)(int, struct msghdr *, int))dlsym(RTLD_NEXT, "recvmsg");
    ssize_t count = real(fd, message, flags);
    if (count < 0) return count;
    for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part; part = CMSG_NXTHDR(message, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SO_TIMESTAMPNS) continue;
        struct timespec at;
        memcpy(&at, CMSG_DATA(part), sizeof at);
        shift(&at);
        memcpy(CMSG_DATA(part), &at, sizeof at);
    }
    return count;
}
