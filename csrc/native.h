/*
 * The C helper of autoip: a packet socket for each interface, a filter that lets through nothing
 * but conflicts, and a thread that answers the first of them at once; a BPF program for what
 * leaves; timers; capabilities.
 *
 * Every function returns 0 (or a count) or a negative errno. Nothing here logs, calls
 * Python or has global state. Addresses are in host byte order, times are nanoseconds on
 * CLOCK_BOOTTIME.
 *
 * Threads: each listener has one, for all its sockets. The functions that take a listener or a
 * socket are for one other thread at a time.
 */
#ifndef AUTOIP_NATIVE_H
#define AUTOIP_NATIVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <linux/filter.h>

/* An ARP packet for IPv4 in an Ethernet II frame, without the padding. */
#define AUTOIP_FRAME_LEN 42

/* At most this many hardware addresses of this host belong to a listener. */
#define AUTOIP_OWN_MAX 4096

/* The longest filter has at most this many instructions. */
#define AUTOIP_FILTER_MAX 32

/* What counts as a conflict depends on how far a claim is. */
enum autoip_phase {
    /* No address: no frame passes. */
    AUTOIP_SILENT = 0,
    /* RFC 3927, 2.2.1: another host uses the candidate, or probes for it. */
    AUTOIP_PROBE = 1,
    /* RFC 3927, 2.5: another host uses our address. A probe for it is only a question. */
    AUTOIP_DEFEND = 2,
    /* The same, and questions for our address are answered: see autoip_socket_watch(). */
    AUTOIP_ANSWER = 3
};

/* What a frame is. */
enum autoip_verdict {
    AUTOIP_NOTHING = 0,
    AUTOIP_CONFLICT = 1,
    /* Another host asks, or probes, for our address. Only in phase AUTOIP_ANSWER. */
    AUTOIP_QUESTION = 2
};

/* A conflict, as it is reported to the program. */
struct autoip_event {
    uint64_t received_ns; /* when the kernel received the frame */
    uint64_t defended_ns; /* when the armed frame had been sent; 0: it was not */
    uint32_t token;       /* the socket */
    uint32_t generation;  /* that of the autoip_socket_watch() in force */
    uint8_t frame[AUTOIP_FRAME_LEN];
};

struct autoip_listener;
struct autoip_socket;

/* -- filter.c ------------------------------------------------------------------------- */

/*
 * Writes the filter for this hardware address, IPv4 address and phase to `out`.
 * Returns the number of instructions; -EINVAL for an unknown phase, -ENOSPC if `capacity`
 * is too small (AUTOIP_FILTER_MAX always suffices).
 */
int autoip_filter_build(struct sock_filter *out, size_t capacity, const uint8_t mac[6],
                        uint32_t address, enum autoip_phase phase);

/*
 * The same rule in C, for a frame that the filter has let through. Only the kernel can check
 * what is not in the bytes (direction, VLAN tag).
 */
enum autoip_verdict autoip_filter_accepts(const uint8_t *frame, size_t length,
                                          const uint8_t mac[6], uint32_t address,
                                          enum autoip_phase phase);

/* -- listener.c ------------------------------------------------------------------------ */

/* Starts the thread. *out is set only on success. */
int autoip_listener_new(struct autoip_listener **out);

/* Ends the thread and closes all sockets: pointers to them are no longer valid. */
void autoip_listener_free(struct autoip_listener *listener);

/*
 * Ends the thread and changes nothing else: frames wait in their sockets, events in the queue.
 * Harmless when repeated.
 */
void autoip_listener_pause(struct autoip_listener *listener);

/* Starts the thread again. Harmless when it runs. */
int autoip_listener_resume(struct autoip_listener *listener);

/* A descriptor that is readable while events wait. It belongs to the listener: never close it. */
int autoip_listener_fd(const struct autoip_listener *listener);

/*
 * Sets the hardware addresses of all interfaces of this host, 6 bytes each. Once an address is
 * defended, a frame from one of them is not a conflict, on any socket: by default Linux answers
 * ARP for all its addresses on all its interfaces, and two of these can be on one link. -E2BIG
 * for more than AUTOIP_OWN_MAX. After an error nothing has changed.
 */
int autoip_listener_own(struct autoip_listener *listener, const uint8_t *macs, size_t count);

/*
 * Has the kernel answer conflicts on all interfaces to which the program is attached, by what
 * autoip_socket_arm() and the others say; the thread answers the rest. Call this before a socket
 * is opened, and with the thread paused if the memory was another process image's: then resume
 * when its sockets are taken over. The descriptors stay the caller's.
 */
int autoip_listener_defend(struct autoip_listener *listener, int memory, int ring);

/*
 * Moves up to `capacity` events to `out`, the oldest first, and returns how many. *lost is
 * the number of conflicts, since the start, for which there was no room.
 */
int autoip_listener_drain(struct autoip_listener *listener, struct autoip_event *out,
                          size_t capacity, uint64_t *lost);

/*
 * Opens a packet socket for ARP on an interface (CAP_NET_RAW), silent until
 * autoip_socket_watch(). `mac` is the interface's own hardware address.
 */
int autoip_socket_open(struct autoip_listener *listener, int ifindex, const uint8_t mac[6],
                       struct autoip_socket **out);

/* The same for an open datagram socket, which belongs to the listener on success only. */
int autoip_socket_adopt(struct autoip_listener *listener, int fd, const uint8_t mac[6],
                        struct autoip_socket **out);

/*
 * The same for a packet socket that another process image had, with the filter of this phase and
 * address. Frames that wait in it are handled as such; the first conflict is answered with
 * `armed`, unless that is NULL.
 */
int autoip_socket_take_over(struct autoip_listener *listener, int fd, const uint8_t mac[6],
                            enum autoip_phase phase, uint32_t address, uint32_t generation,
                            const uint8_t *armed, struct autoip_socket **out);

/* Its descriptor, which stays the socket's. */
int autoip_socket_fd(const struct autoip_socket *sock);

/* A number that no other socket of this listener has, or had. */
uint32_t autoip_socket_token(const struct autoip_socket *sock);

/*
 * Watches this address in this phase from now on. Events that follow have this `generation`, and
 * none is about another address. An armed frame for another address is disarmed, and any armed
 * frame by AUTOIP_SILENT. After an error nothing has changed.
 *
 * In phase AUTOIP_ANSWER the thread answers a host that asks for the address, by broadcast (RFC
 * 3927, 2.5) and at a bounded rate. These answers are not reported.
 */
int autoip_socket_watch(struct autoip_socket *sock, enum autoip_phase phase, uint32_t address,
                        uint32_t generation);

/*
 * Sends a frame. *sent_ns is read when the kernel has taken the frame, which is on the wire by
 * then, unless a queue of the interface delays it.
 */
int autoip_socket_send(struct autoip_socket *sock, const uint8_t frame[AUTOIP_FRAME_LEN],
                       uint64_t *sent_ns);

/*
 * Arms the reflex: the next conflict in phase AUTOIP_DEFEND or AUTOIP_ANSWER is answered with
 * this frame, by the thread once, or by the kernel once in each interval. One that is armed stays
 * so. Returns 1, with nothing changed, while the conflict for which the kernel has disarmed
 * itself waits to be drained. -EINVAL if the frame's sender IP is not the watched address.
 */
int autoip_socket_arm(struct autoip_socket *sock, const uint8_t frame[AUTOIP_FRAME_LEN]);

/* Disarms. Once this has returned, neither the thread nor the kernel answers conflicts any more,
 * and what they have answered is in the queue. */
void autoip_socket_disarm(struct autoip_socket *sock);

/*
 * Whether a conflict that came before this call, of the socket's present generation, still waits
 * to be drained: 1 or 0. Frames that wait in the socket are queued first, so 0 means that there
 * was none. Also 1 while the queue has no room for one, and while the listener is paused.
 */
int autoip_socket_pending(struct autoip_socket *sock);

/*
 * Gives the socket up and returns its descriptor, which the caller closes: that takes the kernel
 * some 10 ms for a packet socket. The socket's events that wait in the queue stay there.
 */
int autoip_socket_detach(struct autoip_socket *sock);

/* The conflicts that the kernel's defence has judged on one interface. */
struct autoip_counts {
    uint64_t answered;
    uint64_t left;   /* to the program: another one came less than the interval before */
    uint64_t failed; /* not reported (the ring is full), or not answered (no memory, no link) */
};

/*
 * *out <- the counts of the socket's interface, also of the time before the socket. Returns 0;
 * -ENODATA without the kernel's defence, and before the first autoip_socket_watch(); -EBUSY if
 * another interface has the place in the memory; -E2BIG, with *out set, if this host has too many
 * hardware addresses. With the last two the kernel does not answer. A plain read of memory.
 */
int autoip_socket_counts(const struct autoip_socket *sock, struct autoip_counts *out);

/* -- defence.c ------------------------------------------------------------------------ */

/*
 * Loads the program that answers conflicts at the ingress of an interface (CAP_BPF and
 * CAP_NET_ADMIN), not more than one in `interval_ns`. Returns a descriptor, closed on exec, with
 * which it can be attached to any number of interfaces, and sets the descriptors of its memory
 * and of its ring for autoip_listener_defend(); or a negative errno.
 */
int autoip_defence_load(uint64_t interval_ns, int *memory, int *ring);

/* -- ebpf.c --------------------------------------------------------------------------- */

/*
 * Attaches a program to the ingress or egress of an interface by a link of tcx (CAP_NET_ADMIN;
 * Linux 6.6): before all programs that are there, and before all filters of tc. Returns a
 * descriptor, closed on exec: with that one closed, also by the end of the process, it is
 * detached. Or a negative errno, -EOPNOTSUPP where the kernel has no tcx. Either takes the kernel
 * some 10 ms.
 */
int autoip_tcx_attach(int program, int ifindex, bool egress);

/*
 * How many programs of tcx are there; `ours` <- how many of them run before ours, -1: ours is not
 * there. Or a negative errno: -EOPNOTSUPP where the kernel has no tcx, -EPERM without
 * CAP_NET_ADMIN and, where there are some, CAP_SYS_ADMIN. Changes nothing.
 */
int autoip_tcx_programs(int ifindex, bool egress, int *ours);

/* -- broadcast.c ---------------------------------------------------------------------- */

/*
 * Loads the program that sends ARP packets with a link-local sender by broadcast (CAP_BPF and
 * CAP_NET_ADMIN; before Linux 5.8 CAP_SYS_ADMIN). Returns a descriptor, closed on exec, with
 * which it can be attached to the egress of any number of interfaces; or a negative errno.
 */
int autoip_broadcast_load(void);

/* -- bulk.c --------------------------------------------------------------------------- */

/* At most this many ports belong to one socket. */
#define AUTOIP_PORTS_MAX 32

/* An ARP packet that a scan has received. */
struct autoip_heard {
    uint64_t at_ns; /* when the kernel received it, on CLOCK_REALTIME */
    uint32_t spa;
    uint32_t tpa;
    uint16_t operation;
    uint8_t sha[6];
    uint8_t tha[6];
};

/*
 * Opens a packet socket that never waits, for what other hosts send on an interface
 * (CAP_NET_RAW), whatever group or address it is for: of type ETH_P_ARP all ARP, of ETH_P_IP the
 * UDP to one of these ports, of ETH_P_IPV6 the replies to an echo request of ICMPv6. Returns the
 * descriptor, closed on exec, or a negative errno.
 */
int autoip_bulk_open(int ifindex, int type, const uint16_t *ports, size_t count);

/*
 * Sends the request once for each target, with that target as its TPA, as many as the kernel
 * takes without a wait. Returns how many, or a negative errno if it took none.
 */
int autoip_bulk_send(int fd, const uint8_t request[AUTOIP_FRAME_LEN], const uint32_t *targets,
                     size_t count);

/* Reads packets that wait, up to `capacity`, which is 64 at least. Returns how many it wrote to
 * `out`, or a negative errno; what is not ARP for IPv4 over Ethernet is dropped. */
int autoip_bulk_receive(int fd, struct autoip_heard *out, size_t capacity);

/* -- timer.c -------------------------------------------------------------------------- */

/* CLOCK_BOOTTIME now. */
uint64_t autoip_now(void);

/* A timer descriptor on CLOCK_BOOTTIME, or a negative errno. */
int autoip_timer_new(void);

/* Makes the descriptor readable at that time; at once if it is past. 0: never. */
int autoip_timer_set(int fd, uint64_t at_ns);

/*
 * A descriptor that becomes readable when the wall clock jumps: it was set, or the machine
 * slept. Or a negative errno.
 */
int autoip_clock_watch_new(void);

/* 1 if the clock jumped since the last call, 0 if not, or a negative errno. */
int autoip_clock_watch_read(int fd);

/* -- capabilities.c ------------------------------------------------------------------- */

/* Capabilities as bit sets: bit N is the capability with number N. */

/* The calling thread's permitted set. */
int autoip_capabilities_permitted(uint64_t *permitted);

/*
 * Leaves the calling thread `keep`, permitted and effective, and nothing else: inheritable and
 * ambient sets are emptied, the bounding set is cut down to `keep` (where CAP_SETPCAP is
 * permitted), and programs started later cannot gain any. With `pass_on` such programs have
 * `keep` as well, under any user. -EPERM, with nothing changed, if `keep` is not permitted.
 */
int autoip_capabilities_limit(uint64_t keep, bool pass_on);

/* The permitted set survives the change to another user, until the next exec. */
int autoip_capabilities_keep(void);

/*
 * Makes this user and group the process's real, effective, saved and file system ones, without
 * further groups. The permitted capabilities stay, none is effective. Needs CAP_SETUID and
 * CAP_SETGID; after an error the groups may have been changed already.
 */
int autoip_capabilities_become(uint32_t user, uint32_t group);

/*
 * Gives the calling thread the rights of this user and group on files, and on nothing else. Each
 * must be the thread's real, effective or saved one, or needs CAP_SETUID or CAP_SETGID; -EPERM
 * otherwise, and then the rights may be those of the group already.
 */
int autoip_capabilities_files_as(uint32_t user, uint32_t group);

/* -- confinement.c -------------------------------------------------------------------- */

/* A filter of system calls has at most this many instructions. */
#define AUTOIP_CALLS_MAX 1024

/* Whether autoip_confine_calls() holds, also if a former program of this process called it. */
int autoip_confined(void);

/*
 * Writes the filter that autoip_confine_calls() sets to `out`; `calls` ascend. Returns the number
 * of instructions; -ENOSPC, or -ENOSYS on a machine whose filters are unknown here.
 */
int autoip_calls_build(struct sock_filter *out, size_t capacity, const int *calls, size_t count);

/*
 * Refuses all system calls of the calling thread, and of what it starts, but these (EPERM; ENOSYS
 * for greater numbers), and sockets of other families than AF_UNIX, AF_NETLINK and AF_PACKET.
 * `no_new_privs` must be set.
 */
int autoip_confine_calls(const int *calls, size_t count);

/* A descriptor of rules that allow nothing: no file, no TCP, no signal to others. -ENOSYS,
 * -EOPNOTSUPP or -EPERM where there is no Landlock. */
int autoip_files_new(void);

/* Allows the rights (LANDLOCK_ACCESS_FS_*) on a folder and what is below it. */
int autoip_files_allow(int rules, const char *path, uint64_t rights);

/* The rules hold from now on, as in autoip_confine_calls(). */
int autoip_files_confine(int rules);

#endif
