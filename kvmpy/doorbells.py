"""Doorbells: writes by which a driver only says that there is work, and for which the guest need not wait.

The backend takes such a write without giving control to a device: KVM signals an event descriptor (KVM API 4.59), the software core
notes it. The work is done under the machine's lock soon after, once for several rings.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from typing import Any

from kvmpy.errors import HostError
from kvmpy.native import lib
from kvmpy.threads import start_thread

Post = Callable[[Callable[[], None]], None]


class Bell:
    """One doorbell: writes of `size` bytes at `address`, with `value` alone if that is not None, lead to `call` under the lock."""

    __slots__ = ("_owner", "address", "call", "size", "value")

    def __init__(self, owner: Doorbells, address: int, size: int, value: int | None, call: Callable[[], None]) -> None:
        self._owner = owner
        self.address = address
        self.size = size
        self.value = value
        self.call = call

    def remove(self) -> None:
        """Accesses go to the device again. A ring that came before may still be answered."""
        self._owner.remove(self)


class Doorbells:
    """The doorbells of a machine. `add`, `remove` and the switch are called under the lock, or while the machine stands still."""

    def __init__(self) -> None:
        self._bells: list[Bell] = []
        self._on = True
        self.rings = 0
        """Times that a doorbell's work was done."""

    def add(self, address: int, size: int, value: int | None, call: Callable[[], None]) -> Bell:
        """From now on the backend takes this doorbell, as far as it can: what it leaves comes as an access to the device as ever."""
        bell = Bell(self, address, size, value, call)
        self._bells.append(bell)
        if self._on:
            self._install(bell)
        return bell

    def remove(self, bell: Bell) -> None:
        """What `Bell.remove` does."""
        self._bells.remove(bell)
        if self._on:
            self._uninstall(bell)

    def switch(self, on: bool) -> None:
        """Off, every access goes to its device: a trace then shows them."""
        if on != self._on:
            self._on = on
            for bell in self._bells:
                (self._install if on else self._uninstall)(bell)

    def serve(self) -> None:
        """Does the work of every doorbell that has rung. Under the lock."""

    def close(self) -> None:
        """No doorbell works any more."""

    def _install(self, bell: Bell) -> None:
        raise AssertionError

    def _uninstall(self, bell: Bell) -> None:
        raise AssertionError

    def _ring(self, bell: Bell) -> None:
        self.rings += 1
        bell.call()


class CoreDoorbells(Doorbells):
    """Those of a backend with `set_doorbells` and `take_doorbells`, whose run ends soon after a ring."""

    def __init__(self, vm: Any) -> None:
        super().__init__()
        self._vm = vm
        self._installed: list[Bell] = []

    def _install(self, bell: Bell) -> None:
        if len(self._installed) < lib.KP_DOORBELLS:
            self._change([*self._installed, bell])

    def _uninstall(self, bell: Bell) -> None:
        if bell in self._installed:
            self._change([each for each in self._installed if each is not bell])

    def _change(self, installed: list[Bell]) -> None:
        self.serve()  # the numbers change
        self._installed = installed
        self._vm.set_doorbells([(each.address, each.size, each.value) for each in installed])

    def serve(self) -> None:
        rung = self._vm.take_doorbells()
        if rung:
            for bell in [each for at, each in enumerate(self._installed) if rung >> at & 1]:
                self._ring(bell)


class EventDoorbells(Doorbells):
    """Those of a backend with `ioeventfd`; a thread waits for the descriptors."""

    def __init__(self, vm: Any, post: Post) -> None:
        """`post` brings a function under the machine's lock, from any thread."""
        super().__init__()
        self._vm = vm
        self._post = post
        self._by_fd: dict[int, Bell] = {}
        self._epoll: select.epoll | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._end = -1

    def _install(self, bell: Bell) -> None:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._vm.ioeventfd(fd, bell.address, bell.size, match=bell.value)
        except HostError:  # the kernel's table is full, or has no such thing
            os.close(fd)
            return
        self._by_fd[fd] = bell
        if self._epoll is None:
            self._epoll = select.epoll()
            self._end = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._epoll.register(self._end, select.EPOLLIN)
            self._thread = start_thread(self._wait, "kvmpy-doorbells", self._epoll)
        self._epoll.register(fd, select.EPOLLIN)

    def _uninstall(self, bell: Bell) -> None:
        for fd, each in list(self._by_fd.items()):
            if each is bell:
                self._vm.ioeventfd(fd, bell.address, bell.size, match=bell.value, remove=True)
                self._drop(fd)

    def _drop(self, fd: int) -> None:
        del self._by_fd[fd]
        if self._epoll is not None:
            self._epoll.unregister(fd)
        os.close(fd)

    def _wait(self, epoll: select.epoll) -> None:
        served = threading.Event()

        def serve() -> None:
            try:
                self.serve()
            finally:
                served.set()

        while not self._closed:
            epoll.poll()
            if self._closed:
                return
            served.clear()
            self._post(serve)
            # Descriptors stay readable until they are served: the next look would find them again at once.
            while not served.wait(0.1) and not self._closed:
                pass

    def serve(self) -> None:
        for fd, bell in list(self._by_fd.items()):
            if fd in self._by_fd and _take(fd):
                self._ring(bell)

    def close(self) -> None:
        self._closed = True
        if self._epoll is None:
            return
        os.eventfd_write(self._end, 1)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(1.0)
        for fd in list(self._by_fd):
            self._drop(fd)
        self._epoll.close()
        self._epoll = None
        os.close(self._end)


def _take(fd: int) -> bool:
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        return False
    return True


def make_doorbells(vm: Any, post: Post) -> Doorbells | None:
    """What the backend can do; None where it knows of no doorbells."""
    if hasattr(vm, "set_doorbells"):
        return CoreDoorbells(vm)
    if hasattr(vm, "ioeventfd"):
        return EventDoorbells(vm, post)
    return None
