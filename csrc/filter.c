/*
 * Which frames are conflicts, or questions: as a filter for the kernel, and again in C.
 *
 * Both follow the offsets of an ARP packet for IPv4 over Ethernet (RFC 826):
 *
 *      0 destination   6   link-layer header
 *      6 source        6   not checked: RFC 3927 goes by the SHA
 *     12 type          2   0x0806
 *     14 hardware type 2   1
 *     16 protocol type 2   0x0800
 *     18 lengths     1+1   6, 4
 *     20 operation     2   1 request, 2 reply
 *     22 SHA           6
 *     28 SPA           4
 *     32 THA           6   not checked: "SHOULD be zero" in a probe, and not all hosts comply
 *     38 TPA           4
 */
#include "assembler.h"
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

static uint32_t filter_read16(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] << 8 | bytes[1];
}

static uint32_t filter_read32(const uint8_t *bytes)
{
    return filter_read16(bytes) << 16 | filter_read16(bytes + 2);
}

/* The targets of jumps. */
enum { ACCEPT, REJECT, KNOWN_OPERATION, OTHER_HOST, NEXT = AUTOIP_ASM_NEXT };

/* A <- `size` bytes (BPF_H, BPF_W) at an offset of the frame; a frame too short is refused. */
static void filter_load(struct autoip_asm *program, int size, uint32_t offset)
{
    autoip_asm_do(program, (uint16_t)(BPF_LD | size | BPF_ABS), offset);
}

/* A <- what the kernel has about the frame beside its bytes. */
static void filter_load_about(struct autoip_asm *program, int what)
{
    autoip_asm_do(program, BPF_LD | BPF_W | BPF_ABS, (uint32_t)(SKF_AD_OFF + what));
}

static void filter_if_equal(struct autoip_asm *program, uint32_t k, unsigned int yes,
                            unsigned int no)
{
    autoip_asm_if(program, BPF_JEQ, k, yes, no);
}

/* Refuses what is not an ARP packet for IPv4 over Ethernet from another host. */
static void filter_common(struct autoip_asm *p, const uint8_t mac[6], uint32_t seal)
{
    if (seal != 0) {
        filter_load_about(p, SKF_AD_RXHASH);    /* A <- hash */
        filter_if_equal(p, seal, REJECT, NEXT); /* judged by defence.c? */
    }
    autoip_asm_do(p, BPF_LD | BPF_W | BPF_LEN, 0);             /* A <- length */
    autoip_asm_if(p, BPF_JGE, AUTOIP_FRAME_LEN, NEXT, REJECT); /* too short? */
    filter_load_about(p, SKF_AD_PKTTYPE);                      /* A <- direction */
    autoip_asm_if(p, BPF_JGT, PACKET_MULTICAST, REJECT, NEXT); /* not for us? */
    filter_load_about(p, SKF_AD_VLAN_TAG_PRESENT);             /* A <- tagged */
    filter_if_equal(p, 0, NEXT, REJECT);                       /* tagged? */
    filter_load(p, BPF_H, AT_TYPE);                            /* A <- type */
    filter_if_equal(p, ETH_P_ARP, NEXT, REJECT);               /* not ARP? */
    filter_load(p, BPF_W, AT_HARDWARE_AND_PROTOCOL);           /* A <- both types */
    filter_if_equal(p, ETHERNET_AND_IPV4, NEXT, REJECT);       /* other types? */
    filter_load(p, BPF_W, AT_LENGTHS_AND_OPERATION);           /* A <- lengths, op */
    filter_if_equal(p, REQUEST, KNOWN_OPERATION, NEXT);        /* a request? */
    filter_if_equal(p, REPLY, NEXT, REJECT);                   /* a reply? */
    autoip_asm_place(p, KNOWN_OPERATION);
    filter_load(p, BPF_W, AT_SHA);                            /* A <- SHA, first 4 */
    filter_if_equal(p, filter_read32(mac), NEXT, OTHER_HOST); /* differs already? */
    filter_load(p, BPF_H, AT_SHA + 4);                        /* A <- SHA, last 2 */
    filter_if_equal(p, filter_read16(mac + 4), REJECT, NEXT); /* our own? */
    autoip_asm_place(p, OTHER_HOST);
}

/* Accepts the rest if it is a conflict, or a question, in this phase. */
static void filter_conflict(struct autoip_asm *p, uint32_t address, enum autoip_phase phase)
{
    filter_load(p, BPF_W, AT_SPA); /* A <- SPA */
    if (phase == AUTOIP_DEFEND) {
        filter_if_equal(p, address, ACCEPT, REJECT); /* uses our address? */
        return;
    }
    filter_if_equal(p, address, ACCEPT, NEXT); /* uses it? */
    if (phase == AUTOIP_PROBE)
        filter_if_equal(p, 0, NEXT, REJECT);             /* not a probe? */
    filter_load(p, BPF_H, AT_OPERATION);                 /* A <- operation */
    filter_if_equal(p, OPERATION_REQUEST, NEXT, REJECT); /* not a request? */
    filter_load(p, BPF_W, AT_TPA);                       /* A <- TPA */
    if (phase == AUTOIP_ANSWER) {
        filter_if_equal(p, address, ACCEPT, REJECT); /* asks for ours? */
        return;
    }
    filter_if_equal(p, address, NEXT, REJECT);     /* for another one? */
    filter_load(p, BPF_W, AT_DESTINATION);         /* A <- to, first 4 */
    filter_if_equal(p, 0xffffffffu, NEXT, REJECT); /* not broadcast? */
    filter_load(p, BPF_H, AT_DESTINATION + 4);     /* A <- to, last 2 */
    filter_if_equal(p, 0xffffu, ACCEPT, REJECT);   /* a broadcast? */
}

int autoip_filter_build(struct sock_filter *out, size_t capacity, const uint8_t mac[6],
                        uint32_t address, enum autoip_phase phase)
{
    return autoip_filter_sealed(out, capacity, mac, address, phase, 0);
}

int autoip_filter_sealed(struct sock_filter *out, size_t capacity, const uint8_t mac[6],
                         uint32_t address, enum autoip_phase phase, uint32_t seal)
{
    struct autoip_asm program;

    autoip_asm_init(&program);
    switch (phase) {
    case AUTOIP_SILENT:
        break;
    case AUTOIP_PROBE:
    case AUTOIP_DEFEND:
    case AUTOIP_ANSWER:
        filter_common(&program, mac, seal);
        filter_conflict(&program, address, phase);
        break;
    default:
        return -EINVAL;
    }
    autoip_asm_place(&program, REJECT);
    autoip_asm_do(&program, BPF_RET | BPF_K, 0); /* refuse */
    if (phase != AUTOIP_SILENT) {
        autoip_asm_place(&program, ACCEPT);
        autoip_asm_do(&program, BPF_RET | BPF_K,
                      AUTOIP_FRAME_LEN); /* pass, without the padding */
    }
    return autoip_asm_finish(&program, out, capacity);
}

static const uint8_t filter_broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

enum autoip_verdict autoip_filter_accepts(const uint8_t *frame, size_t length,
                                          const uint8_t mac[6], uint32_t address,
                                          enum autoip_phase phase)
{
    uint32_t operation;

    if (phase != AUTOIP_PROBE && phase != AUTOIP_DEFEND && phase != AUTOIP_ANSWER)
        return AUTOIP_NOTHING;
    if (length < AUTOIP_FRAME_LEN)
        return AUTOIP_NOTHING;
    if (filter_read16(frame + AT_TYPE) != ETH_P_ARP)
        return AUTOIP_NOTHING;
    if (filter_read32(frame + AT_HARDWARE_AND_PROTOCOL) != ETHERNET_AND_IPV4)
        return AUTOIP_NOTHING;
    operation = filter_read32(frame + AT_LENGTHS_AND_OPERATION);
    if (operation != REQUEST && operation != REPLY)
        return AUTOIP_NOTHING;
    if (memcmp(frame + AT_SHA, mac, 6) == 0)
        return AUTOIP_NOTHING;
    if (filter_read32(frame + AT_SPA) == address)
        return AUTOIP_CONFLICT;
    if (operation != REQUEST || filter_read32(frame + AT_TPA) != address)
        return AUTOIP_NOTHING;
    if (phase == AUTOIP_ANSWER)
        return AUTOIP_QUESTION;
    /* A probe counts only by broadcast: switches send unicast ones to track devices. */
    if (phase == AUTOIP_PROBE && filter_read32(frame + AT_SPA) == 0 &&
        memcmp(frame + AT_DESTINATION, filter_broadcast, sizeof filter_broadcast) == 0)
        return AUTOIP_CONFLICT;
    return AUTOIP_NOTHING;
}

void autoip_reply_make(uint8_t reply[AUTOIP_FRAME_LEN], const uint8_t question[AUTOIP_FRAME_LEN],
                       const uint8_t mac[6])
{
    memcpy(reply, question, AUTOIP_FRAME_LEN);
    memcpy(reply + AT_DESTINATION, filter_broadcast, 6);
    memcpy(reply + AT_SOURCE, mac, 6);
    reply[AT_OPERATION + 1] = 2;
    memcpy(reply + AT_SHA, mac, 6);
    memcpy(reply + AT_SPA, question + AT_TPA, 4);
    memcpy(reply + AT_THA, question + AT_SHA, 6);
    memcpy(reply + AT_TPA, question + AT_SPA, 4);
}
