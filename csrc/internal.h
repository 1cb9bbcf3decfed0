/* What the files of the helper share among themselves; nothing of this is for Python. */
#ifndef AUTOIP_INTERNAL_H
#define AUTOIP_INTERNAL_H

#include "arpsock.h"

#include <sys/socket.h>
#include <time.h>

/* As many frames as one system call reads. */
#define AUTOIP_BATCH 64

/* Room for frames, and for what the kernel says about each. */
struct autoip_batch {
    struct mmsghdr headers[AUTOIP_BATCH];
    struct iovec vectors[AUTOIP_BATCH];
    uint8_t frames[AUTOIP_BATCH][AUTOIP_FRAME_LEN];
    union {
        struct cmsghdr alignment;
        char bytes[CMSG_SPACE(sizeof(struct timespec))];
    } control[AUTOIP_BATCH];
};

/* -- socket.c: a packet socket as a plain descriptor ---------------------------------- */

/* Opens, attaches the silent filter, then binds.  Returns the descriptor or a negative errno. */
int autoip_packet_open(int ifindex);

/* Replaces the filter in one step: each frame meets the old one or the new one. */
int autoip_packet_filter(int fd, const uint8_t mac[6], uint32_t address, int phase);

/* 0 if the kernel took the frame. */
int autoip_packet_send(int fd, const uint8_t frame[AUTOIP_FRAME_LEN]);

/* Makes the batch ready for use. */
void autoip_batch_init(struct autoip_batch *batch);

/* Reads what is there, `most` frames at most; never waits.  -EAGAIN if there is nothing. */
int autoip_packet_receive(int fd, struct autoip_batch *batch, unsigned int most);

/* When the kernel got frame `i` of the batch, on CLOCK_BOOTTIME. */
uint64_t autoip_batch_received(struct autoip_batch *batch, int i);

/* -- timer.c -------------------------------------------------------------------------- */

/* A clock in nanoseconds. */
uint64_t autoip_clock(clockid_t clock);

#endif
