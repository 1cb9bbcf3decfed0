/*
 * RFC 826, RFC 3927 and RFC 5227 once more, byte by byte, and without a line of csrc/: what the
 * programs and the listener have to agree with.
 */
#ifndef AUTOIP_REFERENCE_H
#define AUTOIP_REFERENCE_H

#include "native.h"

#include <string.h>

static inline bool reference_same(const uint8_t *at, uint32_t address)
{
    return at[0] == (uint8_t)(address >> 24) && at[1] == (uint8_t)(address >> 16) &&
           at[2] == (uint8_t)(address >> 8) && at[3] == (uint8_t)address;
}

/* ARP for IPv4 over Ethernet, whatever the operation. */
static inline bool reference_is_arp(const uint8_t *frame, size_t length)
{
    return length >= 42 && frame[12] == 0x08 && frame[13] == 0x06 && frame[14] == 0 &&
           frame[15] == 1 && frame[16] == 0x08 && frame[17] == 0 && frame[18] == 6 &&
           frame[19] == 4;
}

static inline enum autoip_verdict reference_verdict(const uint8_t *frame, size_t length,
                                                    const uint8_t mac[6], uint32_t address,
                                                    enum autoip_phase phase)
{
    bool request;
    bool to_all = true;

    if (phase == AUTOIP_SILENT || !reference_is_arp(frame, length))
        return AUTOIP_NOTHING;
    if (frame[20] != 0 || (frame[21] != 1 && frame[21] != 2))
        return AUTOIP_NOTHING; /* neither request nor reply */
    request = frame[21] == 1;
    for (int i = 0; i < 6; i++)
        if (frame[i] != 0xff)
            to_all = false;
    if (memcmp(frame + 22, mac, 6) == 0)
        return AUTOIP_NOTHING; /* ours, come back */
    if (reference_same(frame + 28, address))
        return AUTOIP_CONFLICT; /* somebody uses it */
    if (!request || !reference_same(frame + 38, address))
        return AUTOIP_NOTHING;
    switch (phase) {
    case AUTOIP_PROBE: /* somebody probes for the candidate */
        return to_all && reference_same(frame + 28, 0) ? AUTOIP_CONFLICT : AUTOIP_NOTHING;
    case AUTOIP_ANSWER:
        return AUTOIP_QUESTION;
    default:
        return AUTOIP_NOTHING;
    }
}

#endif
