/*
 * ARP in bulk, by a program for nothing else: what the helper of a scan is measured against.
 *
 *     bulk send IFACE COUNT       COUNT requests, each for another address
 *     bulk receive IFACE COUNT    until COUNT came, each with its time, or half a second after
 * the last one
 *
 * Prints the frames, and the CPU time in seconds, of the program itself (user) and in all.
 */
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>

#define BATCH 64

static struct mmsghdr messages[BATCH];
static struct iovec parts[BATCH];
static uint8_t frames[BATCH][42];
static _Alignas(struct cmsghdr) uint8_t about[BATCH][CMSG_SPACE(sizeof(struct timespec))];

static double seconds(struct timeval time)
{
    return (double)time.tv_sec + (double)time.tv_usec / 1e6;
}

static long transfer(int fd, int sends, long count)
{
    struct pollfd waiting = {.fd = fd, .events = POLLIN};
    long done = 0;

    while (done < count && (sends || poll(&waiting, 1, done ? 500 : 10000) > 0)) {
        int now;

        for (uint32_t i = 0; sends && i < BATCH; i++) {
            const uint32_t target = htonl(0xa9fe0100u + (uint32_t)done + i);

            memcpy(frames[i] + 38, &target, 4);
        }
        for (int i = 0; !sends && i < BATCH; i++) {
            messages[i].msg_hdr.msg_control = about[i];
            messages[i].msg_hdr.msg_controllen = sizeof about[i];
        }
        now = sends ? sendmmsg(fd, messages, BATCH, 0)
                    : recvmmsg(fd, messages, BATCH, MSG_DONTWAIT, 0);
        if (now < 0)
            break;
        done += now;
    }
    return done;
}

int main(int count, char **words)
{
    static const uint8_t head[] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2,   0,   0, 0, 0,
                                   1,    8,    6,    0,    1,    8,    0,   6,   4, 0, 1,
                                   2,    0,    0,    0,    0,    1,    169, 254, 9, 9};
    struct sockaddr_ll where = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ARP)};
    struct rusage before;
    struct rusage after;
    int sends;
    int fd;
    long done;

    if (count != 4)
        return 2;
    sends = strcmp(words[1], "send") == 0;
    where.sll_ifindex = (int)if_nametoindex(words[2]);
    fd = socket(AF_PACKET, SOCK_RAW, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&where, sizeof where) < 0)
        return 1;
    if (!sends) {
        const int size = 8 << 20;
        const int on = 1;

        setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
        setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
    }
    for (int i = 0; i < BATCH; i++) {
        memcpy(frames[i], head, sizeof head);
        parts[i] = (struct iovec){.iov_base = frames[i], .iov_len = sizeof frames[i]};
        messages[i].msg_hdr.msg_iov = &parts[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    puts("ready");
    fflush(stdout);
    getrusage(RUSAGE_SELF, &before);
    done = transfer(fd, sends, atol(words[3]));
    getrusage(RUSAGE_SELF, &after);
    printf("{\"frames\": %ld, \"user\": %f, \"cpu\": %f}\n", done,
           seconds(after.ru_utime) - seconds(before.ru_utime),
           seconds(after.ru_utime) - seconds(before.ru_utime) + seconds(after.ru_stime) -
               seconds(before.ru_stime));
    return 0;
}
