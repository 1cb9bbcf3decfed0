/*
 * The thread that waits for the packet sockets of all interfaces, and the queue between it
 * and the program.
 *
 * The defence must not wait for the interpreter: the thread itself sends the frame that the
 * program has armed, then tells it.  What to arm, and when, is the program's decision.
 */
#include "internal.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/epoll.h>
#include <sys/eventfd.h>

/*
 * The queue.  One socket's conflicts may take only a part of it, so that a flood on one link
 * leaves room for the others.  The last part is for events with a defence, which disarmed a
 * socket: if one of these were lost, the program would believe that its frame is still armed.
 */
#define QUEUE_LENGTH 1024u
#define QUEUE_RESERVED 256u
#define QUEUE_PER_SOCKET 256u

#define WAKEUPS 16
#define STACK_SIZE (256 * 1024)

/* What epoll says about the stop descriptor; tokens start at 1. */
#define STOP 0u

struct autoip_socket {
    struct autoip_reactor *reactor;
    int fd;
    uint32_t slot;
    uint32_t token;
    uint8_t mac[6];

    /* Under the reactor's lock: */
    int phase;
    uint32_t address;
    uint32_t generation;
    bool armed;
    uint32_t armed_address;
    uint8_t armed_frame[AUTOIP_FRAME_LEN];
    uint32_t queued; /* events of this socket in the queue */
};

struct queued_event {
    struct autoip_event event;
    uint32_t slot;
};

struct autoip_reactor {
    pthread_t thread;
    int epoll;
    int stop;    /* eventfd: the thread is to end */
    int waiting; /* eventfd: events are in the queue */

    struct autoip_batch batch; /* the thread's own */

    pthread_mutex_t lock; /* all that follows; never held over a call that may wait */
    struct autoip_socket **slots;
    uint32_t slot_count;
    uint32_t last_token;
    struct queued_event queue[QUEUE_LENGTH];
    uint32_t first;
    uint32_t length;
    bool told; /* `waiting` has been, or is about to be, written */
    uint64_t lost;
};

/* -- the thread ----------------------------------------------------------------------- */

/* The socket in the slot, if it is still the one that epoll spoke of. */
static struct autoip_socket *find(struct autoip_reactor *reactor, uint32_t slot, uint32_t token)
{
    struct autoip_socket *sock = slot < reactor->slot_count ? reactor->slots[slot] : NULL;

    return sock != NULL && sock->token == token ? sock : NULL;
}

/* A place in the queue, or NULL (and counts the loss). */
static struct queued_event *place(struct autoip_reactor *reactor, struct autoip_socket *sock,
                                  bool defended)
{
    bool room = defended ? reactor->length < QUEUE_LENGTH
                         : reactor->length < QUEUE_LENGTH - QUEUE_RESERVED &&
                               sock->queued < QUEUE_PER_SOCKET;

    if (!room) {
        reactor->lost++;
        return NULL;
    }
    sock->queued++;
    return &reactor->queue[(reactor->first + reactor->length++) % QUEUE_LENGTH];
}

/* One frame: checks it, answers it, queues it; in this order. */
static void on_frame(struct autoip_reactor *reactor, struct autoip_socket *sock, int i)
{
    struct autoip_batch *batch = &reactor->batch;
    const uint8_t *frame = batch->frames[i];
    struct queued_event *entry;
    uint64_t defended = 0;

    if (!autoip_filter_accepts(frame, batch->headers[i].msg_len, sock->mac, sock->address,
                               sock->phase))
        return;

    if (sock->armed && sock->phase == AUTOIP_DEFEND && sock->armed_address == sock->address) {
        sock->armed = false;
        if (autoip_packet_send(sock->fd, sock->armed_frame) == 0)
            defended = autoip_now();
    }

    entry = place(reactor, sock, defended != 0);
    if (entry == NULL)
        return;
    entry->slot = sock->slot;
    entry->event.received_ns = autoip_batch_received(batch, i);
    entry->event.defended_ns = defended;
    entry->event.token = sock->token;
    entry->event.generation = sock->generation;
    memcpy(entry->event.frame, frame, AUTOIP_FRAME_LEN);
}

/* Makes `fd`, an eventfd, readable. */
static void tell(int fd)
{
    const uint64_t one = 1;

    /* Fails only when the counter is full, and then it is readable. */
    if (write(fd, &one, sizeof one) < 0)
        return;
}

static void on_socket(struct autoip_reactor *reactor, uint32_t slot, uint32_t token)
{
    struct autoip_socket *sock;
    bool news = false;
    int count = 0;

    pthread_mutex_lock(&reactor->lock);
    sock = find(reactor, slot, token);
    if (sock != NULL)
        /*
         * Any error but "nothing there" is the socket's pending one (ENETDOWN when the
         * interface goes down or away), and reading has taken it off: netlink tells the program.
         */
        count = autoip_packet_receive(sock->fd, &reactor->batch, AUTOIP_BATCH);
    for (int i = 0; i < count; i++)
        on_frame(reactor, sock, i);
    if (reactor->length > 0 && !reactor->told)
        news = reactor->told = true;
    pthread_mutex_unlock(&reactor->lock);

    /* Outside the lock, which the program that this wakes will want. */
    if (news)
        tell(reactor->waiting);
}

static void *run(void *argument)
{
    struct autoip_reactor *reactor = argument;
    struct epoll_event wakeups[WAKEUPS];

    for (;;) {
        int count = epoll_wait(reactor->epoll, wakeups, WAKEUPS, -1);

        for (int i = 0; i < count; i++) {
            uint32_t token = (uint32_t)wakeups[i].data.u64;

            if (token == STOP)
                return NULL;
            on_socket(reactor, (uint32_t)(wakeups[i].data.u64 >> 32), token);
        }
    }
}

/* -- the reactor ---------------------------------------------------------------------- */

/* The thread takes no signals: they are for the program's main thread. */
static int start(struct autoip_reactor *reactor)
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
    result = pthread_create(&reactor->thread, &attributes, run, reactor);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    (void)pthread_attr_destroy(&attributes);
    if (result != 0)
        return -result;
    (void)pthread_setname_np(reactor->thread, "autoip-arp");
    return 0;
}

static void release(struct autoip_reactor *reactor)
{
    if (reactor->epoll >= 0)
        close(reactor->epoll);
    if (reactor->stop >= 0)
        close(reactor->stop);
    if (reactor->waiting >= 0)
        close(reactor->waiting);
    (void)pthread_mutex_destroy(&reactor->lock);
    free(reactor->slots);
    free(reactor);
}

int autoip_reactor_new(struct autoip_reactor **out)
{
    struct epoll_event on_stop = {.events = EPOLLIN, .data.u64 = STOP};
    struct autoip_reactor *reactor = calloc(1, sizeof *reactor);
    int result;

    if (reactor == NULL)
        return -ENOMEM;
    result = pthread_mutex_init(&reactor->lock, NULL);
    if (result != 0) {
        free(reactor);
        return -result;
    }
    autoip_batch_init(&reactor->batch);
    reactor->epoll = epoll_create1(EPOLL_CLOEXEC);
    reactor->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    reactor->waiting = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (reactor->epoll < 0 || reactor->stop < 0 || reactor->waiting < 0 ||
        epoll_ctl(reactor->epoll, EPOLL_CTL_ADD, reactor->stop, &on_stop) < 0) {
        result = -errno;
        release(reactor);
        return result;
    }
    result = start(reactor);
    if (result < 0) {
        release(reactor);
        return result;
    }
    *out = reactor;
    return 0;
}

void autoip_reactor_free(struct autoip_reactor *reactor)
{
    if (reactor == NULL)
        return;
    tell(reactor->stop);
    (void)pthread_join(reactor->thread, NULL);
    for (uint32_t slot = 0; slot < reactor->slot_count; slot++)
        if (reactor->slots[slot] != NULL)
            autoip_socket_close(reactor->slots[slot]);
    release(reactor);
}

int autoip_reactor_fd(const struct autoip_reactor *reactor)
{
    return reactor->waiting;
}

int autoip_reactor_drain(struct autoip_reactor *reactor, struct autoip_event *out,
                         size_t capacity, uint64_t *lost)
{
    uint64_t counter;
    int count = 0;

    pthread_mutex_lock(&reactor->lock);
    while (reactor->length > 0 && (size_t)count < capacity) {
        const struct queued_event *entry = &reactor->queue[reactor->first];
        struct autoip_socket *sock = find(reactor, entry->slot, entry->event.token);

        if (sock != NULL)
            sock->queued--;
        out[count++] = entry->event;
        reactor->first = (reactor->first + 1) % QUEUE_LENGTH;
        reactor->length--;
    }
    if (reactor->length == 0 && reactor->told) {
        /* Should the thread be about to write, the next drain finds nothing: no harm. */
        (void)!read(reactor->waiting, &counter, sizeof counter);
        reactor->told = false;
    }
    *lost = reactor->lost;
    pthread_mutex_unlock(&reactor->lock);
    return count;
}

/* -- sockets -------------------------------------------------------------------------- */

/* A free slot, under the lock; -ENOMEM if there is none. */
static int64_t free_slot(struct autoip_reactor *reactor)
{
    struct autoip_socket **slots;
    uint32_t count = reactor->slot_count;

    for (uint32_t slot = 0; slot < count; slot++)
        if (reactor->slots[slot] == NULL)
            return slot;
    slots = realloc(reactor->slots, (count + 16) * sizeof(struct autoip_socket *));
    if (slots == NULL)
        return -ENOMEM;
    for (uint32_t slot = count; slot < count + 16; slot++)
        slots[slot] = NULL;
    reactor->slots = slots;
    reactor->slot_count = count + 16;
    return count;
}

int autoip_socket_adopt(struct autoip_reactor *reactor, int fd, const uint8_t mac[6],
                        struct autoip_socket **out)
{
    struct epoll_event on_frames = {.events = EPOLLIN};
    struct autoip_socket *sock = calloc(1, sizeof *sock);
    int64_t slot;
    int result = 0;

    if (sock == NULL)
        return -ENOMEM;
    sock->reactor = reactor;
    sock->fd = fd;
    sock->phase = AUTOIP_SILENT;
    memcpy(sock->mac, mac, sizeof sock->mac);

    pthread_mutex_lock(&reactor->lock);
    slot = free_slot(reactor);
    if (slot < 0) {
        result = (int)slot;
    } else {
        sock->slot = (uint32_t)slot;
        sock->token = ++reactor->last_token;
        on_frames.data.u64 = (uint64_t)sock->slot << 32 | sock->token;
        if (epoll_ctl(reactor->epoll, EPOLL_CTL_ADD, fd, &on_frames) < 0)
            result = -errno;
        else
            reactor->slots[slot] = sock;
    }
    pthread_mutex_unlock(&reactor->lock);

    if (result < 0) {
        free(sock);
        return result;
    }
    *out = sock;
    return 0;
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
    pthread_mutex_t *lock = &sock->reactor->lock;
    int phase_before;
    uint32_t address_before;
    uint32_t generation_before;
    int result;

    if (phase != AUTOIP_SILENT && phase != AUTOIP_PROBE && phase != AUTOIP_DEFEND)
        return -EINVAL;

    /*
     * The check in C changes first.  Until the filter follows, frames for the former address
     * are dropped here, and those for the new one in the kernel: as if they had come before.
     */
    pthread_mutex_lock(lock);
    phase_before = sock->phase;
    address_before = sock->address;
    generation_before = sock->generation;
    sock->phase = phase;
    sock->address = address;
    sock->generation = generation;
    pthread_mutex_unlock(lock);

    result = autoip_packet_filter(sock->fd, sock->mac, address, phase);

    pthread_mutex_lock(lock);
    if (result < 0) {
        sock->phase = phase_before;
        sock->address = address_before;
        sock->generation = generation_before;
    } else if (phase == AUTOIP_SILENT || sock->armed_address != address) {
        sock->armed = false;
    }
    pthread_mutex_unlock(lock);
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
    const uint8_t *spa = frame + 28;
    uint32_t address =
        (uint32_t)spa[0] << 24 | (uint32_t)spa[1] << 16 | (uint32_t)spa[2] << 8 | spa[3];
    int result = 0;

    pthread_mutex_lock(&sock->reactor->lock);
    if (sock->phase == AUTOIP_SILENT || sock->address != address) {
        result = -EINVAL;
    } else {
        memcpy(sock->armed_frame, frame, AUTOIP_FRAME_LEN);
        sock->armed_address = address;
        sock->armed = true;
    }
    pthread_mutex_unlock(&sock->reactor->lock);
    return result;
}

void autoip_socket_disarm(struct autoip_socket *sock)
{
    pthread_mutex_lock(&sock->reactor->lock);
    sock->armed = false;
    pthread_mutex_unlock(&sock->reactor->lock);
}

void autoip_socket_close(struct autoip_socket *sock)
{
    struct autoip_reactor *reactor = sock->reactor;

    pthread_mutex_lock(&reactor->lock);
    reactor->slots[sock->slot] = NULL;
    (void)epoll_ctl(reactor->epoll, EPOLL_CTL_DEL, sock->fd, NULL);
    pthread_mutex_unlock(&reactor->lock);

    /* The kernel waits here until no processor handles a frame for it any more. */
    close(sock->fd);
    free(sock);
}
