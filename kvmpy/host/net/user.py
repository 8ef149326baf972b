"""`user`: a network behind NAT, without rights on the host, by libslirp.

The guest's network is 10.0.2.0/24: gateway and host 10.0.2.2, DNS 10.0.2.3, TFTP 10.0.2.2, the first guest address 10.0.2.15;
for IPv6 fec0::/64 with the host at fec0::2 and DNS at fec0::3. These are QEMU's numbers.
"""

from __future__ import annotations

import os
import select
import socket
from collections import deque
from typing import Any

from kvmpy.errors import ConfigError
from kvmpy.frames import Offload
from kvmpy.host.net import slirp
from kvmpy.host.net.end import End, Pieces, Poller
from kvmpy.host.net.spec import PortForward

NETWORK, MASK = "10.0.2.0", "255.255.255.0"
HOST, NAMESERVER, FIRST_GUEST = "10.0.2.2", "10.0.2.3", "10.0.2.15"
PREFIX6, PREFIX6_LENGTH, HOST6, NAMESERVER6 = "fec0::", 64, "fec0::2", "fec0::3"
HOSTNAME = "kvmpy"

OUTBOUND = 4096
"""Frames of the guest that wait for the stack; what comes beyond is dropped."""

_TO_POLL = ((slirp.POLL_IN, select.POLLIN), (slirp.POLL_OUT, select.POLLOUT), (slirp.POLL_PRI, select.POLLPRI))
_FROM_POLL = (*_TO_POLL, (slirp.POLL_ERR, select.POLLERR | select.POLLNVAL), (slirp.POLL_HUP, select.POLLHUP))


class UserNet(End):
    """One guest's network. Frames go to and from the stack in a thread of its own.

    `tftp` is a directory served on 10.0.2.2, `bootfile` the name that DHCP tells for network boot; `restrict` keeps the guest
    from everything but forwards. `forwards` tells the host ports in use. MissingCapability without libslirp, HostError for a port
    that is taken.
    """

    kind = "user"

    def __init__(
        self, forwards: tuple[PortForward, ...] = (), *, tftp: str | None = None, bootfile: str | None = None, restrict: bool = False,
        mtu: int = 0,
    ) -> None:
        super().__init__()
        if tftp is not None and not os.path.isdir(tftp):
            raise ConfigError(f"--net user: tftp={tftp} is no directory")
        self.tftp, self.bootfile, self.restrict, self.mtu = tftp, bootfile, restrict, mtu
        self._outbound: deque[bytes] = deque()
        self._inbound: list[bytes] = []
        self._wanted: list[tuple[int, int]] = []
        with slirp.LOCK:
            self._stack = slirp.Stack(self._inbound.append, self._configure)
            try:
                self.forwards = tuple(self._forward(forward) for forward in forwards)
            except BaseException:
                self._stack.close()
                raise
        self._poller = Poller("user network", self._prepare, self._serve, self.fail)

    @property
    def guest_errors(self) -> list[str]:
        """The last complaints of the stack about the guest."""
        return list(self._stack.guest_errors)

    def _configure(self, config: Any, string: Any) -> None:
        def set4(field: Any, text: str) -> None:
            field.s_addr = slirp.address(socket.inet_aton(text))

        def set6(field: Any, text: str) -> None:
            field.s6_addr32 = list(memoryview(socket.inet_pton(socket.AF_INET6, text)).cast("I"))

        config.restricted = self.restrict
        config.in_enabled = config.in6_enabled = True
        set4(config.vnetwork, NETWORK)
        set4(config.vnetmask, MASK)
        set4(config.vhost, HOST)
        set4(config.vdhcp_start, FIRST_GUEST)
        set4(config.vnameserver, NAMESERVER)
        set6(config.vprefix_addr6, PREFIX6)
        config.vprefix_len = PREFIX6_LENGTH
        set6(config.vhost6, HOST6)
        set6(config.vnameserver6, NAMESERVER6)
        config.vhostname = string(HOSTNAME.encode())
        config.tftp_path = string(os.fsencode(self.tftp) if self.tftp is not None else None)
        config.bootfile = string(os.fsencode(self.bootfile) if self.bootfile is not None else None)
        config.if_mtu = config.if_mru = self.mtu  # 0: 1500

    def _forward(self, forward: PortForward) -> PortForward:
        port = forward.host_port or _free_port(forward.udp, forward.host)
        self._stack.forward(forward.udp, socket.inet_aton(forward.host), port, socket.inet_aton(forward.guest), forward.guest_port)
        return PortForward(forward.udp, forward.host, port, forward.guest, forward.guest_port)

    def _start(self) -> None:
        self._poller.start()

    def _send(self, frame: Pieces, size: int, offload: Offload | None) -> bool:
        if len(self._outbound) >= OUTBOUND:
            return False
        self._outbound.append(b"".join(frame))
        self._poller.wake()
        return True

    # The thread.

    def _prepare(self) -> tuple[list[tuple[int, int]], int | None]:
        with slirp.LOCK:
            while self._outbound:
                self._stack.input(self._outbound.popleft())
            self._wanted, timeout = self._stack.wanted()
        self._hand_over()
        found: dict[int, int] = {}
        for fd, bits in self._wanted:
            found[fd] = found.get(fd, 0) | sum(there for here, there in _TO_POLL if bits & here)
        return list(found.items()), timeout

    def _serve(self, found: dict[int, int]) -> None:
        bits = [sum(here for here, there in _FROM_POLL if found.get(fd, 0) & there) for fd, _ in self._wanted]
        with slirp.LOCK:
            self._stack.poll(bits)
            self._stack.run_timers()
        self._hand_over()

    def _hand_over(self) -> None:
        """Outside the lock: what the frames lead to under the machine's lock may take its time."""
        frames, self._inbound[:] = self._inbound[:], []
        for frame in frames:
            self.deliver(frame)

    def _close(self) -> None:
        self._poller.stop()
        with slirp.LOCK:
            self._stack.close()


def _free_port(udp: bool, host: str) -> int:
    """A port that was free a moment ago: the library does not tell the one it got."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
