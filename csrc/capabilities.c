/* Gives up capabilities, which each thread has for itself: call before a second one starts. */
#include "internal.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <linux/capability.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#define WORDS _LINUX_CAPABILITY_U32S_3

/* glibc has no function for these two; libcap has, but nothing else needs libcap. */
static int capabilities_read(struct __user_cap_data_struct data[WORDS])
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};

    return syscall(SYS_capget, &header, data) < 0 ? -errno : 0;
}

static int capabilities_write(const struct __user_cap_data_struct data[WORDS])
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};

    return syscall(SYS_capset, &header, data) < 0 ? -errno : 0;
}

int autoip_capabilities_permitted(uint64_t *permitted)
{
    struct __user_cap_data_struct data[WORDS];
    int result = capabilities_read(data);

    if (result < 0)
        return result;
    *permitted = (uint64_t)data[1].permitted << 32 | data[0].permitted;
    return 0;
}

/* Shrinks the bounding set, which limits what a program started later can gain. */
static int capabilities_drop_bounding(uint64_t keep)
{
    for (unsigned long capability = 0; capability < 64; capability++) {
        int held = prctl(PR_CAPBSET_READ, capability, 0, 0, 0);

        if (held < 0)
            break; /* the kernel has no further ones */
        if (held == 0 || (keep >> capability & 1) != 0)
            continue;
        if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0)
            return -errno;
    }
    return 0;
}

/*
 * Programs started later keep the capabilities. Those of root do without this; where it is
 * forbidden (SECBIT_NO_CAP_AMBIENT_RAISE) they report themselves what they may not do.
 */
static void capabilities_raise_ambient(uint64_t capabilities)
{
    for (unsigned long capability = 0; capability < 64; capability++) {
        if ((capabilities >> capability & 1) != 0)
            (void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0);
    }
}

int autoip_capabilities_limit(uint64_t keep, bool pass_on)
{
    struct __user_cap_data_struct data[WORDS];
    const uint64_t setpcap = (uint64_t)1 << CAP_SETPCAP;
    uint64_t permitted;
    int result;

    result = autoip_capabilities_permitted(&permitted);
    if (result < 0)
        return result;
    if ((permitted & keep) != keep)
        return -EPERM;

    if ((permitted & setpcap) != 0) {
        memset(data, 0, sizeof data);
        data[0].permitted = (uint32_t)permitted;
        data[1].permitted = (uint32_t)(permitted >> 32);
        data[0].effective = (uint32_t)setpcap;
        result = capabilities_write(data);
        if (result == 0)
            result = capabilities_drop_bounding(keep);
        if (result < 0)
            return result;
    }

    /* The inheritable set is emptied, and with it the ambient one. */
    memset(data, 0, sizeof data);
    data[0].effective = data[0].permitted = (uint32_t)keep;
    data[1].effective = data[1].permitted = (uint32_t)(keep >> 32);
    if (pass_on) {
        data[0].inheritable = data[0].permitted;
        data[1].inheritable = data[1].permitted;
    }
    result = capabilities_write(data);
    if (result < 0)
        return result;
    if (pass_on)
        capabilities_raise_ambient(keep);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -errno;
    return 0;
}

int autoip_capabilities_keep(void)
{
    return prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0 ? -errno : 0;
}

int autoip_capabilities_files_as(uint32_t user, uint32_t group)
{
    /* Neither function reports a failure: each returns the former id, also if given an
     * impossible one. */
    (void)setfsgid(group);
    if ((uint32_t)setfsgid((gid_t)-1) != group)
        return -EPERM;
    (void)setfsuid(user);
    return (uint32_t)setfsuid((uid_t)-1) == user ? 0 : -EPERM;
}
