/* What the files of the helper share among themselves; nothing of this is for Python. */
#ifndef AUTOIP_INTERNAL_H
#define AUTOIP_INTERNAL_H

#include "native.h"

#include <string.h>
#include <time.h>

/* Offset of the sender's hardware address in a frame. */
#define AUTOIP_SHA_AT 22

/* Offset of the sender's IP address. */
#define AUTOIP_SPA_AT 28

/* -- filter.c ------------------------------------------------------------------------- */

/* As autoip_filter_build(); without the frames that have this seal (defence.c), unless it is 0.
 */
int autoip_filter_sealed(struct sock_filter *out, size_t capacity, const uint8_t mac[6],
                         uint32_t address, enum autoip_phase phase, uint32_t seal);

/* The answer to an AUTOIP_QUESTION from the host with this hardware address, by broadcast. */
void autoip_reply_make(uint8_t reply[AUTOIP_FRAME_LEN], const uint8_t question[AUTOIP_FRAME_LEN],
                       const uint8_t mac[6]);

/* -- broadcast.c ---------------------------------------------------------------------- */

/* As many instructions as the program can have. */
#define AUTOIP_BROADCAST_MAX 96

struct bpf_insn;

/*
 * Writes the program to `out`. `map` is the descriptor of an array of 64-bit numbers, where the
 * program counts; -1: it does not count. Returns the number of instructions, or -ENOSPC.
 */
int autoip_broadcast_build(struct bpf_insn *out, size_t capacity, int map);

/* Loads this program: a descriptor or a negative errno. */
int autoip_broadcast_load_limited(int map);

/* -- defence.c: memory that the program at the ingress and the helper share ------------- */

/* Interfaces with indexes of the same last bits exclude each other. A power of two. */
#define AUTOIP_SLOTS 1024
/* Hardware addresses of this host: a table of so many rows, by autoip_own_row(). */
#define AUTOIP_OWN_ROW_BITS 9
#define AUTOIP_OWN_COLUMNS 8
#define AUTOIP_OWN_HASH 0x9e3779b97f4a7c15u
#define AUTOIP_RING_SIZE (256 * 1024)
#define AUTOIP_DEFENCE_MAX 192

/* Changed together with one of the structures. */
#define AUTOIP_LAYOUT 0x6175746f69700002u

/* Values of `ready_at` that no clock reaches. */
#define AUTOIP_NEVER UINT64_MAX
/* A conflict came too soon after the last one: it is for Python, and so is what follows. */
#define AUTOIP_YIELDED (UINT64_MAX - 1)

/* One interface's defence. */
struct autoip_slot {
    uint64_t
        ready_at; /* from when on a conflict is answered, CLOCK_BOOTTIME; changed atomically */
    uint64_t mac; /* as autoip_mac_number() */
    /* The rest changes only while `ready_at` is AUTOIP_NEVER. */
    uint32_t ifindex; /* 0: free */
    uint32_t address; /* in the byte order of the wire */
    uint32_t generation;
    uint32_t counted;  /* index of the interface that `counts` is about; 0: of none yet */
    uint8_t frame[64]; /* the announcement, and zeros */
    struct autoip_counts counts; /* each is changed atomically */
};

struct autoip_shared {
    uint64_t layout;      /* AUTOIP_LAYOUT: a reload may bring another version */
    uint64_t interval_ns; /* DEFEND_INTERVAL */
    uint32_t seal;
    uint32_t own_full; /* not 0: a row had no room; nothing is answered */
    uint64_t own[1 << AUTOIP_OWN_ROW_BITS][AUTOIP_OWN_COLUMNS];
    struct autoip_slot slots[AUTOIP_SLOTS];
};
/* A conflict that the program has judged. */
struct autoip_record {
    uint64_t received_ns;
    uint64_t defended_ns; /* 0: it was not answered */
    uint32_t ifindex;
    uint32_t generation;
    uint8_t frame[64];
};

/* Writes the program to `out`: the number of instructions, or -ENOSPC. */
int autoip_defence_build(struct bpf_insn *out, size_t capacity, int memory, int ring,
                         uint32_t seal, uint64_t interval_ns);

/* The memory; NULL, with errno, if there is none. */
struct autoip_shared *autoip_defence_map(int memory);

/* A hardware address as a number. */
static inline uint64_t autoip_mac_number(const uint8_t mac[6])
{
    uint16_t first;
    uint32_t rest;

    memcpy(&first, mac, 2);
    memcpy(&rest, mac + 2, 4);
    return first | (uint64_t)rest << 16;
}

static inline void autoip_mac_bytes(uint8_t mac[6], uint64_t number)
{
    uint16_t first = (uint16_t)number;
    uint32_t rest = (uint32_t)(number >> 16);

    memcpy(mac, &first, 2);
    memcpy(mac + 2, &rest, 4);
}

static inline uint64_t autoip_own_row(uint64_t mac)
{
    return mac * AUTOIP_OWN_HASH >> (64 - AUTOIP_OWN_ROW_BITS);
}

/* -- socket.c: a packet socket as a plain descriptor ---------------------------------- */

/* Opens, attaches the silent filter, then binds. Returns the descriptor or a negative errno. */
int autoip_packet_open(int ifindex);

/* Attaches a filter, or replaces the one that is there. `length` may be a negative errno: then it
 * is the result. */
int autoip_packet_attach(int fd, struct sock_filter *code, int length);

/* Replaces the filter in one step: each frame passes the old one or the new one. For `seal` see
 * autoip_filter_sealed(). */
int autoip_packet_filter(int fd, const uint8_t mac[6], uint32_t address, enum autoip_phase phase,
                         uint32_t seal);

/* 0 if the kernel took the frame. */
int autoip_packet_send(int fd, const uint8_t frame[AUTOIP_FRAME_LEN]);

/*
 * Reads the first AUTOIP_FRAME_LEN bytes of a frame. Never waits. Returns
 * the number of bytes, or a negative errno: -EAGAIN if there is no frame.
 */
int autoip_packet_receive(int fd, uint8_t frame[AUTOIP_FRAME_LEN]);

/* When the kernel received the frame read last, on CLOCK_BOOTTIME. Call it soon after. */
uint64_t autoip_packet_received(int fd);

/* -- timer.c -------------------------------------------------------------------------- */

/* A clock in nanoseconds. */
uint64_t autoip_clock(clockid_t clock);

#endif
