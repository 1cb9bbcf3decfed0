/*
 * The filter alone: the kernel runs it on a socket pair, and the check in C gets the same
 * frames. Usage: test_filter [ROUNDS [SEED]]
 */
#include "check.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <unistd.h>

#include <sys/socket.h>

static int pair[2];

static void attach(const uint8_t mac[6], uint32_t address, enum autoip_phase phase)
{
    struct sock_filter instructions[AUTOIP_FILTER_MAX];
    struct sock_fprog program = {.filter = instructions};
    int length = autoip_filter_build(instructions, AUTOIP_FILTER_MAX, mac, address, phase);

    CHECK(length > 0);
    program.len = (unsigned short)length;
    CHECK(setsockopt(pair[1], SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
}

/* Whether the attached filter lets the frame through, then without the padding. */
static bool kernel_accepts(const uint8_t *frame, size_t length)
{
    uint8_t got[2048];
    ssize_t received;

    CHECK(send(pair[0], frame, length, 0) == (ssize_t)length);
    received = recv(pair[1], got, sizeof got, MSG_DONTWAIT);
    if (received < 0) {
        CHECK(errno == EAGAIN);
        return false;
    }
    CHECK(received == AUTOIP_FRAME_LEN);
    CHECK(memcmp(got, frame, AUTOIP_FRAME_LEN) == 0);
    return true;
}

/* The verdict of both; they must agree. */
static bool accepts(const uint8_t *frame, size_t length, enum autoip_phase phase)
{
    /* Exactly as much memory as the frame has: the sanitizers find a read behind it. */
    uint8_t *copy = malloc(length + (length == 0));
    bool in_c;

    CHECK(copy != NULL);
    memcpy(copy, frame, length);
    in_c = autoip_filter_accepts(copy, length, our_mac, OURS, phase) != 0;
    free(copy);
    if (kernel_accepts(frame, length) != in_c) {
        fprintf(stderr, "phase %d, %zu bytes, in C %d, the kernel not:", phase, length, in_c);
        for (size_t i = 0; i < length; i++)
            fprintf(stderr, " %02x", frame[i]);
        fprintf(stderr, "\n");
        exit(1);
    }
    return in_c;
}

enum base { USE_REQUEST, USE_REPLY, PROBE, BASES };

/* Valid conflicts: a host uses our address (asks, answers), or probes for it. */
static void make_base(uint8_t frame[AUTOIP_FRAME_LEN], enum base base)
{
    switch (base) {
    case USE_REQUEST:
        make_frame(frame, their_mac, OURS, OTHER, 1);
        break;
    case USE_REPLY:
        make_frame(frame, their_mac, OURS, OTHER, 2);
        break;
    default:
        make_frame(frame, their_mac, 0, OURS, 1);
        break;
    }
}

/* One changed field of a valid frame, and whether each base then is a conflict in phases PROBE
 * and DEFEND. */
struct change {
    const char *what;
    size_t at;
    size_t length;
    uint8_t bytes[6];
    bool in_probe[BASES];
    bool in_defend[BASES];
};

#define ALL {true, true, true}
#define NONE {false, false, false}
#define USES {true, true, false}

static const struct change changes[] = {
    {"nothing", 0, 0, {0}, ALL, USES},
    /* Only a probe must be a broadcast. */
    {"destination: us", 0, 6, {2, 0, 0, 0, 0, 1}, USES, USES},
    {"destination: first byte", 0, 1, {0xfe}, USES, USES},
    {"destination: second byte", 1, 1, {0x7f}, USES, USES},
    {"destination: third byte", 2, 1, {0x00}, USES, USES},
    {"destination: fourth byte", 3, 1, {0xfe}, USES, USES},
    {"destination: fifth byte", 4, 1, {0xfe}, USES, USES},
    {"destination: last byte", 5, 1, {0xfe}, USES, USES},
    /* The source in the link-layer header does not count. */
    {"source: another", 6, 6, {2, 0, 0, 0, 0, 9}, ALL, USES},
    {"source: ours", 6, 6, {2, 0, 0, 0, 0, 1}, ALL, USES},
    {"type: IPv4", 12, 2, {0x08, 0x00}, NONE, NONE},
    {"type: RARP", 12, 2, {0x80, 0x35}, NONE, NONE},
    {"type: VLAN", 12, 2, {0x81, 0x00}, NONE, NONE},
    {"hardware type: 0", 15, 1, {0}, NONE, NONE},
    {"hardware type: IEEE 802", 15, 1, {6}, NONE, NONE},
    {"hardware type: 257", 14, 1, {1}, NONE, NONE},
    {"protocol type: ARP", 16, 2, {0x08, 0x06}, NONE, NONE},
    {"protocol type: IPv6", 16, 2, {0x86, 0xdd}, NONE, NONE},
    {"hardware length: 5", 18, 1, {5}, NONE, NONE},
    {"hardware length: 7", 18, 1, {7}, NONE, NONE},
    {"hardware length: 0", 18, 1, {0}, NONE, NONE},
    {"protocol length: 3", 19, 1, {3}, NONE, NONE},
    {"protocol length: 16", 19, 1, {16}, NONE, NONE},
    {"operation: 0", 21, 1, {0}, NONE, NONE},
    {"operation: request", 21, 1, {1}, ALL, USES},
    {"operation: reply", 21, 1, {2}, USES, USES},
    {"operation: RARP request", 21, 1, {3}, NONE, NONE},
    {"operation: 0x0101", 20, 2, {1, 1}, NONE, NONE},
    {"operation: 0xffff", 20, 2, {0xff, 0xff}, NONE, NONE},
    {"SHA: ours", 22, 6, {2, 0, 0, 0, 0, 1}, NONE, NONE},
    {"SHA: ours but the first byte", 22, 6, {6, 0, 0, 0, 0, 1}, ALL, USES},
    {"SHA: ours but the fourth byte", 22, 6, {2, 0, 0, 1, 0, 1}, ALL, USES},
    {"SHA: ours but the fifth byte", 22, 6, {2, 0, 0, 0, 1, 1}, ALL, USES},
    {"SHA: zero", 22, 6, {0}, ALL, USES},
    {"SHA: broadcast", 22, 6, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, ALL, USES},
    {"SPA: first byte", 28, 1, {0xaa}, NONE, NONE},
    {"SPA: second byte", 29, 1, {0xff}, NONE, NONE},
    {"SPA: third byte", 30, 1, {0x0b}, NONE, NONE},
    {"SPA: last byte", 31, 1, {0x15}, NONE, NONE},
    {"SPA: ours", 28, 4, {169, 254, 10, 20}, ALL, ALL},
    {"SPA: ours, turned round", 28, 4, {20, 10, 254, 169}, NONE, NONE},
    {"SPA: another", 28, 4, {169, 254, 10, 21}, NONE, NONE},
    {"SPA: broadcast", 28, 4, {255, 255, 255, 255}, NONE, NONE},
    /* THA "SHOULD be zero" in a probe: it does not count. */
    {"THA: ours", 32, 6, {2, 0, 0, 0, 0, 1}, ALL, USES},
    {"THA: broadcast", 32, 6, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, ALL, USES},
    {"TPA: first byte", 38, 1, {0xaa}, USES, USES},
    {"TPA: last byte", 41, 1, {0x16}, USES, USES},
    {"TPA: ours", 38, 4, {169, 254, 10, 20}, ALL, USES},
    {"TPA: zero", 38, 4, {0}, USES, USES},
};

static void test_one_changed_field(void)
{
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        const struct change *change = &changes[i];

        for (int base = 0; base < BASES; base++) {
            uint8_t frame[AUTOIP_FRAME_LEN];
            const bool expected[] = {false, change->in_probe[base], change->in_defend[base]};

            make_base(frame, (enum base)base);
            memcpy(frame + change->at, change->bytes, change->length);
            for (enum autoip_phase phase = AUTOIP_SILENT; phase <= AUTOIP_DEFEND; phase++) {
                attach(our_mac, OURS, phase);
                if (accepts(frame, sizeof frame, phase) != expected[phase]) {
                    fprintf(stderr, "%s, base %d, phase %d: expected %d\n", change->what, base,
                            phase, expected[phase]);
                    exit(1);
                }
            }
        }
    }
}

/* One changed field of a question for our address; its verdict in phase ANSWER. */
static const struct {
    const char *what;
    size_t at;
    size_t length;
    uint8_t bytes[6];
    enum autoip_verdict verdict;
} questions[] = {
    {"nothing", 0, 0, {0}, AUTOIP_QUESTION},
    {"destination: us", 0, 6, {2, 0, 0, 0, 0, 1}, AUTOIP_QUESTION},
    {"source: ours", 6, 6, {2, 0, 0, 0, 0, 1}, AUTOIP_QUESTION},
    {"type: RARP", 12, 2, {0x80, 0x35}, AUTOIP_NOTHING},
    {"hardware type: IEEE 802", 15, 1, {6}, AUTOIP_NOTHING},
    {"protocol type: IPv6", 16, 2, {0x86, 0xdd}, AUTOIP_NOTHING},
    {"hardware length: 5", 18, 1, {5}, AUTOIP_NOTHING},
    {"operation: reply", 21, 1, {2}, AUTOIP_NOTHING},
    {"operation: InARP request", 21, 1, {8}, AUTOIP_NOTHING},
    {"SHA: ours", 22, 6, {2, 0, 0, 0, 0, 1}, AUTOIP_NOTHING},
    {"SPA: none, a probe", 28, 4, {0}, AUTOIP_QUESTION},
    {"SPA: 192.0.2.1", 28, 4, {192, 0, 2, 1}, AUTOIP_QUESTION},
    {"SPA: ours", 28, 4, {169, 254, 10, 20}, AUTOIP_CONFLICT},
    {"THA: ours", 32, 6, {2, 0, 0, 0, 0, 1}, AUTOIP_QUESTION},
    {"TPA: first byte", 38, 1, {0xaa}, AUTOIP_NOTHING},
    {"TPA: last byte", 41, 1, {0x15}, AUTOIP_NOTHING},
};

static void test_questions(void)
{
    for (size_t i = 0; i < sizeof questions / sizeof *questions; i++)
        for (enum autoip_phase phase = AUTOIP_PROBE; phase <= AUTOIP_ANSWER; phase++) {
            uint8_t frame[AUTOIP_FRAME_LEN];
            enum autoip_verdict expected = questions[i].verdict;
            enum autoip_verdict verdict;

            make_frame(frame, their_mac, OTHER, OURS, 1);
            memcpy(frame + questions[i].at, questions[i].bytes, questions[i].length);
            attach(our_mac, OURS, phase);
            verdict = autoip_filter_accepts(frame, sizeof frame, our_mac, OURS, phase);
            CHECK(accepts(frame, sizeof frame, phase) == (verdict != AUTOIP_NOTHING));
            /* Only phase ANSWER has questions; in phase PROBE a probe is a conflict. */
            if (expected == AUTOIP_QUESTION && phase == AUTOIP_DEFEND)
                expected = AUTOIP_NOTHING;
            if (expected == AUTOIP_QUESTION && phase == AUTOIP_PROBE)
                expected = questions[i].at == 28 && questions[i].bytes[0] == 0 ? AUTOIP_CONFLICT
                                                                               : AUTOIP_NOTHING;
            if (verdict != expected) {
                fprintf(stderr, "%s, phase %d: %d, expected %d\n", questions[i].what, phase,
                        verdict, expected);
                exit(1);
            }
        }
}

/* A MAC that differs from ours in a single bit is another host. */
static void test_every_bit_of_the_sha(void)
{
    attach(our_mac, OURS, AUTOIP_PROBE);
    for (int bit = 0; bit < 48; bit++) {
        uint8_t frame[AUTOIP_FRAME_LEN];

        make_frame(frame, our_mac, OURS, OTHER, 1);
        CHECK(!accepts(frame, sizeof frame, AUTOIP_PROBE));
        frame[22 + bit / 8] ^= (uint8_t)(1 << bit % 8);
        CHECK(accepts(frame, sizeof frame, AUTOIP_PROBE));
    }
}

static void test_lengths(void)
{
    for (enum autoip_phase phase = AUTOIP_SILENT; phase <= AUTOIP_ANSWER; phase++) {
        attach(our_mac, OURS, phase);
        for (int base = 0; base < BASES; base++) {
            uint8_t frame[1514];
            bool whole = phase != AUTOIP_SILENT && (phase != AUTOIP_DEFEND || base != PROBE);

            memset(frame, 0xa5, sizeof frame);
            make_base(frame, (enum base)base);
            for (size_t length = 0; length < AUTOIP_FRAME_LEN; length++)
                CHECK(!accepts(frame, length, phase));
            for (size_t length = AUTOIP_FRAME_LEN; length <= 64; length++)
                CHECK(accepts(frame, length, phase) == whole);
            CHECK(accepts(frame, sizeof frame, phase) == whole);
        }
    }
}

/* The kernel and C agree on random frames. */
static void test_random(unsigned int rounds, uint64_t seed)
{
    uint64_t state = seed;
    unsigned int accepted = 0;

    for (unsigned int round = 0; round < rounds; round++) {
        enum autoip_phase phase = (enum autoip_phase)draw(&state, 4);

        if (round % 64 == 0 || phase == AUTOIP_SILENT)
            attach(our_mac, OURS, phase = (enum autoip_phase)(1 + draw(&state, 3)));
        else
            attach(our_mac, OURS, phase);
        for (int i = 0; i < 16; i++) {
            uint8_t frame[128];
            size_t length = AUTOIP_FRAME_LEN + draw(&state, 30);

            for (size_t byte = 0; byte < sizeof frame; byte++)
                frame[byte] = (uint8_t)draw(&state, 256);
            if (draw(&state, 8) != 0) {
                /* Nearly right: a valid frame with up to three bytes changed. */
                make_base(frame, (enum base)draw(&state, BASES));
                for (uint32_t changed = draw(&state, 4); changed > 0; changed--)
                    frame[draw(&state, AUTOIP_FRAME_LEN)] = (uint8_t)draw(&state, 256);
            }
            if (draw(&state, 16) == 0)
                length = draw(&state, sizeof frame);
            accepted += accepts(frame, length, phase);
        }
    }
    /* With fewer the agreement would prove nothing. */
    CHECK(accepted > rounds);
}

/* Other MACs and addresses, so that none of this file can be built in. */
static void test_other_addresses(void)
{
    static const uint8_t macs[][6] = {
        {0, 0, 0, 0, 0, 0},
        {0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54},
        {0xfe, 0xff, 0xff, 0xff, 0xff, 0xff},
    };
    static const uint32_t addresses[] = {0xa9fe0100u, 0xa9fefeffu, 0xa9fe8080u};

    for (size_t m = 0; m < 3; m++)
        for (size_t a = 0; a < 3; a++) {
            const uint8_t *mac = macs[m];
            uint32_t address = addresses[a];
            uint8_t frame[AUTOIP_FRAME_LEN];

            attach(mac, address, AUTOIP_DEFEND);
            make_frame(frame, their_mac, address, OTHER, 2);
            CHECK(kernel_accepts(frame, sizeof frame));
            CHECK(autoip_filter_accepts(frame, sizeof frame, mac, address, AUTOIP_DEFEND));
            make_frame(frame, their_mac, address ^ 1, OTHER, 2);
            CHECK(!kernel_accepts(frame, sizeof frame));
            CHECK(!autoip_filter_accepts(frame, sizeof frame, mac, address, AUTOIP_DEFEND));
            make_frame(frame, mac, address, OTHER, 2);
            CHECK(!kernel_accepts(frame, sizeof frame));
            CHECK(!autoip_filter_accepts(frame, sizeof frame, mac, address, AUTOIP_DEFEND));
        }
}

static void test_build_errors(void)
{
    static const enum autoip_phase unknown[] = {(enum autoip_phase)4,
                                                (enum autoip_phase)UINT_MAX};
    struct sock_filter out[AUTOIP_FILTER_MAX];

    for (unsigned int i = 0; i < sizeof unknown / sizeof *unknown; i++)
        CHECK(autoip_filter_build(out, AUTOIP_FILTER_MAX, our_mac, OURS, unknown[i]) == -EINVAL);
    CHECK(autoip_filter_build(out, 0, our_mac, OURS, AUTOIP_SILENT) == -ENOSPC);
    for (enum autoip_phase phase = AUTOIP_SILENT; phase <= AUTOIP_ANSWER; phase++) {
        int length = autoip_filter_build(out, AUTOIP_FILTER_MAX, our_mac, OURS, phase);

        CHECK(length > 0 && length <= AUTOIP_FILTER_MAX);
        for (int capacity = 0; capacity < length; capacity++) {
            struct sock_filter *exact = calloc((size_t)capacity + 1, sizeof *exact);

            CHECK(exact != NULL);
            CHECK(autoip_filter_build(exact, (size_t)capacity, our_mac, OURS, phase) == -ENOSPC);
            free(exact);
        }
        CHECK(autoip_filter_build(out, (size_t)length, our_mac, OURS, phase) == length);
    }
}

int main(int argc, char **argv)
{
    unsigned int rounds = argc > 1 ? (unsigned int)strtoul(argv[1], NULL, 0) : 5000;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 0x3927;

    CHECK(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair) == 0);
    test_build_errors();
    test_one_changed_field();
    test_questions();
    test_every_bit_of_the_sha();
    test_lengths();
    test_other_addresses();
    test_random(rounds, seed);
    close(pair[0]);
    close(pair[1]);
    printf("filter: ok (%u random frames, seed %#llx)\n", rounds * 16, (unsigned long long)seed);
    return 0;
}
