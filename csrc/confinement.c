/* What the process and its children may no longer do: system calls (seccomp) and files
 * (Landlock). */
#include "internal.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

/* The numbers of system calls differ from machine to machine; a process can use those of another.
 */
#if defined(__x86_64__) && !defined(__ILP32__)
#define THIS_MACHINE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define THIS_MACHINE AUDIT_ARCH_AARCH64
#elif defined(__arm__) && defined(AUDIT_ARCH_ARM)
#define THIS_MACHINE AUDIT_ARCH_ARM
#elif defined(__riscv) && __riscv_xlen == 64
#define THIS_MACHINE AUDIT_ARCH_RISCV64
#elif defined(__powerpc64__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define THIS_MACHINE AUDIT_ARCH_PPC64LE
#endif

/* include/uapi/linux/landlock.h, which older systems do not have. */
#define SYS_LANDLOCK_CREATE 444
#define SYS_LANDLOCK_ADD 445
#define SYS_LANDLOCK_RESTRICT 446
#define LANDLOCK_VERSION_FLAG 1u
#define LANDLOCK_BELOW 1u

struct landlock_rules {
    uint64_t files;
    uint64_t net;
    uint64_t scoped;
};

struct landlock_folder {
    uint64_t allowed;
    int32_t parent;
} __attribute__((packed));

int autoip_confined(void)
{
    /* No kernel has this operation; our own filter answers seccomp(2) with an error of its own.
     */
    return syscall(SYS_seccomp, 0xffffffffu, 0, NULL) < 0 && errno == EALREADY;
}

#ifdef THIS_MACHINE
#define LOW_WORD (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? 4 : 0)
#define REFUSE(number) (SECCOMP_RET_ERRNO | (number))

struct writer {
    struct sock_filter *out;
    size_t length;
    size_t capacity;
};

static void write_one(struct writer *w, struct sock_filter instruction)
{
    if (w->length < w->capacity)
        w->out[w->length] = instruction;
    w->length++;
}

#define LOAD_WORD(at)                                                                            \
    write_one(w, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)(at)))
#define JUMP(op, value, yes, no)                                                                 \
    write_one(w, (struct sock_filter)BPF_JUMP(BPF_JMP | (op) | BPF_K, (uint32_t)(value), yes, no))
#define RETURN(value)                                                                            \
    write_one(w, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, (uint32_t)(value)))

int autoip_calls_build(struct sock_filter *out, size_t capacity, const int *calls, size_t count)
{
    struct writer writer = {.out = out, .capacity = capacity};
    struct writer *w = &writer;

    LOAD_WORD(offsetof(struct seccomp_data, arch)); /* A <- machine */
    JUMP(BPF_JEQ, THIS_MACHINE, 1, 0);              /* this one? */
    RETURN(REFUSE(EPERM));
    LOAD_WORD(offsetof(struct seccomp_data, nr)); /* A <- number */

    JUMP(BPF_JEQ, SYS_seccomp, 0, 1); /* autoip_confined() asks? */
    RETURN(REFUSE(EALREADY));

    JUMP(BPF_JEQ, SYS_bpf, 0, 4);                                 /* not bpf(2)? */
    LOAD_WORD(offsetof(struct seccomp_data, args[0]) + LOW_WORD); /* A <- command */
    JUMP(BPF_JEQ, BPF_LINK_CREATE, 0, 1);                         /* autoip_tcx_attach()? */
    RETURN(SECCOMP_RET_ALLOW);
    RETURN(REFUSE(EPERM));

    JUMP(BPF_JEQ, SYS_socket, 0, 6);                              /* not socket(2)? */
    LOAD_WORD(offsetof(struct seccomp_data, args[0]) + LOW_WORD); /* A <- family */
    JUMP(BPF_JEQ, AF_UNIX, 2, 0);
    JUMP(BPF_JEQ, AF_NETLINK, 1, 0);
    JUMP(BPF_JEQ, AF_PACKET, 0, 1);
    RETURN(SECCOMP_RET_ALLOW);
    RETURN(REFUSE(EAFNOSUPPORT));

    /* Numbers that follow each other are one range; the ranges ascend. */
    for (size_t i = 0; i < count;) {
        size_t last = i;

        while (last + 1 < count && calls[last + 1] == calls[last] + 1)
            last++;
        JUMP(BPF_JGE, calls[i], 0, 2); /* before this range, so in none? */
        JUMP(BPF_JGT, calls[last], 2, 0);
        RETURN(SECCOMP_RET_ALLOW);
        RETURN(REFUSE(EPERM));
        i = last + 1;
    }
    /* Newer than all that this program knows: libraries then use an older one. */
    RETURN(REFUSE(ENOSYS));
    return writer.length > capacity || writer.length > BPF_MAXINSNS ? -ENOSPC
                                                                    : (int)writer.length;
}

int autoip_confine_calls(const int *calls, size_t count)
{
    struct sock_filter filter[AUTOIP_CALLS_MAX];
    struct sock_fprog program = {.filter = filter};
    int length = autoip_calls_build(filter, AUTOIP_CALLS_MAX, calls, count);

    if (length < 0)
        return length;
    program.len = (unsigned short)length;
    /* Not seccomp(2), which the service's own filter refuses. */
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) < 0 ? -errno : 0;
}
#else
int autoip_calls_build(struct sock_filter *out, size_t capacity, const int *calls, size_t count)
{
    (void)out, (void)capacity, (void)calls, (void)count;
    return -ENOSYS;
}

int autoip_confine_calls(const int *calls, size_t count)
{
    return autoip_calls_build(NULL, 0, calls, count);
}
#endif

int autoip_files_new(void)
{
    /* Each version of Landlock knows more: that many rights on files, then TCP, then signals. */
    static const int rights[] = {0, 13, 14, 15, 15};
    struct landlock_rules rules = {0};
    long version = syscall(SYS_LANDLOCK_CREATE, NULL, 0, LANDLOCK_VERSION_FLAG);
    size_t size = sizeof rules.files;
    long result;

    if (version < 0)
        return -errno;
    rules.files = ((uint64_t)1 << rights[version < 4 ? version : 4]) - 1;
    if (version >= 4) {
        rules.net = 3; /* bind and connect */
        size = offsetof(struct landlock_rules, scoped);
    }
    if (version >= 6) {
        rules.scoped = 2; /* signals; abstract sockets are the service manager's and D-Bus's */
        size = sizeof rules;
    }
    result = syscall(SYS_LANDLOCK_CREATE, &rules, size, 0);
    return result < 0 ? -errno : (int)result;
}

int autoip_files_allow(int rules, const char *path, uint64_t rights)
{
    struct landlock_folder folder = {.allowed = rights};
    int result = 0;
    long version = syscall(SYS_LANDLOCK_CREATE, NULL, 0, LANDLOCK_VERSION_FLAG);

    if (version < 0)
        return -errno;
    if (version < 3)
        folder.allowed &= ((uint64_t)1 << (version < 2 ? 13 : 14)) - 1;
    folder.parent = open(path, O_PATH | O_CLOEXEC);
    if (folder.parent < 0)
        return -errno;
    if (syscall(SYS_LANDLOCK_ADD, rules, LANDLOCK_BELOW, &folder, 0) < 0)
        result = -errno;
    close(folder.parent);
    return result;
}

int autoip_files_confine(int rules)
{
    return syscall(SYS_LANDLOCK_RESTRICT, rules, 0) < 0 ? -errno : 0;
}
