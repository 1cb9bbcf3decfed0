/* One packet socket, for the ARP of one interface. */
#include "internal.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>

/* A time stamp further back than this is a clock that was set, not a frame that waited. */
#define STAMP_MAX_AGE_NS 5000000000u

/* Three readings of clocks that take no longer than this were not interrupted. */
#define CLOCKS_CLOSE_NS 1000u

int autoip_packet_open(int ifindex)
{
    static const uint8_t nobody[6];
    struct sockaddr_ll address = {
        .sll_family = AF_PACKET,
        .sll_protocol = htons(ETH_P_ARP),
        .sll_ifindex = ifindex,
    };
    const int on = 1;
    int result;
    int fd;

    /* bind() to index 0 means every interface. */
    if (ifindex <= 0)
        return -EINVAL;

    /* Protocol 0: no frame comes before bind(), and by then the filter is there. */
    fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    result = autoip_packet_filter(fd, nobody, 0, AUTOIP_SILENT);
    if (result < 0)
        goto fail;
    if (setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on) < 0 ||
        bind(fd, (const struct sockaddr *)&address, sizeof address) < 0) {
        result = -errno;
        goto fail;
    }
    return fd;

fail:
    close(fd);
    return result;
}

int autoip_packet_filter(int fd, const uint8_t mac[6], uint32_t address, int phase)
{
    struct sock_filter instructions[AUTOIP_FILTER_MAX];
    struct sock_fprog program = {.filter = instructions};
    int length = autoip_filter_build(instructions, AUTOIP_FILTER_MAX, mac, address, phase);

    if (length < 0)
        return length;
    program.len = (unsigned short)length;
    if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) < 0)
        return -errno;
    return 0;
}

int autoip_packet_send(int fd, const uint8_t frame[AUTOIP_FRAME_LEN])
{
    ssize_t sent;
    int attempt = 0;

    /*
     * An interface that was down and is up again may have left its error in the socket: the
     * first call takes it off, the second tells the truth.
     */
    do {
        sent = send(fd, frame, AUTOIP_FRAME_LEN, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (sent < 0 && (errno == EINTR || (errno == ENETDOWN && attempt++ == 0)));

    if (sent < 0)
        return -errno;
    return sent == AUTOIP_FRAME_LEN ? 0 : -EIO;
}

void autoip_batch_init(struct autoip_batch *batch)
{
    memset(batch, 0, sizeof *batch);
    for (int i = 0; i < AUTOIP_BATCH; i++) {
        struct msghdr *header = &batch->headers[i].msg_hdr;

        batch->entries[i].vector.iov_base = batch->entries[i].frame;
        batch->entries[i].vector.iov_len = AUTOIP_FRAME_LEN;
        header->msg_iov = &batch->entries[i].vector;
        header->msg_iovlen = 1;
        header->msg_control = batch->entries[i].control;
        header->msg_controllen = sizeof batch->entries[i].control;
    }
}

/* As few as were used: to touch them all takes longer than to answer a frame. */
static void batch_renew(struct autoip_batch *batch)
{
    for (int i = 0; i < batch->used; i++)
        batch->headers[i].msg_hdr.msg_controllen = sizeof batch->entries[i].control;
    batch->used = 0;
    batch->boottime_ns = 0;
}

int autoip_packet_wait(int fd, struct autoip_batch *batch)
{
    struct mmsghdr *first = &batch->headers[0];
    ssize_t length;

    batch_renew(batch);
    length = recvmsg(fd, &first->msg_hdr, 0);
    if (length < 0)
        return -errno;
    batch->used = 1;
    first->msg_len = (unsigned int)length;
    return 1;
}

int autoip_packet_receive(int fd, struct autoip_batch *batch)
{
    int count;

    batch_renew(batch);
    count = recvmmsg(fd, batch->headers, AUTOIP_BATCH, MSG_DONTWAIT, NULL);
    if (count < 0)
        return -errno;
    batch->used = count;
    return count;
}

/*
 * Both clocks at the same time: the thread may be pushed aside between two readings, so the
 * closest of a few counts.
 */
static void read_clocks(struct autoip_batch *batch)
{
    uint64_t closest = UINT64_MAX;

    for (int i = 0; i < 3 && closest > CLOCKS_CLOSE_NS; i++) {
        uint64_t before = autoip_clock(CLOCK_BOOTTIME);
        uint64_t between = autoip_clock(CLOCK_REALTIME);
        uint64_t after = autoip_clock(CLOCK_BOOTTIME);

        if (after - before < closest) {
            closest = after - before;
            batch->boottime_ns = before + closest / 2;
            batch->wall_ns = between;
        }
    }
}

uint64_t autoip_batch_received(struct autoip_batch *batch, int i)
{
    struct msghdr *header = &batch->headers[i].msg_hdr;
    uint64_t now;
    uint64_t wall;

    /* Not before now: an answer may have gone out in between, and did not wait for this. */
    if (batch->boottime_ns == 0)
        read_clocks(batch);
    now = batch->boottime_ns;
    wall = batch->wall_ns;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c != NULL; c = CMSG_NXTHDR(header, c)) {
        struct timespec at;
        uint64_t stamp;
        uint64_t age;

        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_TIMESTAMPNS ||
            c->cmsg_len < CMSG_LEN(sizeof at))
            continue;
        memcpy(&at, CMSG_DATA(c), sizeof at);
        stamp = (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
        /* The wall clock may have been set in between: neither the future nor long ago. */
        if (stamp >= wall)
            return now;
        age = wall - stamp;
        if (age > STAMP_MAX_AGE_NS)
            age = STAMP_MAX_AGE_NS;
        return age < now ? now - age : 0;
    }
    return now;
}
