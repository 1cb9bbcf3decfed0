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
    memcpy(attributes.map_name, AUTOIP_EBPF_NAME, sizeof AUTOIP_EBPF_NAME);
    result = syscall(SYS_bpf, BPF_MAP_CREATE, &attributes, sizeof attributes);
    return result < 0 ? -errno : (int)result;
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
    memcpy(attributes.prog_name, AUTOIP_EBPF_NAME, sizeof AUTOIP_EBPF_NAME);
    result = syscall(SYS_bpf, BPF_PROG_LOAD, &attributes, sizeof attributes);
    return result < 0 ? -errno : (int)result;
}

/* At one side of an interface: as many as the kernel allows. */
#define TCX_MAX 64

int autoip_tcx_attach(int program, int ifindex, bool egress)
{
    union bpf_attr attributes;
    long result;

    memset(&attributes, 0, sizeof attributes);
    attributes.link_create.prog_fd = (uint32_t)program;
    attributes.link_create.target_fd = (uint32_t)ifindex;
    attributes.link_create.attach_type = egress ? AUTOIP_TCX_EGRESS : AUTOIP_TCX_INGRESS;
    attributes.link_create.flags = AUTOIP_TCX_BEFORE;
    result = syscall(SYS_bpf, BPF_LINK_CREATE, &attributes, sizeof attributes);
    if (result < 0)
        return errno == EINVAL ? -EOPNOTSUPP : -errno; /* it knows no such link */
    return (int)result;
}

/* Whether the program with this number is ours: 1, 0 or a negative errno. */
static int tcx_is_ours(uint32_t id)
{
    struct bpf_prog_info info;
    union bpf_attr attributes;
    long program, result;

    memset(&attributes, 0, sizeof attributes);
    attributes.prog_id = id;
    program = syscall(SYS_bpf, BPF_PROG_GET_FD_BY_ID, &attributes, sizeof attributes);
    if (program < 0)
        return errno == ENOENT ? 0 : -errno; /* detached meanwhile */
    memset(&info, 0, sizeof info);
    memset(&attributes, 0, sizeof attributes);
    attributes.info.bpf_fd = (uint32_t)program;
    attributes.info.info_len = sizeof info;
    attributes.info.info = (uint64_t)(uintptr_t)&info;
    result = syscall(SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &attributes, sizeof attributes);
    result = result < 0 ? -errno : strcmp(info.name, AUTOIP_EBPF_NAME) == 0;
    close((int)program);
    return (int)result;
}

int autoip_tcx_programs(int ifindex, bool egress, int *ours)
{
    uint32_t ids[TCX_MAX] = {0};
    union bpf_attr attributes;
    int count;

    *ours = -1;
    memset(&attributes, 0, sizeof attributes);
    /* An interface's index here, where other kinds of programs have a descriptor. */
    attributes.query.target_fd = (uint32_t)ifindex;
    attributes.query.attach_type = egress ? AUTOIP_TCX_EGRESS : AUTOIP_TCX_INGRESS;
    attributes.query.prog_ids = (uint64_t)(uintptr_t)ids;
    attributes.query.prog_cnt = TCX_MAX;
    if (syscall(SYS_bpf, BPF_PROG_QUERY, &attributes, sizeof attributes) < 0) {
        if (errno == ENOENT)
            return 0; /* nothing was ever attached */
        /* The kernel is older, or was built without. */
        return errno == EINVAL || errno == ENOSYS ? -EOPNOTSUPP : -errno;
    }
    count = (int)attributes.query.prog_cnt;
    for (int i = 0; i < count && i < TCX_MAX && *ours < 0; i++) {
        int result = tcx_is_ours(ids[i]);

        if (result < 0)
            return result;
        if (result > 0)
            *ours = i;
    }
    return count;
}
