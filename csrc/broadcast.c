/*
 * RFC 3927, 2.5: "all ARP packets (*replies* as well as requests) that contain a Link-Local
 * 'sender IP address' MUST be sent using link-layer broadcast". The kernel answers, and probes
 * a stale neighbour, by unicast. So a program of a few instructions checks what leaves an
 * interface, and gives such packets another destination.
 *
 * It is a filter with "direct action" for the egress of a clsact qdisc, where a frame begins with
 * its Ethernet header.
 */
#include "assembler.h"
#include "internal.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <asm/byteorder.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <sys/syscall.h>

/* The ARP packet as a copy on the stack, in the byte order of the wire: frame bytes 14 to 41. */
#define ARP_AT ETH_HLEN
#define ARP_LENGTH (AUTOIP_FRAME_LEN - ETH_HLEN)
#define COPY (-ARP_LENGTH)
#define COPY_OF(frame_offset) (COPY + (frame_offset) - ARP_AT)

/* Instructions of program `p`, with BPF_REG_n as numbers. */
#define DO(...) autoip_asm_extended(p, (struct bpf_insn){__VA_ARGS__})
#define MOVE(to, from) DO(.code = BPF_ALU64 | BPF_MOV | BPF_X, .dst_reg = (to), .src_reg = (from))
#define SET(to, value) DO(.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = (to), .imm = (value))
#define ADD(to, value) DO(.code = BPF_ALU64 | BPF_ADD | BPF_K, .dst_reg = (to), .imm = (value))
#define LOAD(size, to, base, offset)                                                             \
    DO(.code = BPF_LDX | (size) | BPF_MEM, .dst_reg = (to), .src_reg = (base), .off = (offset))
#define STORE(size, base, offset, value)                                                         \
    DO(.code = BPF_ST | (size) | BPF_MEM, .dst_reg = (base), .off = (offset), .imm = (value))
#define CALL(function) DO(.code = BPF_JMP | BPF_CALL, .imm = (function))
#define EXIT() DO(.code = BPF_JMP | BPF_EXIT)
#define UNLESS_EQUAL(register, value, label)                                                     \
    autoip_asm_extended_jump(p,                                                                  \
                             (struct bpf_insn){.code = BPF_JMP | BPF_JNE | BPF_K,                \
                                               .dst_reg = (register),                            \
                                               .imm = (value)},                                  \
                             label)

#define CONTEXT(field) ((short)offsetof(struct __sk_buff, field))
#define WIRE(value) ((int)__constant_htons(value))

int autoip_broadcast_build(struct bpf_insn *out, size_t capacity)
{
    enum { PASS };
    struct autoip_asm program;
    struct autoip_asm *p = &program;

    autoip_asm_init(p);
    MOVE(6, 1);                               /* r6 <- the frame's description */
    LOAD(BPF_W, 2, 6, CONTEXT(protocol));     /* r2 <- type */
    UNLESS_EQUAL(2, WIRE(ETH_P_ARP), PASS);   /* not ARP? */
    LOAD(BPF_W, 2, 6, CONTEXT(vlan_present)); /* r2 <- VLAN tag beside the bytes? */
    UNLESS_EQUAL(2, 0, PASS);                 /* tagged? */

    /* Copied: of a frame from a packet ring only the header is directly accessible. */
    MOVE(1, 6);
    SET(2, ARP_AT);
    MOVE(3, 10);
    ADD(3, COPY);
    SET(4, ARP_LENGTH);
    CALL(BPF_FUNC_skb_load_bytes); /* copy <- the ARP packet */
    UNLESS_EQUAL(0, 0, PASS);      /* too short? */

    LOAD(BPF_H, 2, 10, COPY_OF(14));            /* r2 <- hardware type */
    UNLESS_EQUAL(2, WIRE(1), PASS);             /* not Ethernet? */
    LOAD(BPF_H, 2, 10, COPY_OF(16));            /* r2 <- protocol type */
    UNLESS_EQUAL(2, WIRE(ETH_P_IP), PASS);      /* not IPv4? */
    LOAD(BPF_H, 2, 10, COPY_OF(18));            /* r2 <- lengths */
    UNLESS_EQUAL(2, WIRE(0x0604), PASS);        /* not 6 and 4? */
    LOAD(BPF_H, 2, 10, COPY_OF(AUTOIP_SPA_AT)); /* r2 <- SPA, first 2 */
    UNLESS_EQUAL(2, WIRE(0xa9fe), PASS);        /* not 169.254? */

    STORE(BPF_W, 10, COPY, -1); /* copy <- the broadcast address */
    STORE(BPF_W, 10, COPY + 4, -1);
    MOVE(1, 6);
    SET(2, 0); /* offset of the destination */
    MOVE(3, 10);
    ADD(3, COPY);
    SET(4, ETH_ALEN);
    SET(5, 0);
    CALL(BPF_FUNC_skb_store_bytes); /* destination <- copy */

    autoip_asm_place(p, PASS);
    SET(0, TC_ACT_UNSPEC); /* other filters follow */
    EXIT();
    return autoip_asm_finish(p, out, capacity);
}

int autoip_broadcast_load(void)
{
    /* Neither function demands a program under the GPL. */
    static const char license[] = "Apache-2.0";
    struct bpf_insn program[AUTOIP_BROADCAST_MAX];
    union bpf_attr attributes;
    int length = autoip_broadcast_build(program, AUTOIP_BROADCAST_MAX);
    long result;

    if (length < 0)
        return length;
    memset(&attributes, 0, sizeof attributes);
    attributes.prog_type = BPF_PROG_TYPE_SCHED_CLS;
    attributes.insns = (uint64_t)(uintptr_t)program;
    attributes.insn_cnt = (uint32_t)length;
    attributes.license = (uint64_t)(uintptr_t)license;
    memcpy(attributes.prog_name, "autoip", sizeof "autoip");
    result = syscall(SYS_bpf, BPF_PROG_LOAD, &attributes, sizeof attributes);
    return result < 0 ? -errno : (int)result;
}

int autoip_broadcast_before(int ifindex)
{
    /* BPF_TCX_EGRESS of linux/bpf.h, which older ones lack. */
    enum { TCX_EGRESS = 47 };
    union bpf_attr attributes;

    memset(&attributes, 0, sizeof attributes);
    /* An interface's index here, where other kinds of programs have a descriptor. */
    attributes.query.target_fd = (uint32_t)ifindex;
    attributes.query.attach_type = TCX_EGRESS;
    if (syscall(SYS_bpf, BPF_PROG_QUERY, &attributes, sizeof attributes) == 0)
        return (int)attributes.query.prog_cnt;
    /* Nothing was ever attached; the kernel is older, or was built without. */
    if (errno == ENOENT || errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP)
        return 0;
    return -errno;
}
