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

/* The bucket of each interface, 100 at once, then 50 a second. */
#define BUCKETS 256u
#define INTERVAL_NS 20000000u
#define BURST 100u
#define INTERFACES 2u

struct program {
    struct bpf_insn code[AUTOIP_BROADCAST_MAX];
    size_t count;
};

static struct program limited;
static struct program unlimited;
static int in_kernel = -1; /* the unlimited one */
static uint64_t map[BUCKETS];
static uint64_t full_at[BUCKETS]; /* the model's */
static uint64_t now;

int LLVMFuzzerInitialize(int *argc, char ***argv);

static void build(struct program *program, int map_descriptor)
{
    int count = autoip_broadcast_build(program->code, AUTOIP_BROADCAST_MAX, map_descriptor);

    MUST(count > 0);
    program->count = (size_t)count;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    build(&limited, 3);
    build(&unlimited, -1);
    in_kernel = autoip_broadcast_load_limited(-1);
    fprintf(stderr, "kernel: %s\n", in_kernel < 0 ? "not asked" : "asked");
    return 0;
}

/* Whether the bucket of the interface has room, by the model; one place is taken. */
static bool has_room(uint32_t interface)
{
    uint64_t *at = &full_at[interface % BUCKETS];

    if (*at < now)
        *at = now;
    if (*at - now > (BURST - 1) * (uint64_t)INTERVAL_NS)
        return false;
    *at += INTERVAL_NS;
    return true;
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

/* Runs a program on the frame; `after` gets what leaves. */
static uint32_t run(const struct program *program, struct extended *e, const struct trial *trial,
                    bool from_ring, uint8_t after[FRAME_MAX])
{
    memcpy(after, trial->frame, FRAME_MAX);
    e->frame = after;
    e->length = trial->length;
    e->linear = extended_linear(e->length, from_ring);
    return extended_run(e, program->code, program->count);
}

static void try_frame(struct input *input, struct trial *trial)
{
    static const uint8_t everybody[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    uint8_t wanted[FRAME_MAX];
    uint8_t after[FRAME_MAX];
    struct extended e = {.map = map, .map_length = BUCKETS};
    uint8_t flags = take_byte(input);
    bool other_type;

    e.about.vlan_present = flags % 4u == 0;
    e.about.ifindex = take_byte(input) % INTERFACES;
    other_type = flags / 4u % 8u == 0;
    now += flags / 32u == 7u ? (uint64_t)take_byte(input) * INTERVAL_NS / 7u : 0;
    e.now = now;
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
    MUST(run(&unlimited, &e, trial, flags % 3u == 0, after) == (uint32_t)TC_ACT_UNSPEC);
    MUST(memcmp(after, wanted, sizeof after) == 0);
    /* The kernel takes no frame that ends before the first byte behind the header, and reads the
     * type itself. */
    if (in_kernel >= 0 && frames_tried % KERNEL_EVERY == 0 && trial->length > ETH_HLEN &&
        !other_type && e.about.vlan_present == 0)
        ask_kernel(trial->frame, after, trial->length, (uint32_t)TC_ACT_UNSPEC);

    /* A broadcast that was one before takes no place. */
    if (memcmp(wanted, trial->frame, 6) != 0 && memcmp(trial->frame, everybody, 6) != 0 &&
        !has_room(e.about.ifindex))
        memcpy(wanted, trial->frame, 6);
    MUST(run(&limited, &e, trial, flags % 3u == 0, after) == (uint32_t)TC_ACT_UNSPEC);
    MUST(memcmp(after, wanted, sizeof after) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    struct trial trial;

    memset(map, 0, sizeof map);
    now = 1000000000u;
    /* Two interfaces whose buckets are as full as the input has it. */
    for (size_t i = 0; i < INTERFACES; i++)
        map[i] = now + take_byte(&input) % (BURST + 10u) * (uint64_t)INTERVAL_NS;
    memcpy(full_at, map, sizeof full_at);
    take(&input, trial.mac, sizeof trial.mac);
    trial.address = take_word(&input);
    while (input.left > 0)
        try_frame(&input, &trial);
    return 0;
}
