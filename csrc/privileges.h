/* Capabilities as bit sets: bit N is the capability with number N. */
#ifndef AUTOIP_PRIVILEGES_H
#define AUTOIP_PRIVILEGES_H

#include <stdint.h>

/* The calling thread's permitted set.  0 or a negative errno. */
int autoip_privileges_permitted(uint64_t *permitted);

/*
 * Leaves the calling thread `keep`, permitted and effective, and nothing else: inheritable and
 * ambient sets are emptied, the bounding set is cut down to `keep` (where CAP_SETPCAP is
 * permitted), and programs started later cannot gain any.  With `pass_on` such programs have
 * `keep` as well, whatever the user.  -EPERM, with nothing changed, if `keep` is not permitted.
 */
int autoip_privileges_limit(uint64_t keep, int pass_on);

/*
 * Gives the calling thread the rights of this user and group on files, and on nothing else.  Each
 * has to be the thread's real, effective or saved one, or needs CAP_SETUID or CAP_SETGID; -EPERM
 * otherwise, and then the rights may be those of the group already.
 */
int autoip_privileges_files_as(uint32_t user, uint32_t group);

#endif
