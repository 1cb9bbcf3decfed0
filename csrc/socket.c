/* One packet socket, for the ARP of one interface. */
#include "internal.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

/* An older time stamp means that the clock was set, not that the frame waited. */
#define STAMP_MAX_AGE_NS 5000000000u

/* Three clock readings within this time were not interrupted. */
#define CLOCKS_CLOSE_NS 1000u

int autoip_packet_open(int ifindex)
{
    static const uint8_t nobody[6];
    struct sockaddr_ll address = {
        .sll_family = AF_PACKET,
        .sll_protocol = htons(ETH_P_ARP),
        .sll_ifindex = ifindex,
    };
    struct timespec none;
    int result;
    int fd;

    /* bind() to index 0 means every interface. */
    if (ifindex <= 0)
        return -EINVAL;

    /* Protocol 0: frames come only after bind(), and by then the filter is there. */
    fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    result = autoip_packet_filter(fd, nobody, 0, AUTOIP_SILENT, 0);
    if (result < 0)
        goto fail;
    /* From now on the kernel keeps the time of each frame. This call finds none yet. */
    (void)ioctl(fd, SIOCGSTAMPNS, &none);
    if (bind(fd, (const struct sockaddr *)&address, sizeof address) < 0) {
        result = -errno;
        goto fail;
    }
    return fd;

fail:
    close(fd);
    return result;
}

int autoip_packet_attach(int fd, struct sock_filter *code, int length)
{
    struct sock_fprog program = {.filter = code, .len = (unsigned short)length};

    if (length < 0)
        return length;
    if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) < 0)
        return -errno;
    return 0;
}

int autoip_packet_filter(int fd, const uint8_t mac[6], uint32_t address, enum autoip_phase phase,
                         uint32_t seal)
{
    struct sock_filter code[AUTOIP_FILTER_MAX];
    int length = autoip_filter_sealed(code, AUTOIP_FILTER_MAX, mac, address, phase, seal);

    return autoip_packet_attach(fd, code, length);
}

int autoip_packet_send(int fd, const uint8_t frame[AUTOIP_FRAME_LEN])
{
    ssize_t sent;
    int attempt = 0;

    /*
     * An interface that was down and is up again may have left its error in the socket: the
     * first call clears it, the second returns the true result.
     */
    do {
        sent = send(fd, frame, AUTOIP_FRAME_LEN, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (sent < 0 && (errno == EINTR || (errno == ENETDOWN && attempt++ == 0)));

    if (sent < 0)
        return -errno;
    return sent == AUTOIP_FRAME_LEN ? 0 : -EIO;
}

int autoip_packet_receive(int fd, uint8_t frame[AUTOIP_FRAME_LEN])
{
    ssize_t length = recv(fd, frame, AUTOIP_FRAME_LEN, MSG_DONTWAIT);

    return length < 0 ? -errno : (int)length;
}

/*
 * Reads both clocks at the same time: the thread may be interrupted between two readings, so the
 * closest of a few counts.
 */
static void packet_read_clocks(uint64_t *boottime_ns, uint64_t *wall_ns)
{
    uint64_t closest = UINT64_MAX;

    for (int i = 0; i < 3 && closest > CLOCKS_CLOSE_NS; i++) {
        uint64_t before = autoip_clock(CLOCK_BOOTTIME);
        uint64_t between = autoip_clock(CLOCK_REALTIME);
        uint64_t after = autoip_clock(CLOCK_BOOTTIME);

        if (after - before < closest) {
            closest = after - before;
            *boottime_ns = before + closest / 2;
            *wall_ns = between;
        }
    }
}

/*
 * A call of its own, although the kernel could give the time together with the frame: so the
 * answer does not wait for it.
 */
uint64_t autoip_packet_received(int fd)
{
    struct timespec at;
    uint64_t now = 0;
    uint64_t wall = 0;
    uint64_t stamp;
    uint64_t age;

    packet_read_clocks(&now, &wall);
    if (ioctl(fd, SIOCGSTAMPNS, &at) < 0)
        return now;
    stamp = (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
    /* The wall clock may have been set in between: neither the future nor long ago is true. */
    if (stamp >= wall)
        return now;
    age = wall - stamp;
    if (age > STAMP_MAX_AGE_NS)
        age = STAMP_MAX_AGE_NS;
    return age < now ? now - age : 0;
}
