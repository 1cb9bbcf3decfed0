/* What the test programs share: CHECK, frames, random numbers. */
#ifndef AUTOIP_TEST_CHECK_H
#define AUTOIP_TEST_CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "native.h"

#define CHECK(condition)                                                                         \
    do {                                                                                         \
        if (!(condition)) {                                                                      \
            fprintf(stderr, "%s:%d: %s: not true: %s\n", __FILE__, __LINE__, __func__,           \
                    #condition);                                                                 \
            exit(1);                                                                             \
        }                                                                                        \
    } while (0)

#define OURS 0xa9fe0a14u  /* 169.254.10.20 */
#define OTHER 0xa9fe0a15u /* 169.254.10.21 */

static const uint8_t our_mac[6] = {0x02, 0x00, 0x00, 0x00, 0x00, 0x01};
static const uint8_t their_mac[6] = {0x02, 0x00, 0x00, 0x00, 0x00, 0x02};

static inline void put32(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 24);
    at[1] = (uint8_t)(value >> 16);
    at[2] = (uint8_t)(value >> 8);
    at[3] = (uint8_t)value;
}

/* A broadcast ARP packet; operation 1 request, 2 reply. */
static inline void make_frame(uint8_t frame[AUTOIP_FRAME_LEN], const uint8_t sha[6], uint32_t spa,
                              uint32_t tpa, uint8_t operation)
{
    static const uint8_t fixed[] = {0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0};

    memset(frame, 0, AUTOIP_FRAME_LEN);
    memset(frame, 0xff, 6);
    memcpy(frame + 6, sha, 6);
    memcpy(frame + 12, fixed, sizeof fixed);
    frame[21] = operation;
    memcpy(frame + 22, sha, 6);
    put32(frame + 28, spa);
    put32(frame + 38, tpa);
}

/* xorshift64: a seed gives the same numbers on every machine. */
static inline uint32_t draw(uint64_t *state, uint32_t below)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (uint32_t)(*state >> 32) % below;
}

#endif
