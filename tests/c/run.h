/* A BPF program is run on a frame by the kernel, without an interface that carries it. */
#ifndef AUTOIP_TEST_RUN_H
#define AUTOIP_TEST_RUN_H

#include "check.h"

#include <unistd.h>

#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <sys/syscall.h>

/* Frames are no longer than this. */
#define RUN_MAX 128

/* `out` <- what the program makes of the frame, which it lets go on, as long as it came. */
static inline void run_program(int program, const uint8_t *frame, size_t length,
                               uint8_t out[RUN_MAX])
{
    union bpf_attr attributes;

    CHECK(length <= RUN_MAX);
    memset(out, 0, RUN_MAX);
    memset(&attributes, 0, sizeof attributes);
    attributes.test.prog_fd = (uint32_t)program;
    attributes.test.data_in = (uint64_t)(uintptr_t)frame;
    attributes.test.data_size_in = (uint32_t)length;
    attributes.test.data_out = (uint64_t)(uintptr_t)out;
    attributes.test.data_size_out = RUN_MAX;
    CHECK(syscall(SYS_bpf, BPF_PROG_TEST_RUN, &attributes, sizeof attributes) == 0);
    CHECK(attributes.test.retval == (uint32_t)TC_ACT_UNSPEC); /* other programs go on */
    CHECK(attributes.test.data_size_out == length);
}

#endif
