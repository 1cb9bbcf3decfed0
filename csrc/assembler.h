/*
 * Writes programs for the kernel whose jumps name labels: both kinds, classic filters
 * (linux/filter.h) and eBPF (linux/bpf.h). A label may be used before it is placed.
 *
 * The functions that add to a program return nothing: autoip_asm_finish() returns the first
 * error.
 */
#ifndef AUTOIP_ASSEMBLER_H
#define AUTOIP_ASSEMBLER_H

#include <stddef.h>
#include <stdint.h>

#include <linux/bpf.h>
#include <linux/filter.h>

/* Bounds of a program. */
#define AUTOIP_ASM_INSTRUCTIONS 512
#define AUTOIP_ASM_JUMPS 64
#define AUTOIP_ASM_LABELS 16

/* In the place of a label: do not jump, the instruction that follows is next. */
#define AUTOIP_ASM_NEXT AUTOIP_ASM_LABELS

union autoip_instruction {
    struct sock_filter classic;
    struct bpf_insn extended;
};
_Static_assert(sizeof(union autoip_instruction) == 8, "both kinds are of one size");

/* The field of a distance: condition true, condition false, eBPF's only one. */
enum autoip_asm_field { AUTOIP_ASM_JT, AUTOIP_ASM_JF, AUTOIP_ASM_OFF };

/* A distance that must still be written: into which field of which instruction. */
struct autoip_asm_jump {
    size_t at;
    unsigned int label;
    enum autoip_asm_field field;
};

struct autoip_asm {
    union autoip_instruction code[AUTOIP_ASM_INSTRUCTIONS];
    size_t length;
    struct autoip_asm_jump jumps[AUTOIP_ASM_JUMPS];
    size_t jump_count;
    size_t places[AUTOIP_ASM_LABELS];
    uint32_t placed; /* bit N: label N has a place */
    int error;       /* the first; 0 or a negative errno */
};

/* Begins an empty program. */
void autoip_asm_init(struct autoip_asm *program);

/* Adds one instruction that is not a jump. */
void autoip_asm_classic(struct autoip_asm *program, struct sock_filter instruction);
void autoip_asm_extended(struct autoip_asm *program, struct bpf_insn instruction);

/* Adds a classic jump to `yes` if its condition holds, else to `no`. Only forward, over up
 * to 255 instructions. */
void autoip_asm_classic_jump(struct autoip_asm *program, struct sock_filter instruction,
                             unsigned int yes, unsigned int no);

/* The same two for the usual instructions: the jump compares A with `k` by `test` (BPF_JEQ...).
 */
void autoip_asm_do(struct autoip_asm *program, uint16_t code, uint32_t k);
void autoip_asm_if(struct autoip_asm *program, uint16_t test, uint32_t k, unsigned int yes,
                   unsigned int no);

/* Adds an eBPF jump to `label` if its condition holds; else the next instruction follows. */
void autoip_asm_extended_jump(struct autoip_asm *program, struct bpf_insn instruction,
                              unsigned int label);

/* Gives the label to the instruction that is added next. */
void autoip_asm_place(struct autoip_asm *program, unsigned int label);

/*
 * Writes the program with its distances to `out` and returns the number of instructions, or the
 * first error: -EINVAL (no such label), -EEXIST (a label placed twice), -ENOENT (a jump to a
 * label that has no place, or that has no instruction), -ERANGE (a jump too far, or a classic one
 * back), -ENOSPC (more than `capacity` instructions, or than the bounds above).
 */
int autoip_asm_finish(struct autoip_asm *program, void *out, size_t capacity);

#endif
