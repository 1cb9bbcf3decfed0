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

#endif
