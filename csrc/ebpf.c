/* The system calls for eBPF: see ebpf.h. */
#include "ebpf.h"
#include "internal.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <sys/syscall.h>

int autoip_ebpf_map(enum bpf_map_type type, uint32_t value_size, uint32_t entries, uint32_t flags)
{
    union bpf_attr attributes;
    long result;

    memset(&attributes, 0, sizeof attributes);
    attributes.map_type = type;
    attributes.key_size = type == BPF_MAP_TYPE_RINGBUF ? 0 : sizeof(uint32_t);
    attributes.value_size = value_size;
    attributes.max_entries = entries;
    attributes.map_flags = flags;
    memcpy(attributes.map_name, "autoip", sizeof "autoip");
    result = syscall(SYS_bpf, BPF_MAP_CREATE, &attributes, sizeof attributes);
    return result < 0 ? -errno : (int)result;
}

int autoip_ebpf_attached(int ifindex, uint32_t where)
{
    union bpf_attr attributes;

    memset(&attributes, 0, sizeof attributes);
    /* An interface's index here, where other kinds of programs have a descriptor. */
    attributes.query.target_fd = (uint32_t)ifindex;
    attributes.query.attach_type = where;
    if (syscall(SYS_bpf, BPF_PROG_QUERY, &attributes, sizeof attributes) < 0)
        return -errno;
    return (int)attributes.query.prog_cnt;
}

int autoip_ebpf_load(const struct bpf_insn *program, int length)
{
    /* No function that is called demands a program under the GPL. */
    static const char license[] = "Apache-2.0";
    union bpf_attr attributes;
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
