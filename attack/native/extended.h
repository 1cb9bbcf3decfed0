/*
 * The eBPF of linux/bpf.h: arithmetic, jumps, memory, and the functions that our programs at an
 * interface call. Each access is checked: the stack, the description of the frame, the memory of
 * maps, nothing else. An instruction or function that it does not know ends the program.
 */
#ifndef AUTOIP_EXTENDED_H
#define AUTOIP_EXTENDED_H

#include "fuzz.h"

#include <arpa/inet.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>

#define EXTENDED_STACK 512u
/* Where the frame is for the program, which has 32 bits for that. */
#define EXTENDED_FRAME 4096u
/* Steps; no program of ours has a loop. */
#define EXTENDED_STEPS 4096

struct extended {
    uint64_t r[11];
    uint8_t stack[EXTENDED_STACK];
    struct __sk_buff about;
    uint8_t *frame;
    size_t length;
    size_t linear; /* so many bytes of the frame can be read where they stand */
    uint64_t *map; /* the values of the one map, an array */
    size_t map_length;
    uint64_t now; /* CLOCK_BOOTTIME */

    /* For the defence alone. */
    uint8_t *memory; /* the one value of its map */
    size_t memory_size;
    uint8_t *record; /* what a reservation in the ring gives; NULL: it is full */
    size_t record_size;
    bool reserved;
    uint64_t kept; /* how the reservation ended: BPF_FUNC_ringbuf_submit or _discard; 0: there is
                      none */
    uint64_t redirect_error;
    uint32_t hash;
    unsigned int sent; /* so many clones were sent */
    uint8_t sent_frame[FRAME_MAX];
};

static inline uint64_t as_number(const void *pointer)
{
    return (uint64_t)(uintptr_t)pointer;
}

/* Memory that the program may use; frame and description it may only read. */
static inline void *extended_at(struct extended *e, uint64_t address, size_t size, bool write)
{
    uint64_t stack = as_number(e->stack);
    uint64_t about = as_number(&e->about);
    uint64_t map = as_number(e->map);
    size_t map_size = e->map_length * sizeof *e->map;

    if (!write && e->linear >= size && address >= EXTENDED_FRAME &&
        address - EXTENDED_FRAME <= e->linear - size)
        return e->frame + (address - EXTENDED_FRAME);
    if (address >= stack && address - stack <= EXTENDED_STACK - size)
        return e->stack + (address - stack);
    if (e->memory_size >= size && address >= as_number(e->memory) &&
        address - as_number(e->memory) <= e->memory_size - size)
        return e->memory + (address - as_number(e->memory));
    if (e->reserved && address >= as_number(e->record) &&
        address - as_number(e->record) <= e->record_size - size)
        return e->record + (address - as_number(e->record));
    if (map_size >= size && address >= map && address - map <= map_size - size)
        return (uint8_t *)e->map + (address - map);
    MUST(!write && address >= about && address - about <= sizeof e->about - size);
    return (uint8_t *)&e->about + (address - about);
}

static inline size_t extended_size(uint8_t code)
{
    switch (BPF_SIZE(code)) {
    case BPF_B:
        return 1;
    case BPF_H:
        return 2;
    case BPF_W:
        return 4;
    default:
        return 8;
    }
}

static inline uint64_t extended_arithmetic(uint8_t code, uint64_t a, uint64_t b, bool wide)
{
    unsigned int shift = (unsigned int)(b & (wide ? 63 : 31));
    uint64_t result;

    if (!wide) {
        a = (uint32_t)a;
        b = (uint32_t)b;
    }
    switch (BPF_OP(code)) {
    case BPF_ADD:
        result = a + b;
        break;
    case BPF_SUB:
        result = a - b;
        break;
    case BPF_MUL:
        result = a * b;
        break;
    case BPF_DIV:
        result = b == 0 ? 0 : a / b;
        break;
    case BPF_MOD:
        result = b == 0 ? a : a % b;
        break;
    case BPF_AND:
        result = a & b;
        break;
    case BPF_OR:
        result = a | b;
        break;
    case BPF_XOR:
        result = a ^ b;
        break;
    case BPF_LSH:
        result = a << shift;
        break;
    case BPF_RSH:
        result = a >> shift;
        break;
    case BPF_NEG:
        result = -a;
        break;
    case BPF_MOV:
        result = b;
        break;
    default:
        FAIL("not arithmetic that this interpreter knows");
        result = 0;
    }
    return wide ? result : (uint32_t)result;
}

static inline bool extended_test(uint8_t code, uint64_t a, uint64_t b)
{
    switch (BPF_OP(code)) {
    case BPF_JA:
        return true;
    case BPF_JEQ:
        return a == b;
    case BPF_JNE:
        return a != b;
    case BPF_JGT:
        return a > b;
    case BPF_JGE:
        return a >= b;
    case BPF_JLT:
        return a < b;
    case BPF_JLE:
        return a <= b;
    case BPF_JSET:
        return (a & b) != 0;
    case BPF_JSGT:
        return (int64_t)a > (int64_t)b;
    case BPF_JSGE:
        return (int64_t)a >= (int64_t)b;
    case BPF_JSLT:
        return (int64_t)a < (int64_t)b;
    case BPF_JSLE:
        return (int64_t)a <= (int64_t)b;
    default:
        FAIL("not a jump that this interpreter knows");
        return false;
    }
}

/* As many bytes as can be read where they stand: all of them, or the header alone, as of a frame
 * from a packet ring. */
static inline size_t extended_linear(size_t length, bool ring)
{
    return ring && length > ETH_HLEN ? ETH_HLEN : length;
}

/* What is copied between frame and memory, if all of it is in the frame; else the function
 * returns -EFAULT. */
static inline uint64_t extended_copy(struct extended *e, uint64_t offset, uint64_t memory,
                                     uint64_t size, bool into_frame)
{
    void *at = extended_at(e, memory, (size_t)size, !into_frame);

    if (offset > e->length || size > e->length - offset)
        return (uint64_t)-14;
    if (into_frame)
        memcpy(e->frame + offset, at, (size_t)size);
    else
        memcpy(at, e->frame + offset, (size_t)size);
    return 0;
}

/* The place of a value; 0: no such key. */
static inline uint64_t extended_lookup(struct extended *e, uint64_t map, uint64_t key_at)
{
    uint32_t key;

    MUST(map == as_number(e->map));
    memcpy(&key, extended_at(e, key_at, sizeof key, false), sizeof key);
    return key < e->map_length ? as_number(&e->map[key]) : 0;
}

static inline void extended_call(struct extended *e, int function)
{
    uint64_t *r = e->r;

    switch (function) {
    case BPF_FUNC_skb_load_bytes:
        MUST(r[1] == as_number(&e->about));
        r[0] = extended_copy(e, (uint32_t)r[2], r[3], (uint32_t)r[4], false);
        break;
    case BPF_FUNC_skb_store_bytes:
        MUST(r[1] == as_number(&e->about) && r[5] == 0);
        r[0] = extended_copy(e, (uint32_t)r[2], r[3], (uint32_t)r[4], true);
        break;
    case BPF_FUNC_map_lookup_elem:
        r[0] = extended_lookup(e, r[1], r[2]);
        break;
    case BPF_FUNC_ktime_get_boot_ns:
        r[0] = e->now;
        break;
    case BPF_FUNC_ringbuf_reserve:
        MUST(r[1] == as_number(e->map) && r[2] == e->record_size && r[3] == 0 && !e->reserved);
        e->reserved = e->record != NULL;
        r[0] = as_number(e->record);
        break;
    case BPF_FUNC_ringbuf_submit:
    case BPF_FUNC_ringbuf_discard:
        MUST(e->reserved && r[1] == as_number(e->record));
        e->reserved = false;
        e->kept = (uint64_t)function;
        break;
    case BPF_FUNC_set_hash:
        MUST(r[1] == as_number(&e->about));
        e->hash = (uint32_t)r[2];
        break;
    case BPF_FUNC_clone_redirect:
        MUST(r[1] == as_number(&e->about) && r[2] == e->about.ifindex && r[3] == 0);
        memcpy(e->sent_frame, e->frame, FRAME_MAX);
        e->sent++;
        r[0] = e->redirect_error;
        break;
    default:
        FAIL("not a function that this interpreter knows");
    }
    /* The kernel leaves nothing of use in these. */
    for (int i = 1; i <= 5; i++)
        r[i] = 0xdeadbeefdeadbeef;
}

/* Adds, and may fetch; or compares with r0 and exchanges. */
static inline void extended_atomic(struct extended *e, const struct bpf_insn *code, uint64_t at)
{
    uint64_t *source = &e->r[code->src_reg];
    uint64_t before, after;
    void *place = extended_at(e, at, sizeof before, true);

    MUST(BPF_SIZE(code->code) == BPF_DW);
    memcpy(&before, place, sizeof before);
    if ((code->imm & ~BPF_FETCH) == BPF_ADD) {
        after = before + *source;
        if ((code->imm & BPF_FETCH) != 0)
            *source = before;
    } else {
        MUST(code->imm == BPF_CMPXCHG);
        after = before == e->r[0] ? *source : before;
        e->r[0] = before;
    }
    memcpy(place, &after, sizeof after);
}

static inline void extended_step(struct extended *e, const struct bpf_insn *code)
{
    uint64_t *to = &e->r[code->dst_reg];
    uint64_t operand =
        BPF_SRC(code->code) == BPF_X ? e->r[code->src_reg] : (uint64_t)(int64_t)code->imm;
    size_t size = extended_size(code->code);
    uint64_t offset = (uint64_t)(int64_t)code->off;

    switch (BPF_CLASS(code->code)) {
    case BPF_ALU64:
        *to = extended_arithmetic(code->code, *to, operand, true);
        break;
    case BPF_ALU:
        if (BPF_OP(code->code) == BPF_END) {
            MUST(BPF_SRC(code->code) == BPF_TO_BE && code->imm == 16);
            *to = htons((uint16_t)*to);
            break;
        }
        *to = extended_arithmetic(code->code, *to, operand, false);
        break;
    case BPF_LDX:
        MUST(BPF_MODE(code->code) == BPF_MEM);
        *to = 0; /* little endian, as the machines of the tests are */
        memcpy(to, extended_at(e, e->r[code->src_reg] + offset, size, false), size);
        break;
    case BPF_ST:
        MUST(BPF_MODE(code->code) == BPF_MEM);
        operand = (uint64_t)(int64_t)code->imm;
        memcpy(extended_at(e, *to + offset, size, true), &operand, size);
        break;
    case BPF_STX:
        if (BPF_MODE(code->code) == BPF_ATOMIC) {
            extended_atomic(e, code, *to + offset);
            break;
        }
        MUST(BPF_MODE(code->code) == BPF_MEM);
        memcpy(extended_at(e, *to + offset, size, true), &e->r[code->src_reg], size);
        break;
    default:
        FAIL("not an instruction that this interpreter knows");
    }
}

/* Runs the program on the frame, which it may change; what the program returns. */
static inline uint32_t extended_run(struct extended *e, const struct bpf_insn *program,
                                    size_t count)
{
    size_t at = 0;

    memset(e->r, 0, sizeof e->r);
    memset(e->stack, 0x5a, sizeof e->stack);
    e->about.data = EXTENDED_FRAME;
    e->about.data_end = EXTENDED_FRAME + (uint32_t)e->linear;
    e->r[1] = as_number(&e->about);
    e->r[10] = as_number(e->stack + EXTENDED_STACK);
    for (int steps = 0; steps < EXTENDED_STEPS; steps++) {
        const struct bpf_insn *code = &program[at++];

        MUST(at <= count && code->dst_reg <= 10 && code->src_reg <= 10);
        if (code->code == (BPF_LD | BPF_DW | BPF_IMM)) {
            MUST(at < count);
            if (code->src_reg == BPF_PSEUDO_MAP_FD)
                e->r[code->dst_reg] = as_number(e->map);
            else if (code->src_reg == BPF_PSEUDO_MAP_VALUE)
                e->r[code->dst_reg] = as_number(e->memory) + (uint32_t)program[at].imm;
            else
                e->r[code->dst_reg] = (uint32_t)code->imm | (uint64_t)(uint32_t)program[at].imm
                                                                << 32;
            at++; /* its second half */
        } else if (BPF_CLASS(code->code) != BPF_JMP) {
            extended_step(e, code);
        } else if (BPF_OP(code->code) == BPF_EXIT) {
            return (uint32_t)e->r[0];
        } else if (BPF_OP(code->code) == BPF_CALL) {
            extended_call(e, code->imm);
        } else if (extended_test(code->code, e->r[code->dst_reg],
                                 BPF_SRC(code->code) == BPF_X ? e->r[code->src_reg]
                                                              : (uint64_t)(int64_t)code->imm)) {
            at += (size_t)code->off;
        }
    }
    FAIL("not a program that ends");
    return 0;
}

#endif
