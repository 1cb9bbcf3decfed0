/*
 * The program at an interface's egress: its very instructions, run by an interpreter, agree with
 * RFC 3927 section 2.5 about every frame. Where the kernel takes the program, the kernel runs it
 * as well on some of the frames (BPF_PROG_TEST_RUN): the interpreter and the kernel have to
 * agree.
 */
#include "extended.h"
#include "reference.h"

#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A call into the kernel takes as long as some hundred frames here. */
#define KERNEL_EVERY 1024

static struct bpf_insn program[AUTOIP_BROADCAST_MAX];
static int count;
static int in_kernel = -1;

int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    count = autoip_broadcast_build(program, AUTOIP_BROADCAST_MAX);
    MUST(count > 0);
    in_kernel = autoip_broadcast_load();
    fprintf(stderr, "kernel: %s\n", in_kernel < 0 ? "not asked" : "asked");
    return 0;
}

/* What the kernel makes of the frame has to be what the interpreter made. */
static void ask_kernel(const uint8_t *before, const uint8_t *after, size_t length,
                       uint32_t result)
{
    uint8_t out[FRAME_MAX] = {0};
    union bpf_attr attributes;

    memset(&attributes, 0, sizeof attributes);
    attributes.test.prog_fd = (uint32_t)in_kernel;
    attributes.test.data_in = as_number(before);
    attributes.test.data_size_in = (uint32_t)length;
    attributes.test.data_out = as_number(out);
    attributes.test.data_size_out = sizeof out;
    MUST(syscall(SYS_bpf, BPF_PROG_TEST_RUN, &attributes, sizeof attributes) == 0);
    MUST(attributes.test.retval == result && attributes.test.data_size_out == length);
    MUST(memcmp(out, after, length) == 0);
}

static void try_frame(struct input *input, struct trial *trial)
{
    uint8_t wanted[FRAME_MAX];
    uint8_t after[FRAME_MAX];
    struct extended e = {.frame = after};
    uint8_t flags = take_byte(input);
    bool other_type;
    uint32_t result;

    e.about.vlan_present = flags % 4u == 0;
    other_type = flags / 4u % 8u == 0;
    take_frame(input, trial);
    /* The type by the socket that sent the frame; mostly that of the bytes. */
    memcpy(&e.about.protocol, trial->frame + 12, 2);
    if (other_type)
        e.about.protocol = htons(ETH_P_ARP);

    memcpy(wanted, trial->frame, sizeof wanted);
    if (e.about.protocol == htons(ETH_P_ARP) && e.about.vlan_present == 0) {
        uint8_t typed[FRAME_MAX];

        /* The type in the bytes is for the link layer alone. */
        memcpy(typed, wanted, sizeof typed);
        typed[12] = 0x08;
        typed[13] = 0x06;
        if (reference_is_arp(typed, trial->length) && wanted[28] == 169 && wanted[29] == 254)
            memset(wanted, 0xff, 6);
    }
    memcpy(after, trial->frame, sizeof after);
    e.length = trial->length;
    result = extended_run(&e, program, (size_t)count);
    MUST(result == (uint32_t)TC_ACT_UNSPEC);
    MUST(memcmp(after, wanted, sizeof after) == 0);
    /* The kernel takes no frame that ends before the first byte behind the header, and reads the
     * type itself. */
    if (in_kernel >= 0 && frames_tried % KERNEL_EVERY == 0 && trial->length > ETH_HLEN &&
        !other_type && e.about.vlan_present == 0)
        ask_kernel(trial->frame, after, trial->length, result);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    struct trial trial;

    take(&input, trial.mac, sizeof trial.mac);
    trial.address = take_word(&input);
    while (input.left > 0)
        try_frame(&input, &trial);
    return 0;
}
