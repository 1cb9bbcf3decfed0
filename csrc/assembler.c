/* Programs for the kernel, with labels: see assembler.h. */
#include "assembler.h"

#include <errno.h>
#include <string.h>

void autoip_asm_init(struct autoip_asm *program)
{
    program->length = 0;
    program->jump_count = 0;
    program->placed = 0;
    program->error = 0;
}

static void asm_fail(struct autoip_asm *program, int error)
{
    if (program->error == 0)
        program->error = error;
}

static void asm_add(struct autoip_asm *program, union autoip_instruction instruction)
{
    if (program->length < AUTOIP_ASM_INSTRUCTIONS)
        program->code[program->length++] = instruction;
    else
        asm_fail(program, -ENOSPC);
}

/* Notes that a field of the next instruction depends on a label. */
static void asm_note(struct autoip_asm *program, unsigned int label, enum autoip_asm_field field)
{
    if (label == AUTOIP_ASM_NEXT)
        return;
    if (label > AUTOIP_ASM_NEXT) {
        asm_fail(program, -EINVAL);
    } else if (program->jump_count == AUTOIP_ASM_JUMPS) {
        asm_fail(program, -ENOSPC);
    } else {
        struct autoip_asm_jump *jump = &program->jumps[program->jump_count++];

        jump->at = program->length;
        jump->label = label;
        jump->field = field;
    }
}

void autoip_asm_classic(struct autoip_asm *program, struct sock_filter instruction)
{
    asm_add(program, (union autoip_instruction){.classic = instruction});
}

void autoip_asm_extended(struct autoip_asm *program, struct bpf_insn instruction)
{
    asm_add(program, (union autoip_instruction){.extended = instruction});
}

void autoip_asm_classic_jump(struct autoip_asm *program, struct sock_filter instruction,
                             unsigned int yes, unsigned int no)
{
    asm_note(program, yes, AUTOIP_ASM_JT);
    asm_note(program, no, AUTOIP_ASM_JF);
    autoip_asm_classic(program, instruction);
}

void autoip_asm_do(struct autoip_asm *program, uint16_t code, uint32_t k)
{
    autoip_asm_classic(program, (struct sock_filter){.code = code, .k = k});
}

void autoip_asm_if(struct autoip_asm *program, uint16_t test, uint32_t k, unsigned int yes,
                   unsigned int no)
{
    const uint16_t code = (uint16_t)(BPF_JMP | test | BPF_K);

    autoip_asm_classic_jump(program, (struct sock_filter){.code = code, .k = k}, yes, no);
}

void autoip_asm_extended_jump(struct autoip_asm *program, struct bpf_insn instruction,
                              unsigned int label)
{
    asm_note(program, label, AUTOIP_ASM_OFF);
    autoip_asm_extended(program, instruction);
}

void autoip_asm_place(struct autoip_asm *program, unsigned int label)
{
    if (label >= AUTOIP_ASM_LABELS) {
        asm_fail(program, -EINVAL);
    } else if ((program->placed >> label & 1) != 0) {
        asm_fail(program, -EEXIST);
    } else {
        program->places[label] = program->length;
        program->placed |= 1u << label;
    }
}

/* Writes the distance of a jump into its field. */
static void asm_link(struct autoip_asm *program, const struct autoip_asm_jump *jump)
{
    union autoip_instruction *instruction = &program->code[jump->at];
    ptrdiff_t distance;

    if ((program->placed >> jump->label & 1) == 0 ||
        program->places[jump->label] >= program->length) {
        asm_fail(program, -ENOENT);
        return;
    }
    distance = (ptrdiff_t)program->places[jump->label] - (ptrdiff_t)jump->at - 1;
    if (jump->field == AUTOIP_ASM_OFF) {
        _Static_assert(AUTOIP_ASM_INSTRUCTIONS <= INT16_MAX, "no jump is too far for 16 bits");
        instruction->extended.off = (int16_t)distance;
    } else if (distance < 0 || distance > UINT8_MAX) {
        asm_fail(program, -ERANGE);
    } else if (jump->field == AUTOIP_ASM_JT) {
        instruction->classic.jt = (uint8_t)distance;
    } else {
        instruction->classic.jf = (uint8_t)distance;
    }
}

int autoip_asm_finish(struct autoip_asm *program, void *out, size_t capacity)
{
    for (size_t i = 0; i < program->jump_count; i++)
        asm_link(program, &program->jumps[i]);
    if (program->length > capacity)
        asm_fail(program, -ENOSPC);
    if (program->error != 0)
        return program->error;
    memcpy(out, program->code, program->length * sizeof *program->code);
    return (int)program->length;
}
