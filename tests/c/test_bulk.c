/* Frames in bulk, on a socket pair instead of a packet socket. */
#include "check.h"

#include <errno.h>
#include <unistd.h>

#include <sys/socket.h>

#define COUNT 150

static void test_each_target_has_its_request(const int pair[2])
{
    uint8_t request[AUTOIP_FRAME_LEN];
    uint32_t targets[COUNT];
    struct autoip_heard heard[COUNT + 64];

    make_frame(request, our_mac, OURS, 0, 1);
    for (uint32_t i = 0; i < COUNT; i++)
        targets[i] = OTHER + i;
    CHECK(autoip_bulk_send(pair[0], request, targets, COUNT) == COUNT);
    CHECK(autoip_bulk_receive(pair[1], heard, COUNT + 64) == COUNT);
    for (uint32_t i = 0; i < COUNT; i++) {
        CHECK(heard[i].tpa == OTHER + i && heard[i].spa == OURS && heard[i].operation == 1);
        CHECK(memcmp(heard[i].sha, our_mac, 6) == 0);
    }
    CHECK(autoip_bulk_receive(pair[1], heard, COUNT + 64) == 0);
    CHECK(autoip_bulk_receive(pair[1], heard, 63) == -EINVAL);
}

static void test_what_is_not_arp_is_dropped(const int pair[2])
{
    uint8_t frame[2 * AUTOIP_FRAME_LEN] = {0};
    struct autoip_heard heard[64];

    make_frame(frame, their_mac, OTHER, OURS, 2);
    for (size_t at = 12; at < 20; at++) {
        frame[at] ^= 1;
        CHECK(send(pair[0], frame, AUTOIP_FRAME_LEN, 0) == AUTOIP_FRAME_LEN);
        frame[at] ^= 1;
    }
    CHECK(send(pair[0], frame, AUTOIP_FRAME_LEN - 1, 0) == AUTOIP_FRAME_LEN - 1);
    CHECK(autoip_bulk_receive(pair[1], heard, 64) == 0);
    /* Padding, and a whole frame behind one that was dropped. */
    CHECK(send(pair[0], frame, 20, 0) == 20);
    CHECK(send(pair[0], frame, sizeof frame, 0) == sizeof frame);
    CHECK(autoip_bulk_receive(pair[1], heard, 64) == 1);
    CHECK(heard[0].operation == 2 && heard[0].spa == OTHER && heard[0].tpa == OURS);
}

static void test_what_does_not_fit_is_not_sent(const int pair[2])
{
    static uint32_t targets[65536];
    uint8_t request[AUTOIP_FRAME_LEN];
    struct autoip_heard heard[64];
    int sent;

    make_frame(request, our_mac, OURS, 0, 1);
    sent = autoip_bulk_send(pair[0], request, targets, 65536);
    CHECK(sent > 0 && sent < 65536);
    CHECK(autoip_bulk_send(pair[0], request, targets, 1) == -EAGAIN);
    for (int got = 0; got < sent;) {
        int now = autoip_bulk_receive(pair[1], heard, 64);

        CHECK(now > 0);
        got += now;
    }
    CHECK(autoip_bulk_receive(pair[1], heard, 64) == 0);
}

int main(void)
{
    int pair[2];

    CHECK(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair) == 0);
    test_each_target_has_its_request(pair);
    test_what_is_not_arp_is_dropped(pair);
    test_what_does_not_fit_is_not_sent(pair);
    CHECK(autoip_bulk_open(0, 0x0806, NULL, 0) == -EINVAL);
    close(pair[0]);
    close(pair[1]);
    CHECK(autoip_bulk_send(pair[0], (const uint8_t[AUTOIP_FRAME_LEN]){0}, (const uint32_t[1]){0},
                           1) == -EBADF);
    return 0;
}
