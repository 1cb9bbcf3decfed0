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

#include <arpa/inet.h>
#include <linux/bpf.h>
#include <linux/if_packet.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>

/*
 * The queue. One socket's conflicts may take only a part of it, so that a flood on one link
 * leaves room for the others. The last part is for events with a defence, which disarmed a
 * socket: if one of these were lost, the program would treat its frame as still armed.
 */
#define QUEUE_LENGTH 1024u
#define QUEUE_RESERVED 256u
#define QUEUE_PER_SOCKET 256u

/* At most so long a record that is being written is waited for, on another processor. */
#define RECORD_WAIT_NS 10000000u

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
    int fd;      /* -1: closed */
    int ifindex; /* 0: unknown */
    uint8_t mac[6];
    struct autoip_slot *slot; /* what is armed; shared with the kernel, or `private` */
    struct autoip_slot private;
    struct watched watched;
    uint64_t answers_until; /* when the answers sent would end at one per interval */

    /* Changed under both locks. */
    uint32_t token;
    uint32_t queued; /* its events in the queue; under the queue's lock alone */
};

/* The records of the kernel's defence, in the layout of BPF_MAP_TYPE_RINGBUF. */
struct ring {
    int fd;                  /* the caller's; -1: none */
    unsigned long *consumer; /* a page that we write... */
    unsigned long *producer; /* ...one that the kernel writes, and after it the records twice */
    uint8_t *records;
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

    /* The kernel's defence; NULL without it. */
    struct autoip_shared *shared;
    struct ring ring;

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

/*
 * Takes what is armed: returns true if the caller must send it. Beside the kernel (defence.c),
 * which may be faster, by the same rule: the frame's own time counts, which is in the event then.
 * Without the kernel the program arms again, in its own time, so that the answer does not wait
 * for a clock.
 */
static bool listener_claim(struct autoip_socket *sock, struct autoip_event *event)
{
    struct autoip_slot *slot = sock->slot;
    uint64_t ready_at = __atomic_load_n(&slot->ready_at, __ATOMIC_ACQUIRE);
    uint64_t next = AUTOIP_NEVER;

    if (ready_at >= AUTOIP_YIELDED || slot->address != htonl(sock->watched.address))
        return false;
    if (slot != &sock->private) {
        event->received_ns = autoip_packet_received(sock->fd);
        if (event->received_ns < ready_at)
            return false;
        next = event->received_ns + sock->listener->shared->interval_ns;
    }
    return __atomic_compare_exchange_n(&slot->ready_at, &ready_at, next, false, __ATOMIC_SEQ_CST,
                                       __ATOMIC_SEQ_CST);
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
    event->defended_ns = event->received_ns = 0;
    if (verdict != AUTOIP_NOTHING && phase != AUTOIP_PROBE &&
        listener_is_own(sock->listener, frame + AUTOIP_SHA_AT))
        verdict = AUTOIP_NOTHING;
    if (verdict == AUTOIP_QUESTION) {
        *answered = listener_reply(sock, frame);
    } else if (verdict == AUTOIP_CONFLICT && phase != AUTOIP_PROBE &&
               listener_claim(sock, event)) {
        *answered = autoip_packet_send(sock->fd, sock->slot->frame) == 0;
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

/* Queues a conflict that the kernel has judged. Returns true if the program must be notified. */
static bool listener_on_record(struct autoip_listener *listener,
                               const struct autoip_record *record)
{
    struct autoip_slot *slot = &listener->shared->slots[record->ifindex % AUTOIP_SLOTS];
    struct autoip_socket *sock = listener->sockets;
    struct autoip_event event;

    while (sock != NULL && (sock->fd < 0 || sock->slot != slot))
        sock = sock->next;
    if (sock == NULL || slot->ifindex != record->ifindex)
        return false;
    event.received_ns = record->received_ns;
    event.defended_ns = record->defended_ns;
    event.token = sock->token;
    event.generation = record->generation;
    memcpy(event.frame, record->frame, AUTOIP_FRAME_LEN);
    return listener_enqueue(sock, &event);
}

/*
 * Queues what the kernel has judged, under the listener's lock. A record that is being written is
 * waited for: what it is about has happened. Returns true if the program must be notified.
 */
static bool listener_take_records(struct autoip_listener *listener)
{
    struct ring *ring = &listener->ring;
    uint64_t give_up = 0;
    bool news = false;

    /* Paused: what is in the ring is for the program that takes the sockets over. */
    while (ring->fd >= 0 && listener->running) {
        unsigned long at = *ring->consumer;
        const uint8_t *record = ring->records + at % AUTOIP_RING_SIZE;
        uint32_t header;

        if (at == __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE))
            break;
        header = __atomic_load_n((const uint32_t *)record, __ATOMIC_ACQUIRE);
        if ((header & BPF_RINGBUF_BUSY_BIT) != 0) {
            if (give_up == 0)
                give_up = autoip_now() + RECORD_WAIT_NS;
            else if (autoip_now() > give_up)
                break; /* the thread is woken again */
            continue;
        }
        if ((header & BPF_RINGBUF_DISCARD_BIT) == 0 &&
            listener_on_record(listener, (const void *)(record + BPF_RINGBUF_HDR_SZ)))
            news = true;
        at += sizeof(struct autoip_record) + BPF_RINGBUF_HDR_SZ;
        __atomic_store_n(ring->consumer, at, __ATOMIC_SEQ_CST);
    }
    return news;
}

/* Disarms, and queues what was answered before. Returns the word before. */
static uint64_t listener_disarm(struct autoip_socket *sock, bool *news)
{
    uint64_t before = __atomic_exchange_n(&sock->slot->ready_at, AUTOIP_NEVER, __ATOMIC_SEQ_CST);

    if (listener_take_records(sock->listener))
        *news = true;
    return before;
}

/* Handles a frame. Returns true if it is a conflict or question that was not answered. */
static bool listener_on_frame(struct autoip_socket *sock, const uint8_t *frame, size_t length,
                              bool *news)
{
    struct autoip_event event;
    bool answered;
    enum autoip_verdict verdict;

    /* What the kernel has judged before it let this one through. */
    if (listener_take_records(sock->listener))
        *news = true;
    verdict = listener_answer(sock, frame, length, &event, &answered);
    if (verdict == AUTOIP_CONFLICT) {
        if (event.received_ns == 0)
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

static void listener_on_records(struct autoip_listener *listener)
{
    bool news;

    pthread_mutex_lock(&listener->lock);
    news = listener_take_records(listener);
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
            if (ready[i].data.ptr == listener)
                listener_on_records(listener);
            else /* One frame: a further read would only delay the answer. */
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
    listener->running = true;
    result = pthread_create(&listener->thread, &attributes, listener_run, listener);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    (void)pthread_attr_destroy(&attributes);
    if (result != 0)
        listener->running = false;
    return -result;
}

/* -- the listener --------------------------------------------------------------------- */

/* Opens the descriptors. Returns 0 or a negative errno; those not opened are -1. */
static int listener_open(struct autoip_listener *listener)
{
    struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = NULL};

    listener->stop = listener->waiting = listener->ring.fd = -1;
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

static void listener_unmap(struct autoip_listener *listener)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);

    if (listener->shared != NULL)
        (void)munmap(listener->shared, sizeof *listener->shared);
    if (listener->ring.consumer != NULL)
        (void)munmap(listener->ring.consumer, page);
    if (listener->ring.producer != NULL)
        (void)munmap(listener->ring.producer, page + 2 * (size_t)AUTOIP_RING_SIZE);
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
    listener_unmap(listener);
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

/* mmap() with NULL for an error. */
static void *listener_map(int fd, size_t length, int rights, size_t offset)
{
    void *memory = mmap(NULL, length, rights, MAP_SHARED, fd, (off_t)offset);

    return memory == MAP_FAILED ? NULL : memory;
}

int autoip_listener_defend(struct autoip_listener *listener, int memory, int ring)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = listener};
    int result = 0;

    pthread_mutex_lock(&listener->lock);
    listener->shared = autoip_defence_map(memory);
    listener->ring.consumer = listener_map(ring, page, PROT_READ | PROT_WRITE, 0);
    listener->ring.producer =
        listener_map(ring, page + 2 * (size_t)AUTOIP_RING_SIZE, PROT_READ, page);
    if (listener->shared == NULL || listener->ring.consumer == NULL ||
        listener->ring.producer == NULL ||
        epoll_ctl(listener->epoll, EPOLL_CTL_ADD, ring, &wanted)) {
        result = -errno;
    } else if (listener->shared->layout != AUTOIP_LAYOUT) {
        result = -EPROTO;
    } else {
        listener->ring.records = (uint8_t *)listener->ring.producer + page;
        listener->ring.fd = ring;
    }
    if (result < 0) {
        (void)epoll_ctl(listener->epoll, EPOLL_CTL_DEL, ring, NULL);
        listener_unmap(listener);
        listener->shared = NULL;
        listener->ring.consumer = listener->ring.producer = NULL;
    }
    pthread_mutex_unlock(&listener->lock);
    return result;
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
            close(autoip_socket_detach(sock));
    listener_release(listener);
}

int autoip_listener_fd(const struct autoip_listener *listener)
{
    return listener->waiting;
}

/* Gives the hardware addresses to the kernel's defence. One that stays is never missing
 * meanwhile. */
static void listener_share_own(struct autoip_listener *listener)
{
    struct autoip_shared *shared = listener->shared;
    uint32_t full = 0;

    if (shared == NULL)
        return;
    for (size_t row = 0; row < 1 << AUTOIP_OWN_ROW_BITS; row++)
        for (size_t column = 0; column < AUTOIP_OWN_COLUMNS; column++) {
            uint64_t *entry = &shared->own[row][column];
            uint8_t mac[6];

            autoip_mac_bytes(mac, *entry);
            if (*entry != 0 && !listener_is_own(listener, mac))
                __atomic_store_n(entry, 0, __ATOMIC_RELEASE);
        }
    for (size_t i = 0; i < listener->own_count; i++) {
        uint64_t mac = autoip_mac_number(listener->own[i]);
        uint64_t *row = shared->own[autoip_own_row(mac)];
        size_t at = 0;

        while (at < AUTOIP_OWN_COLUMNS && row[at] != mac)
            at++;
        for (size_t free = 0; free < AUTOIP_OWN_COLUMNS && at == AUTOIP_OWN_COLUMNS; free++)
            if (row[free] == 0)
                __atomic_store_n(&row[at = free], mac, __ATOMIC_RELEASE);
        if (at == AUTOIP_OWN_COLUMNS)
            full = 1;
    }
    __atomic_store_n(&shared->own_full, full, __ATOMIC_RELEASE);
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
    listener_share_own(listener);
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

/* The index of the interface to which a packet socket is bound; 0: there is none. */
static int listener_ifindex(int fd)
{
    struct sockaddr_ll address;
    socklen_t length = sizeof address;

    memset(&address, 0, sizeof address);
    if (getsockname(fd, (struct sockaddr *)&address, &length) < 0 ||
        address.sll_family != AF_PACKET || address.sll_ifindex < 0)
        return 0;
    return address.sll_ifindex;
}

/* Gives the socket the interface's slot in the shared memory, if that is free or was this
 * interface's. */
static void listener_share_slot(struct autoip_socket *sock)
{
    struct autoip_shared *shared = sock->listener->shared;
    struct autoip_slot *slot;

    if (shared == NULL || sock->ifindex == 0 || sock->slot != &sock->private)
        return;
    slot = &shared->slots[(uint32_t)sock->ifindex % AUTOIP_SLOTS];
    if (slot->ifindex != 0 && slot->ifindex != (uint32_t)sock->ifindex)
        return; /* another interface's */
    sock->slot = slot;
    if (slot->ifindex == 0) {
        slot->address = 0;
        if (slot->counted != (uint32_t)sock->ifindex)
            memset(&slot->counts, 0, sizeof slot->counts);
        slot->counted = (uint32_t)sock->ifindex;
        __atomic_store_n(&slot->ifindex, (uint32_t)sock->ifindex, __ATOMIC_RELEASE);
    }
}

/* Writes what is armed, and arms it from `ready_at` on. It is disarmed before. */
static void listener_fill_slot(struct autoip_socket *sock, const uint8_t *frame,
                               uint64_t ready_at)
{
    struct autoip_slot *slot = sock->slot;

    slot->mac = autoip_mac_number(sock->mac);
    slot->address = htonl(sock->watched.address);
    slot->generation = sock->watched.generation;
    memset(slot->frame, 0, sizeof slot->frame);
    memcpy(slot->frame, frame, AUTOIP_FRAME_LEN);
    __atomic_store_n(&slot->ready_at, ready_at, __ATOMIC_SEQ_CST);
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
    sock->ifindex = listener_ifindex(fd);
    memcpy(sock->mac, mac, sizeof sock->mac);
    sock->watched = watched;
    sock->slot = &sock->private;
    sock->private.ready_at = AUTOIP_NEVER;
    if (watched.phase != AUTOIP_SILENT)
        listener_share_slot(sock);
    /* The kernel has gone on with what another process image has armed. */
    if (sock->slot == &sock->private || sock->slot->address != htonl(watched.address) ||
        sock->slot->generation != watched.generation) {
        __atomic_store_n(&sock->slot->ready_at, AUTOIP_NEVER, __ATOMIC_SEQ_CST);
        if (armed != NULL)
            listener_fill_slot(sock, armed, autoip_now());
    }
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
    struct autoip_listener *listener = sock->listener;
    struct watched before;
    uint64_t ready_at = AUTOIP_NEVER;
    uint32_t seal;
    bool news = false;
    int result;

    /*
     * The check in C changes first. Until the filter follows, frames for the former address are
     * dropped here, and those for the new one in the kernel: as if they had come earlier.
     */
    pthread_mutex_lock(&listener->lock);
    before = sock->watched;
    if (phase != AUTOIP_SILENT)
        listener_share_slot(sock);
    if (phase == AUTOIP_SILENT || phase == AUTOIP_PROBE ||
        sock->slot->address != htonl(address) || generation != before.generation)
        ready_at = listener_disarm(sock, &news);
    sock->watched = (struct watched){phase, address, generation};
    seal = listener->shared == NULL ? 0 : listener->shared->seal;
    pthread_mutex_unlock(&listener->lock);

    result = autoip_packet_filter(sock->fd, sock->mac, address, phase, seal);

    pthread_mutex_lock(&listener->lock);
    if (result < 0) {
        sock->watched = before;
        if (ready_at != AUTOIP_NEVER)
            __atomic_store_n(&sock->slot->ready_at, ready_at, __ATOMIC_SEQ_CST);
    } else if (ready_at != AUTOIP_NEVER && (phase == AUTOIP_DEFEND || phase == AUTOIP_ANSWER) &&
               sock->slot->address == htonl(address)) {
        /* The same address under another generation. */
        sock->slot->generation = generation;
        __atomic_store_n(&sock->slot->ready_at, ready_at, __ATOMIC_SEQ_CST);
    }
    pthread_mutex_unlock(&listener->lock);
    if (news)
        listener_notify(listener);
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
    news = listener_take_records(listener);
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

int autoip_socket_arm(struct autoip_socket *sock, const uint8_t frame[AUTOIP_FRAME_LEN])
{
    struct autoip_listener *listener = sock->listener;
    const uint8_t *spa = frame + AUTOIP_SPA_AT;
    uint32_t address =
        (uint32_t)spa[0] << 24 | (uint32_t)spa[1] << 16 | (uint32_t)spa[2] << 8 | spa[3];
    uint64_t ready_at;
    bool news = false;
    int result = 0;

    pthread_mutex_lock(&listener->lock);
    if (sock->watched.phase == AUTOIP_SILENT || sock->watched.address != address) {
        result = -EINVAL;
    } else {
        ready_at = listener_disarm(sock, &news);
        if (ready_at == AUTOIP_YIELDED && listener_has_queued(sock))
            result = 1;
        /* The kernel may have armed itself again already, for a later time. */
        else if (ready_at >= AUTOIP_YIELDED)
            ready_at = autoip_now();
        if (result == 0)
            listener_fill_slot(sock, frame, ready_at);
        else
            __atomic_store_n(&sock->slot->ready_at, ready_at, __ATOMIC_SEQ_CST);
    }
    pthread_mutex_unlock(&listener->lock);
    if (news)
        listener_notify(listener);
    return result;
}

void autoip_socket_disarm(struct autoip_socket *sock)
{
    bool news = false;

    pthread_mutex_lock(&sock->listener->lock);
    (void)listener_disarm(sock, &news);
    pthread_mutex_unlock(&sock->listener->lock);
    if (news)
        listener_notify(sock->listener);
}

int autoip_socket_counts(const struct autoip_socket *sock, struct autoip_counts *out)
{
    const struct autoip_shared *shared = sock->listener->shared;
    const struct autoip_counts *counts = &sock->slot->counts;

    if (shared == NULL || sock->ifindex == 0)
        return -ENODATA;
    if (sock->slot == &sock->private)
        return sock->watched.phase == AUTOIP_SILENT ? -ENODATA : -EBUSY;
    out->answered = __atomic_load_n(&counts->answered, __ATOMIC_RELAXED);
    out->left = __atomic_load_n(&counts->left, __ATOMIC_RELAXED);
    out->failed = __atomic_load_n(&counts->failed, __ATOMIC_RELAXED);
    return shared->own_full == 0 ? 0 : -E2BIG;
}

int autoip_socket_detach(struct autoip_socket *sock)
{
    int fd = sock->fd;
    bool news = false;

    pthread_mutex_lock(&sock->listener->lock);
    (void)listener_disarm(sock, &news);
    if (sock->slot != &sock->private)
        __atomic_store_n(&sock->slot->ifindex, 0, __ATOMIC_RELEASE);
    sock->slot = &sock->private;
    sock->fd = -1;
    pthread_mutex_unlock(&sock->listener->lock);
    if (news)
        listener_notify(sock->listener);
    /* A process that is just being started may have a copy of the descriptor. */
    (void)epoll_ctl(sock->listener->epoll, EPOLL_CTL_DEL, fd, NULL);
    return fd;
}
