/*
 * What the fuzz targets share: reading the input piece by piece, MUST, and the count of frames.
 *
 * A target is LLVMFuzzerTestOneInput(), for libFuzzer, or for plain.c where there is none.
 */
#ifndef AUTOIP_FUZZ_H
#define AUTOIP_FUZZ_H

#include "internal.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Ends the program where the truth does not hold: the fuzzer keeps the input. */
#define MUST(condition)                                                                          \
    do {                                                                                         \
        if (!(condition)) {                                                                      \
            fprintf(stderr, "%s:%d: %s: not true: %s\n", __FILE__, __LINE__, __func__,           \
                    #condition);                                                                 \
            abort();                                                                             \
        }                                                                                        \
    } while (0)

#define FAIL(what)                                                                               \
    do {                                                                                         \
        fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, __func__, what);                  \
        abort();                                                                                 \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The rest of the input. */
struct input {
    const uint8_t *at;
    size_t left;
};

/* The next bytes of the input; zeros where there are none any more. */
static inline void take(struct input *input, uint8_t *out, size_t length)
{
    size_t there = input->left < length ? input->left : length;

    memset(out, 0, length);
    if (there > 0)
        memcpy(out, input->at, there);
    input->at += there;
    input->left -= there;
}

static inline uint8_t take_byte(struct input *input)
{
    uint8_t byte;

    take(input, &byte, 1);
    return byte;
}

static inline uint32_t take_word(struct input *input)
{
    uint8_t bytes[4];

    take(input, bytes, sizeof bytes);
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 |
           bytes[3];
}

static inline void put_word(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 24);
    at[1] = (uint8_t)(value >> 16);
    at[2] = (uint8_t)(value >> 8);
    at[3] = (uint8_t)value;
}

/* The frames that were tried, reported at the end of the program. */
static uint64_t frames_tried;

static inline void report_frames(void)
{
    fprintf(stderr, "frames: %llu\n", (unsigned long long)frames_tried);
}

static inline void count_frame(void)
{
    if (frames_tried++ == 0)
        (void)atexit(report_frames);
}

#define FRAME_MAX 80u

/* A frame, and what it is compared with. */
struct trial {
    uint8_t mac[6];
    uint32_t address;
    uint8_t frame[FRAME_MAX];
    size_t length;
};

/* What of a frame is right, whatever the other bytes of the input are: chance alone would hardly
 * ever make a frame that is nearly a conflict. */
enum {
    MAKE_ARP = 1,         /* types and lengths of ARP for IPv4 over Ethernet */
    MAKE_SPA = 2,         /* the sender has the address */
    MAKE_TPA = 4,         /* the address is asked for */
    MAKE_SHA = 8,         /* the sender is this host */
    MAKE_BROADCAST = 16,  /* to everybody */
    MAKE_OPERATION = 32,  /* a request or a reply */
    MAKE_PROBE = 64,      /* no sender address */
    MAKE_LINK_LOCAL = 128 /* a sender address of 169.254/16 */
};

/* A frame from the input, for a host with this hardware address and IPv4 address. */
static inline void take_frame(struct input *input, struct trial *trial)
{
    static const uint8_t fixed[] = {0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0};
    uint8_t *frame = trial->frame;
    uint8_t make = take_byte(input);

    trial->length = take_byte(input) % (FRAME_MAX + 1);
    take(input, frame, AUTOIP_FRAME_LEN);
    memset(frame + AUTOIP_FRAME_LEN, 0, FRAME_MAX - AUTOIP_FRAME_LEN);
    if ((make & MAKE_ARP) != 0) {
        memcpy(frame + 12, fixed, sizeof fixed);
        if (trial->length < AUTOIP_FRAME_LEN && trial->length % 2 == 0)
            trial->length = AUTOIP_FRAME_LEN;
    }
    if ((make & MAKE_OPERATION) != 0)
        frame[21] = (uint8_t)(1 + frame[21] % 2);
    if ((make & MAKE_SHA) != 0)
        memcpy(frame + 22, trial->mac, 6);
    if ((make & MAKE_SPA) != 0)
        put_word(frame + 28, trial->address);
    if ((make & MAKE_LINK_LOCAL) != 0) {
        frame[28] = 169;
        frame[29] = 254;
    }
    if ((make & MAKE_PROBE) != 0)
        memset(frame + 28, 0, 4);
    if ((make & MAKE_TPA) != 0)
        put_word(frame + 38, trial->address);
    if ((make & MAKE_BROADCAST) != 0)
        memset(frame, 0xff, 6);
    count_frame();
}

#endif
