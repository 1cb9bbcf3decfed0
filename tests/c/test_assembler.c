/* The assembler alone: where jumps go, and what is refused. */
#include "assembler.h"
#include "check.h"

#include <errno.h>
#include <limits.h>

enum { HERE, THERE, END, NEXT = AUTOIP_ASM_NEXT };

static const struct sock_filter classic = {.code = BPF_LD | BPF_IMM, .jt = 3, .jf = 4, .k = 5};
static const struct sock_filter branch = {.code = BPF_JMP | BPF_JEQ | BPF_K, .k = 7};
static const struct bpf_insn extended = {.code = BPF_ALU64 | BPF_MOV | BPF_K, .off = 3, .imm = 9};
static const struct bpf_insn jump = {.code = BPF_JMP | BPF_JNE | BPF_K, .dst_reg = 2, .imm = 8};

static struct autoip_asm program;
static struct sock_filter filter[AUTOIP_ASM_INSTRUCTIONS];
static struct bpf_insn insns[AUTOIP_ASM_INSTRUCTIONS];

static void add(int count)
{
    for (int i = 0; i < count; i++)
        autoip_asm_classic(&program, classic);
}

static void add_extended(int count)
{
    for (int i = 0; i < count; i++)
        autoip_asm_extended(&program, extended);
}

static int finish(void)
{
    return autoip_asm_finish(&program, filter, AUTOIP_ASM_INSTRUCTIONS);
}

/* A jump over `between` instructions to THERE. */
static int classic_over(int between)
{
    autoip_asm_init(&program);
    autoip_asm_classic_jump(&program, branch, THERE, NEXT);
    add(between);
    autoip_asm_place(&program, THERE);
    add(1);
    return finish();
}

static void test_classic(void)
{
    autoip_asm_init(&program);
    autoip_asm_classic_jump(&program, branch, END, NEXT);
    autoip_asm_classic_jump(&program, branch, NEXT, THERE);
    add(2);
    autoip_asm_classic_jump(&program, branch, THERE, END);
    autoip_asm_place(&program, THERE);
    add(1);
    autoip_asm_place(&program, END);
    add(1);
    CHECK(finish() == 7);
    CHECK(filter[0].jt == 5 && filter[0].jf == 0);
    CHECK(filter[1].jt == 0 && filter[1].jf == 3);
    CHECK(filter[4].jt == 0 && filter[4].jf == 1);
    CHECK(filter[0].code == branch.code && filter[0].k == branch.k);
    /* An instruction that is not a jump is unchanged. */
    CHECK(memcmp(&filter[2], &classic, sizeof classic) == 0);
}

static void test_extended(void)
{
    autoip_asm_init(&program);
    autoip_asm_place(&program, HERE);
    add_extended(1);
    autoip_asm_extended_jump(&program, jump, END);
    autoip_asm_extended_jump(&program, jump, HERE);
    autoip_asm_extended_jump(&program, jump, NEXT);
    add_extended(1);
    autoip_asm_place(&program, END);
    add_extended(1);
    CHECK(autoip_asm_finish(&program, insns, AUTOIP_ASM_INSTRUCTIONS) == 6);
    CHECK(insns[1].off == 3);
    CHECK(insns[2].off == -3); /* back */
    CHECK(insns[3].off == 0);
    CHECK(insns[1].code == jump.code && insns[1].dst_reg == 2 && insns[1].imm == 8);
    CHECK(memcmp(&insns[0], &extended, sizeof extended) == 0);
}

static void test_far(void)
{
    CHECK(classic_over(0) == 2 && filter[0].jt == 0);
    CHECK(classic_over(255) == 257 && filter[0].jt == 255);
    CHECK(classic_over(256) == -ERANGE);

    autoip_asm_init(&program);
    autoip_asm_classic_jump(&program, branch, NEXT, THERE);
    add(256);
    autoip_asm_place(&program, THERE);
    add(1);
    CHECK(finish() == -ERANGE);

    autoip_asm_init(&program); /* a classic filter cannot jump back */
    autoip_asm_place(&program, HERE);
    autoip_asm_classic_jump(&program, branch, HERE, NEXT);
    CHECK(finish() == -ERANGE);

    autoip_asm_init(&program); /* over all that a program can have */
    autoip_asm_extended_jump(&program, jump, END);
    add_extended(AUTOIP_ASM_INSTRUCTIONS - 2);
    autoip_asm_place(&program, END);
    add_extended(1);
    CHECK(autoip_asm_finish(&program, insns, AUTOIP_ASM_INSTRUCTIONS) == AUTOIP_ASM_INSTRUCTIONS);
    CHECK(insns[0].off == AUTOIP_ASM_INSTRUCTIONS - 2);
}

static void test_wrong_labels(void)
{
    autoip_asm_init(&program);
    autoip_asm_place(&program, THERE);
    add(1);
    CHECK(finish() == 1);
    autoip_asm_init(&program); /* never placed in this program */
    autoip_asm_classic_jump(&program, branch, THERE, NEXT);
    add(1);
    CHECK(finish() == -ENOENT);

    autoip_asm_init(&program);
    autoip_asm_extended_jump(&program, jump, THERE);
    add_extended(1);
    CHECK(finish() == -ENOENT);

    autoip_asm_init(&program); /* behind the last instruction */
    autoip_asm_classic_jump(&program, branch, THERE, NEXT);
    autoip_asm_place(&program, THERE);
    CHECK(finish() == -ENOENT);

    autoip_asm_init(&program);
    autoip_asm_place(&program, THERE);
    add(1);
    autoip_asm_place(&program, THERE);
    add(1);
    CHECK(finish() == -EEXIST);

    autoip_asm_init(&program); /* no such label */
    autoip_asm_place(&program, AUTOIP_ASM_LABELS);
    add(1);
    CHECK(finish() == -EINVAL);
    autoip_asm_init(&program);
    autoip_asm_extended_jump(&program, jump, AUTOIP_ASM_LABELS + 1);
    add(1);
    CHECK(finish() == -EINVAL);
    autoip_asm_init(&program);
    autoip_asm_classic_jump(&program, branch, NEXT, UINT_MAX);
    add(1);
    CHECK(finish() == -EINVAL);
}

static void test_bounds(void)
{
    autoip_asm_init(&program);
    CHECK(autoip_asm_finish(&program, filter, 0) == 0);
    add(3);
    CHECK(autoip_asm_finish(&program, filter, 2) == -ENOSPC);

    autoip_asm_init(&program);
    add(AUTOIP_ASM_INSTRUCTIONS);
    CHECK(finish() == AUTOIP_ASM_INSTRUCTIONS);
    add(1);
    CHECK(finish() == -ENOSPC);

    autoip_asm_init(&program);
    for (int i = 0; i < AUTOIP_ASM_JUMPS; i++)
        autoip_asm_extended_jump(&program, jump, END);
    autoip_asm_place(&program, END);
    add(1);
    CHECK(finish() == AUTOIP_ASM_JUMPS + 1);
    autoip_asm_extended_jump(&program, jump, END);
    CHECK(finish() == -ENOSPC);

    autoip_asm_init(&program); /* the first error counts */
    autoip_asm_place(&program, AUTOIP_ASM_LABELS);
    add(AUTOIP_ASM_INSTRUCTIONS + 1);
    autoip_asm_classic_jump(&program, branch, THERE, NEXT);
    CHECK(finish() == -EINVAL);
    autoip_asm_init(&program); /* and a new program has none */
    add(1);
    CHECK(finish() == 1);
}

int main(void)
{
    test_classic();
    test_extended();
    test_far();
    test_wrong_labels();
    test_bounds();
    printf("assembler: ok\n");
    return 0;
}
