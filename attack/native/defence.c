/*
 * The program at an interface's ingress: its very instructions, run by an interpreter, agree with
 * RFC 5227 section 2.4 (b) about every frame, every state of the interface's memory and every
 * time. Whatever comes, the frame is afterwards as it was.
 */
#include "extended.h"
#include "reference.h"

#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>

#define SEAL 0xa9fe3927u
#define INTERVAL_NS 10000000000ull
#define OWN 4u

static struct bpf_insn program[AUTOIP_DEFENCE_MAX];
static size_t program_length;
static struct autoip_shared shared;
static uint8_t own[OWN][6];

int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    int count = autoip_defence_build(program, AUTOIP_DEFENCE_MAX, 3, 4, SEAL, INTERVAL_NS);

    (void)argc;
    (void)argv;
    MUST(count > 0);
    program_length = (size_t)count;
    return 0;
}

/* Takes an interface's memory, mostly of the interface and the address that the frames have. */
static struct autoip_slot *take_slot(struct input *input, struct trial *trial, uint64_t now)
{
    uint32_t ifindex = 1 + take_byte(input) % 3u + take_byte(input) % 2u * AUTOIP_SLOTS;
    struct autoip_slot *slot = &shared.slots[ifindex % AUTOIP_SLOTS];
    uint8_t word = take_byte(input);

    memset(&shared, 0, sizeof shared);
    take(input, trial->mac, sizeof trial->mac);
    trial->address = take_word(input);
    slot->ifindex = ifindex;
    slot->address = htonl(trial->address ^ (take_byte(input) % 8u == 0));
    slot->generation = take_byte(input);
    slot->mac = autoip_mac_number(trial->mac);
    take(input, slot->frame, AUTOIP_FRAME_LEN);
    if (word % 8u == 0)
        slot->ready_at = word % 16u == 0 ? AUTOIP_NEVER : AUTOIP_YIELDED;
    else
        slot->ready_at = now + word % 7u - 3u; /* some before, some after */
    shared.own_full = take_byte(input) % 16u == 0;
    for (size_t i = 0; i < OWN; i++) {
        uint64_t number;

        take(input, own[i], sizeof own[i]);
        number = autoip_mac_number(own[i]);
        shared.own[autoip_own_row(number)][i] = number;
    }
    return slot;
}

/* Zeros are a free place of the table: the thread judges them. */
static bool is_own(const uint8_t *mac)
{
    static const uint8_t none[6];

    if (memcmp(mac, none, 6) == 0)
        return true;
    for (size_t i = 0; i < OWN; i++)
        if (memcmp(own[i], mac, 6) == 0)
            return true;
    return false;
}

/* Makes most frames a conflict, but for one byte at most: chance alone hardly ever would. */
static void make_conflict(struct input *input, struct trial *trial)
{
    static const uint8_t fixed[] = {0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1};
    uint8_t how = take_byte(input);
    uint8_t at = take_byte(input);

    if (how % 4u == 0)
        return;
    trial->length = AUTOIP_FRAME_LEN + (how % 8u < 4 ? 0 : how / 16u * 2u);
    memcpy(trial->frame + 12, fixed, sizeof fixed);
    trial->frame[21] = (uint8_t)(1 + how / 8u % 2u);
    put_word(trial->frame + AUTOIP_SPA_AT, trial->address);
    if (at < AUTOIP_FRAME_LEN)
        trial->frame[at] = take_byte(input);
}

static void try_frame(struct input *input, struct trial *trial, uint64_t now)
{
    struct autoip_slot *slot = take_slot(input, trial, now);
    struct autoip_slot before;
    struct autoip_record record;
    uint64_t ring = 0;
    uint8_t flags = take_byte(input);
    uint8_t after[FRAME_MAX];
    struct extended e = {.map = &ring, .map_length = 1, .now = now};
    bool conflict, judged, answered;

    e.memory = (uint8_t *)&shared;
    e.memory_size = sizeof shared;
    e.record = flags % 16u == 0 ? NULL : (uint8_t *)&record;
    e.record_size = sizeof record;
    e.redirect_error = flags / 16u == 0 ? (uint64_t)-12 : 0;
    memset(&record, 0x5a, sizeof record);
    take_frame(input, trial);
    if (take_byte(input) % 8u == 0)
        memcpy(trial->frame + AUTOIP_SHA_AT, own[flags % OWN], 6);
    make_conflict(input, trial);
    flags = take_byte(input);
    e.about.len = (uint32_t)trial->length;
    e.about.ifindex = flags / 4u % 8u == 0 ? slot->ifindex ^ AUTOIP_SLOTS : slot->ifindex;
    e.about.pkt_type = flags / 32u == 0 ? take_byte(input) % 5u : PACKET_BROADCAST;
    flags = take_byte(input);
    e.about.vlan_present = flags % 16u == 0;
    memcpy(&e.about.protocol, trial->frame + 12, 2);
    if (flags / 16u == 0)
        e.about.protocol = htons(ETH_P_ARP);
    memcpy(after, trial->frame, sizeof after);
    e.frame = after;
    e.length = trial->length;
    e.linear = extended_linear(e.length, flags % 3u == 0);
    before = *slot;

    conflict = reference_verdict(trial->frame, trial->length, trial->mac, trial->address,
                                 AUTOIP_DEFEND) == AUTOIP_CONFLICT &&
               e.about.protocol == htons(ETH_P_ARP) && e.about.vlan_present == 0 &&
               e.about.pkt_type <= PACKET_MULTICAST && trial->length >= AUTOIP_FRAME_LEN &&
               trial->length <= 64 && e.about.ifindex == slot->ifindex &&
               slot->address == htonl(trial->address) && slot->ready_at < AUTOIP_YIELDED &&
               shared.own_full == 0 && !is_own(trial->frame + AUTOIP_SHA_AT);
    judged = conflict && e.record != NULL;
    answered = judged && now >= slot->ready_at;

    MUST(extended_run(&e, program, program_length) == (uint32_t)TC_ACT_UNSPEC);
    MUST(memcmp(after, trial->frame, sizeof after) == 0);
    MUST(e.hash == (judged ? SEAL : 0) && e.sent == answered && !e.reserved);
    MUST(e.kept == (judged ? (uint64_t)BPF_FUNC_ringbuf_submit : 0));
    if (judged)
        before.ready_at = answered ? now + INTERVAL_NS : AUTOIP_YIELDED;
    before.counts.answered = answered && e.redirect_error == 0;
    before.counts.left = judged && !answered;
    before.counts.failed = conflict && !before.counts.answered && !before.counts.left;
    MUST(memcmp(slot, &before, sizeof before) == 0);
    if (answered)
        MUST(memcmp(e.sent_frame, slot->frame, trial->length) == 0);
    if (judged) {
        MUST(record.received_ns == now && record.ifindex == slot->ifindex);
        MUST(record.defended_ns == (answered && e.redirect_error == 0 ? now : 0));
        MUST(record.generation == slot->generation);
        MUST(memcmp(record.frame, trial->frame, AUTOIP_FRAME_LEN) == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    struct trial trial = {0};
    uint64_t now = 1000000000u;

    while (input.left > 0)
        try_frame(&input, &trial, now += take_byte(&input));
    return 0;
}
