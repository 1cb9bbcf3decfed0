/* What the files of the helper share among themselves; nothing of this is for Python. */
#ifndef AUTOIP_INTERNAL_H
#define AUTOIP_INTERNAL_H

#include "native.h"

#include <time.h>

/* Offset of the sender's hardware address in a frame. */
#define AUTOIP_SHA_AT 22

/* Offset of the sender's IP address. */
#define AUTOIP_SPA_AT 28

/* -- filter.c ------------------------------------------------------------------------- */

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

/* -- socket.c: a packet socket as a plain descriptor ---------------------------------- */

/* Opens, attaches the silent filter, then binds. Returns the descriptor or a negative errno. */
int autoip_packet_open(int ifindex);

/* Replaces the filter in one step: each frame passes the old one or the new one. */
int autoip_packet_filter(int fd, const uint8_t mac[6], uint32_t address, enum autoip_phase phase);

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
