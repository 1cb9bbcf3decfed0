/*
 * The classic BPF of linux/filter.h, as much of it as a packet filter without memory and
 * arithmetic needs. An instruction that it does not know ends the program.
 */
#ifndef AUTOIP_CLASSIC_H
#define AUTOIP_CLASSIC_H

#include "fuzz.h"

#include <linux/filter.h>

/* What the kernel knows about a frame beside its bytes. */
struct about {
    uint32_t packet_type;
    uint32_t tagged;
};

static inline bool classic_load(const struct sock_filter *code, const struct about *about,
                                const uint8_t *frame, size_t length, uint32_t *a)
{
    size_t size = BPF_SIZE(code->code) == BPF_W ? 4 : BPF_SIZE(code->code) == BPF_H ? 2 : 1;

    if (BPF_MODE(code->code) == BPF_LEN) {
        *a = (uint32_t)length;
        return true;
    }
    MUST(BPF_MODE(code->code) == BPF_ABS);
    if (code->k == (uint32_t)(SKF_AD_OFF + SKF_AD_PKTTYPE)) {
        *a = about->packet_type;
        return true;
    }
    if (code->k == (uint32_t)(SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT)) {
        *a = about->tagged;
        return true;
    }
    if (code->k > length || length - code->k < size)
        return false;
    *a = 0;
    for (size_t i = 0; i < size; i++)
        *a = *a << 8 | frame[code->k + i];
    return true;
}

static inline bool classic_test(const struct sock_filter *code, uint32_t a)
{
    switch (BPF_OP(code->code)) {
    case BPF_JEQ:
        return a == code->k;
    case BPF_JGT:
        return a > code->k;
    case BPF_JGE:
        return a >= code->k;
    case BPF_JSET:
        return (a & code->k) != 0;
    default:
        FAIL("not a jump that this interpreter knows");
        return false;
    }
}

/* How many bytes of the frame pass; 0: the frame does not. */
static inline uint32_t classic_run(const struct sock_filter *program, size_t count,
                                   const struct about *about, const uint8_t *frame, size_t length)
{
    uint32_t a = 0;

    for (size_t at = 0; at < count; at++) {
        const struct sock_filter *code = &program[at];

        switch (BPF_CLASS(code->code)) {
        case BPF_LD:
            if (!classic_load(code, about, frame, length, &a))
                return 0; /* the kernel: beyond the frame */
            break;
        case BPF_JMP:
            at += classic_test(code, a) ? code->jt : code->jf;
            break;
        case BPF_RET:
            MUST(BPF_RVAL(code->code) == BPF_K);
            return code->k;
        default:
            FAIL("not an instruction that this interpreter knows");
        }
    }
    FAIL("not a program that ends");
    return 0;
}

#endif
