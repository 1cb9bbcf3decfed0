/* Clocks and timers. CLOCK_BOOTTIME also counts the time that the machine sleeps. */
#include "internal.h"

#include <errno.h>
#include <unistd.h>

#include <sys/timerfd.h>

#define NS_PER_S 1000000000u

/* Later than any wall clock: the year 2262, where the kernel's own counter ends. */
#define FAR_FUTURE_S 9223372036

uint64_t autoip_clock(clockid_t clock)
{
    struct timespec at;

    /* Cannot fail: every kernel has the clocks in use. */
    (void)clock_gettime(clock, &at);
    return (uint64_t)at.tv_sec * NS_PER_S + (uint64_t)at.tv_nsec;
}

uint64_t autoip_now(void)
{
    return autoip_clock(CLOCK_BOOTTIME);
}

int autoip_timer_new(void)
{
    int fd = timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK | TFD_CLOEXEC);

    return fd < 0 ? -errno : fd;
}

int autoip_timer_set(int fd, uint64_t at_ns)
{
    struct itimerspec when = {
        .it_value = {.tv_sec = (time_t)(at_ns / NS_PER_S), .tv_nsec = (long)(at_ns % NS_PER_S)},
    };

    return timerfd_settime(fd, TFD_TIMER_ABSTIME, &when, NULL) < 0 ? -errno : 0;
}

/* Sets the watch again. Returns 1 if the clock jumped since the last time, else 0. */
static int clock_watch_set(int fd)
{
    struct itimerspec never = {.it_value = {.tv_sec = (time_t)FAR_FUTURE_S}};

    if (timerfd_settime(fd, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &never, NULL) == 0)
        return 0;
    /* The timer is set nevertheless. */
    return errno == ECANCELED ? 1 : -errno;
}

int autoip_clock_watch_new(void)
{
    int fd = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK | TFD_CLOEXEC);
    int result;

    if (fd < 0)
        return -errno;
    result = clock_watch_set(fd);
    if (result < 0) {
        close(fd);
        return result;
    }
    return fd;
}

int autoip_clock_watch_read(int fd)
{
    uint64_t expirations;
    int jumped = 0;
    int again;

    if (read(fd, &expirations, sizeof expirations) < 0) {
        if (errno == ECANCELED)
            jumped = 1;
        else if (errno != EAGAIN && errno != EINTR)
            return -errno;
    }
    again = clock_watch_set(fd);
    return again < 0 ? again : jumped | again;
}
