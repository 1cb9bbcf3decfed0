/*
 * The least that can send at a time: sleeps until it comes, send()s.
 *
 *   bare_timer IFNAME FRAME COUNT PAUSE   FRAME: hexadecimal; PAUSE: milliseconds between two
 *
 * Says for each frame when it was to be sent (CLOCK_REALTIME, nanoseconds).
 */
#include <errno.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000LL

static int64_t now(clockid_t clock)
{
    struct timespec at;

    clock_gettime(clock, &at);
    return at.tv_sec * NS_PER_S + at.tv_nsec;
}

int main(int argc, char **argv)
{
    struct sockaddr_ll address = {.sll_family = AF_PACKET};
    unsigned char frame[64];
    size_t length = 0;
    int64_t at = now(CLOCK_BOOTTIME);
    int timer = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC);
    int fd = socket(AF_PACKET, SOCK_RAW, 0);

    if (argc != 5 || strlen(argv[2]) > 2 * sizeof frame)
        return 2;
    for (const char *hex = argv[2]; sscanf(hex, "%2hhx", &frame[length]) == 1; hex += 2)
        length++;
    address.sll_ifindex = (int)if_nametoindex(argv[1]);
    if (timer < 0 || fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        perror("bare_timer");
        return 1;
    }
    for (long i = 0; i < atol(argv[3]); i++) {
        struct itimerspec when = {0};
        uint64_t expirations;

        at += atol(argv[4]) * 1000000;
        when.it_value.tv_sec = at / NS_PER_S;
        when.it_value.tv_nsec = at % NS_PER_S;
        if (timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL) < 0 ||
            read(timer, &expirations, sizeof expirations) < 0 || send(fd, frame, length, 0) < 0) {
            perror("bare_timer");
            return 1;
        }
        printf("%lld\n", (long long)(at + now(CLOCK_REALTIME) - now(CLOCK_BOOTTIME)));
        fflush(stdout);
    }
    return 0;
}
