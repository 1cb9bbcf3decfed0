/*
 * The listener's way of a frame: from the socket to the reflex, the answer and the queue. The
 * input is what happens, in order: frames come, the program watches, arms, disarms, drains,
 * closes and opens, time passes, the kernel refuses to send. A model of a few lines says for each
 * frame what has to be sent and queued.
 *
 * The thread does not run, and the kernel is the functions below: so that the input alone
 * decides, and no call into the real one takes time. Threads and the real kernel are for tests/c.
 */
#include "fuzz.h"
#include "reference.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* What the listener asks of the kernel. */
static int kernel_epoll(int epoll, int operation, int fd, const struct epoll_event *wanted);
static ssize_t kernel_write(int fd, const void *data, size_t length);
static ssize_t kernel_read(int fd, void *data, size_t length);
static int kernel_close(int fd);

#define epoll_ctl kernel_epoll
#define write kernel_write
#define read kernel_read
#define close kernel_close
#include "../../csrc/listener.c"
#undef epoll_ctl
#undef write
#undef read
#undef close

/* More than the queue has room for. */
#define SOCKETS 5
#define PENDING 300u /* more than are read after a rest */
#define EXPECTED_MAX 2048u
#define SECOND 1000000000ull

/* -- the kernel and the model ------------------------------------------------------------ */

struct frame {
    uint8_t data[FRAME_MAX];
    size_t length;
};

/* What has to be in the queue. */
struct expected {
    uint32_t token;
    uint32_t generation;
    bool defended;
    size_t from; /* the socket */
    uint8_t frame[AUTOIP_FRAME_LEN];
};

/* One socket: what the kernel has of it, then what the model believes of it. */
struct modelled {
    struct autoip_socket *sock;
    bool open;
    bool named; /* epoll names it at the next frame */
    bool rests; /* a conflict or question of those read last was not answered */
    size_t first;
    size_t count;

    uint8_t mac[6];
    enum autoip_phase phase;
    uint32_t address;
    uint32_t generation;
    uint32_t token;
    bool armed;
    uint8_t armed_frame[AUTOIP_FRAME_LEN];
    uint64_t answers_until;
    uint32_t queued;

    struct frame pending[PENDING]; /* the last: not cleared for each input */
};

static struct modelled sockets[SOCKETS];
static struct expected queue[EXPECTED_MAX];
static size_t queue_length;
static uint64_t lost;
static uint8_t own[4][6];
static size_t own_count;
static uint64_t now;
static int send_error;
static int filter_error;
static bool woken;
static uint32_t last_token;

/* The frame that has to be sent next, if any. */
static bool sending;
static size_t sender;
static uint8_t sent[AUTOIP_FRAME_LEN];

static struct modelled *of_fd(int fd)
{
    MUST(fd >= 100 && fd < 100 + SOCKETS && sockets[fd - 100].open);
    return &sockets[fd - 100];
}

static int kernel_epoll(int epoll, int operation, int fd, const struct epoll_event *wanted)
{
    (void)epoll;
    if (operation == EPOLL_CTL_DEL) {
        sockets[fd - 100].named = false;
        return 0;
    }
    MUST(wanted->events == (EPOLLIN | EPOLLONESHOT));
    sockets[fd - 100].named = true;
    return 0;
}

static ssize_t kernel_write(int fd, const void *data, size_t length)
{
    (void)fd;
    (void)data;
    woken = true;
    return (ssize_t)length;
}

static ssize_t kernel_read(int fd, void *data, size_t length)
{
    (void)fd;
    memset(data, 0, length);
    woken = false;
    return (ssize_t)length;
}

static int kernel_close(int fd)
{
    if (fd >= 100)
        of_fd(fd)->open = false;
    return 0;
}

uint64_t autoip_now(void)
{
    return now;
}

int autoip_packet_open(int ifindex)
{
    (void)ifindex;
    return -ENODEV;
}

int autoip_packet_filter(int fd, const uint8_t mac[6], uint32_t address, enum autoip_phase phase,
                         uint32_t seal)
{
    MUST(seal == 0); /* the kernel does not defend here */
    (void)of_fd(fd);
    (void)mac;
    (void)address;
    (void)phase;
    return filter_error;
}

uint64_t autoip_packet_received(int fd)
{
    (void)of_fd(fd);
    /* A clock that was set: later than now. */
    return now + (now % 3 == 0 ? 5 : 0);
}

int autoip_packet_send(int fd, const uint8_t frame[AUTOIP_FRAME_LEN])
{
    MUST(sending && of_fd(fd) == &sockets[sender]);
    MUST(memcmp(frame, sent, AUTOIP_FRAME_LEN) == 0);
    sending = false;
    return send_error;
}

static bool is_own(const uint8_t *mac)
{
    for (size_t i = 0; i < own_count; i++)
        if (memcmp(own[i], mac, 6) == 0)
            return true;
    return false;
}

static void expect_send(size_t which, const uint8_t *frame)
{
    MUST(!sending);
    sending = true;
    sender = which;
    memcpy(sent, frame, AUTOIP_FRAME_LEN);
}

/* RFC 3927, 2.5: the answer is broadcast; RFC 826: sender and target change places. */
static void expect_answer(size_t which, const uint8_t *question)
{
    const uint8_t *mac = sockets[which].mac;
    uint8_t reply[AUTOIP_FRAME_LEN] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

    memcpy(reply + 6, mac, 6);
    memcpy(reply + 12, question + 12, 8);
    reply[21] = 2;
    memcpy(reply + 22, mac, 6);
    memcpy(reply + 28, question + 38, 4);
    memcpy(reply + 32, question + 22, 6);
    memcpy(reply + 38, question + 28, 4);
    expect_send(which, reply);
}

static void expect_event(size_t which, const uint8_t *frame, bool defended)
{
    struct modelled *it = &sockets[which];
    size_t room = defended ? QUEUE_LENGTH : QUEUE_LENGTH - QUEUE_RESERVED;

    if (queue_length >= room || (!defended && it->queued >= QUEUE_PER_SOCKET)) {
        lost++;
        return;
    }
    queue[queue_length] = (struct expected){it->token, it->generation, defended, which, {0}};
    memcpy(queue[queue_length++].frame, frame, AUTOIP_FRAME_LEN);
    it->queued++;
}

/* What a frame that the listener reads now has to lead to. */
static void expect(size_t which, const struct frame *frame)
{
    struct modelled *it = &sockets[which];
    bool defended = false;
    enum autoip_verdict verdict =
        reference_verdict(frame->data, frame->length, it->mac, it->address, it->phase);

    if (verdict == AUTOIP_NOTHING ||
        (it->phase != AUTOIP_PROBE && is_own(frame->data + AUTOIP_SHA_AT)))
        return;
    if (verdict == AUTOIP_QUESTION) {
        if (it->answers_until < now)
            it->answers_until = now;
        if (it->answers_until - now <= 15 * (SECOND / 20)) {
            it->answers_until += SECOND / 20;
            expect_answer(which, frame->data);
        } else {
            it->rests = true;
        }
        return;
    }
    if (it->phase != AUTOIP_PROBE && it->armed) {
        it->armed = false;
        defended = send_error == 0;
        expect_send(which, it->armed_frame);
    }
    if (!defended)
        it->rests = true;
    expect_event(which, frame->data, defended);
}

int autoip_packet_receive(int fd, uint8_t frame[AUTOIP_FRAME_LEN])
{
    struct modelled *it = of_fd(fd);
    const struct frame *first = &it->pending[it->first];
    size_t length = first->length < AUTOIP_FRAME_LEN ? first->length : AUTOIP_FRAME_LEN;

    MUST(!sending); /* what the last frame asked for was sent */
    if (it->count == 0)
        return -EAGAIN;
    memset(frame, 0xee, AUTOIP_FRAME_LEN);
    memcpy(frame, first->data, length);
    it->first = (it->first + 1) % PENDING;
    it->count--;
    expect((size_t)(fd - 100), first);
    return (int)length;
}

/* -- what happens ------------------------------------------------------------------------ */

/* The listener's loop for as long as epoll names somebody. */
static void serve(struct autoip_listener *listener)
{
    for (size_t i = 0; i < SOCKETS; i++) {
        struct modelled *it = &sockets[i];

        while (it->open && it->named && it->count > 0) {
            it->named = it->rests = false;
            listener_on_ready(listener, it->sock, 1);
            MUST(!sending && it->named == !it->rests);
        }
    }
    if (listener->rest_until == 0 || now < listener->rest_until)
        return;
    for (size_t i = 0; i < SOCKETS; i++)
        sockets[i].rests = sockets[i].rests && !sockets[i].open;
    listener_end_rest(listener);
    MUST(!sending);
    /* Nobody is forgotten: epoll names who does not rest, and the rest has an end. */
    for (size_t i = 0; i < SOCKETS; i++)
        if (sockets[i].open)
            MUST(sockets[i].rests ? listener->rest_until != 0 : sockets[i].named);
}

static void deliver(struct modelled *it, struct input *input)
{
    struct trial trial = {.address = it->address};
    unsigned int times = take_byte(input);

    memcpy(trial.mac, it->mac, sizeof trial.mac);
    take_frame(input, &trial);
    for (times = times < 252 ? 1 : 290; times > 0 && it->count < PENDING; times--) {
        struct frame *frame = &it->pending[(it->first + it->count++) % PENDING];

        memcpy(frame->data, trial.frame, sizeof frame->data);
        frame->length = trial.length;
    }
}

static void watch(struct modelled *it, struct input *input)
{
    static const uint32_t addresses[] = {0xa9fe0a14, 0xa9fe0a15, 0};
    enum autoip_phase phase = take_byte(input) % (AUTOIP_ANSWER + 1u);
    uint32_t address = addresses[take_byte(input) % 3];
    uint32_t generation = it->generation + 1;

    MUST(autoip_socket_watch(it->sock, phase, address, generation) == filter_error);
    if (filter_error != 0)
        return; /* all is as it was */
    if (phase == AUTOIP_SILENT || phase == AUTOIP_PROBE ||
        !reference_same(it->armed_frame + AUTOIP_SPA_AT, address))
        it->armed = false;
    it->phase = phase;
    it->address = address;
    it->generation = generation;
}

static void arm(struct modelled *it, struct input *input)
{
    uint8_t frame[AUTOIP_FRAME_LEN];
    bool right = take_byte(input) % 4u != 0;
    bool wanted;

    take(input, frame, sizeof frame);
    if (right)
        put_word(frame + AUTOIP_SPA_AT, it->address);
    wanted = it->phase != AUTOIP_SILENT && reference_same(frame + AUTOIP_SPA_AT, it->address);
    MUST((autoip_socket_arm(it->sock, frame) == 0) == wanted);
    if (wanted) {
        it->armed = true;
        memcpy(it->armed_frame, frame, sizeof frame);
    }
}

static void drain(struct autoip_listener *listener, size_t capacity)
{
    static struct autoip_event events[EXPECTED_MAX];
    uint64_t reported = 0;
    size_t count = queue_length < capacity ? queue_length : capacity;

    MUST(queue_length == 0 || woken);
    MUST(autoip_listener_drain(listener, events, capacity, &reported) == (int)count);
    MUST(reported == lost);
    for (size_t i = 0; i < count; i++) {
        const struct expected *wanted = &queue[i];

        MUST(events[i].token == wanted->token && events[i].generation == wanted->generation);
        MUST((events[i].defended_ns != 0) == wanted->defended);
        MUST(!wanted->defended || events[i].received_ns <= events[i].defended_ns);
        MUST(memcmp(events[i].frame, wanted->frame, AUTOIP_FRAME_LEN) == 0);
        if (sockets[wanted->from].token == wanted->token)
            sockets[wanted->from].queued--;
    }
    queue_length -= count;
    memmove(queue, queue + count, queue_length * sizeof *queue);
}

static void adopt(struct autoip_listener *listener, size_t which)
{
    struct modelled *it = &sockets[which];

    memset(it, 0, offsetof(struct modelled, pending));
    it->open = true;
    memset(it->mac, 2, sizeof it->mac);
    it->mac[5] = (uint8_t)which;
    MUST(autoip_socket_adopt(listener, 100 + (int)which, it->mac, &it->sock) == 0);
    it->token = autoip_socket_token(it->sock);
    MUST(it->token > last_token); /* no other socket has it, or had it */
    last_token = it->token;
}

static void set_own(struct autoip_listener *listener, struct input *input)
{
    own_count = take_byte(input) % 5u;
    for (size_t i = 0; i < own_count; i++) {
        memset(own[i], 2, 6);
        own[i][5] = take_byte(input) % 8u;
    }
    MUST(autoip_listener_own(listener, own[0], own_count) == 0);
}

static void happen(struct autoip_listener *listener, struct input *input)
{
    uint8_t what = take_byte(input);
    size_t which = what / 16u % SOCKETS;
    struct modelled *it = &sockets[which];
    bool busy = what >= 224;

    switch (what % 16u) {
    default: /* most of what happens */
        if (it->open)
            deliver(it, input);
        break;
    case 8:
        if (it->open)
            watch(it, input);
        break;
    case 9:
        if (it->open)
            arm(it, input);
        break;
    case 10:
        if (it->open) {
            autoip_socket_disarm(it->sock);
            it->armed = false;
        }
        break;
    case 11:
        drain(listener, take_byte(input) * 8u + 1);
        break;
    case 12:
        if (it->open)
            (void)kernel_close(autoip_socket_detach(it->sock));
        else
            adopt(listener, which);
        break;
    case 13:
        set_own(listener, input);
        break;
    case 14:
        now += take_byte(input) * (SECOND / 100);
        break;
    case 15:
        what = take_byte(input);
        send_error = what % 4u == 0 ? -ENOBUFS : 0;
        filter_error = what / 4u % 4u == 0 ? -ENOMEM : 0;
        break;
    }
    if (!busy) /* else the thread is not there yet */
        serve(listener);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    /* As autoip_listener_new() makes it, without the thread. */
    static struct autoip_listener listener;

    memset(&listener, 0, offsetof(struct autoip_listener, queue));
    pthread_mutex_init(&listener.lock, NULL);
    pthread_mutex_init(&listener.queue_lock, NULL);
    queue_length = own_count = 0;
    last_token = 0;
    lost = 0;
    now = SECOND;
    send_error = filter_error = 0;
    sending = woken = false;
    for (size_t i = 0; i < SOCKETS; i++)
        adopt(&listener, i);
    while (input.left > 0)
        happen(&listener, &input);
    serve(&listener);
    drain(&listener, EXPECTED_MAX);
    for (struct autoip_socket *sock = listener.sockets, *next; sock != NULL; sock = next) {
        next = sock->next;
        free(sock);
    }
    free(listener.own);
    return 0;
}
