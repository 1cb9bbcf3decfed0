"""Build `autoip.kernel._native` with cffi. setup.py runs this from the top of the source tree."""

from cffi import FFI

ffibuilder = FFI()

# What Python may see of native.h. The compiler fills in "..." from the header itself.
ffibuilder.cdef(
    """
    #define AUTOIP_FRAME_LEN ...
    #define AUTOIP_FILTER_MAX ...
    #define AUTOIP_OWN_MAX ...
    #define AUTOIP_PORTS_MAX ...
    #define CAP_BPF ...
    #define CAP_NET_ADMIN ...
    #define CAP_NET_RAW ...
    #define CAP_SYS_ADMIN ...

    enum autoip_phase {
        AUTOIP_SILENT, AUTOIP_PROBE, AUTOIP_DEFEND, AUTOIP_ANSWER, ...
    };
    enum autoip_verdict { AUTOIP_NOTHING, AUTOIP_CONFLICT, AUTOIP_QUESTION, ... };

    struct sock_filter { uint16_t code; uint8_t jt; uint8_t jf; uint32_t k; };

    struct autoip_event {
        uint64_t received_ns;
        uint64_t defended_ns;
        uint32_t token;
        uint32_t generation;
        uint8_t frame[...];
    };

    int autoip_filter_build(struct sock_filter *out, size_t capacity, const uint8_t *mac,
                            uint32_t address, enum autoip_phase phase);
    enum autoip_verdict autoip_filter_accepts(const uint8_t *frame, size_t length,
                                              const uint8_t *mac, uint32_t address,
                                              enum autoip_phase phase);

    struct autoip_listener;
    struct autoip_socket;

    int autoip_listener_new(struct autoip_listener **out);
    void autoip_listener_free(struct autoip_listener *listener);
    void autoip_listener_pause(struct autoip_listener *listener);
    int autoip_listener_resume(struct autoip_listener *listener);
    int autoip_listener_fd(const struct autoip_listener *listener);
    int autoip_listener_own(struct autoip_listener *listener, const uint8_t *macs, size_t count);
    int autoip_listener_drain(struct autoip_listener *listener, struct autoip_event *out,
                             size_t capacity, uint64_t *lost);

    int autoip_socket_open(struct autoip_listener *listener, int ifindex, const uint8_t *mac,
                           struct autoip_socket **out);
    int autoip_socket_take_over(struct autoip_listener *listener, int fd, const uint8_t *mac,
                                enum autoip_phase phase, uint32_t address,
                                uint32_t generation, const uint8_t *armed,
                                struct autoip_socket **out);
    int autoip_socket_fd(const struct autoip_socket *sock);
    uint32_t autoip_socket_token(const struct autoip_socket *sock);
    int autoip_socket_watch(struct autoip_socket *sock, enum autoip_phase phase, uint32_t address,
                            uint32_t generation);
    int autoip_socket_send(struct autoip_socket *sock, const uint8_t *frame,
                           uint64_t *sent_ns);
    int autoip_socket_arm(struct autoip_socket *sock, const uint8_t *frame);
    void autoip_socket_disarm(struct autoip_socket *sock);
    int autoip_socket_pending(struct autoip_socket *sock);
    struct autoip_counts { uint64_t answered; uint64_t left; uint64_t failed; };
    int autoip_socket_counts(const struct autoip_socket *sock, struct autoip_counts *out);
    int autoip_socket_detach(struct autoip_socket *sock);

    int autoip_defence_load(uint64_t interval_ns, int *memory, int *ring);
    int autoip_listener_defend(struct autoip_listener *listener, int memory, int ring);

    int autoip_broadcast_load(void);

    int autoip_tcx_attach(int program, int ifindex, bool egress);
    int autoip_tcx_programs(int ifindex, bool egress, int *ours);

    struct autoip_heard { uint64_t at_ns; ...; };
    int autoip_bulk_open(int ifindex, int type, const uint16_t *ports, size_t count);
    int autoip_bulk_send(int fd, const uint8_t *request, const uint32_t *targets, size_t count);
    int autoip_bulk_receive(int fd, struct autoip_heard *out, size_t capacity);

    int autoip_timer_new(void);
    int autoip_timer_set(int fd, uint64_t at_ns);
    int autoip_clock_watch_new(void);
    int autoip_clock_watch_read(int fd);

    int autoip_capabilities_permitted(uint64_t *permitted);
    int autoip_capabilities_limit(uint64_t keep, bool pass_on);
    int autoip_capabilities_keep(void);
    int autoip_capabilities_become(uint32_t user, uint32_t group);
    int autoip_capabilities_files_as(uint32_t user, uint32_t group);

    extern const int autoip_calls[...];
    int autoip_confined(void);
    int autoip_confine_calls(const int *calls, size_t count);
    int autoip_files_new(void);
    int autoip_files_allow(int rules, const char *path, uint64_t rights);
    int autoip_files_confine(int rules);
    """
)


def calls() -> str:
    """Return C for the numbers of csrc/system_calls, those that this machine has."""
    with open("csrc/system_calls", encoding="utf-8") as file:
        names = [name for line in file if line[0] != "#" for name in line.split()]
    numbers = "".join(f"#ifdef SYS_{name}\nSYS_{name},\n#endif\n" for name in names)
    return f"#include <sys/syscall.h>\nstatic const int autoip_calls[] = {{\n{numbers}}};\n"


ffibuilder.set_source(
    "autoip.kernel._native",
    '#include <linux/capability.h>\n#include "native.h"\n' + calls(),
    sources=[
        "csrc/assembler.c",
        "csrc/broadcast.c",
        "csrc/bulk.c",
        "csrc/capabilities.c",
        "csrc/confinement.c",
        "csrc/defence.c",
        "csrc/ebpf.c",
        "csrc/filter.c",
        "csrc/listener.c",
        "csrc/socket.c",
        "csrc/timer.c",
    ],
    depends=[
        "csrc/assembler.h",
        "csrc/ebpf.h",
        "csrc/internal.h",
        "csrc/native.h",
        "csrc/system_calls",
    ],
    include_dirs=["csrc"],
    define_macros=[("_GNU_SOURCE", None)],
    # Hidden: calls between the files of the helper need no table of symbols.
    extra_compile_args=["-std=gnu11", "-O2", "-pthread", "-fvisibility=hidden", "@csrc/warnings"],
    # pthread_exit, by which Python ends daemon threads, loads libgcc_s at its first call, and aborts the process if no
    # descriptor or no memory is left by then. So it is loaded from the start.
    extra_link_args=["-pthread", "-Wl,--no-as-needed", "-lgcc_s"],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
