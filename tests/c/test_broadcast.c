/*
 * The BPF program alone, for what leaves an interface: the kernel runs it on given frames
 * (BPF_PROG_TEST_RUN). Needs CAP_BPF and CAP_NET_ADMIN, else it is skipped.
 */
#include "internal.h"
#include "run.h"

#include <errno.h>
#include <stdbool.h>
#include <unistd.h>

static int program;

/* A program whose bucket is full, in the place of the former one. */
static void anew(void)
{
    close(program);
    program = autoip_broadcast_load();
    CHECK(program >= 0);
}

/* Runs the program on a frame. Returns whether that changed the destination; nothing else may
 * change. */
static bool redirects(const uint8_t *frame, size_t length)
{
    uint8_t expected[RUN_MAX];
    uint8_t out[RUN_MAX];

    run_program(program, frame, length, out);
    memcpy(expected, frame, length);
    if (memcmp(out, expected, length) == 0)
        return false;
    memset(expected, 0xff, 6);
    CHECK(memcmp(out, expected, length) == 0);
    return true;
}

static void make_reply(uint8_t frame[AUTOIP_FRAME_LEN])
{
    make_frame(frame, our_mac, OURS, OTHER, 2);
    memcpy(frame, their_mac, 6);
}

/* A reply by unicast, with one field changed; whether the program still redirects it. */
static const struct change {
    const char *what;
    size_t at;
    size_t length;
    uint8_t bytes[4];
    bool redirected;
} changes[] = {
    {"nothing", 0, 0, {0}, true},
    {"type: IPv4", 12, 2, {0x08, 0x00}, false},
    {"type: RARP", 12, 2, {0x80, 0x35}, false},
    {"type: VLAN", 12, 2, {0x81, 0x00}, false},
    {"hardware type: 0", 15, 1, {0}, false},
    {"hardware type: IEEE 802", 15, 1, {6}, false},
    {"hardware type: 257", 14, 1, {1}, false},
    {"protocol type: ARP", 16, 2, {0x08, 0x06}, false},
    {"protocol type: IPv6", 16, 2, {0x86, 0xdd}, false},
    {"hardware length: 5", 18, 1, {5}, false},
    {"protocol length: 16", 19, 1, {16}, false},
    {"operation: request", 21, 1, {1}, true},
    {"operation: InARP reply", 21, 1, {9}, true},
    {"SHA: another", 27, 1, {9}, true},
    {"SPA: 169.254.0.0", 28, 4, {169, 254, 0, 0}, true},
    {"SPA: 169.254.255.255", 28, 4, {169, 254, 255, 255}, true},
    {"SPA: 169.253.255.255", 28, 4, {169, 253, 255, 255}, false},
    {"SPA: 169.255.0.0", 28, 4, {169, 255, 0, 0}, false},
    {"SPA: 168.254.10.20", 28, 4, {168, 254, 10, 20}, false},
    {"SPA: 254.169.10.20", 28, 4, {254, 169, 10, 20}, false},
    {"SPA: none", 28, 4, {0}, false},
    {"TPA: 192.0.2.1", 38, 4, {192, 0, 2, 1}, true},
};

static void test_one_changed_field(void)
{
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        const struct change *change = &changes[i];
        uint8_t frame[AUTOIP_FRAME_LEN];

        anew();
        make_reply(frame);
        memcpy(frame + change->at, change->bytes, change->length);
        if (redirects(frame, sizeof frame) != change->redirected) {
            fprintf(stderr, "%s: expected %d\n", change->what, change->redirected);
            exit(1);
        }
    }
}

/* The former destination does not count. */
static void test_every_bit_of_the_destination(void)
{
    for (int bit = 0; bit < 48; bit++) {
        uint8_t frame[AUTOIP_FRAME_LEN];

        anew();
        make_reply(frame);
        frame[bit / 8] ^= (uint8_t)(1 << bit % 8);
        CHECK(redirects(frame, sizeof frame));
    }
}

static void test_lengths(void)
{
    uint8_t frame[128];

    memset(frame, 0xa5, sizeof frame);
    make_reply(frame);
    /* The kernel refuses a frame without a byte behind the header. */
    for (size_t length = 15; length < AUTOIP_FRAME_LEN; length++)
        CHECK(!redirects(frame, length));
    for (size_t length = AUTOIP_FRAME_LEN; length <= sizeof frame; length++) {
        anew();
        CHECK(redirects(frame, length));
    }
}

/* Beyond the bucket a frame leaves as it is; a tenth of a second later there is room again. */
static void test_a_flood(void)
{
    uint8_t frame[AUTOIP_FRAME_LEN];
    uint8_t broadcast[AUTOIP_FRAME_LEN];
    uint64_t began, passed;
    unsigned int redirected = 0, after = 0;

    anew();
    make_reply(frame);
    make_reply(broadcast);
    memset(broadcast, 0xff, 6);
    for (int i = 0; i < 1000; i++)
        CHECK(!redirects(broadcast, sizeof broadcast)); /* it does not count */
    began = autoip_clock(CLOCK_BOOTTIME);
    for (int i = 0; i < 5000; i++)
        redirected += redirects(frame, sizeof frame);
    passed = autoip_clock(CLOCK_BOOTTIME) - began;
    CHECK(redirected >= 100 && redirected <= 101 + passed / 20000000);
    began = autoip_clock(CLOCK_BOOTTIME);
    usleep(100000);
    for (int i = 0; i < 50; i++)
        after += redirects(frame, sizeof frame);
    passed = autoip_clock(CLOCK_BOOTTIME) - began;
    CHECK(after >= 5 && after <= 2 + passed / 20000000);
}

/* The kernel before 5.8: the program does not count. */
static void test_without_a_map(void)
{
    uint8_t frame[AUTOIP_FRAME_LEN];

    close(program);
    program = autoip_broadcast_load_limited(-1);
    CHECK(program >= 0);
    make_reply(frame);
    for (int i = 0; i < 1000; i++)
        CHECK(redirects(frame, sizeof frame));
}

int main(void)
{
    program = autoip_broadcast_load();
    if (program < 0) {
        CHECK(program == -EPERM || program == -EACCES || program == -ENOSYS);
        printf("broadcast: skipped, no program may be loaded (%s)\n", strerror(-program));
        return 0;
    }
    test_one_changed_field();
    test_every_bit_of_the_destination();
    test_lengths();
    test_a_flood();
    test_without_a_map();
    close(program);
    printf("broadcast: ok\n");
    return 0;
}
