/* What the files of the helper share among themselves; nothing of this is for Python. */
#ifndef AUTOIP_INTERNAL_H
#define AUTOIP_INTERNAL_H

#include "arpsock.h"

#include <sys/socket.h>
#include <time.h>

/* As many frames as one system call reads. */
#define AUTOIP_BATCH 32

/* Where a frame has the sender's hardware address. */
#define AUTOIP_SHA_AT 22

/* Where a frame has the sender's IP address. */
#define AUTOIP_SPA_AT 28

/* Room for frames, and for what the kernel says about each. */
struct autoip_batch {
    struct mmsghdr headers[AUTOIP_BATCH];
    struct {
        struct iovec vector;
        _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(struct timespec))];
        uint8_t frame[AUTOIP_FRAME_LEN];
    } entries[AUTOIP_BATCH];
    int used; /* the kernel has shortened msg_controllen in so many headers */

    /* Both clocks after it was read; 0: nobody has asked yet. */
    uint64_t boottime_ns;
    uint64_t wall_ns;
};

/* -- filter.c ------------------------------------------------------------------------- */

/* The answer to an AUTOIP_QUESTION from the host with this hardware address, by broadcast. */
void autoip_reply_make(uint8_t reply[AUTOIP_FRAME_LEN], const uint8_t question[AUTOIP_FRAME_LEN],
                       const uint8_t mac[6]);

/* -- socket.c: a packet socket as a plain descriptor ---------------------------------- */

/* Opens, attaches the silent filter, then binds.  Returns the descriptor or a negative errno. */
int autoip_packet_open(int ifindex);

/* Replaces the filter in one step: each frame meets the old one or the new one. */
int autoip_packet_filter(int fd, const uint8_t mac[6], uint32_t address, int phase);

/* 0 if the kernel took the frame. */
int autoip_packet_send(int fd, const uint8_t frame[AUTOIP_FRAME_LEN]);

/* Makes the batch ready for use. */
void autoip_batch_init(struct autoip_batch *batch);

/* Waits for a frame and reads it: 1, or a negative errno.  A thread can be cancelled here. */
int autoip_packet_wait(int fd, struct autoip_batch *batch);

/* Reads what is there, and how many; never waits: -EAGAIN if there is nothing. */
int autoip_packet_receive(int fd, struct autoip_batch *batch);

/* When the kernel got frame `i` of the batch, on CLOCK_BOOTTIME; asked soon after reading. */
uint64_t autoip_batch_received(struct autoip_batch *batch, int i);

/* -- timer.c -------------------------------------------------------------------------- */

/* A clock in nanoseconds. */
uint64_t autoip_clock(clockid_t clock);

#endif
