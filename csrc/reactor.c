/*
 * The threads that wait for frames, one for each socket, and the queue between them and the
 * program.
 *
 * The defence must not wait for the interpreter: a thread itself sends the frame that the
 * program has armed, then tells it.  What to arm, and when, is the program's decision.
 *
 * A thread for each socket, that sleeps in recvmsg(), answers some microseconds sooner than one
 * that sleeps in epoll_wait() for all and has to read afterwards; it costs 12 KB of memory.
 */
#include "internal.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/eventfd.h>

/*
 * The queue.  One socket's conflicts may take only a part of it, so that a flood on one link
 * leaves room for the others.  The last part is for events with a defence, which disarmed a
 * socket: if one of these were lost, the program would believe that its frame is still armed.
 */
#define QUEUE_LENGTH 1024u
#define QUEUE_RESERVED 256u
#define QUEUE_PER_SOCKET 256u

#define STACK_SIZE (128 * 1024)

/*
 * After a conflict that was not answered, the thread rests: nothing is urgent until the program
 * has acted, and a flood is then read in batches instead of frame by frame.  Likewise after a
 * question too many.
 */
#define REST_NS 500000

/*
 * A broadcast disturbs every host of the link: whatever is asked, after a few answers there is one
 * per interval.
 */
#define ANSWER_BURST 16u
#define ANSWER_INTERVAL_NS 50000000u

struct autoip_socket {
    struct autoip_reactor *reactor;
    pthread_t thread;
    int fd;
    uint32_t slot;
    uint32_t token;
    uint8_t mac[6];

    pthread_mutex_t lock; /* the group that follows; never held over a call that may wait */
    int phase;
    uint32_t address;
    uint32_t generation;
    bool armed;
    uint32_t armed_address;
    uint8_t armed_frame[AUTOIP_FRAME_LEN];

    uint32_t queued; /* events of this socket in the queue; under the reactor's lock */

    /* The thread's own. */
    struct autoip_batch batch;
    uint64_t answers_until; /* the answers given would take so long, one per interval */
};

struct queued_event {
    struct autoip_event event;
    uint32_t slot;
};

struct autoip_reactor {
    int waiting; /* eventfd: events are in the queue */

    pthread_mutex_t own_lock; /* the two that follow; the last to be taken */
    uint8_t (*own)[6];        /* hardware addresses of this host, sorted */
    size_t own_count;

    pthread_mutex_t lock; /* all that follows; never taken together with a socket's */
    struct autoip_socket **slots;
    uint32_t slot_count;
    uint32_t last_token;
    uint32_t first;
    uint32_t length;
    bool told; /* `waiting` has been, or is about to be, written */
    uint64_t lost;
    struct queued_event queue[QUEUE_LENGTH];
};

/* -- a socket's thread ---------------------------------------------------------------- */

static int compare(const void *one, const void *other)
{
    return memcmp(one, other, 6);
}

/* Whether this host has the hardware address, on whatever interface. */
static bool is_own(struct autoip_reactor *reactor, const uint8_t *mac)
{
    bool found;

    pthread_mutex_lock(&reactor->own_lock);
    found = reactor->own_count > 0 &&
            bsearch(mac, reactor->own, reactor->own_count, sizeof *reactor->own, compare) != NULL;
    pthread_mutex_unlock(&reactor->own_lock);
    return found;
}

/* Answers a question, unless there were too many: then false. */
static bool reply(struct autoip_socket *sock, const uint8_t *question)
{
    uint8_t frame[AUTOIP_FRAME_LEN];
    uint64_t now = autoip_now();

    if (sock->answers_until < now)
        sock->answers_until = now;
    if (sock->answers_until - now > (ANSWER_BURST - 1) * (uint64_t)ANSWER_INTERVAL_NS)
        return false;
    sock->answers_until += ANSWER_INTERVAL_NS;
    autoip_reply_make(frame, question, sock->mac);
    (void)autoip_packet_send(sock->fd, frame); /* the kernel has answered as well */
    return true;
}

/*
 * The reflex.  What the frame is, and whether it was answered.  Of a conflict also under what
 * generation it is to be told, and when it was answered (0: it was not).
 */
static enum autoip_verdict answer(struct autoip_socket *sock, const uint8_t *frame, size_t length,
                                  struct autoip_event *event, bool *answered)
{
    enum autoip_verdict verdict;

    *answered = false;
    event->defended_ns = 0;
    pthread_mutex_lock(&sock->lock);
    verdict = (enum autoip_verdict)autoip_filter_accepts(frame, length, sock->mac, sock->address,
                                                         sock->phase);
    if (verdict != AUTOIP_NOTHING && sock->phase != AUTOIP_PROBE &&
        is_own(sock->reactor, frame + AUTOIP_SHA_AT))
        verdict = AUTOIP_NOTHING;
    if (verdict == AUTOIP_QUESTION) {
        *answered = reply(sock, frame);
    } else if (verdict == AUTOIP_CONFLICT && sock->armed && sock->phase != AUTOIP_PROBE &&
               sock->armed_address == sock->address) {
        sock->armed = false;
        *answered = autoip_packet_send(sock->fd, sock->armed_frame) == 0;
        if (*answered)
            event->defended_ns = autoip_now();
    }
    event->generation = sock->generation;
    pthread_mutex_unlock(&sock->lock);
    return verdict;
}

static void tell(const struct autoip_reactor *reactor)
{
    const uint64_t one = 1;

    /* Fails only when the counter is full, and then the descriptor is readable as well. */
    (void)!write(reactor->waiting, &one, sizeof one);
}

/* Puts an event into the queue, or counts it as lost. */
static void enqueue(struct autoip_socket *sock, const struct autoip_event *event)
{
    struct autoip_reactor *reactor = sock->reactor;
    bool room;
    bool news = false;

    pthread_mutex_lock(&reactor->lock);
    if (event->defended_ns != 0)
        room = reactor->length < QUEUE_LENGTH;
    else
        room = reactor->length < QUEUE_LENGTH - QUEUE_RESERVED &&
               sock->queued < QUEUE_PER_SOCKET;
    if (room) {
        struct queued_event *entry =
            &reactor->queue[(reactor->first + reactor->length) % QUEUE_LENGTH];

        entry->event = *event;
        entry->slot = sock->slot;
        reactor->length++;
        sock->queued++;
        if (!reactor->told)
            news = reactor->told = true;
    } else {
        reactor->lost++;
    }
    pthread_mutex_unlock(&reactor->lock);

    /* Outside the lock, which the program that this wakes will want. */
    if (news)
        tell(reactor);
}

/*
 * Handles the first `count` frames of the batch; true if any conflict or question was not answered.
 *
 * Not inlined: a thread that is cancelled leaves serve() without returning, so nothing that has
 * variables in memory may be underway there (the address sanitizer marks them).
 */
static __attribute__((noinline)) bool on_frames(struct autoip_socket *sock, int count)
{
    bool unanswered = false;

    for (int i = 0; i < count; i++) {
        const uint8_t *frame = sock->batch.entries[i].frame;
        struct autoip_event event;
        enum autoip_verdict verdict;
        bool answered;

        verdict = answer(sock, frame, sock->batch.headers[i].msg_len, &event, &answered);
        if (verdict == AUTOIP_NOTHING)
            continue;
        unanswered = unanswered || !answered;
        if (verdict != AUTOIP_CONFLICT)
            continue;
        event.received_ns = autoip_batch_received(&sock->batch, i);
        /* Where the kernel gave no time stamp: it is later than the answer. */
        if (event.defended_ns != 0 && event.received_ns > event.defended_ns)
            event.received_ns = event.defended_ns;
        event.token = sock->token;
        memcpy(event.frame, frame, AUTOIP_FRAME_LEN);
        enqueue(sock, &event);
    }
    return unanswered;
}

/* The kernel waits here until no processor handles a frame for the socket any more. */
static void close_packet(void *argument)
{
    const struct autoip_socket *sock = argument;

    close(sock->fd);
}

/* Waits for frames and handles them, until the thread is cancelled: nowhere but while it waits. */
static __attribute__((noreturn, noinline)) void serve(struct autoip_socket *sock)
{
    static const struct timespec pause = {.tv_nsec = REST_NS};
    bool rest = false;
    int count;

    for (;;) {
        /*
         * An error is the socket's pending one (ENETDOWN when the interface goes down or
         * away), and this has taken it off.  Netlink tells the program.
         */
        (void)pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL);
        if (rest)
            (void)nanosleep(&pause, NULL);
        count = autoip_packet_wait(sock->fd, &sock->batch);
        (void)pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);

        /* The first frame by itself: asking for more would only delay the answer. */
        rest = count > 0 && on_frames(sock, count);
        while (count > 0) {
            count = autoip_packet_receive(sock->fd, &sock->batch);
            if (count > 0 && on_frames(sock, count))
                rest = true;
            if (count < AUTOIP_BATCH)
                break; /* there were no more */
        }
    }
}

static void *run(void *argument)
{
    pthread_cleanup_push(close_packet, argument);
    serve(argument);
    pthread_cleanup_pop(0);
    return NULL;
}

static void leave(struct autoip_socket *sock)
{
    pthread_mutex_lock(&sock->reactor->lock);
    sock->reactor->slots[sock->slot] = NULL;
    pthread_mutex_unlock(&sock->reactor->lock);
}

/* Waits for the end of a cancelled thread. */
static void finish(struct autoip_socket *sock)
{
    (void)pthread_join(sock->thread, NULL);
    leave(sock);
    (void)pthread_mutex_destroy(&sock->lock);
    free(sock);
}

/* The thread takes no signals: they are for the program's main thread. */
static int start(struct autoip_socket *sock)
{
    pthread_attr_t attributes;
    sigset_t all;
    sigset_t before;
    int result;

    result = pthread_attr_init(&attributes);
    if (result != 0)
        return -result;
    sigfillset(&all);
    (void)pthread_attr_setstacksize(&attributes, STACK_SIZE);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    result = pthread_create(&sock->thread, &attributes, run, sock);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    (void)pthread_attr_destroy(&attributes);
    if (result != 0)
        return -result;
    (void)pthread_setname_np(sock->thread, "autoip-arp");
    return 0;
}

/* -- the reactor ---------------------------------------------------------------------- */

int autoip_reactor_new(struct autoip_reactor **out)
{
    struct autoip_reactor *reactor = calloc(1, sizeof *reactor);
    int result;

    if (reactor == NULL)
        return -ENOMEM;
    reactor->waiting = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (reactor->waiting < 0) {
        result = -errno;
        free(reactor);
        return result;
    }
    result = pthread_mutex_init(&reactor->lock, NULL);
    if (result != 0)
        goto no_lock;
    result = pthread_mutex_init(&reactor->own_lock, NULL);
    if (result != 0)
        goto no_own_lock;
    *out = reactor;
    return 0;

no_own_lock:
    (void)pthread_mutex_destroy(&reactor->lock);
no_lock:
    close(reactor->waiting);
    free(reactor);
    return -result;
}

void autoip_reactor_free(struct autoip_reactor *reactor)
{
    if (reactor == NULL)
        return;
    /* Each thread closes its own packet socket: with many it is a matter of waiting together. */
    for (uint32_t slot = 0; slot < reactor->slot_count; slot++)
        if (reactor->slots[slot] != NULL)
            (void)pthread_cancel(reactor->slots[slot]->thread);
    for (uint32_t slot = 0; slot < reactor->slot_count; slot++)
        if (reactor->slots[slot] != NULL)
            finish(reactor->slots[slot]);
    close(reactor->waiting);
    (void)pthread_mutex_destroy(&reactor->own_lock);
    (void)pthread_mutex_destroy(&reactor->lock);
    free(reactor->own);
    free(reactor->slots);
    free(reactor);
}

int autoip_reactor_fd(const struct autoip_reactor *reactor)
{
    return reactor->waiting;
}

int autoip_reactor_own(struct autoip_reactor *reactor, const uint8_t *macs, size_t count)
{
    uint8_t (*own)[6] = NULL;
    uint8_t (*before)[6];

    if (count > AUTOIP_OWN_MAX)
        return -E2BIG;
    if (count > 0) {
        own = malloc(count * sizeof *own);
        if (own == NULL)
            return -ENOMEM;
        memcpy(own, macs, count * sizeof *own);
        qsort(own, count, sizeof *own, compare);
    }
    pthread_mutex_lock(&reactor->own_lock);
    before = reactor->own;
    reactor->own = own;
    reactor->own_count = count;
    pthread_mutex_unlock(&reactor->own_lock);
    free(before);
    return 0;
}

int autoip_reactor_drain(struct autoip_reactor *reactor, struct autoip_event *out,
                         size_t capacity, uint64_t *lost)
{
    uint64_t counter;
    int count = 0;

    pthread_mutex_lock(&reactor->lock);
    while (reactor->length > 0 && (size_t)count < capacity) {
        const struct queued_event *entry = &reactor->queue[reactor->first];
        struct autoip_socket *sock = reactor->slots[entry->slot];

        /* The slot may have been given to another socket. */
        if (sock != NULL && sock->token == entry->event.token)
            sock->queued--;
        out[count++] = entry->event;
        reactor->first = (reactor->first + 1) % QUEUE_LENGTH;
        reactor->length--;
    }
    if (reactor->length == 0 && reactor->told) {
        /* Should a thread be only about to write, the next drain finds nothing: no harm. */
        (void)!read(reactor->waiting, &counter, sizeof counter);
        reactor->told = false;
    }
    *lost = reactor->lost;
    pthread_mutex_unlock(&reactor->lock);
    return count;
}

/* -- sockets -------------------------------------------------------------------------- */

/* Gives the socket a slot and a token. */
static int enter(struct autoip_reactor *reactor, struct autoip_socket *sock)
{
    uint32_t slot = 0;
    int result = 0;

    pthread_mutex_lock(&reactor->lock);
    while (slot < reactor->slot_count && reactor->slots[slot] != NULL)
        slot++;
    if (slot == reactor->slot_count) {
        struct autoip_socket **slots =
            realloc(reactor->slots, (slot + 1) * sizeof(struct autoip_socket *));

        if (slots == NULL) {
            result = -ENOMEM;
        } else {
            reactor->slots = slots;
            reactor->slot_count++;
        }
    }
    if (result == 0) {
        reactor->slots[slot] = sock;
        sock->slot = slot;
        sock->token = ++reactor->last_token;
    }
    pthread_mutex_unlock(&reactor->lock);
    return result;
}

int autoip_socket_adopt(struct autoip_reactor *reactor, int fd, const uint8_t mac[6],
                        struct autoip_socket **out)
{
    struct autoip_socket *sock = calloc(1, sizeof *sock);
    int result;

    if (sock == NULL)
        return -ENOMEM;
    sock->reactor = reactor;
    sock->fd = fd;
    sock->phase = AUTOIP_SILENT;
    memcpy(sock->mac, mac, sizeof sock->mac);
    autoip_batch_init(&sock->batch);

    result = -pthread_mutex_init(&sock->lock, NULL);
    if (result < 0)
        goto no_lock;
    result = enter(reactor, sock);
    if (result < 0)
        goto no_slot;
    result = start(sock);
    if (result < 0)
        goto no_thread;
    *out = sock;
    return 0;

no_thread:
    leave(sock);
no_slot:
    (void)pthread_mutex_destroy(&sock->lock);
no_lock:
    free(sock);
    return result;
}

int autoip_socket_open(struct autoip_reactor *reactor, int ifindex, const uint8_t mac[6],
                       struct autoip_socket **out)
{
    int fd = autoip_packet_open(ifindex);
    int result;

    if (fd < 0)
        return fd;
    result = autoip_socket_adopt(reactor, fd, mac, out);
    if (result < 0)
        close(fd);
    return result;
}

uint32_t autoip_socket_token(const struct autoip_socket *sock)
{
    return sock->token;
}

int autoip_socket_watch(struct autoip_socket *sock, int phase, uint32_t address,
                        uint32_t generation)
{
    int phase_before;
    uint32_t address_before;
    uint32_t generation_before;
    int result;

    if (phase != AUTOIP_SILENT && phase != AUTOIP_PROBE && phase != AUTOIP_DEFEND &&
        phase != AUTOIP_ANSWER)
        return -EINVAL;

    /*
     * The check in C changes first.  Until the filter follows, frames for the former address
     * are dropped here, and those for the new one in the kernel: as if they had come before.
     */
    pthread_mutex_lock(&sock->lock);
    phase_before = sock->phase;
    address_before = sock->address;
    generation_before = sock->generation;
    sock->phase = phase;
    sock->address = address;
    sock->generation = generation;
    pthread_mutex_unlock(&sock->lock);

    result = autoip_packet_filter(sock->fd, sock->mac, address, phase);

    pthread_mutex_lock(&sock->lock);
    if (result < 0) {
        sock->phase = phase_before;
        sock->address = address_before;
        sock->generation = generation_before;
    } else if (phase == AUTOIP_SILENT || sock->armed_address != address) {
        sock->armed = false;
    }
    pthread_mutex_unlock(&sock->lock);
    return result;
}

int autoip_socket_send(struct autoip_socket *sock, const uint8_t frame[AUTOIP_FRAME_LEN],
                       uint64_t *sent_ns)
{
    int result = autoip_packet_send(sock->fd, frame);

    /* After the call: who reckons from this time is never early. */
    if (result == 0)
        *sent_ns = autoip_now();
    return result;
}

int autoip_socket_arm(struct autoip_socket *sock, const uint8_t frame[AUTOIP_FRAME_LEN])
{
    const uint8_t *spa = frame + AUTOIP_SPA_AT;
    uint32_t address =
        (uint32_t)spa[0] << 24 | (uint32_t)spa[1] << 16 | (uint32_t)spa[2] << 8 | spa[3];
    int result = 0;

    pthread_mutex_lock(&sock->lock);
    if (sock->phase == AUTOIP_SILENT || sock->address != address) {
        result = -EINVAL;
    } else {
        memcpy(sock->armed_frame, frame, AUTOIP_FRAME_LEN);
        sock->armed_address = address;
        sock->armed = true;
    }
    pthread_mutex_unlock(&sock->lock);
    return result;
}

void autoip_socket_disarm(struct autoip_socket *sock)
{
    pthread_mutex_lock(&sock->lock);
    sock->armed = false;
    pthread_mutex_unlock(&sock->lock);
}

void autoip_socket_close(struct autoip_socket *sock)
{
    (void)pthread_cancel(sock->thread);
    finish(sock);
}
