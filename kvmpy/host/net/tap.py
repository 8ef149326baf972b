"""`tap`: an interface of the host (Linux tun/tap driver), with checksum and segmentation offloads by a virtio header."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct

from kvmpy.errors import ConfigError, HostError
from kvmpy.frames import MAX_FRAME, Offload, Takes
from kvmpy.host.net.end import End, Pieces, Poller

DEVICE = "/dev/net/tun"
NAME_SIZE = 16
PERMISSION = "see docs/network.md: `sudo ip tuntap add dev NAME mode tap user $USER` makes one that you may use"
REMEDIES = {errno.EACCES: PERMISSION, errno.EPERM: PERMISSION, errno.ENOENT: "sudo modprobe tun", errno.ENODEV: "sudo modprobe tun"}

# linux/if_tun.h
TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
TUNSETVNETHDRSZ = 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN, TUN_F_UFO = 1, 2, 4, 8, 16
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFMTU = 0x8913, 0x8914, 0x8922
IFF_UP = 1

HEADER = struct.Struct("=BBHHHH")  # struct virtio_net_hdr in host order, as tun has it
PLAIN = bytes(HEADER.size)
BURST = 64  # frames read before other descriptors are looked at
PIECES = 1000


class TapNet(End):
    """`name` is an existing interface, or one to be made (which takes CAP_NET_ADMIN, and goes when this closes); without a name
    the kernel chooses tapN, told by `ifname`. An interface that is down swallows frames. `mtu` is set where given."""

    kind = "tap"
    offloads = True

    def __init__(self, name: str = "", *, mtu: int = 0) -> None:
        super().__init__()
        encoded = name.encode()
        if len(encoded) >= NAME_SIZE or "/" in name or any(char.isspace() for char in name):
            raise ConfigError(f"--net tap: ifname={name} is no name of an interface")
        try:
            self._fd = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"--net tap: open {DEVICE}", error.errno or 0, REMEDIES.get(error.errno or 0, "")) from error
        try:
            existed = any(name == known for _, known in socket.if_nameindex())
            request = struct.pack("16sH22x", encoded, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
            answer = fcntl.ioctl(self._fd, TUNSETIFF, request)
            self.ifname = answer[:NAME_SIZE].partition(b"\0")[0].decode()
            fcntl.ioctl(self._fd, TUNSETVNETHDRSZ, struct.pack("i", HEADER.size))
            self._set_offloads(0)
            self._bring_up(existed, mtu)
        except OSError as error:
            os.close(self._fd)
            number = error.errno or 0
            remedy = "another program has it" if number == errno.EBUSY else REMEDIES.get(number, "")
            raise HostError(f"--net tap: {name or 'a new interface'}", number, remedy) from error
        self._buffer = bytearray(HEADER.size + MAX_FRAME)
        self._paused = False
        self._poller = Poller(f"tap {self.ifname}", self._prepare, self._serve, self.fail)

    def _bring_up(self, existed: bool, mtu: int) -> None:
        """An interface made here goes up; one that was there is its owner's business, except for an MTU asked for."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
            name = self.ifname.encode()
            if mtu:
                fcntl.ioctl(control, SIOCSIFMTU, struct.pack("16si20x", name, mtu))
            if not existed:
                (flags,) = struct.unpack_from("H", fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack("16s24x", name)), NAME_SIZE)
                fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH22x", name, flags | IFF_UP))

    def _set_offloads(self, bits: int) -> None:
        fcntl.ioctl(self._fd, TUNSETOFFLOAD, bits)

    def set_offloads(self, takes: Takes) -> None:
        """What the kernel may leave to the guest. Segmentation without checksums is not to be had."""
        bits = 0
        if takes.checksum:
            bits |= TUN_F_CSUM | TUN_F_TSO4 * takes.tso4 | TUN_F_TSO6 * takes.tso6
            bits |= TUN_F_TSO_ECN * (takes.ecn and (takes.tso4 or takes.tso6))
            bits |= TUN_F_UFO * takes.ufo
        if not self._closed:
            try:
                self._set_offloads(bits)
            except OSError:
                with contextlib.suppress(OSError):  # UFO is gone from some kernels
                    self._set_offloads(bits & ~TUN_F_UFO)

    def _start(self) -> None:
        self._poller.start()

    def _send(self, frame: Pieces, size: int, offload: Offload | None) -> bool:
        if offload is None:
            head = PLAIN
        else:
            head = HEADER.pack(
                offload.flags & 0xFF, offload.gso_type & 0xFF, offload.hdr_len & 0xFFFF, offload.gso_size & 0xFFFF,
                offload.csum_start & 0xFFFF, offload.csum_offset & 0xFFFF,
            )
        try:
            # A header that makes no sense is refused by the kernel (EINVAL), an interface that is down takes nothing (EIO).
            os.writev(self._fd, [head, *frame] if len(frame) < PIECES else [head, b"".join(frame)])
        except OSError:
            return False
        return True

    # The thread.

    def _prepare(self) -> tuple[list[tuple[int, int]], int | None]:
        return ([] if self._paused else [(self._fd, select.POLLIN)]), None

    def _serve(self, found: dict[int, int]) -> None:
        if self._fd not in found:
            return
        view = memoryview(self._buffer)
        for _ in range(BURST):
            try:
                size = os.readv(self._fd, [self._buffer])
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.EBADFD or found[self._fd] & select.POLLERR:
                    self._paused = True
                    self.trouble(f"{self.ifname}: {os.strerror(error.errno or 0)}: the interface is gone")
                return
            if size <= HEADER.size:
                continue
            fields = HEADER.unpack_from(view)
            offload = Offload(*fields) if fields[0] or fields[1] else None
            if not self.deliver(bytes(view[HEADER.size : size]), offload):
                self._paused = True
                return

    def _resume(self) -> None:
        self._paused = False
        self._poller.wake()

    def _close(self) -> None:
        self._poller.stop()
        os.close(self._fd)
