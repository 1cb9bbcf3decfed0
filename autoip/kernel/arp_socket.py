"""Packet sockets for ARP, in the C helper.

An `ArpListener` has a thread that waits for all its sockets without the interpreter's lock, and
queues the conflicts. The kernel's filter lets through nothing but conflicts for the watched
address. Once the address is defended, the thread itself answers the first of them with the frame
given to `ArpSocket.arm()`. Where `load_defence` could load its program, the kernel has done so before, and reports
the conflict through a ring: see csrc/defence.c.

Times are seconds on CLOCK_BOOTTIME. Nothing here is safe to call from two Python threads at
the same time.
"""

from __future__ import annotations

import enum
import errno
import os
import select
import struct
import threading
import time
from collections.abc import Callable, Collection
from ipaddress import IPv4Address
from typing import NamedTuple, TypeAlias

from autoip.kernel import tcx
from autoip.kernel.native import check, ffi, lib

Defence: TypeAlias = tuple[int, int, int]
"""Descriptors: of the program that answers conflicts in the kernel, of its memory, of the ring of its reports."""

FRAME_LENGTH: int = lib.AUTOIP_FRAME_LEN
OWN_MAX: int = lib.AUTOIP_OWN_MAX
"""Hardware addresses that `ArpListener.own` takes, at most."""

_NS = 1_000_000_000
_EVENT = struct.Struct("@QQII42s6x")
_DRAIN_AT_ONCE = 256
_READ_TIME_MS = 50


class Phase(enum.IntEnum):
    """What counts as a conflict.

    SILENT: nothing. PROBE (RFC 3927 section 2.2.1): an ARP packet that uses the address, or probes
    for it by broadcast. DEFEND (section 2.5): an ARP packet that uses it, and does not come from a
    sibling (`ArpListener.own`). Never a packet whose sender is the interface itself. ANSWER: as
    DEFEND, and the thread answers a host that asks for the address by broadcast (section 2.5), which
    is not a conflict and not reported.
    """

    SILENT = lib.AUTOIP_SILENT
    PROBE = lib.AUTOIP_PROBE
    DEFEND = lib.AUTOIP_DEFEND
    ANSWER = lib.AUTOIP_ANSWER


class Received(NamedTuple):
    """A conflict.

    Attributes:
        token: the socket's `ArpSocket.token`.
        generation: the socket's `ArpSocket.generation` when the frame was checked.
        frame: the 42 bytes of the Ethernet frame, without padding.
        at: when the kernel received the frame.
        defended_at: when the armed frame had been sent in answer; None: it was not sent.
    """

    token: int
    generation: int
    frame: bytes
    at: float
    defended_at: float | None


class Counts(NamedTuple):
    """The conflicts that the defence in the kernel has judged on one interface, also before this program's time.

    Attributes:
        answered: by an announcement.
        left: to the daemon, since another one came less than DEFEND_INTERVAL before.
        failed: not reported (the ring is full), or not answered (no memory, or the interface took no frame).
    """

    answered: int
    left: int
    failed: int


class KeptSocket(NamedTuple):
    """What `ArpListener.take_over` needs of the socket of another program.

    Attributes:
        descriptor: of the socket.
        mac: the interface's own hardware address, 6 bytes.
        phase, address: those of its filter.
        armed: the frame that answers the first conflict; None: it is not answered.
        generation: its `ArpSocket.generation`.
        attached: its `ArpSocket.attached`.
    """

    descriptor: int
    mac: bytes
    phase: Phase
    address: IPv4Address | None
    armed: bytes | None
    generation: int
    attached: tuple[int, int] | None


class ArpListener:
    """The sockets and the queue of their events. Usable in a with statement.

    Args:
        defence: answers conflicts before the thread; otherwise the thread alone does, for this reason.
        paused: begin as after `pause`.

    Attributes:
        undefended: that and why the kernel answers no conflict at all, in words; None: it does, or was not asked.

    Raises:
        OSError: no memory, descriptors or threads left.
    """

    def __init__(self, defence: Defence | str = "", *, paused: bool = False) -> None:
        if ffi.sizeof("struct autoip_event") != _EVENT.size:
            raise ImportError("autoip.kernel._native does not belong to this version of autoip")
        out = ffi.new("struct autoip_listener **")
        check(lib.autoip_listener_new(out))
        # Freed at the latest together with this object.
        self._listener = ffi.gc(out[0], lib.autoip_listener_free)
        self._fd: int = lib.autoip_listener_fd(self._listener)
        self._events = ffi.new("struct autoip_event[]", _DRAIN_AT_ONCE)
        self._buffer = ffi.buffer(self._events)
        self._lost = ffi.new("uint64_t *")
        self._sockets: dict[int, ArpSocket] = {}
        self._defence = None if isinstance(defence, str) else defence
        self.undefended = defence or None if isinstance(defence, str) else None
        if paused:
            self.pause()
        if self._defence is not None:
            _, memory, ring = self._defence
            result: int = lib.autoip_listener_defend(self._listener, memory, ring)
            if result < 0:
                self._defence = None
                self.undefended = f"{NOT_IN_KERNEL}: {os.strerror(-result)}"

    def fileno(self) -> int:
        """Return a descriptor that is readable while events wait; -1 after close()."""
        return self._fd

    @property
    def in_kernel(self) -> bool:
        """Whether the kernel answers conflicts where it can."""
        return self._defence is not None

    @property
    def lost(self) -> int:
        """Conflicts for which the queue had no room, since the start, as of the last drain()."""
        return int(self._lost[0])

    def drain(self) -> list[Received]:
        """Take all events that wait, the oldest first."""
        listener = self._open()
        received: list[Received] = []
        while True:
            count = check(
                lib.autoip_listener_drain(listener, self._events, _DRAIN_AT_ONCE, self._lost)
            )
            received += [
                Received(token, generation, frame, at / _NS, defended / _NS if defended else None)
                for at, defended, token, generation, frame in _EVENT.iter_unpack(
                    self._buffer[: count * _EVENT.size]
                )
            ]
            if count < _DRAIN_AT_ONCE:
                return received

    def open(self, index: int, mac: bytes, *, defended: bool = True) -> ArpSocket:
        """Open a socket on an interface, in phase SILENT.

        Args:
            index: the interface's index, from 1.
            mac: the interface's own hardware address, 6 bytes.
            defended: attach the kernel's defence, which takes the kernel some 10 ms, as to detach it.

        Raises:
            OSError: EPERM without CAP_NET_RAW, ENODEV if there is no such interface, EMFILE.
        """
        listener = self._open()
        if not isinstance(index, int):
            raise TypeError(f"interface index: an int, not {type(index).__name__}")
        if not 0 < index < 2**31:
            raise ValueError(f"interface index: {index}")
        out = ffi.new("struct autoip_socket **")
        check(lib.autoip_socket_open(listener, index, _bytes(mac, 6, "mac"), out))
        opened = ArpSocket(self, out[0], self._link(index) if defended else None)
        self._sockets[opened.token] = opened
        return opened

    def take_over(self, kept: KeptSocket) -> ArpSocket:
        """Go on with the socket of the program that this process was before; its descriptor is the new socket's.

        Frames that wait in it are checked as they would have been then. After `resume` `drain` has them.

        Raises:
            OSError: it is not a socket.
        """
        mac, generation, attached = _bytes(kept.mac, 6, "mac"), kept.generation, kept.attached
        frame = ffi.NULL if kept.armed is None else _bytes(kept.armed, FRAME_LENGTH, "frame")
        number = 0 if kept.address is None else int(kept.address)
        out = ffi.new("struct autoip_socket **")
        words = (mac, kept.phase, number, generation, frame, out)
        check(lib.autoip_socket_take_over(self._open(), kept.descriptor, *words))
        link = self._link(*attached) if attached is not None else None
        if link is None and attached is not None:
            os.close(attached[1])  # otherwise it would go on without us
        opened = ArpSocket(self, out[0], link)
        opened.generation, opened.watched = generation, (kept.phase, kept.address)
        self._sockets[opened.token] = opened
        return opened

    def _link(self, index: int, descriptor: int | None = None) -> tcx.Link | None:
        if self._defence is None:
            return None
        return tcx.Link(self._defence[0], index, egress=False, descriptor=descriptor)

    def pause(self) -> None:
        """End the thread, and nothing else: frames wait in the sockets, events in the queue."""
        lib.autoip_listener_pause(self._open())

    def resume(self) -> None:
        """Undo `pause`. When this returns, `drain` has what has come meanwhile. Raises OSError: no threads left."""
        check(lib.autoip_listener_resume(self._open()))
        waiting = select.poll()
        for sock in self._sockets.values():
            waiting.register(sock.fileno(), select.POLLIN)
        if self._defence is not None:
            waiting.register(self._defence[2], select.POLLIN)
        for _ in range(_READ_TIME_MS):  # not for ever: somebody may flood the link
            if not waiting.poll(0):
                break
            time.sleep(0.001)

    def own(self, macs: Collection[bytes]) -> None:
        """Set the hardware addresses of this host's interfaces.

        Args:
            macs: 6 bytes each; no more than OWN_MAX.

        Raises:
            OSError: E2BIG, ENOMEM; then the former addresses stay set.
        """
        packed = b"".join(_bytes(mac, 6, "mac") for mac in macs)
        check(lib.autoip_listener_own(self._open(), packed, len(macs)))

    def close(self) -> None:
        """End the thread and close all sockets. Harmless when repeated."""
        for opened in self._sockets.values():
            opened._pointer = None  # noqa: SLF001 (the two belong together)
        self._sockets.clear()
        self._fd = -1
        if self._listener is not None:
            ffi.release(self._listener)
            self._listener = None

    def __enter__(self) -> ArpListener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> ffi.CData:
        if self._listener is None:
            raise OSError(errno.EBADF, "the listener is closed")
        return self._listener

    def _forget(self, token: int) -> None:
        self._sockets.pop(token, None)


class ArpSocket:
    """A packet socket on one interface; made by `ArpListener.open()`.

    Attributes:
        token: distinguishes it from every other socket of the listener, closed ones included.
        generation: the number of watch() calls, without those that watch the same address in another phase.
        watched: phase and address.
    """

    def __init__(self, listener: ArpListener, pointer: ffi.CData, link: tcx.Link | None) -> None:
        self._listener = listener
        self._pointer: ffi.CData | None = pointer
        self._link = link  # of the defence in the kernel; until it is attached the thread defends
        self._refused: int | None = None  # why it is not attached: errno
        self.watched: tuple[Phase, IPv4Address | None] = Phase.SILENT, None
        self._sent = ffi.new("uint64_t *")
        self._counts = ffi.new("struct autoip_counts *")
        self.token: int = lib.autoip_socket_token(pointer)
        self.generation = 0
        wanted = link is not None and link.descriptor is None
        self._attaching = _in_thread(self._attach, link) if wanted else None

    def fileno(self) -> int:
        """The socket's descriptor."""
        return lib.autoip_socket_fd(self._open())

    @property
    def attached(self) -> tuple[int, int] | None:
        """The interface to which the defence in the kernel is attached, and the descriptor of that; None: it is not.

        Wait for the kernel, some 10 ms, while the defence is being attached.
        """
        if self._attaching is not None:
            self._attaching.join()
        if self._link is None or self._link.descriptor is None:
            return None
        return self._link.index, self._link.descriptor

    @property
    def detached(self) -> bool:
        """Whether somebody else has detached it. The kernel does not report that."""
        return self._link is not None and self._link.detached

    async def restore(self) -> bool:
        """Attach the defence in the kernel again where somebody else has detached it, or the kernel refused it.

        Returns:
            Whether it is back after somebody else detached it.
        """
        from autoip.kernel.daemon_threads import in_thread

        was_detached = self.detached
        if self._link is None or not (was_detached or self._refused is not None):
            return False
        await in_thread(self._attach, self._link)
        return was_detached and self._link.attached

    def _attach(self, link: tcx.Link) -> None:
        self._refused = None
        try:
            link.attach()
        except OSError as problem:
            if problem.errno != errno.ENODEV:  # the interface is gone
                self._refused = problem.errno or errno.EIO

    @property
    def undefended(self) -> str | None:
        """That and why the kernel does not defend on this interface, in words; None: it does, or does so nowhere."""
        if self._link is None:
            return None
        why = _UNDEFENDED.get(self._count())
        if self._refused is not None:
            why = tcx.why(self._refused)
        return why and f"{NOT_IN_KERNEL}: {why}"

    @property
    def counts(self) -> Counts | None:
        """What the defence in the kernel has counted; None: it is not there."""
        if self._link is None or self._count() in (-errno.ENODATA, -errno.EBUSY):
            return None
        return Counts(self._counts.answered, self._counts.left, self._counts.failed)

    def _count(self) -> int:
        result: int = lib.autoip_socket_counts(self._open(), self._counts)
        return result

    def watch(self, phase: Phase, address: IPv4Address | None) -> None:
        """Report conflicts for this address from now on, under a new generation if it is another one.

        No conflict for another address is reported any more. Disarms, unless the armed frame is for
        the same address.

        Args:
            phase: what counts as a conflict.
            address: the candidate or the address held; None only for SILENT.

        Raises:
            OSError: the kernel refused the filter; the former address stays watched.
        """
        sock = self._open()
        phase = Phase(phase)
        if address is None:
            if phase is not Phase.SILENT:
                raise ValueError(f"phase {phase.name} needs an address")
            number = 0
        elif isinstance(address, IPv4Address):
            number = int(address)
        else:
            raise TypeError(f"address: an IPv4Address, not {type(address).__name__}")
        generation = self.generation
        # A conflict of the phase before is one of this phase: it came while the address was a candidate already.
        if Phase.SILENT in (phase, self.watched[0]) or address != self.watched[1]:
            generation = (generation + 1) & 0xFFFF_FFFF
        check(lib.autoip_socket_watch(sock, phase, number, generation))
        self.generation, self.watched = generation, (phase, address)

    def send(self, frame: bytes) -> float:
        """Send a frame.

        Args:
            frame: 42 bytes, the Ethernet header included; the kernel pads it.

        Returns:
            The time just after the kernel took it: never earlier than the frame left, unless
            a queue of the interface delayed it.

        Raises:
            OSError: the frame was not sent: ENETDOWN, ENXIO (the interface is gone), ENOBUFS.
        """
        check(
            lib.autoip_socket_send(self._open(), _bytes(frame, FRAME_LENGTH, "frame"), self._sent)
        )
        return int(self._sent[0]) / _NS

    def arm(self, frame: bytes) -> bool:
        """Answer the next conflict in phase DEFEND or ANSWER with this frame, once.

        The kernel, where it answers, goes on to do so once in each DEFEND_INTERVAL.

        Args:
            frame: 42 bytes, an ARP packet whose sender IP is the watched address.

        Returns:
            Whether it is armed; not while a conflict for which the kernel has disarmed itself waits for `drain`.

        Raises:
            OSError: EINVAL for another sender IP, or in phase SILENT.
        """
        frame = _bytes(frame, FRAME_LENGTH, "frame")
        return check(lib.autoip_socket_arm(self._open(), frame)) == 0

    def disarm(self) -> None:
        """Answer no conflict any more, once this has returned."""
        lib.autoip_socket_disarm(self._open())

    def pending(self) -> bool:
        """Return whether a conflict that has come may still wait for `ArpListener.drain`.

        False only if the kernel's socket was empty as well, so that silence can be believed.
        """
        return bool(lib.autoip_socket_pending(self._open()))

    def close(self) -> None:
        """Close the socket; its events that wait stay in the queue. Harmless when repeated."""
        if self._pointer is not None:
            # In a thread: the kernel waits meanwhile until no processor delivers a frame to it.
            _in_thread(os.close, lib.autoip_socket_detach(self._pointer))
            self._pointer = None
            if self._link is not None:
                _in_thread(self._link.close)
            self._listener._forget(self.token)  # noqa: SLF001 (the two belong together)

    def __enter__(self) -> ArpSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> ffi.CData:
        if self._pointer is None:
            raise OSError(errno.EBADF, "the socket is closed")
        return self._pointer


NOT_IN_KERNEL = "the kernel does not defend the address itself, the daemon does"
_UNDEFENDED = {
    -errno.EBUSY: "another interface has its place in the memory",
    -errno.E2BIG: "this host has too many hardware addresses",
}


def load_defence(interval: float) -> Defence | str:
    """Load the program that answers conflicts in the kernel.

    Only this needs CAP_BPF, besides CAP_NET_ADMIN.

    Args:
        interval: seconds after a conflict in which the next one is not answered (DEFEND_INTERVAL).

    Returns:
        What an `ArpListener` takes, until the process ends; or in words why there is none.
    """
    memory, ring = ffi.new("int *"), ffi.new("int *")
    result: int = lib.autoip_defence_load(round(interval * _NS), memory, ring)
    if result >= 0:
        return result, memory[0], ring[0]
    return f"{NOT_IN_KERNEL}: {tcx.why(-result)}"


def load_broadcast() -> int | str:
    """Load the program that sends ARP packets with a link-local sender by broadcast.

    Only this needs CAP_BPF (before Linux 5.8: CAP_SYS_ADMIN), besides CAP_NET_ADMIN.

    Returns:
        A descriptor with which it can be attached to interfaces, until the process ends; or in
        words why there is none.
    """
    result: int = lib.autoip_broadcast_load()
    if result >= 0:
        return result
    if result in (-errno.EPERM, -errno.EACCES):
        return tcx.why(-result)
    return f"cannot load a program: {os.strerror(-result)}"


def _in_thread(function: Callable[..., None], *arguments: object) -> threading.Thread | None:
    """Run a function that may wait for the kernel; return the thread, or None if no thread is left."""
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        function(*arguments)
        return None
    return thread


def _bytes(value: bytes, length: int, what: str) -> bytes:
    """Return `value` if it is what C reads: exactly `length` bytes."""
    if not isinstance(value, bytes):
        raise TypeError(f"{what}: bytes, not {type(value).__name__}")
    if len(value) != length:
        raise ValueError(f"{what}: {length} bytes, not {len(value)}")
    return value
