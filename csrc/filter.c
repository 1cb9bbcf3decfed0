/*
 * Which frames are conflicts, or questions: as a program for the kernel, and again in C.
 *
 * Both follow the offsets of an ARP packet for IPv4 over Ethernet (RFC 826):
 *
 *      0 destination   6   link-layer header
 *      6 source        6   not looked at: RFC 3927 goes by the SHA
 *     12 type          2   0x0806
 *     14 hardware type 2   1
 *     16 protocol type 2   0x0800
 *     18 lengths     1+1   6, 4
 *     20 operation     2   1 request, 2 reply
 *     22 SHA           6
 *     28 SPA           4
 *     32 THA           6   not looked at: "SHOULD be zero" in a probe, and not all make it so
 *     38 TPA           4
 */
#include "internal.h"

#include <errno.h>
#include <string.h>

#include <linux/if_ether.h>
#include <linux/if_packet.h>

enum {
    AT_DESTINATION = 0,
    AT_SOURCE = 6,
    AT_TYPE = 12,
    AT_HARDWARE_AND_PROTOCOL = 14,
    AT_LENGTHS_AND_OPERATION = 18,
    AT_OPERATION = 20,
    AT_SHA = AUTOIP_SHA_AT,
    AT_SPA = AUTOIP_SPA_AT,
    AT_THA = 32,
    AT_TPA = 38
};

#define ETHERNET_AND_IPV4 0x00010800u /* hardware type 1, protocol type 0x0800 */
#define REQUEST 0x06040001u           /* lengths 6 and 4, operation 1 */
#define REPLY 0x06040002u             /* lengths 6 and 4, operation 2 */
#define OPERATION_REQUEST 1u

static uint32_t load16(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] << 8 | bytes[1];
}

static uint32_t load32(const uint8_t *bytes)
{
    return load16(bytes) << 16 | load16(bytes + 2);
}

/*
 * A program in the making.  Jumps to its end are written as ACCEPT and REJECT and get their
 * distance in finish(): the end is not known before.
 */
#define ACCEPT 0xfeu
#define REJECT 0xffu

struct program {
    struct sock_filter *out;
    size_t capacity;
    size_t length; /* goes on counting past the capacity: an error shows at the end */
};

static void emit(struct program *program, uint16_t code, uint32_t k, uint8_t yes, uint8_t no)
{
    if (program->length < program->capacity)
        program->out[program->length] = (struct sock_filter){code, yes, no, k};
    program->length++;
}

/* A <- `size` bytes (BPF_H, BPF_W) at an offset of the frame; a frame too short is refused. */
static void load(struct program *program, uint16_t size, uint32_t offset)
{
    emit(program, (uint16_t)(BPF_LD | size | BPF_ABS), offset, 0, 0);
}

/* A <- what the kernel knows about the frame. */
static void load_about(struct program *program, int what)
{
    emit(program, BPF_LD | BPF_W | BPF_ABS, (uint32_t)(SKF_AD_OFF + what), 0, 0);
}

/* Goes on `yes` instructions further if A == k, else `no` further. */
static void equal(struct program *program, uint32_t k, uint8_t yes, uint8_t no)
{
    emit(program, BPF_JMP | BPF_JEQ | BPF_K, k, yes, no);
}

/* Writes the end, and the distance to it into every jump. */
static int finish(struct program *program)
{
    size_t reject = program->length;
    size_t accept = reject + 1;

    emit(program, BPF_RET | BPF_K, 0, 0, 0);                /* refuse */
    emit(program, BPF_RET | BPF_K, AUTOIP_FRAME_LEN, 0, 0); /* pass, without the padding */
    if (program->length > program->capacity)
        return -ENOSPC;

    for (size_t i = 0; i < reject; i++) {
        struct sock_filter *jump = &program->out[i];

        if (BPF_CLASS(jump->code) != BPF_JMP)
            continue;
        if (jump->jt >= ACCEPT)
            jump->jt = (uint8_t)((jump->jt == ACCEPT ? accept : reject) - i - 1);
        if (jump->jf >= ACCEPT)
            jump->jf = (uint8_t)((jump->jf == ACCEPT ? accept : reject) - i - 1);
    }
    return (int)program->length;
}

int autoip_filter_build(struct sock_filter *out, size_t capacity, const uint8_t mac[6],
                        uint32_t address, int phase)
{
    struct program program = {out, capacity, 0};
    struct program *p = &program;

    if (phase == AUTOIP_SILENT) {
        if (capacity < 1)
            return -ENOSPC;
        emit(p, BPF_RET | BPF_K, 0, 0, 0); /* refuse */
        return 1;
    }
    if (phase != AUTOIP_PROBE && phase != AUTOIP_DEFEND && phase != AUTOIP_ANSWER)
        return -EINVAL;

    emit(p, BPF_LD | BPF_W | BPF_LEN, 0, 0, 0);                            /* A <- length */
    emit(p, BPF_JMP | BPF_JGE | BPF_K, AUTOIP_FRAME_LEN, 0, REJECT);       /* too short? */
    load_about(p, SKF_AD_PKTTYPE);                                         /* A <- direction */
    emit(p, BPF_JMP | BPF_JGT | BPF_K, PACKET_MULTICAST, REJECT, 0);       /* not for us? */
    load_about(p, SKF_AD_VLAN_TAG_PRESENT);                                /* A <- tagged */
    equal(p, 0, 0, REJECT);                                                /* tagged? */
    load(p, BPF_H, AT_TYPE);                                               /* A <- type */
    equal(p, ETH_P_ARP, 0, REJECT);                                        /* not ARP? */
    load(p, BPF_W, AT_HARDWARE_AND_PROTOCOL);                              /* A <- both types */
    equal(p, ETHERNET_AND_IPV4, 0, REJECT);                                /* other types? */
    load(p, BPF_W, AT_LENGTHS_AND_OPERATION);                              /* A <- lengths, op */
    equal(p, REQUEST, 1, 0);                                               /* a request? */
    equal(p, REPLY, 0, REJECT);                                            /* nor a reply? */
    load(p, BPF_W, AT_SHA);                                                /* A <- SHA, first 4 */
    equal(p, load32(mac), 0, 2);                                           /* differs already? */
    load(p, BPF_H, AT_SHA + 4);                                            /* A <- SHA, last 2 */
    equal(p, load16(mac + 4), REJECT, 0);                                  /* our own? */
    load(p, BPF_W, AT_SPA);                                                /* A <- SPA */
    if (phase == AUTOIP_DEFEND) {
        equal(p, address, ACCEPT, REJECT);                                 /* uses our address? */
        return finish(p);
    }
    equal(p, address, ACCEPT, 0);                                          /* uses it? */
    if (phase == AUTOIP_PROBE)
        equal(p, 0, 0, REJECT);                                            /* no probe? */
    load(p, BPF_H, AT_OPERATION);                                          /* A <- operation */
    equal(p, OPERATION_REQUEST, 0, REJECT);                                /* no request? */
    load(p, BPF_W, AT_TPA);                                                /* A <- TPA */
    if (phase == AUTOIP_ANSWER) {
        equal(p, address, ACCEPT, REJECT);                                 /* asks for ours? */
        return finish(p);
    }
    equal(p, address, 0, REJECT);                                          /* for another one? */
    load(p, BPF_W, AT_DESTINATION);                                        /* A <- to, first 4 */
    equal(p, 0xffffffffu, 0, REJECT);                                      /* no broadcast? */
    load(p, BPF_H, AT_DESTINATION + 4);                                    /* A <- to, last 2 */
    equal(p, 0xffffu, ACCEPT, REJECT);                                     /* a broadcast? */
    return finish(p);
}

static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

int autoip_filter_accepts(const uint8_t *frame, size_t length, const uint8_t mac[6],
                          uint32_t address, int phase)
{
    uint32_t operation;

    if (phase != AUTOIP_PROBE && phase != AUTOIP_DEFEND && phase != AUTOIP_ANSWER)
        return AUTOIP_NOTHING;
    if (length < AUTOIP_FRAME_LEN)
        return AUTOIP_NOTHING;
    if (load16(frame + AT_TYPE) != ETH_P_ARP)
        return AUTOIP_NOTHING;
    if (load32(frame + AT_HARDWARE_AND_PROTOCOL) != ETHERNET_AND_IPV4)
        return AUTOIP_NOTHING;
    operation = load32(frame + AT_LENGTHS_AND_OPERATION);
    if (operation != REQUEST && operation != REPLY)
        return AUTOIP_NOTHING;
    if (memcmp(frame + AT_SHA, mac, 6) == 0)
        return AUTOIP_NOTHING;
    if (load32(frame + AT_SPA) == address)
        return AUTOIP_CONFLICT;
    if (operation != REQUEST || load32(frame + AT_TPA) != address)
        return AUTOIP_NOTHING;
    if (phase == AUTOIP_ANSWER)
        return AUTOIP_QUESTION;
    /* A probe: it came by broadcast, as switches send unicast ones to track devices. */
    if (phase == AUTOIP_PROBE && load32(frame + AT_SPA) == 0 &&
        memcmp(frame + AT_DESTINATION, broadcast, sizeof broadcast) == 0)
        return AUTOIP_CONFLICT;
    return AUTOIP_NOTHING;
}

void autoip_reply_make(uint8_t reply[AUTOIP_FRAME_LEN], const uint8_t question[AUTOIP_FRAME_LEN],
                       const uint8_t mac[6])
{
    memcpy(reply, question, AUTOIP_FRAME_LEN);
    memcpy(reply + AT_DESTINATION, broadcast, 6);
    memcpy(reply + AT_SOURCE, mac, 6);
    reply[AT_OPERATION + 1] = 2;
    memcpy(reply + AT_SHA, mac, 6);
    memcpy(reply + AT_SPA, question + AT_TPA, 4);
    memcpy(reply + AT_THA, question + AT_SHA, 6);
    memcpy(reply + AT_TPA, question + AT_SPA, 4);
}
