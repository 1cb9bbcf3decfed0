/* What the eBPF programs (broadcast.c, defence.c) share: instructions, and the system calls. */
#ifndef AUTOIP_EBPF_H
#define AUTOIP_EBPF_H

#include "assembler.h"

#include <stddef.h>

#include <asm/byteorder.h>

/* Instructions of program `p`, with BPF_REG_n as numbers. */
#define DO(...) autoip_asm_extended(p, (struct bpf_insn){__VA_ARGS__})
#define MOVE(to, from) DO(.code = BPF_ALU64 | BPF_MOV | BPF_X, .dst_reg = (to), .src_reg = (from))
#define SET(to, value) DO(.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = (to), .imm = (value))
#define ADD(to, value) DO(.code = BPF_ALU64 | BPF_ADD | BPF_K, .dst_reg = (to), .imm = (value))
#define LOAD(size, to, base, offset)                                                             \
    DO(.code = BPF_LDX | (size) | BPF_MEM, .dst_reg = (to), .src_reg = (base), .off = (offset))
#define STORE(size, base, offset, value)                                                         \
    DO(.code = BPF_ST | (size) | BPF_MEM, .dst_reg = (base), .off = (offset), .imm = (value))
#define AND(to, value) DO(.code = BPF_ALU64 | BPF_AND | BPF_K, .dst_reg = (to), .imm = (value))
#define PUT(size, base, offset, from)                                                            \
    DO(.code = BPF_STX | (size) | BPF_MEM, .dst_reg = (base), .src_reg = (from), .off = (offset))
#define CALL(function) DO(.code = BPF_JMP | BPF_CALL, .imm = (function))
#define EXIT() DO(.code = BPF_JMP | BPF_EXIT)
#define UNLESS_EQUAL(register, value, label)                                                     \
    autoip_asm_extended_jump(p,                                                                  \
                             (struct bpf_insn){.code = BPF_JMP | BPF_JNE | BPF_K,                \
                                               .dst_reg = (register),                            \
                                               .imm = (value)},                                  \
                             label)

#define LOAD_64(to, value)                                                                       \
    do {                                                                                         \
        DO(.code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = (to), .imm = (int32_t)(value));         \
        DO(.imm = (int32_t)((uint64_t)(value) >> 32));                                           \
    } while (0)
#define LOAD_MAP(to, map)                                                                        \
    do {                                                                                         \
        DO(.code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = (to), .src_reg = BPF_PSEUDO_MAP_FD,     \
           .imm = (map));                                                                        \
        DO(.code = 0); /* the second half: the map */                                            \
    } while (0)
/* The memory of a map's only entry, from this offset on. */
#define LOAD_MEMORY(to, map, offset)                                                             \
    do {                                                                                         \
        DO(.code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = (to), .src_reg = BPF_PSEUDO_MAP_VALUE,  \
           .imm = (map));                                                                        \
        DO(.imm = (int32_t)(offset));                                                            \
    } while (0)
#define GO(label) autoip_asm_extended_jump(p, (struct bpf_insn){.code = BPF_JMP | BPF_JA}, label)
/* Compares registers, or a register with a number, by `test` (BPF_JNE, BPF_JGE and so on). */
#define IF(test, one, other, label)                                                              \
    autoip_asm_extended_jump(p,                                                                  \
                             (struct bpf_insn){.code = BPF_JMP | (test) | BPF_X,                 \
                                               .dst_reg = (one),                                 \
                                               .src_reg = (other)},                              \
                             label)
#define IF_NUMBER(test, one, value, label)                                                       \
    autoip_asm_extended_jump(                                                                    \
        p,                                                                                       \
        (struct bpf_insn){.code = BPF_JMP | (test) | BPF_K, .dst_reg = (one), .imm = (value)},   \
        label)

/*
 * R`to` <- the frame that r6 describes; r3 and r4 are lost. Jumps if fewer than `length` bytes
 * can be read there: then they must be copied. Of a frame from a packet ring it is the Ethernet
 * header alone.
 */
#define IF_SHORT(to, length, label)                                                              \
    do {                                                                                         \
        LOAD(BPF_W, to, 6, CONTEXT(data));                                                       \
        LOAD(BPF_W, 3, 6, CONTEXT(data_end));                                                    \
        MOVE(4, to);                                                                             \
        ADD(4, length);                                                                          \
        IF(BPF_JGT, 4, 3, label);                                                                \
    } while (0)

#define CONTEXT(field) ((short)offsetof(struct __sk_buff, field))
#define WIRE(value) ((int)__constant_htons(value))

/* What older versions of linux/bpf.h lack (Linux 6.6). */
#define AUTOIP_TCX_INGRESS 46
#define AUTOIP_TCX_EGRESS 47
#define AUTOIP_TCX_BEFORE 8 /* BPF_F_BEFORE: first of all */

/* The name of each program and map. */
#define AUTOIP_EBPF_NAME "autoip"

/* Creates a map with 4-byte keys: a descriptor, closed on exec, or a negative errno. */
int autoip_ebpf_map(enum bpf_map_type type, uint32_t value_size, uint32_t entries,
                    uint32_t flags);

/* Loads a program for frames of an interface. `length` may be a negative errno: then it is the
 * result. Returns a descriptor, closed on exec, or a negative errno. */
int autoip_ebpf_load(const struct bpf_insn *program, int length);

#endif
