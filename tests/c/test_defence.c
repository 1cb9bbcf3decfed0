/*
 * The BPF program alone, for what comes in by an interface: the kernel runs it on given frames
 * (BPF_PROG_TEST_RUN), as if they came by the loopback interface of a network namespace of this
 * test's own. Needs CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN, else it is skipped.
 */
#include "internal.h"
#include "run.h"

#include <errno.h>
#include <sched.h>
#include <stdbool.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define HOUR 3600000000000u
#define LOOPBACK 1

static int program;
static struct autoip_shared *shared;
static struct autoip_slot *slot;

/* Sets the interface up, which then takes the program's frames, or down. */
static void set_up(bool up)
{
    struct ifreq request;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    memset(&request, 0, sizeof request);
    strcpy(request.ifr_name, "lo");
    request.ifr_flags = up ? IFF_UP : 0;
    CHECK(fd >= 0 && ioctl(fd, SIOCSIFFLAGS, &request) == 0);
    close(fd);
}

/* Runs the program on a frame, which it lets go on as it came. */
static void comes(const uint8_t *frame, size_t length)
{
    uint8_t out[RUN_MAX];

    run_program(program, frame, length, out);
    CHECK(memcmp(out, frame, length) == 0);
}

static bool counted(uint64_t answered, uint64_t left, uint64_t failed)
{
    const struct autoip_counts *counts = &slot->counts;

    return counts->answered == answered && counts->left == left && counts->failed == failed;
}

static void arm(void)
{
    slot->ready_at = 0;
}

static void test_conflicts(void)
{
    uint8_t frame[60] = {0};

    make_frame(frame, their_mac, OURS, OTHER, 1);
    comes(frame, sizeof frame);
    CHECK(counted(0, 0, 0)); /* not armed: for the thread */
    arm();
    comes(frame, sizeof frame);
    CHECK(counted(1, 0, 0) && slot->ready_at > HOUR && slot->ready_at < AUTOIP_YIELDED);
    comes(frame, sizeof frame);
    CHECK(counted(1, 1, 0) && slot->ready_at == AUTOIP_YIELDED);
    comes(frame, sizeof frame);
    CHECK(counted(1, 1, 0)); /* the program does not judge it */
    arm();
    comes(frame, AUTOIP_FRAME_LEN);
    CHECK(counted(2, 1, 0));
}

/* What is not a conflict counts nothing, and changes nothing. */
static void test_unrelated_frames(void)
{
    const struct autoip_counts before = slot->counts;
    uint8_t frame[60] = {0};

    arm();
    make_frame(frame, their_mac, OTHER, OURS, 1); /* asks for the address */
    comes(frame, sizeof frame);
    make_frame(frame, their_mac, 0, OURS, 1); /* probes for it */
    comes(frame, sizeof frame);
    make_frame(frame, our_mac, OURS, OURS, 1); /* is ours */
    comes(frame, sizeof frame);
    make_frame(frame, their_mac, OURS, OTHER, 1);
    frame[12] = 0x86; /* is not ARP */
    comes(frame, sizeof frame);
    CHECK(counted(before.answered, before.left, before.failed) && slot->ready_at == 0);
}

static void test_not_sent(void)
{
    const struct autoip_counts before = slot->counts;
    uint8_t frame[60] = {0};

    make_frame(frame, their_mac, OURS, OTHER, 1);
    set_up(false);
    arm();
    comes(frame, sizeof frame);
    CHECK(counted(before.answered, before.left, before.failed + 1));
    set_up(true);
}

/* Nobody reads it: such a conflict is left as it is, for the thread. */
static void test_a_full_ring(void)
{
    const size_t record = sizeof(struct autoip_record) + BPF_RINGBUF_HDR_SZ;
    const struct autoip_counts before = slot->counts;
    uint8_t frame[60] = {0};
    uint64_t answered = 0;

    make_frame(frame, their_mac, OURS, OTHER, 1);
    while (slot->counts.failed == before.failed) {
        CHECK(++answered <= AUTOIP_RING_SIZE / record + 1);
        arm();
        comes(frame, sizeof frame);
    }
    answered--;
    CHECK(answered > AUTOIP_RING_SIZE / record - 10 && slot->ready_at == 0);
    CHECK(counted(before.answered + answered, before.left, before.failed + 1));
}

int main(void)
{
    int memory = -1, ring = -1;

    program = unshare(CLONE_NEWNET) < 0 ? -errno : autoip_defence_load(HOUR, &memory, &ring);
    if (program < 0) {
        CHECK(program == -EPERM || program == -EACCES || program == -ENOSYS ||
              program == -EOPNOTSUPP);
        printf("defence: skipped, no program may be loaded (%s)\n", strerror(-program));
        return 0;
    }
    shared = autoip_defence_map(memory);
    CHECK(shared != NULL);
    set_up(true);
    slot = &shared->slots[LOOPBACK];
    slot->ifindex = LOOPBACK;
    slot->mac = autoip_mac_number(our_mac);
    slot->address = htonl(OURS);
    make_frame(slot->frame, our_mac, OURS, OURS, 1);
    test_conflicts();
    test_unrelated_frames();
    test_not_sent();
    test_a_full_ring();
    (void)munmap(shared, sizeof *shared);
    close(ring);
    close(memory);
    close(program);
    printf("defence: ok\n");
    return 0;
}
