/*
 * Sends the same frame many times, as fast as the kernel takes it or in bursts.
 *
 *   flood IFNAME FRAME COUNT [BURST PAUSE]    FRAME: hexadecimal; PAUSE: in microseconds
 *
 * Says how many nanoseconds it took.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BATCH 64

int main(int argc, char **argv)
{
    struct sockaddr_ll address = {.sll_family = AF_PACKET};
    struct mmsghdr headers[BATCH] = {0};
    unsigned char frame[64];
    struct iovec vector = {.iov_base = frame};
    struct timespec from;
    struct timespec to;
    long count;
    long burst;
    long pause;
    int fd;

    if ((argc != 4 && argc != 6) || strlen(argv[2]) > 2 * sizeof frame)
        return 2;
    for (const char *hex = argv[2]; sscanf(hex, "%2hhx", &frame[vector.iov_len]) == 1; hex += 2)
        vector.iov_len++;
    count = atol(argv[3]);
    burst = argc == 6 ? atol(argv[4]) : count;
    pause = argc == 6 ? atol(argv[5]) : 0;
    for (int i = 0; i < BATCH; i++) {
        headers[i].msg_hdr.msg_iov = &vector;
        headers[i].msg_hdr.msg_iovlen = 1;
    }
    address.sll_ifindex = (int)if_nametoindex(argv[1]);
    fd = socket(AF_PACKET, SOCK_RAW, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        perror("flood");
        return 1;
    }
    clock_gettime(CLOCK_MONOTONIC, &from);
    for (long sent = 0; sent < count;) {
        long end = sent + burst < count ? sent + burst : count;

        while (sent < end) {
            long most = end - sent < BATCH ? end - sent : BATCH;
            int done = sendmmsg(fd, headers, (unsigned int)most, 0);

            if (done < 0 && errno != ENOBUFS) {
                perror("flood");
                return 1;
            }
            if (done > 0)
                sent += done;
        }
        if (pause > 0)
            usleep((useconds_t)pause);
    }
    clock_gettime(CLOCK_MONOTONIC, &to);
    printf("%lld\n", (to.tv_sec - from.tv_sec) * 1000000000LL + (to.tv_nsec - from.tv_nsec));
    return 0;
}
