"""What all network ends share: the queue of frames to the guest, counters, the capture, a thread that polls descriptors."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Sequence

from kvmpy.frames import MAX_FRAME, Offload, Takes
from kvmpy.host.net.pcap import Pcap
from kvmpy.threads import HelperThread

Receive = Callable[[bytes | memoryview, Offload | None], None]
Post = Callable[[Callable[[], None]], None]
Pieces = Sequence[bytes | memoryview]

BACKLOG = 4096
"""Frames kept for a guest that has no room; what comes beyond is dropped and counted."""
RESUME = BACKLOG // 2
"""At this many an end that stopped reading reads again."""
ETHERNET_HEADER = 14


class End:
    """Base of the ends. A subclass gives `_send` and calls `deliver`, from any thread.

    `sent` and `received` count frames of the guest and for it, `lost_out` and `lost_in` those that were dropped.
    """

    kind = "net"
    offloads = False

    def __init__(self) -> None:
        self.pcap: Pcap | None = None
        self.sent = self.received = self.lost_out = self.lost_in = 0
        self.on_trouble: Callable[[str], None] | None = None
        """Takes one line of text when the host fails while the guest runs."""
        self.tamper: Callable[[str, bytes], Sequence[bytes]] | None = None
        """Gets every frame as (direction, frame), direction "out" of the guest or "in", and gives those that take its place."""
        self._receive: Receive | None = None
        self._post: Post | None = None
        self._lock = threading.Lock()
        self._queue: deque[tuple[bytes, Offload | None]] = deque()
        self._ready = True
        self._scheduled = False
        self._held = False
        self._closed = False

    # The NIC's side, under the machine's lock.

    def attach(self, receive: Receive, post: Post) -> None:
        """Starts the end: `receive` gets every frame for the guest, from inside `post`."""
        self._receive, self._post = receive, post
        self._start()
        self._schedule()

    def send(self, frame: Pieces, offload: Offload | None = None) -> None:
        """A frame of the guest. Never blocks, never raises; what cannot be sent is dropped and counted."""
        if self.tamper is not None:
            for changed in self.tamper("out", b"".join(frame)):
                self._put((changed,), offload)
        else:
            self._put(frame, offload)

    def _put(self, frame: Pieces, offload: Offload | None) -> None:
        size = sum(map(len, frame))
        if self._closed or not ETHERNET_HEADER <= size <= MAX_FRAME:
            self.lost_out += 1
            return
        if self.pcap is not None:
            self.pcap.record(frame)
        if self._send(frame, size, offload):
            self.sent += 1
        else:
            self.lost_out += 1

    def set_offloads(self, takes: Takes) -> None:
        """What the NIC takes unfinished; of no effect here."""

    def set_receiving(self, ready: bool) -> None:
        """The NIC has (no) room."""
        if ready != self._ready:
            self._ready = ready
            if ready:
                self._schedule()

    # For subclasses.

    def _start(self) -> None:
        """`attach` has been called."""

    def _send(self, frame: Pieces, size: int, offload: Offload | None) -> bool:
        """False when the frame was dropped."""
        return False

    def _resume(self) -> None:
        """There is room in the queue again after `deliver` gave false."""

    def _close(self) -> None:
        """Releases what the subclass holds; called once."""

    def deliver(self, frame: bytes, offload: Offload | None = None) -> bool:
        """Queues a frame for the guest. False when there is no room for another one: the end had better stop reading."""
        if self.tamper is not None:
            room = [self._queue_frame(changed, offload) for changed in self.tamper("in", frame)]
            return all(room)
        return self._queue_frame(frame, offload)

    def _queue_frame(self, frame: bytes, offload: Offload | None) -> bool:
        with self._lock:
            if self._closed or len(self._queue) >= BACKLOG:
                self.lost_in += 1
                return False
            self._queue.append((frame, offload))
            full = len(self._queue) >= BACKLOG
            self._held = self._held or full
        self._schedule()
        return not full

    def _schedule(self) -> None:
        with self._lock:
            if self._scheduled or not self._queue or not self._ready or self._post is None or self._closed:
                return
            self._scheduled = True
        self._post(self._flush)

    def _flush(self) -> None:
        with self._lock:
            self._scheduled = False
        receive, queue = self._receive, self._queue
        while self._ready and queue and not self._closed and receive is not None:
            frame, offload = queue.popleft()
            self.received += 1
            if self.pcap is not None:
                self.pcap.record((frame,))
            receive(frame, offload)
        with self._lock:
            resume = self._held and len(queue) <= RESUME
            self._held = self._held and not resume
        if resume:
            self._resume()

    def fail(self, error: BaseException) -> None:
        """An exception that came up in a thread of the end, or in a callback: the machine's run raises it."""

        def raise_it() -> None:
            raise error

        if self._post is not None and not self._closed:
            self._post(raise_it)

    def trouble(self, text: str) -> None:
        """The host failed; the guest sees a network that is silent."""
        if self.on_trouble is not None:
            self.on_trouble(f"{self.kind}: {text}")

    def close(self) -> None:
        """Ends threads, files and sockets. Calling it twice is harmless."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._close()
        if self.pcap is not None:
            self.pcap.close()
        self._queue.clear()


class Poller:
    """A thread that polls descriptors. `prepare` gives them, with their events, and a timeout in ms (None: no limit) before
    every round; `serve` gets what poll found. An exception of either ends the thread and goes to `failed`."""

    def __init__(
        self, name: str, prepare: Callable[[], tuple[list[tuple[int, int]], int | None]],
        serve: Callable[[dict[int, int]], None], failed: Callable[[BaseException], None],
    ) -> None:
        self._prepare, self._serve, self._failed = prepare, serve, failed
        self._stopped = False
        self._awake = False
        self._lock = threading.Lock()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = HelperThread(self._run, name)

    def start(self) -> None:
        """Begins to poll."""
        self._thread.start()

    def wake(self) -> None:
        """Ends the present round, or the next one at once."""
        if self._awake:
            return
        with self._lock:
            if not self._stopped:
                self._awake = True
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_write(self._event, 1)

    def _run(self) -> None:
        try:
            while not self._stopped:
                wanted, timeout = self._prepare()
                poll = select.poll()
                poll.register(self._event, select.POLLIN)
                for fd, events in wanted:
                    poll.register(fd, events)
                found = dict(poll.poll(timeout))
                if found.pop(self._event, 0):
                    # Cleared before the work is looked for: a wake in between costs a round, it is never lost.
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._event)
                    self._awake = False
                if not self._stopped:
                    self._serve(found)
        except Exception as error:
            self._failed(error)
        finally:
            with self._lock:
                self._stopped = True
                os.close(self._event)

    def stop(self) -> None:
        """Ends the thread, and waits for that unless called from it."""
        with self._lock:
            if self._stopped:
                return  # it has ended by itself
            self._stopped = True
            os.eventfd_write(self._event, 1)
        if not self._thread.ident:
            os.close(self._event)
        elif threading.current_thread() is not self._thread:
            self._thread.join(5.0)
