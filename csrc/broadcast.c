/*
 * RFC 3927, 2.5: "all ARP packets (*replies* as well as requests) that contain a Link-Local
 * 'sender IP address' MUST be sent using link-layer broadcast". The kernel answers, and probes
 * a stale neighbour, by unicast. So a program of a few instructions checks what leaves an
 * interface, and gives such packets another destination.
 *
 * A host that asks by unicast must not make every host of the link busy with the answers. So a
 * token bucket for each interface bounds how many frames become broadcasts; beyond it a frame
 * leaves as the kernel made it. It allows more than the helper's thread (listener.c), for also
 * the kernel's own requests go through it. It takes no lock: processors that count at the same
 * time may let some more frames through.
 *
 * It is for the egress: by tcx, or as a filter with "direct action" of a clsact qdisc. There a
 * frame begins with its Ethernet header.
 */
#include "ebpf.h"
#include "internal.h"

#include <errno.h>
#include <unistd.h>

#include <linux/if_ether.h>
#include <linux/pkt_cls.h>

/* The ARP packet as a copy on the stack, in the byte order of the wire: frame bytes 14 to 41. */
#define ARP_AT ETH_HLEN
#define ARP_LENGTH (AUTOIP_FRAME_LEN - ETH_HLEN)
#define COPY (-ARP_LENGTH)
#define COPY_OF(frame_offset) (COPY + (frame_offset) - ARP_AT)
/* The interface's bucket, below the copy. */
#define KEY (COPY - 4)

/* The bucket: so many broadcasts at once, and one more after each interval, 50 a second. */
#define BURST 100
#define INTERVAL_NS 20000000
/* Interfaces whose indexes have the same last bits share one. */
#define BUCKETS 256

/* A jump to PASS. */
#define PASS_BY(...) autoip_asm_extended_jump(p, (struct bpf_insn){__VA_ARGS__}, PASS)

enum { PASS, CHANGE, FULL };

/* Goes to PASS for a frame that is a broadcast already: most ARP is. */
static void broadcast_look(struct autoip_asm *p)
{
    IF_SHORT(2, ETH_ALEN, CHANGE); /* r2 <- the frame */
    for (short at = 0; at < ETH_ALEN; at += 2) {
        LOAD(BPF_H, 3, 2, at);
        UNLESS_EQUAL(3, 0xffff, CHANGE);
    }
    PASS_BY(.code = BPF_JMP | BPF_JA);
    autoip_asm_place(p, CHANGE);
}

/* Goes to PASS if the bucket is empty. */
static void broadcast_limit(struct autoip_asm *p, int map)
{
    LOAD(BPF_W, 2, 6, CONTEXT(ifindex));
    AND(2, BUCKETS - 1);
    PUT(BPF_W, 10, KEY, 2);
    LOAD_MAP(1, map);
    MOVE(2, 10);
    ADD(2, KEY);
    CALL(BPF_FUNC_map_lookup_elem);
    PASS_BY(.code = BPF_JMP | BPF_JEQ | BPF_K, .dst_reg = 0, .imm = 0);
    MOVE(7, 0); /* r7 <- the bucket: when it will be full again */
    CALL(BPF_FUNC_ktime_get_boot_ns);
    LOAD(BPF_DW, 2, 7, 0);
    autoip_asm_extended_jump(
        p, (struct bpf_insn){.code = BPF_JMP | BPF_JGE | BPF_X, .dst_reg = 2, .src_reg = 0},
        FULL); /* it is not full? */
    MOVE(2, 0);
    autoip_asm_place(p, FULL);
    ADD(0, (BURST - 1) * INTERVAL_NS);
    PASS_BY(.code = BPF_JMP | BPF_JGT | BPF_X, .dst_reg = 2, .src_reg = 0); /* empty? */
    ADD(2, INTERVAL_NS);
    PUT(BPF_DW, 7, 0, 2);
}

int autoip_broadcast_build(struct bpf_insn *out, size_t capacity, int map)
{
    struct autoip_asm program;
    struct autoip_asm *p = &program;

    autoip_asm_init(p);
    MOVE(6, 1);                               /* r6 <- the frame's description */
    LOAD(BPF_W, 2, 6, CONTEXT(protocol));     /* r2 <- type */
    UNLESS_EQUAL(2, WIRE(ETH_P_ARP), PASS);   /* not ARP? */
    LOAD(BPF_W, 2, 6, CONTEXT(vlan_present)); /* r2 <- VLAN tag beside the bytes? */
    UNLESS_EQUAL(2, 0, PASS);                 /* tagged? */

    broadcast_look(p);
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

    if (map >= 0)
        broadcast_limit(p, map);
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

int autoip_broadcast_load_limited(int map)
{
    struct bpf_insn program[AUTOIP_BROADCAST_MAX];

    return autoip_ebpf_load(program, autoip_broadcast_build(program, AUTOIP_BROADCAST_MAX, map));
}

int autoip_broadcast_load(void)
{
    int map = autoip_ebpf_map(BPF_MAP_TYPE_ARRAY, sizeof(uint64_t), BUCKETS, 0);
    int program = map < 0 ? map : autoip_broadcast_load_limited(map);

    if (map >= 0)
        close(map); /* the program has it */
    /* Before Linux 5.8 there is no such clock. */
    return program == -EINVAL ? autoip_broadcast_load_limited(-1) : program;
}
