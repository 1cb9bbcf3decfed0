/*
 * The defence in the kernel: a program at the ingress of an interface that answers a conflict
 * before any process is woken. Its rule is RFC 5227, 2.4 (b), and nothing more: a conflict is
 * answered with one announcement, unless another one came within DEFEND_INTERVAL before. That
 * second one, and all that follow, are the program's in Python, which decides; it alone arms.
 *
 * The frame goes on in any case. One that the program has judged gets a seal (`hash`, a random
 * number), by which the packet filter of our own socket drops it: such a conflict comes to us as
 * a record in a ring, with its time, and all others through the socket. So each conflict comes
 * once.
 *
 * Who may answer is decided by one word for each interface, `ready_at`, that is only changed by
 * compare-and-exchange: by this program on any processor, and by the helper's thread, which is
 * there for the frames that this program does not judge. A record is reserved after the word was
 * read, and before it is changed, so the order of the records is that of the changes.
 */
#include "ebpf.h"
#include "internal.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>
#include <sys/mman.h>
#include <sys/random.h>

/* A copy of the frame on the stack, and below it the length that the answer has. */
#define COPY (-48)
#define COPY_OF(frame_offset) (COPY + (frame_offset))
#define LENGTH (COPY - 8)

#define SHARED(field) offsetof(struct autoip_shared, field)
#define SLOT(field) ((short)offsetof(struct autoip_slot, field))
#define RECORD(field) ((short)offsetof(struct autoip_record, field))

/* An answer is as long as the conflict. A real Ethernet pads to 60 bytes, with a tag that was
 * taken off to 56, and some switches to 64. */
#define PADDED_MAX 64
_Static_assert(PADDED_MAX <= sizeof((struct autoip_slot *)0)->frame, "an answer has room");
_Static_assert(PADDED_MAX <= sizeof((struct autoip_record *)0)->frame, "a record has room");

/* The index of the interface that each network namespace has. */
#define LOOPBACK 1

#define COUNT(field) ((short)offsetof(struct autoip_slot, counts.field))

/* The record is for the thread, which has to be woken. */
#define WAKE 2
#define NO_WAKE 1

enum {
    PASS,
    COPIED,
    DISCARD,
    SUBMIT,
    TOO_SOON,
    DROP,
    FULL,
    LOST,
    LEFT,
    UNSENT,
    REFUSED,
    RESTORE
};

/* R7 <- the interface's slot. Goes to PASS for a frame that is not ARP. */
static void defence_find_slot(struct autoip_asm *p, int memory)
{
    LOAD(BPF_W, 2, 6, CONTEXT(protocol)); /* r2 <- type */
    UNLESS_EQUAL(2, WIRE(ETH_P_ARP), PASS);
    LOAD_MEMORY(7, memory, SHARED(slots));
    LOAD(BPF_W, 2, 6, CONTEXT(ifindex));
    MOVE(3, 2);
    AND(2, AUTOIP_SLOTS - 1);
    DO(.code = BPF_ALU64 | BPF_MUL | BPF_K, .dst_reg = 2, .imm = sizeof(struct autoip_slot));
    DO(.code = BPF_ALU64 | BPF_ADD | BPF_X, .dst_reg = 7, .src_reg = 2);
    LOAD(BPF_W, 2, 7, SLOT(ifindex));
    IF(BPF_JNE, 2, 3, PASS); /* another interface's? */
}

/* Goes to PASS for a frame whose SPA is seen, without a copy, not to be our address: nearly all
 * are such. By halves: not every processor can load a word from there. */
static void defence_look(struct autoip_asm *p)
{
    IF_SHORT(2, AUTOIP_SPA_AT + 4, COPIED); /* r2 <- the frame */
    for (short at = 0; at < 4; at += 2) {
        LOAD(BPF_H, 3, 2, AUTOIP_SPA_AT + at);
        LOAD(BPF_H, 4, 7, SLOT(address) + at);
        IF(BPF_JNE, 3, 4, PASS);
    }
    autoip_asm_place(p, COPIED);
}

/* Goes to PASS for a frame that is not ARP for IPv4 over Ethernet: as filter.c does. */
static void defence_check_frame(struct autoip_asm *p)
{
    LOAD(BPF_W, 2, 6, CONTEXT(vlan_present));
    UNLESS_EQUAL(2, 0, PASS);
    LOAD(BPF_W, 2, 6, CONTEXT(pkt_type));
    IF_NUMBER(BPF_JGT, 2, PACKET_MULTICAST, PASS); /* not for us? */

    /* Longer ones are for the thread: the answer would have what stands behind the packet. */
    LOAD(BPF_W, 2, 6, CONTEXT(len));
    IF_NUMBER(BPF_JLT, 2, AUTOIP_FRAME_LEN, PASS);
    IF_NUMBER(BPF_JGT, 2, PADDED_MAX, PASS);
    PUT(BPF_DW, 10, LENGTH, 2);

    MOVE(1, 6);
    SET(2, 0);
    MOVE(3, 10);
    ADD(3, COPY);
    SET(4, AUTOIP_FRAME_LEN);
    CALL(BPF_FUNC_skb_load_bytes); /* copy <- the frame */
    UNLESS_EQUAL(0, 0, PASS);
    LOAD(BPF_H, 2, 10, COPY_OF(12));
    UNLESS_EQUAL(2, WIRE(ETH_P_ARP), PASS);
    LOAD(BPF_H, 2, 10, COPY_OF(14)); /* r2 <- hardware type */
    UNLESS_EQUAL(2, WIRE(1), PASS);
    LOAD(BPF_H, 2, 10, COPY_OF(16)); /* r2 <- protocol type */
    UNLESS_EQUAL(2, WIRE(ETH_P_IP), PASS);
    LOAD(BPF_H, 2, 10, COPY_OF(18)); /* r2 <- lengths */
    UNLESS_EQUAL(2, WIRE(0x0604), PASS);
    LOAD(BPF_H, 2, 10, COPY_OF(20)); /* r2 <- operation: 1 or 2? */
    DO(.code = BPF_ALU | BPF_END | BPF_TO_BE, .dst_reg = 2, .imm = 16);
    ADD(2, -1);
    IF_NUMBER(BPF_JGT, 2, 1, PASS);
}

/* R8 <- the word. Goes to PASS for a frame that does not claim the address, or that is for the
 * thread. */
static void defence_read_word(struct autoip_asm *p)
{
    LOAD(BPF_W, 3, 10, COPY_OF(AUTOIP_SPA_AT));
    LOAD(BPF_W, 2, 7, SLOT(address));
    IF(BPF_JNE, 2, 3, PASS); /* not our address? */

    /* With a barrier: what the slot has was written before the word was. */
    SET(8, 0);
    DO(.code = BPF_STX | BPF_ATOMIC | BPF_DW, .dst_reg = 7, .src_reg = 8, .off = SLOT(ready_at),
       .imm = BPF_ADD | BPF_FETCH);
    IF_NUMBER(BPF_JGE, 8, -2, PASS); /* AUTOIP_YIELDED or AUTOIP_NEVER? */
    LOAD(BPF_W, 3, 10, COPY_OF(AUTOIP_SPA_AT));
    LOAD(BPF_W, 2, 7, SLOT(address));
    IF(BPF_JNE, 2, 3, PASS);
}

/* Goes to PASS for a frame from this host; also for a SHA of zeros, a free place of the table. */
static void defence_check_sender(struct autoip_asm *p, int memory)
{
    LOAD(BPF_W, 5, 10, COPY_OF(AUTOIP_SHA_AT + 2)); /* r5 <- the SHA, as autoip_mac_number() */
    DO(.code = BPF_ALU64 | BPF_LSH | BPF_K, .dst_reg = 5, .imm = 16);
    LOAD(BPF_H, 2, 10, COPY_OF(AUTOIP_SHA_AT));
    DO(.code = BPF_ALU64 | BPF_OR | BPF_X, .dst_reg = 5, .src_reg = 2);
    LOAD(BPF_DW, 2, 7, SLOT(mac));
    IF(BPF_JEQ, 5, 2, PASS);
    LOAD_MEMORY(1, memory, 0);
    LOAD(BPF_W, 2, 1, (short)SHARED(own_full));
    UNLESS_EQUAL(2, 0, PASS);
    LOAD_64(2, AUTOIP_OWN_HASH); /* r2 <- where its row begins */
    DO(.code = BPF_ALU64 | BPF_MUL | BPF_X, .dst_reg = 2, .src_reg = 5);
    DO(.code = BPF_ALU64 | BPF_RSH | BPF_K, .dst_reg = 2, .imm = 64 - AUTOIP_OWN_ROW_BITS);
    DO(.code = BPF_ALU64 | BPF_MUL | BPF_K, .dst_reg = 2, .imm = 8 * AUTOIP_OWN_COLUMNS);
    DO(.code = BPF_ALU64 | BPF_ADD | BPF_X, .dst_reg = 1, .src_reg = 2);
    for (size_t column = 0; column < AUTOIP_OWN_COLUMNS; column++) {
        LOAD(BPF_DW, 2, 1, (short)(SHARED(own) + 8 * column));
        IF(BPF_JEQ, 2, 5, PASS);
    }
}

/* R9 <- a record of the frame and of the present time, which is also r0. */
static void defence_begin_record(struct autoip_asm *p, int ring)
{
    LOAD_MAP(1, ring);
    SET(2, sizeof(struct autoip_record));
    SET(3, 0);
    CALL(BPF_FUNC_ringbuf_reserve);
    IF_NUMBER(BPF_JEQ, 0, 0, FULL);
    MOVE(9, 0);
    LOAD(BPF_W, 2, 6, CONTEXT(ifindex));
    PUT(BPF_W, 9, RECORD(ifindex), 2);
    LOAD(BPF_W, 2, 7, SLOT(generation));
    PUT(BPF_W, 9, RECORD(generation), 2);
    SET(2, 0);
    PUT(BPF_DW, 9, RECORD(defended_ns), 2);
    MOVE(1, 6);
    SET(2, 0);
    MOVE(3, 9);
    ADD(3, RECORD(frame));
    LOAD(BPF_DW, 4, 10, LENGTH);
    CALL(BPF_FUNC_skb_load_bytes);
    UNLESS_EQUAL(0, 0, LOST);
    CALL(BPF_FUNC_ktime_get_boot_ns); /* after the word was read, so not before it */
    PUT(BPF_DW, 9, RECORD(received_ns), 0);
}

/* The word <- r1, if it still is r8; else another processor was faster: goes to LEFT. */
static void defence_claim(struct autoip_asm *p)
{
    MOVE(0, 8);
    DO(.code = BPF_STX | BPF_ATOMIC | BPF_DW, .dst_reg = 7, .src_reg = 1, .off = SLOT(ready_at),
       .imm = BPF_CMPXCHG);
    IF(BPF_JNE, 0, 8, LEFT);
}

/* Counts the conflict: `field` is COUNT(...). Frames that are not conflicts never come here. */
static void defence_count(struct autoip_asm *p, short field)
{
    SET(1, 1);
    DO(.code = BPF_STX | BPF_ATOMIC | BPF_DW, .dst_reg = 7, .src_reg = 1, .off = field,
       .imm = BPF_ADD);
}

/* Frame <- the bytes at r3. */
static void defence_store(struct autoip_asm *p)
{
    MOVE(1, 6);
    SET(2, 0);
    LOAD(BPF_DW, 4, 10, LENGTH);
    SET(5, 0);
    CALL(BPF_FUNC_skb_store_bytes);
}

/* Sends the announcement; the frame is afterwards as it was. Goes to SUBMIT. */
static void defence_answer(struct autoip_asm *p)
{
    MOVE(3, 7);
    ADD(3, SLOT(frame));
    defence_store(p);
    UNLESS_EQUAL(0, 0, UNSENT); /* no memory */
    MOVE(1, 6);
    LOAD(BPF_W, 2, 6, CONTEXT(ifindex));
    SET(3, 0);
    CALL(BPF_FUNC_clone_redirect);
    UNLESS_EQUAL(0, 0, REFUSED);
    CALL(BPF_FUNC_ktime_get_boot_ns);
    PUT(BPF_DW, 9, RECORD(defended_ns), 0);
    defence_count(p, COUNT(answered));
    GO(RESTORE);
    autoip_asm_place(p, REFUSED);
    defence_count(p, COUNT(failed));
    autoip_asm_place(p, RESTORE);
    MOVE(3, 9);
    ADD(3, RECORD(frame));
    defence_store(p);
    UNLESS_EQUAL(0, 0, DROP); /* no memory: it is not what came */
    GO(SUBMIT);
    autoip_asm_place(p, UNSENT);
    defence_count(p, COUNT(failed));
    GO(SUBMIT);
}

int autoip_defence_build(struct bpf_insn *out, size_t capacity, int memory, int ring,
                         uint32_t seal, uint64_t interval_ns)
{
    struct autoip_asm program;
    struct autoip_asm *p = &program;

    autoip_asm_init(p);
    MOVE(6, 1); /* r6 <- the frame's description */
    defence_find_slot(p, memory);
    defence_look(p);
    defence_check_frame(p);
    defence_read_word(p);
    defence_check_sender(p, memory);
    defence_begin_record(p, ring);
    IF(BPF_JLT, 0, 8, TOO_SOON);
    LOAD_64(1, interval_ns);
    DO(.code = BPF_ALU64 | BPF_ADD | BPF_X, .dst_reg = 1, .src_reg = 0);
    defence_claim(p);
    defence_answer(p);

    autoip_asm_place(p, TOO_SOON);
    SET(1, -2); /* AUTOIP_YIELDED */
    defence_claim(p);
    defence_count(p, COUNT(left));

    autoip_asm_place(p, SUBMIT);
    MOVE(1, 6);
    DO(.code = BPF_ALU | BPF_MOV | BPF_K, .dst_reg = 2, .imm = (int32_t)seal);
    CALL(BPF_FUNC_set_hash);
    MOVE(1, 9);
    SET(2, WAKE);
    CALL(BPF_FUNC_ringbuf_submit);
    autoip_asm_place(p, PASS);
    SET(0, TC_ACT_UNSPEC); /* other programs, and the kernel itself, follow */
    EXIT();

    autoip_asm_place(p, FULL);
    defence_count(p, COUNT(failed));
    GO(PASS);

    autoip_asm_place(p, LEFT);
    defence_count(p, COUNT(left));
    GO(DISCARD);
    autoip_asm_place(p, LOST);
    defence_count(p, COUNT(failed));
    autoip_asm_place(p, DISCARD);
    MOVE(1, 9);
    SET(2, NO_WAKE);
    CALL(BPF_FUNC_ringbuf_discard);
    GO(PASS);

    autoip_asm_place(p, DROP);
    MOVE(1, 9);
    SET(2, WAKE);
    CALL(BPF_FUNC_ringbuf_submit);
    SET(0, TC_ACT_SHOT);
    EXIT();
    return autoip_asm_finish(p, out, capacity);
}

struct autoip_shared *autoip_defence_map(int memory)
{
    void *shared =
        mmap(NULL, sizeof(struct autoip_shared), PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);

    return shared == MAP_FAILED ? NULL : shared;
}

/* Makes all words AUTOIP_NEVER, and draws the seal. Returns 0 or a negative errno. */
static int defence_prepare(int memory, uint64_t interval_ns, uint32_t *seal)
{
    struct autoip_shared *shared = autoip_defence_map(memory);

    if (shared == NULL)
        return -errno;
    do {
        if (getrandom(&shared->seal, sizeof shared->seal, 0) != sizeof shared->seal)
            return -EIO;
    } while (shared->seal == 0);
    for (size_t i = 0; i < AUTOIP_SLOTS; i++)
        shared->slots[i].ready_at = AUTOIP_NEVER;
    shared->layout = AUTOIP_LAYOUT;
    shared->interval_ns = interval_ns;
    *seal = shared->seal;
    (void)munmap(shared, sizeof *shared);
    return 0;
}

int autoip_defence_load(uint64_t interval_ns, int *memory, int *ring)
{
    struct bpf_insn program[AUTOIP_DEFENCE_MAX];
    uint32_t seal = 0;
    int ours, result;

    *ring = -1;
    *memory =
        autoip_ebpf_map(BPF_MAP_TYPE_ARRAY, sizeof(struct autoip_shared), 1, BPF_F_MMAPABLE);
    if (*memory < 0)
        return *memory;
    result = defence_prepare(*memory, interval_ns, &seal);
    if (result == 0)
        result = *ring = autoip_ebpf_map(BPF_MAP_TYPE_RINGBUF, 0, AUTOIP_RING_SIZE, 0);
    if (result >= 0)
        result =
            autoip_ebpf_load(program, autoip_defence_build(program, AUTOIP_DEFENCE_MAX, *memory,
                                                           *ring, seal, interval_ns));
    /* Whether there is tcx: asked last, since who may not load a program may not ask either. */
    if (result >= 0 && autoip_tcx_programs(LOOPBACK, false, &ours) == -EOPNOTSUPP) {
        close(result);
        result = -EOPNOTSUPP;
    }
    if (result < 0) {
        close(*memory);
        if (*ring >= 0)
            close(*ring);
    }
    return result;
}
