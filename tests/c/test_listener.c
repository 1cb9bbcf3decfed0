/*
 * Threads, queue and reflex, on socket pairs instead of packet sockets, so without privileges.
 * The other end of a pair is the link. Usage: test_listener [ROUNDS]
 */
#include "check.h"
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <unistd.h>

#include <linux/if_packet.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#define EVENTS 1024

struct host {
    struct autoip_listener *listener;
    struct autoip_socket *sock;
    int link;
};

static struct autoip_event events[EVENTS];

static struct autoip_socket *adopt(struct autoip_listener *listener, int *link)
{
    struct autoip_socket *sock = NULL;
    int pair[2];

    CHECK(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair) == 0);
    CHECK(autoip_socket_adopt(listener, pair[0], our_mac, &sock) == 0);
    *link = pair[1];
    return sock;
}

static struct host host_new(void)
{
    struct host host;

    CHECK(autoip_listener_new(&host.listener) == 0);
    host.sock = adopt(host.listener, &host.link);
    return host;
}

static void host_free(struct host *host)
{
    autoip_listener_free(host->listener);
    close(host->link);
}

/* Sends a conflict: another host uses this address. */
static void conflict(int link, uint32_t address)
{
    uint8_t frame[60] = {0};

    make_frame(frame, their_mac, address, OTHER, 1);
    CHECK(send(link, frame, sizeof frame, 0) == (ssize_t)sizeof frame);
}

static bool readable(int fd, int timeout_ms)
{
    struct pollfd wait = {.fd = fd, .events = POLLIN};

    return poll(&wait, 1, timeout_ms) == 1;
}

/* Waits for exactly `count` events, into `events`. Returns how many were lost. */
static uint64_t collect(struct autoip_listener *listener, int count)
{
    uint64_t lost = 0;
    int got = 0;

    while (got < count) {
        CHECK(readable(autoip_listener_fd(listener), 20000));
        got += autoip_listener_drain(listener, events + got, (size_t)(EVENTS - got), &lost);
    }
    CHECK(got == count);
    return lost;
}

/* Reads a frame that the helper sent, if there is one. */
static bool answered(int link, uint8_t frame[AUTOIP_FRAME_LEN], int timeout_ms)
{
    return readable(link, timeout_ms) &&
           recv(link, frame, AUTOIP_FRAME_LEN, 0) == AUTOIP_FRAME_LEN;
}

/* Watches another address, and checks that nothing from before is reported. */
static void settle(struct host *host)
{
    CHECK(autoip_socket_watch(host->sock, AUTOIP_DEFEND, OTHER, 99) == 0);
    conflict(host->link, OTHER);
    collect(host->listener, 1);
    CHECK(events[0].generation == 99);
}

static void test_event(void)
{
    struct host host = host_new();
    uint64_t before = autoip_now();
    uint64_t lost = 99;

    CHECK(autoip_listener_drain(host.listener, events, EVENTS, &lost) == 0 && lost == 0);
    CHECK(!readable(autoip_listener_fd(host.listener), 0));
    CHECK(autoip_socket_watch(host.sock, AUTOIP_PROBE, OURS, 7) == 0);
    conflict(host.link, OURS);
    CHECK(collect(host.listener, 1) == 0);
    CHECK(events[0].token == autoip_socket_token(host.sock) && events[0].token != 0);
    CHECK(events[0].generation == 7);
    CHECK(events[0].defended_ns == 0);
    CHECK(events[0].received_ns >= before && events[0].received_ns <= autoip_now());
    CHECK(memcmp(events[0].frame + 22, their_mac, 6) == 0);
    CHECK(!readable(autoip_listener_fd(host.listener), 0));
    host_free(&host);
}

/* What is not a conflict is not reported. */
static void test_silence(void)
{
    struct host host = host_new();
    uint8_t frame[AUTOIP_FRAME_LEN];

    CHECK(autoip_socket_watch(host.sock, AUTOIP_DEFEND, OURS, 1) == 0);
    make_frame(frame, their_mac, 0, OURS, 1); /* def-probed */
    CHECK(send(host.link, frame, sizeof frame, 0) > 0);
    make_frame(frame, our_mac, OURS, OURS, 1); /* claim-echo */
    CHECK(send(host.link, frame, sizeof frame, 0) > 0);
    CHECK(send(host.link, frame, 41, 0) == 41);
    CHECK(send(host.link, frame, 0, 0) == 0);
    conflict(host.link, OURS);
    collect(host.listener, 1); /* this one, and none of those before */
    CHECK(memcmp(events[0].frame + 22, their_mac, 6) == 0 && events[0].frame[31] == 20);
    CHECK(autoip_socket_watch(host.sock, AUTOIP_SILENT, 0, 2) == 0);
    conflict(host.link, OURS);
    conflict(host.link, 0);
    settle(&host);
    host_free(&host);
}

static void test_reflex(void)
{
    struct host host = host_new();
    uint8_t announcement[AUTOIP_FRAME_LEN];
    uint8_t frame[AUTOIP_FRAME_LEN];

    make_frame(announcement, our_mac, OURS, OURS, 1);
    CHECK(autoip_socket_watch(host.sock, AUTOIP_DEFEND, OURS, 1) == 0);
    CHECK(autoip_socket_arm(host.sock, announcement) == 0);
    for (int round = 0; round < 3; round++) {
        conflict(host.link, OURS);
        conflict(host.link, OURS);
        collect(host.listener, 2);
        CHECK(events[0].defended_ns >= events[0].received_ns);
        CHECK(events[0].defended_ns <= autoip_now());
        CHECK(events[1].defended_ns == 0); /* once */
        CHECK(answered(host.link, frame, 5000));
        CHECK(memcmp(frame, announcement, sizeof frame) == 0);
        CHECK(!answered(host.link, frame, 0));
        CHECK(autoip_socket_arm(host.sock, announcement) == 0);
    }
    autoip_socket_disarm(host.sock);
    conflict(host.link, OURS);
    collect(host.listener, 1);
    CHECK(events[0].defended_ns == 0 && !answered(host.link, frame, 0));
    host_free(&host);
}

/* claim-echo: what a sibling sends is not a conflict once the address is held. */
static void test_own(void)
{
    static const uint8_t others[][6] = {
        {0x02, 0, 0, 0, 0, 0x09}, /* not sorted */
        {0x02, 0, 0, 0, 0, 0x02}, /* their_mac */
        {0x06, 0, 0, 0, 0, 0x02},
    };
    static const uint8_t many[AUTOIP_OWN_MAX + 1][6];
    struct host host = host_new();
    uint8_t announcement[AUTOIP_FRAME_LEN];
    uint8_t frame[AUTOIP_FRAME_LEN];

    make_frame(announcement, our_mac, OURS, OURS, 1);
    CHECK(autoip_listener_own(host.listener, others[0], 3) == 0);

    /* Before, it is a conflict, so that two interfaces on one link get different addresses. */
    CHECK(autoip_socket_watch(host.sock, AUTOIP_PROBE, OURS, 1) == 0);
    conflict(host.link, OURS);
    collect(host.listener, 1);

    CHECK(autoip_socket_watch(host.sock, AUTOIP_DEFEND, OURS, 2) == 0);
    CHECK(autoip_socket_arm(host.sock, announcement) == 0);
    for (int i = 0; i < 3; i++) {
        make_frame(frame, others[i], OURS, OTHER, (uint8_t)(1 + i % 2));
        CHECK(send(host.link, frame, sizeof frame, 0) == sizeof frame);
    }
    /* One more bit is another host: still armed, and only this one is reported. */
    make_frame(frame, others[2], OURS, OTHER, 1);
    frame[AUTOIP_SHA_AT + 5] ^= 1;
    CHECK(send(host.link, frame, sizeof frame, 0) == sizeof frame);
    collect(host.listener, 1);
    CHECK(events[0].frame[AUTOIP_SHA_AT + 5] == 0x03);
    CHECK(events[0].defended_ns != 0 && answered(host.link, frame, 5000));
    CHECK(!answered(host.link, frame, 0));

    /* After an error nothing has changed; the last list counts. */
    CHECK(autoip_listener_own(host.listener, many[0], AUTOIP_OWN_MAX + 1) == -E2BIG);
    conflict(host.link, OURS);
    make_frame(frame, many[0], OURS, OTHER, 1);
    CHECK(send(host.link, frame, sizeof frame, 0) == sizeof frame);
    collect(host.listener, 1);
    CHECK(events[0].frame[AUTOIP_SHA_AT] == 0);
    CHECK(autoip_listener_own(host.listener, many[0], AUTOIP_OWN_MAX) == 0);
    CHECK(send(host.link, frame, sizeof frame, 0) == sizeof frame);
    conflict(host.link, OURS);
    collect(host.listener, 1);
    CHECK(memcmp(events[0].frame + AUTOIP_SHA_AT, their_mac, 6) == 0);
    CHECK(autoip_listener_own(host.listener, NULL, 0) == 0);
    conflict(host.link, OURS);
    collect(host.listener, 1);
    host_free(&host);
}

/* While the list changes, a frame is checked by the old one or the new one. */
static void test_own_under_traffic(int rounds)
{
    static const uint8_t macs[2][6] = {{0x02, 0, 0, 0, 0, 0x02}, {0x02, 0, 0, 0, 0, 0x03}};
    struct host host = host_new();
    uint8_t frame[AUTOIP_FRAME_LEN];

    CHECK(autoip_listener_own(host.listener, macs[0], 1) == 0);
    CHECK(autoip_socket_watch(host.sock, AUTOIP_DEFEND, OURS, 1) == 0);
    for (int round = 0; round < rounds; round++) {
        conflict(host.link, OURS);
        CHECK(autoip_listener_own(host.listener, macs[0], 1 + (size_t)(round % 2)) == 0);
    }
    /* Both lists have their_mac: none of these frames is reported. */
    make_frame(frame, our_mac, OURS, OURS, 1);
    frame[AUTOIP_SHA_AT + 5] = 9;
    CHECK(send(host.link, frame, sizeof frame, 0) == sizeof frame);
    collect(host.listener, 1);
    CHECK(events[0].frame[AUTOIP_SHA_AT + 5] == 9);
    host_free(&host);
}

/* Asks for our address; the last two bytes of the MAC are the number. */
static void ask(int link, unsigned int number)
{
    uint8_t frame[60] = {0};

    make_frame(frame, their_mac, OTHER, OURS, 1);
    frame[26] = (uint8_t)(number >> 8);
    frame[27] = (uint8_t)number;
    CHECK(send(link, frame, sizeof frame, 0) == (ssize_t)sizeof frame);
}

/* def-broadcast: a question is answered by broadcast, and not reported. */
static void test_answer(void)
{
    struct host host = host_new();
    uint8_t frame[AUTOIP_FRAME_LEN];
    uint8_t expected[AUTOIP_FRAME_LEN];

    make_frame(expected, our_mac, OURS, OTHER, 2);
    memcpy(expected + 32, their_mac, 6);

    ask(host.link, 2);
    CHECK(autoip_socket_watch(host.sock, AUTOIP_DEFEND, OURS, 1) == 0);
    ask(host.link, 2);
    CHECK(!answered(host.link, frame, 100));

    CHECK(autoip_socket_watch(host.sock, AUTOIP_ANSWER, OURS, 2) == 0);
    ask(host.link, 2);
    CHECK(answered(host.link, frame, 20000));
    CHECK(memcmp(frame, expected, sizeof frame) == 0);
    make_frame(frame, their_mac, 0, OURS, 1); /* a probe */
    CHECK(send(host.link, frame, sizeof frame, 0) > 0);
    CHECK(answered(host.link, frame, 20000));
    memset(expected + 38, 0, 4);
    CHECK(memcmp(frame, expected, sizeof frame) == 0);

    /* A conflict is reported and defended against as in DEFEND. */
    make_frame(expected, our_mac, OURS, OURS, 1);
    CHECK(autoip_socket_arm(host.sock, expected) == 0);
    conflict(host.link, OURS);
    collect(host.listener, 1);
    CHECK(events[0].generation == 2 && events[0].defended_ns != 0);
    CHECK(answered(host.link, frame, 20000));
    CHECK(memcmp(frame, expected, sizeof frame) == 0);

    /* A sibling gets no answer. */
    CHECK(autoip_listener_own(host.listener, their_mac, 1) == 0);
    ask(host.link, 2);
    CHECK(!answered(host.link, frame, 100));
    CHECK(autoip_socket_watch(host.sock, AUTOIP_SILENT, 0, 3) == 0);
    ask(host.link, 3);
    CHECK(!answered(host.link, frame, 100));
    host_free(&host);
}

/* However many questions come, the answers are bounded. */
static void test_questions_too_many(void)
{
    struct host host = host_new();
    uint8_t frame[AUTOIP_FRAME_LEN];
    uint64_t started = autoip_now();
    uint64_t bound;
    uint64_t count = 0;

    CHECK(autoip_socket_watch(host.sock, AUTOIP_ANSWER, OURS, 1) == 0);
    for (unsigned int number = 100; number < 500; number++) {
        ask(host.link, number);
        while (answered(host.link, frame, 0)) /* a pair holds only a few frames */
            count++;
    }
    conflict(host.link, OURS);
    collect(host.listener, 1); /* all questions before it were read */
    bound = 16 + (autoip_now() - started) / 50000000;
    while (answered(host.link, frame, 0))
        count++;
    CHECK(count >= 16 && count <= bound);
    host_free(&host);
}

/* An armed frame is for one address, and for defence only. */
static void test_arm(void)
{
    struct host host = host_new();
    uint8_t ours[AUTOIP_FRAME_LEN];
    uint8_t frame[AUTOIP_FRAME_LEN];

    make_frame(ours, our_mac, OURS, OURS, 1);
    CHECK(autoip_socket_arm(host.sock, ours) == -EINVAL); /* silent */
    CHECK(autoip_socket_watch(host.sock, AUTOIP_SILENT, OURS, 1) == 0);
    CHECK(autoip_socket_arm(host.sock, ours) == -EINVAL); /* silent still */
    CHECK(autoip_socket_watch(host.sock, AUTOIP_PROBE, OTHER, 1) == 0);
    CHECK(autoip_socket_arm(host.sock, ours) == -EINVAL); /* another address */

    /* Armed while it probes: not used there, but kept for the defence of the same address. */
    CHECK(autoip_socket_watch(host.sock, AUTOIP_PROBE, OURS, 2) == 0);
    CHECK(autoip_socket_arm(host.sock, ours) == 0);
    conflict(host.link, OURS);
    collect(host.listener, 1);
    CHECK(events[0].defended_ns == 0 && !answered(host.link, frame, 0));
    CHECK(autoip_socket_watch(host.sock, AUTOIP_DEFEND, OURS, 3) == 0);
    conflict(host.link, OURS);
    collect(host.listener, 1);
    CHECK(events[0].defended_ns != 0 && answered(host.link, frame, 5000));

    /* Another address disarms, and stays disarmed when the first returns. */
    CHECK(autoip_socket_arm(host.sock, ours) == 0);
    CHECK(autoip_socket_watch(host.sock, AUTOIP_DEFEND, OTHER, 4) == 0);
    conflict(host.link, OTHER);
    collect(host.listener, 1);
    CHECK(events[0].defended_ns == 0 && !answered(host.link, frame, 0));
    CHECK(autoip_socket_watch(host.sock, AUTOIP_DEFEND, OURS, 5) == 0);
    conflict(host.link, OURS);
    collect(host.listener, 1);
    CHECK(events[0].defended_ns == 0 && !answered(host.link, frame, 0));

    /* Phase SILENT disarms too. */
    CHECK(autoip_socket_arm(host.sock, ours) == 0);
    CHECK(autoip_socket_watch(host.sock, AUTOIP_SILENT, OURS, 6) == 0);
    CHECK(autoip_socket_watch(host.sock, AUTOIP_DEFEND, OURS, 7) == 0);
    conflict(host.link, OURS);
    collect(host.listener, 1);
    CHECK(events[0].defended_ns == 0 && !answered(host.link, frame, 0));

    /* After an error nothing has changed. */
    CHECK(autoip_socket_arm(host.sock, ours) == 0);
    CHECK(autoip_socket_watch(host.sock, (enum autoip_phase)4, OTHER, 8) == -EINVAL);
    conflict(host.link, OURS);
    collect(host.listener, 1);
    CHECK(events[0].generation == 7);
    CHECK(events[0].defended_ns != 0 && answered(host.link, frame, 5000));
    host_free(&host);
}

/* A filter that the kernel refuses: what was watched and armed stays. */
static void test_watch_refused(void)
{
    struct host host;
    struct autoip_socket *sock = NULL;
    uint8_t ours[AUTOIP_FRAME_LEN];
    const int on = 1;
    int pair[2];

    CHECK(autoip_listener_new(&host.listener) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair) == 0);
    CHECK(autoip_socket_adopt(host.listener, pair[0], our_mac, &sock) == 0);
    make_frame(ours, our_mac, OURS, OURS, 1);
    CHECK(autoip_socket_watch(sock, AUTOIP_DEFEND, OURS, 1) == 0);
    CHECK(autoip_socket_arm(sock, ours) == 0);
    CHECK(setsockopt(pair[0], SOL_SOCKET, SO_LOCK_FILTER, &on, sizeof on) == 0);
    CHECK(autoip_socket_watch(sock, AUTOIP_PROBE, OTHER, 2) == -EPERM);
    conflict(pair[1], OURS);
    collect(host.listener, 1);
    CHECK(events[0].generation == 1 && events[0].defended_ns != 0);
    autoip_listener_free(host.listener);
    close(pair[1]);
}

/* The armed frame could not be sent: reported as undefended, and disarmed. */
static void test_send_fails(void)
{
    struct host host = host_new();
    uint8_t ours[AUTOIP_FRAME_LEN];
    uint8_t frame[AUTOIP_FRAME_LEN];
    uint64_t sent = 0;
    int taken = 0;
    int result;

    make_frame(ours, our_mac, OURS, OURS, 1);
    CHECK(autoip_socket_watch(host.sock, AUTOIP_DEFEND, OURS, 1) == 0);
    CHECK(autoip_socket_arm(host.sock, ours) == 0);
    while ((result = autoip_socket_send(host.sock, ours, &sent)) == 0)
        taken++; /* until the other end has no more room */
    CHECK(result == -EAGAIN && taken > 0 && sent != 0 && sent <= autoip_now());
    conflict(host.link, OURS);
    collect(host.listener, 1);
    CHECK(events[0].defended_ns == 0);
    while (taken-- > 0)
        CHECK(answered(host.link, frame, 5000));
    conflict(host.link, OURS);
    collect(host.listener, 1);
    CHECK(events[0].defended_ns == 0 && !answered(host.link, frame, 0));
    host_free(&host);
}

static void test_small_drain(void)
{
    struct host host = host_new();
    uint64_t lost;

    CHECK(autoip_socket_watch(host.sock, AUTOIP_DEFEND, OURS, 1) == 0);
    for (int i = 0; i < 5; i++)
        conflict(host.link, OURS);
    for (int i = 0; i < 5; i++) {
        CHECK(readable(autoip_listener_fd(host.listener), 20000));
        CHECK(autoip_listener_drain(host.listener, events, 1, &lost) == 1);
    }
    CHECK(autoip_listener_drain(host.listener, events, 1, &lost) == 0);
    CHECK(!readable(autoip_listener_fd(host.listener), 0));
    host_free(&host);
}

/* A flood on one link fills its part of the queue and no more; what is lost is counted. */
static void test_flood(void)
{
    enum { LINKS = 4, FLOOD = 700, EACH = 256, ORDINARY = 768 };
    struct host host = host_new();
    struct autoip_socket *socks[LINKS] = {host.sock};
    int links[LINKS] = {host.link};
    uint8_t ours[AUTOIP_FRAME_LEN];
    uint8_t frame[AUTOIP_FRAME_LEN];
    uint64_t lost = 0;

    make_frame(ours, our_mac, OURS, OURS, 1);
    for (int i = 1; i < LINKS; i++)
        socks[i] = adopt(host.listener, &links[i]);
    for (int i = 0; i < LINKS; i++)
        CHECK(autoip_socket_watch(socks[i], AUTOIP_DEFEND, OURS, 1) == 0);

    for (int i = 0; i < FLOOD; i++)
        conflict(links[0], OURS);
    while (lost < FLOOD - EACH) /* the thread may be behind */
        CHECK(autoip_listener_drain(host.listener, events, 0, &lost) == 0);
    CHECK(autoip_socket_arm(socks[0], ours) == 0);
    conflict(links[0], OURS);
    CHECK(answered(links[0], frame, 20000)); /* full, but the defence goes on */
    conflict(links[1], OURS);                /* and the other link has room */
    CHECK(collect(host.listener, EACH + 1 + 1) == FLOOD - EACH);
    {
        int defended = 0;
        int second = 0;

        for (int i = 0; i < EACH + 2; i++) {
            defended += events[i].defended_ns != 0;
            second += events[i].token == autoip_socket_token(socks[1]);
        }
        CHECK(defended == 1 && second == 1);
    }

    /* A flood on all links: the last part of the queue stays free for defences. */
    for (int i = 0; i < LINKS; i++)
        for (int k = 0; k < EACH + 10; k++)
            conflict(links[i], OURS);
    while (lost < FLOOD - EACH + LINKS * (EACH + 10) - ORDINARY)
        CHECK(autoip_listener_drain(host.listener, events, 0, &lost) == 0);
    for (int i = 0; i < LINKS; i++) {
        CHECK(autoip_socket_arm(socks[i], ours) == 0);
        conflict(links[i], OURS);
        CHECK(answered(links[i], frame, 20000));
    }
    CHECK(collect(host.listener, ORDINARY + LINKS) ==
          FLOOD - EACH + LINKS * (EACH + 10) - ORDINARY);

    /* Afterwards it works as before. */
    conflict(links[3], OURS);
    collect(host.listener, 1);
    CHECK(events[0].token == autoip_socket_token(socks[3]));
    for (int i = 1; i < LINKS; i++)
        close(links[i]);
    host_free(&host);
}

static void test_many_sockets(void)
{
    enum { SOCKETS = 200 };
    struct autoip_listener *listener;
    struct autoip_socket *socks[SOCKETS];
    int links[SOCKETS];
    bool reported[SOCKETS] = {false};

    CHECK(autoip_listener_new(&listener) == 0);
    for (int i = 0; i < SOCKETS; i++) {
        socks[i] = adopt(listener, &links[i]);
        CHECK(autoip_socket_watch(socks[i], AUTOIP_DEFEND, OURS + (uint32_t)i, (uint32_t)i) == 0);
    }
    for (int i = 0; i < SOCKETS; i++) {
        conflict(links[i], OURS + (uint32_t)i);
        conflict(links[i], OURS + (uint32_t)i + 1); /* the next one's address, here nobody's */
    }
    collect(listener, SOCKETS);
    for (int i = 0; i < SOCKETS; i++) {
        uint32_t which = events[i].generation;

        CHECK(which < SOCKETS && !reported[which]);
        CHECK(events[i].token == autoip_socket_token(socks[which]));
        reported[which] = true;
    }
    autoip_listener_free(listener);
    for (int i = 0; i < SOCKETS; i++)
        close(links[i]);
}

struct noise {
    int link;
    atomic_bool stop;
};

/* Sends conflicts for two addresses, without a pause. */
static void *make_noise(void *argument)
{
    struct noise *noise = argument;
    uint8_t frame[AUTOIP_FRAME_LEN];

    for (uint32_t i = 0; !atomic_load(&noise->stop); i++) {
        make_frame(frame, their_mac, i % 2 ? OURS : OTHER, 0, 1);
        if (send(noise->link, frame, sizeof frame, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
            CHECK(errno == EAGAIN || errno == ECONNREFUSED || errno == ENOTCONN);
    }
    return NULL;
}

/*
 * Under traffic for two addresses no event is ever about the one that is not watched, and the
 * armed frame for one never answers for the other.
 */
static void test_swap_under_traffic(int rounds)
{
    struct host host = host_new();
    struct noise noise = {.link = host.link};
    pthread_t thread;
    uint8_t ours[AUTOIP_FRAME_LEN];
    uint8_t frame[AUTOIP_FRAME_LEN];
    uint64_t lost;
    int seen[2] = {0, 0};

    make_frame(ours, our_mac, OURS, OURS, 1);
    CHECK(pthread_create(&thread, NULL, make_noise, &noise) == 0);
    for (uint32_t generation = 1; generation <= (uint32_t)rounds || seen[0] == 0 || seen[1] == 0;
         generation++) {
        int count;

        CHECK(autoip_socket_watch(host.sock, AUTOIP_DEFEND, generation % 2 ? OURS : OTHER,
                                  generation) == 0);
        if (generation % 2)
            CHECK(autoip_socket_arm(host.sock, ours) == 0);
        while (answered(host.link, frame, 0))
            CHECK(memcmp(frame, ours, sizeof frame) == 0);
        count = autoip_listener_drain(host.listener, events, EVENTS, &lost);
        for (int i = 0; i < count; i++) {
            uint8_t expected[4];

            put32(expected, events[i].generation % 2 ? OURS : OTHER);
            CHECK(memcmp(events[i].frame + 28, expected, 4) == 0);
            CHECK(events[i].generation <= generation);
            CHECK(events[i].defended_ns == 0 || events[i].generation % 2 == 1);
            seen[events[i].generation % 2]++;
        }
    }
    atomic_store(&noise.stop, true);
    CHECK(pthread_join(thread, NULL) == 0);
    host_free(&host);
}

/* Closed under traffic, armed or not; the next socket gets nothing of the former's. */
static void test_close_under_traffic(int rounds)
{
    struct autoip_listener *listener;
    uint8_t ours[AUTOIP_FRAME_LEN];
    uint32_t last_token = 0;
    uint64_t lost;

    make_frame(ours, our_mac, OURS, OURS, 1);
    CHECK(autoip_listener_new(&listener) == 0);
    for (int round = 0; round < rounds; round++) {
        struct noise noise = {.link = -1};
        struct autoip_socket *sock = adopt(listener, &noise.link);
        pthread_t thread;

        CHECK(autoip_socket_token(sock) > last_token);
        last_token = autoip_socket_token(sock);
        CHECK(pthread_create(&thread, NULL, make_noise, &noise) == 0);
        CHECK(autoip_socket_watch(sock, AUTOIP_DEFEND, OURS, 1) == 0);
        if (round % 2)
            CHECK(autoip_socket_arm(sock, ours) == 0);
        if (round % 3)
            CHECK(autoip_listener_drain(listener, events, EVENTS, &lost) >= 0);
        if (round % 4 == 3)
            autoip_listener_free(listener);
        else
            autoip_socket_close(sock);
        atomic_store(&noise.stop, true);
        CHECK(pthread_join(thread, NULL) == 0);
        close(noise.link);
        if (round % 4 == 3) {
            CHECK(autoip_listener_new(&listener) == 0);
            last_token = 0;
        }
    }
    autoip_listener_free(listener);
}

/* Waits until the helper has read all that was sent; it handles a frame at once. */
static void wait_read(int link)
{
    int unread = 1;

    while (unread > 0)
        CHECK(ioctl(link, SIOCOUTQ, &unread) == 0);
}

/*
 * Events of a closed socket stay in the queue and are taken out in order. The next socket gets
 * its memory, but nothing of what the former watched and had armed.
 */
static void test_close_with_events(void)
{
    struct host host = host_new();
    struct autoip_socket *second;
    uint32_t token = autoip_socket_token(host.sock);
    uint8_t ours[AUTOIP_FRAME_LEN];
    int link;

    make_frame(ours, our_mac, OURS, OURS, 1);
    CHECK(autoip_socket_watch(host.sock, AUTOIP_DEFEND, OURS, 1) == 0);
    conflict(host.link, OURS);
    CHECK(readable(autoip_listener_fd(host.listener), 20000));
    CHECK(autoip_socket_arm(host.sock, ours) == 0);
    autoip_socket_close(host.sock);
    second = adopt(host.listener, &link);
    conflict(link, OURS);
    wait_read(link);
    CHECK(autoip_socket_watch(second, AUTOIP_DEFEND, OURS, 2) == 0);
    conflict(link, OURS);
    collect(host.listener, 2);
    CHECK(events[0].token == token && events[1].token == autoip_socket_token(second));
    CHECK(token != events[1].token);
    CHECK(events[1].generation == 2 && events[1].defended_ns == 0);
    close(link);
    host_free(&host);
}

/* Writes a line to a file of /proc; false if that is not allowed. */
static bool write_proc(const char *path, const char *line)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool written = fd >= 0 && write(fd, line, strlen(line)) == (ssize_t)strlen(line);

    if (fd >= 0)
        close(fd);
    return written;
}

/* Enters a new network namespace, where "lo" is number 1 and up; false if that is not allowed. */
static bool enter_network(void)
{
    struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    char map[32];
    int fd;

    (void)snprintf(map, sizeof map, "0 %u 1", (unsigned int)getuid());
    if (unshare(CLONE_NEWNET) < 0 &&
        (unshare(CLONE_NEWUSER | CLONE_NEWNET) < 0 || !write_proc("/proc/self/uid_map", map)))
        return false;
    fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0 && ioctl(fd, SIOCSIFFLAGS, &lo) == 0);
    close(fd);
    return true;
}

/*
 * On a packet socket: the filter, the kernel's time of each frame, and a second socket in the
 * memory of the first.
 */
static void test_packet_socket(int rounds)
{
    static const uint8_t mac[6] = {0};
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = 1};
    struct autoip_listener *listener;
    struct autoip_socket *sock;
    uint8_t frame[60] = {0};
    int link = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);

    make_frame(frame, their_mac, OURS, OTHER, 1);
    CHECK(link >= 0);
    CHECK(autoip_listener_new(&listener) == 0);
    CHECK(autoip_socket_open(listener, 1, mac, &sock) == 0);
    CHECK(autoip_socket_watch(sock, AUTOIP_DEFEND, OURS, 7) == 0);
    for (int round = 0; round < rounds; round++) {
        uint64_t before = autoip_now();

        frame[27] = (uint8_t)round;
        CHECK(sendto(link, frame, sizeof frame, 0, (struct sockaddr *)&to, sizeof to) == 60);
        collect(listener, 1);
        CHECK(memcmp(events[0].frame, frame, AUTOIP_FRAME_LEN) == 0 && events[0].generation == 7);
        /* The two clocks are not read at the same time. */
        CHECK(events[0].received_ns + 1000000 >= before);
        CHECK(events[0].received_ns <= autoip_now());
    }
    autoip_socket_close(sock);
    CHECK(autoip_socket_open(listener, 1, mac, &sock) == 0); /* in the same place, silent */
    CHECK(sendto(link, frame, sizeof frame, 0, (struct sockaddr *)&to, sizeof to) == 60);
    CHECK(autoip_socket_watch(sock, AUTOIP_DEFEND, OTHER, 8) == 0);
    make_frame(frame, their_mac, OTHER, OURS, 2);
    CHECK(sendto(link, frame, sizeof frame, 0, (struct sockaddr *)&to, sizeof to) == 60);
    collect(listener, 1);
    CHECK(events[0].generation == 8 && events[0].frame[21] == 2);
    CHECK(autoip_socket_open(listener, INT_MAX, mac, &sock) == -ENODEV);
    autoip_listener_free(listener);
    close(link);
}

/* Frames wait while there is no thread; none is lost, however often that happens. */
static void test_pause(int rounds)
{
    struct host host = host_new();
    uint64_t lost;

    CHECK(autoip_socket_watch(host.sock, AUTOIP_DEFEND, OURS, 1) == 0);
    for (int round = 0; round < rounds; round++) {
        conflict(host.link, OURS);
        autoip_listener_pause(host.listener);
        autoip_listener_pause(host.listener);
        conflict(host.link, OURS);
        CHECK(autoip_listener_resume(host.listener) == 0);
        CHECK(autoip_listener_resume(host.listener) == 0);
        collect(host.listener, 2);
    }
    autoip_listener_pause(host.listener);
    conflict(host.link, OURS);
    CHECK(!readable(autoip_listener_fd(host.listener), 20));
    CHECK(autoip_listener_drain(host.listener, events, EVENTS, &lost) == 0);
    host_free(&host); /* without a thread */
}

/* Another listener goes on with a socket: the armed frame answers the first frame that waits,
 * once. */
static void test_take_over(void)
{
    struct host host = host_new();
    struct autoip_listener *next;
    struct autoip_socket *sock;
    uint8_t announcement[AUTOIP_FRAME_LEN];
    uint8_t frame[AUTOIP_FRAME_LEN];

    make_frame(announcement, our_mac, OURS, OURS, 1);
    for (int armed = 0; armed < 2; armed++) {
        int fd;

        CHECK(autoip_socket_watch(host.sock, AUTOIP_DEFEND, OURS, 1) == 0);
        autoip_listener_pause(host.listener);
        conflict(host.link, OURS);
        conflict(host.link, OURS);
        fd = dup(autoip_socket_fd(host.sock));
        CHECK(fd >= 0 && autoip_listener_new(&next) == 0);
        CHECK(autoip_socket_take_over(next, fd, our_mac, AUTOIP_DEFEND, OURS, 5,
                                      armed ? announcement : NULL, &sock) == 0);
        collect(next, 2);
        CHECK(events[0].token == autoip_socket_token(sock) && events[0].generation == 5);
        CHECK((events[0].defended_ns != 0) == (armed != 0) && events[1].defended_ns == 0);
        CHECK(answered(host.link, frame, 0) == (armed != 0));
        CHECK(!readable(host.link, 20));
        autoip_listener_free(next);
    }
    CHECK(autoip_listener_new(&next) == 0);
    CHECK(autoip_socket_take_over(next, -1, our_mac, AUTOIP_DEFEND, OURS, 5, NULL, &sock) ==
          -EBADF);
    autoip_listener_free(next);
    host_free(&host);
}

static void test_timers(void)
{
    int timer = autoip_timer_new();
    int watch = autoip_clock_watch_new();

    CHECK(timer >= 0 && watch >= 0);
    CHECK(!readable(timer, 0));
    CHECK(autoip_timer_set(timer, autoip_now() + 1000000) == 0);
    CHECK(readable(timer, 5000));
    CHECK(autoip_timer_set(timer, 0) == 0);
    CHECK(!readable(timer, 0));
    CHECK(autoip_timer_set(timer, 1) == 0); /* long ago */
    CHECK(readable(timer, 0));
    CHECK(autoip_clock_watch_read(watch) == 0);
    CHECK(autoip_timer_set(-1, 1) == -EBADF && autoip_clock_watch_read(-1) == -EBADF);
    close(timer);
    close(watch);
}

static void test_errors(void)
{
    struct autoip_listener *listener;
    struct autoip_socket *sock = NULL;

    autoip_listener_free(NULL);
    CHECK(autoip_listener_new(&listener) == 0);
    CHECK(autoip_socket_open(listener, 0, our_mac, &sock) == -EINVAL && sock == NULL);
    CHECK(autoip_socket_open(listener, -1, our_mac, &sock) == -EINVAL && sock == NULL);
    autoip_listener_free(listener);
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 200;

    if (enter_network())
        test_packet_socket(rounds);
    else
        printf("listener: no packet sockets, a network of its own is not allowed\n");
    test_event();
    test_silence();
    test_reflex();
    test_own();
    test_own_under_traffic(rounds);
    test_answer();
    test_questions_too_many();
    test_arm();
    test_watch_refused();
    test_send_fails();
    test_small_drain();
    test_flood();
    test_many_sockets();
    test_close_with_events();
    test_swap_under_traffic(rounds * 10);
    test_close_under_traffic(rounds);
    test_pause(rounds);
    test_take_over();
    test_timers();
    test_errors();
    printf("listener: ok (%d rounds)\n", rounds);
    return 0;
}
