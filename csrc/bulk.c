/*
 * What a scan sends and receives: many ARP frames by one system call.
 *
 * sendmmsg(2) and recvmmsg(2) alone: on a veth pair a ring (PACKET_TX_RING) and
 * PACKET_QDISC_BYPASS were no faster (docs/decisions/scan.md).
 */
#include "assembler.h"
#include "internal.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <linux/icmpv6.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/udp.h>
#include <netinet/in.h>
#include <sys/socket.h>

/* Frames of one system call. */
#define BULK 64

/* The socket's buffer, in bytes: the answers of a second at full speed. Capped by the system
 * without CAP_NET_ADMIN. */
#define BUFFER (8 << 20)

#define AT_TYPE 12
#define AT_FRAGMENT 20
#define AT_OPERATION 20
#define AT_NEXT_HEADER 20
#define AT_PROTOCOL 23
#define AT_THA 32
#define AT_TPA 38
#define AT_ICMP6_TYPE 54

enum { ACCEPT, REJECT, NEXT = AUTOIP_ASM_NEXT };

/* Accepts ARP, UDP over IPv4 to one of these ports, or echo replies of ICMPv6. The socket is
 * bound to the type; so it gets no other one, and nothing that this host sends. */
static int bulk_filter(int fd, int type, const uint16_t *ports, size_t count)
{
    struct sock_filter code[AUTOIP_FILTER_MAX + AUTOIP_PORTS_MAX];
    struct autoip_asm made;
    struct autoip_asm *p = &made;

    autoip_asm_init(p);
    if (type == ETH_P_IP) {
        autoip_asm_do(p, BPF_LD | BPF_B | BPF_ABS, AT_PROTOCOL); /* A <- protocol */
        autoip_asm_if(p, BPF_JEQ, IPPROTO_UDP, NEXT, REJECT);    /* not UDP? */
        autoip_asm_do(p, BPF_LD | BPF_H | BPF_ABS, AT_FRAGMENT); /* A <- offset */
        autoip_asm_if(p, BPF_JSET, 0x1fff, REJECT, NEXT);        /* a later piece? */
        autoip_asm_do(p, BPF_LDX | BPF_B | BPF_MSH, ETH_HLEN);   /* X <- header's length */
        autoip_asm_do(p, BPF_LD | BPF_H | BPF_IND,
                      ETH_HLEN + offsetof(struct udphdr, dest)); /* A <- port */
        for (size_t i = 0; i < count; i++)
            autoip_asm_if(p, BPF_JEQ, ports[i], ACCEPT, NEXT);
        autoip_asm_do(p, BPF_RET | BPF_K, 0);
    } else if (type == ETH_P_IPV6) {
        autoip_asm_do(p, BPF_LD | BPF_B | BPF_ABS, AT_NEXT_HEADER); /* A <- next header */
        autoip_asm_if(p, BPF_JEQ, IPPROTO_ICMPV6, NEXT, REJECT);    /* not ICMPv6? */
        autoip_asm_do(p, BPF_LD | BPF_B | BPF_ABS, AT_ICMP6_TYPE);  /* A <- its type */
        autoip_asm_if(p, BPF_JEQ, ICMPV6_ECHO_REPLY, NEXT, REJECT); /* another? */
    }
    autoip_asm_place(p, ACCEPT);
    autoip_asm_do(p, BPF_RET | BPF_K, UINT16_MAX);
    autoip_asm_place(p, REJECT);
    autoip_asm_do(p, BPF_RET | BPF_K, 0);
    return autoip_packet_attach(fd, code, autoip_asm_finish(p, code, sizeof code / sizeof *code));
}

int autoip_bulk_open(int ifindex, int type, const uint16_t *ports, size_t count)
{
    const int on = 1;
    const int size = BUFFER;
    const struct sockaddr_ll address = {
        .sll_family = AF_PACKET,
        .sll_protocol = htons((uint16_t)type),
        .sll_ifindex = ifindex,
    };
    const struct packet_mreq groups = {.mr_ifindex = ifindex, .mr_type = PACKET_MR_ALLMULTI};
    int result;
    int fd;

    if (ifindex <= 0 || count > AUTOIP_PORTS_MAX)
        return -EINVAL;
    fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    result = bulk_filter(fd, type, ports, count);
    if (result < 0)
        goto fail;
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) < 0)
        (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    if (setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on) < 0 ||
        (count &&
         setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &groups, sizeof groups) < 0) ||
        bind(fd, (const struct sockaddr *)&address, sizeof address) < 0) {
        result = -errno;
        goto fail;
    }
    return fd;

fail:
    close(fd);
    return result;
}

int autoip_bulk_send(int fd, const uint8_t request[AUTOIP_FRAME_LEN], const uint32_t *targets,
                     size_t count)
{
    uint8_t frames[BULK][AUTOIP_FRAME_LEN];
    struct iovec parts[BULK];
    struct mmsghdr messages[BULK];
    size_t done = 0;

    if (count > INT32_MAX)
        return -EINVAL;
    memset(messages, 0, sizeof messages);
    for (size_t i = 0; i < BULK; i++) {
        memcpy(frames[i], request, AUTOIP_FRAME_LEN);
        parts[i] = (struct iovec){.iov_base = frames[i], .iov_len = AUTOIP_FRAME_LEN};
        messages[i].msg_hdr.msg_iov = &parts[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    while (done < count) {
        const size_t now = count - done < BULK ? count - done : BULK;
        int sent;

        for (size_t i = 0; i < now; i++) {
            const uint32_t target = htonl(targets[done + i]);

            memcpy(frames[i] + AT_TPA, &target, sizeof target);
        }
        sent = sendmmsg(fd, messages, (unsigned int)now, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return done ? (int)done : -errno;
        done += (size_t)sent;
        if ((size_t)sent < now)
            break;
    }
    return (int)done;
}

/* Writes what a frame says; false if it is not ARP for IPv4 over Ethernet. */
static bool bulk_read(struct autoip_heard *out, const uint8_t *frame, size_t length)
{
    static const uint8_t arp[] = {8, 6, 0, 1, 8, 0, 6, 4};

    if (length < AUTOIP_FRAME_LEN || memcmp(frame + AT_TYPE, arp, sizeof arp) != 0)
        return false;
    out->operation = (uint16_t)(frame[AT_OPERATION] << 8 | frame[AT_OPERATION + 1]);
    memcpy(out->sha, frame + AUTOIP_SHA_AT, sizeof out->sha);
    memcpy(&out->spa, frame + AUTOIP_SPA_AT, sizeof out->spa);
    memcpy(out->tha, frame + AT_THA, sizeof out->tha);
    memcpy(&out->tpa, frame + AT_TPA, sizeof out->tpa);
    out->spa = ntohl(out->spa);
    out->tpa = ntohl(out->tpa);
    return true;
}

int autoip_bulk_receive(int fd, struct autoip_heard *out, size_t capacity)
{
    union {
        struct cmsghdr aligned;
        uint8_t bytes[CMSG_SPACE(sizeof(struct timespec))];
    } about[BULK];
    uint8_t frames[BULK][AUTOIP_FRAME_LEN];
    struct iovec parts[BULK];
    struct mmsghdr messages[BULK];
    size_t kept = 0;
    int count;

    if (capacity < BULK || capacity > INT32_MAX)
        return -EINVAL;
    memset(messages, 0, sizeof messages);
    for (size_t i = 0; i < BULK; i++) {
        parts[i] = (struct iovec){.iov_base = frames[i], .iov_len = AUTOIP_FRAME_LEN};
        messages[i].msg_hdr.msg_iov = &parts[i];
        messages[i].msg_hdr.msg_iovlen = 1;
        messages[i].msg_hdr.msg_control = &about[i];
    }
    do {
        for (size_t i = 0; i < BULK; i++)
            messages[i].msg_hdr.msg_controllen = sizeof about[i];
        count = recvmmsg(fd, messages, BULK, MSG_DONTWAIT, NULL);
        if (count < 0 && errno != EAGAIN && errno != EINTR)
            return kept ? (int)kept : -errno;
        for (int i = 0; i < count; i++) {
            const struct cmsghdr *header = CMSG_FIRSTHDR(&messages[i].msg_hdr);
            struct timespec at = {0};

            if (!bulk_read(&out[kept], frames[i], messages[i].msg_len))
                continue;
            if (header && header->cmsg_type == SCM_TIMESTAMPNS)
                memcpy(&at, CMSG_DATA(header), sizeof at);
            out[kept++].at_ns = (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
        }
    } while (count == BULK && capacity - kept >= BULK);
    return (int)kept;
}
