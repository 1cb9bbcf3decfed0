/*
 * The thread that waits for frames on all sockets, and its queue of events for the program.
 *
 * The defence must not wait for the interpreter: the thread itself sends the frame that the
 * program has armed, then queues the conflict. The program decides what to arm, and when.
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
#include <sys/prctl.h>

/*
 * The queue. One socket's conflicts may take only a part of it, so that a flood on one link
 * leaves room for the others. The last part is for events with a defence, which disarmed a
 * socket: if one of these were lost, the program would treat its frame as still armed.
 */
#define QUEUE_LENGTH 1024u
#define QUEUE_RESERVED 256u
#define QUEUE_PER_SOCKET 256u

#define STACK_SIZE (128 * 1024)

/* At most this many sockets are named by one epoll_wait(). */
#define READY_AT_ONCE 16

/*
 * After a conflict that was not answered, or a question too many, the socket rests: nothing is
 * urgent until the program has acted, and a flood costs a bounded share of a processor. The other
 * sockets do not rest meanwhile.
 */
#define REST_MS 1

/* At most this many frames are read after a rest; a full buffer drops the rest. */
#define REST_FRAMES 256

/*
 * A broadcast disturbs every host of the link: after a burst of answers there is at most one per
 * interval. Of the kernel's own ARP the BPF program (broadcast.c) makes more into broadcasts,
 * since that is not only answers.
 */
#define ANSWER_BURST 16u
#define ANSWER_INTERVAL_NS 50000000u

struct watched {
    enum autoip_phase phase;
    uint32_t address;
    uint32_t generation;
};

/*
 * A socket that epoll_wait() names may be closed before it is read. So its memory is kept for the
 * next socket, and freed together with the listener.
 */
struct autoip_socket {
    struct autoip_listener *listener;
    struct autoip_socket *next; /* never changes */
    bool resting;               /* the thread's own */

    /* Under the listener's lock. */
    int fd; /* -1: closed */
    uint8_t mac[6];
    bool armed;
    uint32_t armed_address;
    uint8_t armed_frame[AUTOIP_FRAME_LEN];
    struct watched watched;
    uint64_t answers_until; /* when the answers sent would end at one per interval */

    /* Changed under both locks. */
    uint32_t token;
    uint32_t queued; /* its events in the queue; under the queue's lock alone */
};

struct queued_event {
    struct autoip_event event;
    struct autoip_socket *sock;
};

struct autoip_listener {
    int epoll;
    uint64_t rest_until; /* the thread's own: when the sockets that rest are served; 0: none */

    /* Never held over a call that may wait. */
    pthread_mutex_t lock;
    struct autoip_socket *sockets; /* all that were ever opened */
    uint8_t (*own)[6];             /* hardware addresses of this host, sorted */
    size_t own_count;
    uint32_t last_token;

    pthread_t thread;
    bool running; /* there is a thread */
    int stop;     /* eventfd: the thread ends */
    int waiting;  /* eventfd: events are in the queue */

    /* Taken alone, or after `lock`. */
    pthread_mutex_t queue_lock;
    uint32_t first;
    uint32_t length;
    bool notified; /* `waiting` has been, or is about to be, written */
    uint64_t lost;
    struct queued_event queue[QUEUE_LENGTH];
};

/* -- the thread ----------------------------------------------------------------------- */

static int listener_compare(const void *one, const void *other)
{
    return memcmp(one, other, 6);
}

/* Whether an interface of this host has the hardware address. */
static bool listener_is_own(const struct autoip_listener *listener, const uint8_t *mac)
{
    return listener->own_count > 0 && bsearch(mac, listener->own, listener->own_count,
                                              sizeof *listener->own, listener_compare) != NULL;
}

/* Answers a question and returns true; false: there were too many. */
static bool listener_reply(struct autoip_socket *sock, const uint8_t *question)
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
 * The reflex: answers the frame if it must. Returns what the frame is; sets whether it was
 * answered and, for a conflict, when (0: it was not).
 */
static enum autoip_verdict listener_answer(struct autoip_socket *sock, const uint8_t *frame,
                                           size_t length, struct autoip_event *event,
                                           bool *answered)
{
    enum autoip_phase phase = sock->watched.phase;
    enum autoip_verdict verdict =
        autoip_filter_accepts(frame, length, sock->mac, sock->watched.address, phase);

    *answered = false;
    event->defended_ns = 0;
    if (verdict != AUTOIP_NOTHING && phase != AUTOIP_PROBE &&
        listener_is_own(sock->listener, frame + AUTOIP_SHA_AT))
        verdict = AUTOIP_NOTHING;
    if (verdict == AUTOIP_QUESTION) {
        *answered = listener_reply(sock, frame);
    } else if (verdict == AUTOIP_CONFLICT && sock->armed && phase != AUTOIP_PROBE &&
               sock->armed_address == sock->watched.address) {
        sock->armed = false;
        *answered = autoip_packet_send(sock->fd, sock->armed_frame) == 0;
        if (*answered)
            event->defended_ns = autoip_now();
    }
    return verdict;
}

/* Queues an event, or counts it as lost. Returns true if the program must be notified. */
static bool listener_enqueue(struct autoip_socket *sock, const struct autoip_event *event)
{
    struct autoip_listener *listener = sock->listener;
    bool room;
    bool news = false;

    pthread_mutex_lock(&listener->queue_lock);
    if (event->defended_ns != 0)
        room = listener->length < QUEUE_LENGTH;
    else
        room =
            listener->length < QUEUE_LENGTH - QUEUE_RESERVED && sock->queued < QUEUE_PER_SOCKET;
    if (room) {
        struct queued_event *entry =
            &listener->queue[(listener->first + listener->length) % QUEUE_LENGTH];

        entry->event = *event;
        entry->sock = sock;
        listener->length++;
        sock->queued++;
        if (!listener->notified)
            news = listener->notified = true;
    } else {
        listener->lost++;
    }
    pthread_mutex_unlock(&listener->queue_lock);
    return news;
}

/* Handles a frame. Returns true if it is a conflict or question that was not answered. */
static bool listener_on_frame(struct autoip_socket *sock, const uint8_t *frame, size_t length,
                              bool *news)
{
    struct autoip_event event;
    bool answered;
    enum autoip_verdict verdict = listener_answer(sock, frame, length, &event, &answered);

    if (verdict == AUTOIP_CONFLICT) {
        event.received_ns = autoip_packet_received(sock->fd);
        /* Without a time stamp of the kernel it is later than the answer. */
        if (event.defended_ns != 0 && event.received_ns > event.defended_ns)
            event.received_ns = event.defended_ns;
        event.token = sock->token;
        event.generation = sock->watched.generation;
        memcpy(event.frame, frame, AUTOIP_FRAME_LEN);
        if (listener_enqueue(sock, &event))
            *news = true;
    }
    return verdict != AUTOIP_NOTHING && !answered;
}

/* Makes epoll_wait() name the socket once, as soon as a frame or an error is there. */
static int listener_expect(struct autoip_socket *sock, int operation)
{
    struct epoll_event wanted = {.events = EPOLLIN | EPOLLONESHOT, .data.ptr = sock};

    return epoll_ctl(sock->listener->epoll, operation, sock->fd, &wanted) < 0 ? -errno : 0;
}

/*
 * Reads up to `limit` frames of a socket and handles them. Then the socket rests, or epoll_wait()
 * names it again. Returns true if the program must be notified.
 */
static bool listener_serve(struct autoip_socket *sock, int limit)
{
    struct autoip_listener *listener = sock->listener;
    uint8_t frame[AUTOIP_FRAME_LEN];
    bool news = false;

    sock->resting = false;
    for (int i = 0; i < limit; i++) {
        /*
         * An error is the socket's pending one (ENETDOWN when the interface goes down or away),
         * and is cleared by the call. The program learns of it by netlink.
         */
        int length = autoip_packet_receive(sock->fd, frame);

        if (length < 0)
            break;
        if (listener_on_frame(sock, frame, (size_t)length, &news))
            sock->resting = true;
    }
    if (!sock->resting)
        (void)listener_expect(sock, EPOLL_CTL_MOD);
    else if (listener->rest_until == 0)
        listener->rest_until = autoip_now() + REST_MS * 1000000u;
    return news;
}

/* Call this without a lock: the program that it wakes takes them. */
static void listener_notify(const struct autoip_listener *listener)
{
    const uint64_t one = 1;

    /* Fails only when the counter is full, and then the descriptor is readable as well. */
    (void)!write(listener->waiting, &one, sizeof one);
}

/* Serves a socket, unless it was closed meanwhile. */
static void listener_on_ready(struct autoip_listener *listener, struct autoip_socket *sock,
                              int limit)
{
    bool news;

    pthread_mutex_lock(&listener->lock);
    news = sock->fd >= 0 && listener_serve(sock, limit);
    pthread_mutex_unlock(&listener->lock);
    if (news)
        listener_notify(listener);
}

/* Serves the sockets that have rested. */
static void listener_end_rest(struct autoip_listener *listener)
{
    struct autoip_socket *sock;

    listener->rest_until = 0;
    pthread_mutex_lock(&listener->lock);
    sock = listener->sockets;
    pthread_mutex_unlock(&listener->lock);
    for (; sock != NULL; sock = sock->next)
        if (sock->resting)
            listener_on_ready(listener, sock, REST_FRAMES);
}

static void *listener_run(void *argument)
{
    struct autoip_listener *listener = argument;
    struct epoll_event ready[READY_AT_ONCE];

    /* By the thread itself: for another one the C library writes to /proc, which may be
     * forbidden. */
    (void)prctl(PR_SET_NAME, "autoip-arp");

    for (;;) {
        int count = epoll_wait(listener->epoll, ready, READY_AT_ONCE,
                               listener->rest_until == 0 ? -1 : REST_MS);

        for (int i = 0; i < count; i++) {
            if (ready[i].data.ptr == NULL)
                return NULL; /* `stop` */
            /* One frame: a further read would only delay the answer. */
            listener_on_ready(listener, ready[i].data.ptr, 1);
        }
        if (listener->rest_until != 0 && autoip_now() >= listener->rest_until)
            listener_end_rest(listener);
    }
}

/* Starts the thread. It takes no signals: they are for the program's main thread. */
static int listener_start(struct autoip_listener *listener)
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
    result = pthread_create(&listener->thread, &attributes, listener_run, listener);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    (void)pthread_attr_destroy(&attributes);
    if (result != 0)
        return -result;
    listener->running = true;
    return 0;
}

/* -- the listener --------------------------------------------------------------------- */

/* Opens the descriptors. Returns 0 or a negative errno; those not opened are -1. */
static int listener_open(struct autoip_listener *listener)
{
    struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = NULL};

    listener->stop = listener->waiting = -1;
    listener->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (listener->epoll < 0)
        return -errno;
    listener->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (listener->stop < 0)
        return -errno;
    listener->waiting = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (listener->waiting < 0)
        return -errno;
    return epoll_ctl(listener->epoll, EPOLL_CTL_ADD, listener->stop, &wanted) < 0 ? -errno : 0;
}

/* Frees a listener that no thread uses any more. */
static void listener_release(struct autoip_listener *listener)
{
    const int descriptors[] = {listener->epoll, listener->stop, listener->waiting};

    for (size_t i = 0; i < sizeof descriptors / sizeof *descriptors; i++)
        if (descriptors[i] >= 0)
            close(descriptors[i]);
    (void)pthread_mutex_destroy(&listener->lock);
    (void)pthread_mutex_destroy(&listener->queue_lock);
    for (struct autoip_socket *sock = listener->sockets, *next; sock != NULL; sock = next) {
        next = sock->next;
        free(sock);
    }
    free(listener->own);
    free(listener);
}

int autoip_listener_new(struct autoip_listener **out)
{
    struct autoip_listener *listener = calloc(1, sizeof *listener);
    int result;

    if (listener == NULL)
        return -ENOMEM;
    /* Without attributes these cannot fail. */
    (void)pthread_mutex_init(&listener->lock, NULL);
    (void)pthread_mutex_init(&listener->queue_lock, NULL);
    result = listener_open(listener);
    if (result == 0)
        result = listener_start(listener);
    if (result < 0) {
        listener_release(listener);
        return result;
    }
    *out = listener;
    return 0;
}

void autoip_listener_pause(struct autoip_listener *listener)
{
    uint64_t one = 1;

    if (!listener->running)
        return;
    (void)!write(listener->stop, &one, sizeof one); /* cannot fail: the counter is 0 */
    (void)pthread_join(listener->thread, NULL);
    (void)!read(listener->stop, &one, sizeof one);
    listener->running = false;
}

int autoip_listener_resume(struct autoip_listener *listener)
{
    if (listener->running)
        return 0;
    /* The thread may have ended before it served what epoll_wait() had named, once. */
    for (struct autoip_socket *sock = listener->sockets; sock != NULL; sock = sock->next)
        if (sock->fd >= 0 && !sock->resting)
            (void)listener_expect(sock, EPOLL_CTL_MOD);
    return listener_start(listener);
}

void autoip_listener_free(struct autoip_listener *listener)
{
    if (listener == NULL)
        return;
    autoip_listener_pause(listener);
    for (struct autoip_socket *sock = listener->sockets; sock != NULL; sock = sock->next)
        if (sock->fd >= 0)
            close(sock->fd);
    listener_release(listener);
}

int autoip_listener_fd(const struct autoip_listener *listener)
{
    return listener->waiting;
}

int autoip_listener_own(struct autoip_listener *listener, const uint8_t *macs, size_t count)
{
    uint8_t(*own)[6] = NULL;
    uint8_t(*before)[6];

    if (count > AUTOIP_OWN_MAX)
        return -E2BIG;
    if (count > 0) {
        own = malloc(count * sizeof *own);
        if (own == NULL)
            return -ENOMEM;
        memcpy(own, macs, count * sizeof *own);
        qsort(own, count, sizeof *own, listener_compare);
    }
    pthread_mutex_lock(&listener->lock);
    before = listener->own;
    listener->own = own;
    listener->own_count = count;
    pthread_mutex_unlock(&listener->lock);
    free(before);
    return 0;
}

int autoip_listener_drain(struct autoip_listener *listener, struct autoip_event *out,
                          size_t capacity, uint64_t *lost)
{
    uint64_t counter;
    int count = 0;

    pthread_mutex_lock(&listener->queue_lock);
    while (listener->length > 0 && (size_t)count < capacity) {
        const struct queued_event *entry = &listener->queue[listener->first];

        /* The memory may have been given to another socket. */
        if (entry->sock->token == entry->event.token)
            entry->sock->queued--;
        out[count++] = entry->event;
        listener->first = (listener->first + 1) % QUEUE_LENGTH;
        listener->length--;
    }
    if (listener->length == 0 && listener->notified) {
        /* If the thread writes only after this, the next drain finds nothing: harmless. */
        (void)!read(listener->waiting, &counter, sizeof counter);
        listener->notified = false;
    }
    *lost = listener->lost;
    pthread_mutex_unlock(&listener->queue_lock);
    return count;
}

/* -- sockets -------------------------------------------------------------------------- */

/* Returns memory for a socket, on the list; NULL if there is none. */
static struct autoip_socket *listener_find_room(struct autoip_listener *listener)
{
    struct autoip_socket *sock = listener->sockets;

    while (sock != NULL && sock->fd >= 0)
        sock = sock->next;
    if (sock != NULL)
        return sock;
    sock = calloc(1, sizeof *sock);
    if (sock == NULL)
        return NULL;
    sock->listener = listener;
    sock->fd = -1;
    pthread_mutex_lock(&listener->lock);
    sock->next = listener->sockets;
    listener->sockets = sock;
    pthread_mutex_unlock(&listener->lock);
    return sock;
}

/* Adds a socket that watches this already; `armed` is NULL or the frame. */
static int listener_add(struct autoip_listener *listener, int fd, const uint8_t mac[6],
                        struct watched watched, const uint8_t *armed, struct autoip_socket **out)
{
    struct autoip_socket *sock = listener_find_room(listener);
    int result;

    if (sock == NULL)
        return -ENOMEM;
    pthread_mutex_lock(&listener->lock);
    pthread_mutex_lock(&listener->queue_lock);
    sock->token = ++listener->last_token;
    sock->queued = 0;
    pthread_mutex_unlock(&listener->queue_lock);
    sock->fd = fd;
    memcpy(sock->mac, mac, sizeof sock->mac);
    sock->watched = watched;
    sock->armed = armed != NULL;
    sock->armed_address = watched.address;
    if (armed != NULL)
        memcpy(sock->armed_frame, armed, AUTOIP_FRAME_LEN);
    sock->answers_until = 0;
    /* Under the lock: by the time that the thread serves the socket, all is as it must be. */
    result = listener_expect(sock, EPOLL_CTL_ADD);
    if (result < 0)
        sock->fd = -1;
    pthread_mutex_unlock(&listener->lock);
    if (result == 0)
        *out = sock;
    return result;
}

int autoip_socket_adopt(struct autoip_listener *listener, int fd, const uint8_t mac[6],
                        struct autoip_socket **out)
{
    return listener_add(listener, fd, mac, (struct watched){.phase = AUTOIP_SILENT}, NULL, out);
}

int autoip_socket_take_over(struct autoip_listener *listener, int fd, const uint8_t mac[6],
                            enum autoip_phase phase, uint32_t address, uint32_t generation,
                            const uint8_t *armed, struct autoip_socket **out)
{
    return listener_add(listener, fd, mac, (struct watched){phase, address, generation}, armed,
                        out);
}

int autoip_socket_open(struct autoip_listener *listener, int ifindex, const uint8_t mac[6],
                       struct autoip_socket **out)
{
    int fd = autoip_packet_open(ifindex);
    int result;

    if (fd < 0)
        return fd;
    result = autoip_socket_adopt(listener, fd, mac, out);
    if (result < 0)
        close(fd);
    return result;
}

uint32_t autoip_socket_token(const struct autoip_socket *sock)
{
    return sock->token;
}

int autoip_socket_fd(const struct autoip_socket *sock)
{
    return sock->fd;
}

int autoip_socket_watch(struct autoip_socket *sock, enum autoip_phase phase, uint32_t address,
                        uint32_t generation)
{
    pthread_mutex_t *lock = &sock->listener->lock;
    struct watched before;
    int result;

    /*
     * The check in C changes first. Until the filter follows, frames for the former address are
     * dropped here, and those for the new one in the kernel: as if they had come earlier.
     */
    pthread_mutex_lock(lock);
    before = sock->watched;
    sock->watched = (struct watched){phase, address, generation};
    pthread_mutex_unlock(lock);

    result = autoip_packet_filter(sock->fd, sock->mac, address, phase);

    pthread_mutex_lock(lock);
    if (result < 0)
        sock->watched = before;
    else if (phase == AUTOIP_SILENT || sock->armed_address != address)
        sock->armed = false;
    pthread_mutex_unlock(lock);
    return result;
}

int autoip_socket_send(struct autoip_socket *sock, const uint8_t frame[AUTOIP_FRAME_LEN],
                       uint64_t *sent_ns)
{
    int result = autoip_packet_send(sock->fd, frame);

    /* After the call, so that a pause that starts at this time is never too short. */
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

    pthread_mutex_lock(&sock->listener->lock);
    if (sock->watched.phase == AUTOIP_SILENT || sock->watched.address != address) {
        result = -EINVAL;
    } else {
        memcpy(sock->armed_frame, frame, AUTOIP_FRAME_LEN);
        sock->armed_address = address;
        sock->armed = true;
    }
    pthread_mutex_unlock(&sock->listener->lock);
    return result;
}

void autoip_socket_disarm(struct autoip_socket *sock)
{
    pthread_mutex_lock(&sock->listener->lock);
    sock->armed = false;
    pthread_mutex_unlock(&sock->listener->lock);
}

/* Whether an event of this socket's present generation is in the queue, or none would have room.
 */
static bool listener_has_queued(struct autoip_socket *sock)
{
    struct autoip_listener *listener = sock->listener;
    bool found;

    pthread_mutex_lock(&listener->queue_lock);
    found = listener->length >= QUEUE_LENGTH - QUEUE_RESERVED || sock->queued >= QUEUE_PER_SOCKET;
    for (uint32_t i = 0; i < listener->length && !found; i++) {
        const struct autoip_event *event =
            &listener->queue[(listener->first + i) % QUEUE_LENGTH].event;

        found = event->token == sock->token && event->generation == sock->watched.generation;
    }
    pthread_mutex_unlock(&listener->queue_lock);
    return found;
}

int autoip_socket_pending(struct autoip_socket *sock)
{
    struct autoip_listener *listener = sock->listener;
    uint8_t frame[AUTOIP_FRAME_LEN];
    bool news = false;
    bool found;
    int errors = 0; /* the first may be the socket's pending one, which the call clears */

    /* Paused: what is in the socket is for the program that takes the socket over. */
    if (!listener->running)
        return 1;
    /*
     * Under the lock the thread has no frame that it has read and not yet queued. The loop ends:
     * the filter lets through conflicts alone, other frames are older than the filter.
     */
    pthread_mutex_lock(&listener->lock);
    while (!(found = listener_has_queued(sock)) && errors < 2) {
        int length = autoip_packet_receive(sock->fd, frame);

        if (length == -EAGAIN)
            break;
        if (length < 0)
            errors++;
        else
            (void)listener_on_frame(sock, frame, (size_t)length, &news);
    }
    pthread_mutex_unlock(&listener->lock);
    if (news)
        listener_notify(listener);
    return found;
}

int autoip_socket_detach(struct autoip_socket *sock)
{
    int fd = sock->fd;

    pthread_mutex_lock(&sock->listener->lock);
    sock->fd = -1;
    pthread_mutex_unlock(&sock->listener->lock);
    /* A process that is just being started may have a copy of the descriptor. */
    (void)epoll_ctl(sock->listener->epoll, EPOLL_CTL_DEL, fd, NULL);
    return fd;
}
