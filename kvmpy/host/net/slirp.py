"""libslirp, loaded when first wanted: declarations of its version 4 interface, and one stack with its callbacks.

Only the fields of configuration version 1 are declared, which every library of major version 4 takes.
libslirp keeps some state per process (the DNS server it found), so all calls of all stacks are under one lock.
An exception in a callback is kept and raised after the library has returned.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import cffi

from kvmpy.errors import HostError, MissingCapability

LIBRARY = "libslirp.so.0"
MISSING = "--net user: libslirp is not installed: sudo apt-get install libslirp0"
MAJOR = "4"

POLL_IN, POLL_OUT, POLL_PRI, POLL_ERR, POLL_HUP = 1, 2, 4, 8, 16
LONGEST = 0xFFFFFFFF  # the library lowers it to what its TCP timers want

CDEF = """
typedef struct Slirp Slirp;
struct in_addr { uint32_t s_addr; };
struct in6_addr { uint32_t s6_addr32[4]; };
typedef void (*SlirpTimerCb)(void *opaque);
typedef int (*SlirpAddPollCb)(int fd, int events, void *opaque);
typedef int (*SlirpGetREventsCb)(int idx, void *opaque);

typedef struct SlirpCb {
    ssize_t (*send_packet)(const void *buf, size_t len, void *opaque);
    void (*guest_error)(const char *msg, void *opaque);
    int64_t (*clock_get_ns)(void *opaque);
    void *(*timer_new)(SlirpTimerCb cb, void *cb_opaque, void *opaque);
    void (*timer_free)(void *timer, void *opaque);
    void (*timer_mod)(void *timer, int64_t expire_time, void *opaque);
    void (*register_poll_fd)(int fd, void *opaque);
    void (*unregister_poll_fd)(int fd, void *opaque);
    void (*notify)(void *opaque);
    void *version_4[2];
} SlirpCb;

typedef struct SlirpConfig {
    uint32_t version;
    int restricted;
    _Bool in_enabled;
    struct in_addr vnetwork;
    struct in_addr vnetmask;
    struct in_addr vhost;
    _Bool in6_enabled;
    struct in6_addr vprefix_addr6;
    uint8_t vprefix_len;
    struct in6_addr vhost6;
    const char *vhostname;
    const char *tftp_server_name;
    const char *tftp_path;
    const char *bootfile;
    struct in_addr vdhcp_start;
    struct in_addr vnameserver;
    struct in6_addr vnameserver6;
    const char **vdnssearch;
    const char *vdomainname;
    size_t if_mtu;
    size_t if_mru;
    _Bool disable_host_loopback;
    _Bool enable_emu;
    uint8_t later[64];
} SlirpConfig;

const char *slirp_version_string(void);
Slirp *slirp_new(const SlirpConfig *cfg, const SlirpCb *callbacks, void *opaque);
void slirp_cleanup(Slirp *slirp);
void slirp_pollfds_fill(Slirp *slirp, uint32_t *timeout, SlirpAddPollCb add_poll, void *opaque);
void slirp_pollfds_poll(Slirp *slirp, int select_error, SlirpGetREventsCb get_revents, void *opaque);
void slirp_input(Slirp *slirp, const uint8_t *pkt, int pkt_len);
int slirp_add_hostfwd(Slirp *slirp, int is_udp, struct in_addr host_addr, int host_port, struct in_addr guest_addr, int guest_port);
"""

LOCK = threading.RLock()
_loaded: tuple[Any, Any] | None = None


def load() -> tuple[Any, Any]:
    """(ffi, library). MissingCapability says which package brings the library."""
    global _loaded
    with LOCK:
        if _loaded is None:
            ffi = cffi.FFI()
            ffi.cdef(CDEF)
            try:
                library = ffi.dlopen(LIBRARY)
            except OSError:
                raise MissingCapability(MISSING) from None
            version = ffi.string(library.slirp_version_string()).decode()
            if version.split(".")[0] != MAJOR:
                raise MissingCapability(f"--net user: libslirp {version} is not known to kvmpy, version {MAJOR} is wanted")
            _loaded = ffi, library
        return _loaded


def version() -> str:
    """The library's version."""
    ffi, library = load()
    return str(ffi.string(library.slirp_version_string()).decode())


class Timer:
    """One of the library's timers: `when` is in ms of its clock, None while it is not armed."""

    def __init__(self, call: Any, argument: Any) -> None:
        self.call, self.argument = call, argument
        self.when: int | None = None


class Stack:
    """One virtual network. `send` gets every frame for the guest, from inside `input`, `poll` and `run_timers`.
    All methods are called under LOCK."""

    def __init__(self, send: Callable[[bytes], None], configure: Callable[[Any, Callable[[bytes | None], Any]], None]) -> None:
        """`configure` fills the SlirpConfig; the function it gets makes C strings that live as long as the stack."""
        self.ffi, self._library = ffi, library = load()
        self.guest_errors: list[str] = []
        self._send = send
        self._error: BaseException | None = None
        self._timers: dict[int, Timer] = {}
        self._number = 0
        self._strings: list[Any] = []
        self._wanted: list[tuple[int, int]] = []
        self._found: list[int] = []
        self._make_callbacks()
        config = ffi.new("SlirpConfig *")
        config.version = 1
        configure(config, self._string)
        self._slirp = library.slirp_new(config, self._callbacks, ffi.NULL)
        self._raise_kept()
        if self._slirp == ffi.NULL:
            raise HostError("slirp_new", 22)

    def _string(self, text: bytes | None) -> Any:
        if text is None:
            return self.ffi.NULL
        made = self.ffi.new("char[]", text)
        self._strings.append(made)
        return made

    def _make_callbacks(self) -> None:
        ffi = self.ffi

        def callback(kind: str, function: Callable[..., Any], failed: Any = None) -> Any:
            made = ffi.callback(kind, function, error=failed, onerror=self._keep)
            self._strings.append(made)
            return made

        table = self._callbacks = ffi.new("SlirpCb *")
        table.send_packet = callback("ssize_t(const void *, size_t, void *)", self._send_packet, -1)
        table.guest_error = callback("void(const char *, void *)", self._guest_error)
        table.clock_get_ns = callback("int64_t(void *)", lambda opaque: time.monotonic_ns(), 0)
        table.timer_new = callback("void *(SlirpTimerCb, void *, void *)", self._timer_new, ffi.NULL)
        table.timer_free = callback("void(void *, void *)", self._timer_free)
        table.timer_mod = callback("void(void *, int64_t, void *)", self._timer_mod)
        ignore = callback("void(int, void *)", lambda fd, opaque: None)
        table.register_poll_fd = table.unregister_poll_fd = ignore
        table.notify = callback("void(void *)", lambda opaque: None)  # the one thread that calls in polls afterwards anyway
        self._add_poll = callback("int(int, int, void *)", self._want, -1)
        self._get_revents = callback("int(int, void *)", lambda index, opaque: self._found[index], 0)

    # Callbacks.

    def _keep(self, kind: type, error: BaseException, traceback: Any) -> None:
        self._error = self._error or error

    def _send_packet(self, data: Any, size: int, opaque: Any) -> int:
        self._send(self.ffi.buffer(data, size)[:])
        return size

    def _guest_error(self, text: Any, opaque: Any) -> None:
        self.guest_errors = [*self.guest_errors[-15:], self.ffi.string(text).decode("utf-8", "replace")]

    def _timer_new(self, call: Any, argument: Any, opaque: Any) -> Any:
        self._number += 1  # a timer's name to the library: never NULL, never used again
        self._timers[self._number] = Timer(call, argument)
        return self.ffi.cast("void *", self._number)

    def _timer_free(self, timer: Any, opaque: Any) -> None:
        self._timers.pop(int(self.ffi.cast("uintptr_t", timer)), None)

    def _timer_mod(self, timer: Any, when: int, opaque: Any) -> None:
        self._timers[int(self.ffi.cast("uintptr_t", timer))].when = when

    def _want(self, fd: int, events: int, opaque: Any) -> int:
        self._wanted.append((fd, events))
        return len(self._wanted) - 1

    def _raise_kept(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    # Calls.

    def input(self, frame: bytes) -> None:
        """A frame of the guest."""
        self._library.slirp_input(self._slirp, self.ffi.from_buffer("uint8_t[]", frame), len(frame))
        self._raise_kept()

    def wanted(self) -> tuple[list[tuple[int, int]], int]:
        """(descriptor, POLL_* bits) of every socket, and the longest wait in ms."""
        timeout = self.ffi.new("uint32_t *", LONGEST)
        self._wanted.clear()
        self._library.slirp_pollfds_fill(self._slirp, timeout, self._add_poll, self.ffi.NULL)
        self._raise_kept()
        now = time.monotonic_ns() // 1_000_000
        waits = [timer.when - now for timer in self._timers.values() if timer.when is not None]
        return list(self._wanted), max(0, min([int(timeout[0]), *waits]))

    def poll(self, found: list[int], failed: bool = False) -> None:
        """The POLL_* bits that came up, in the order of `wanted`."""
        self._found = found
        self._library.slirp_pollfds_poll(self._slirp, int(failed), self._get_revents, self.ffi.NULL)
        self._raise_kept()

    def run_timers(self) -> None:
        """Calls every timer that is due."""
        now = time.monotonic_ns() // 1_000_000
        for timer in list(self._timers.values()):
            if timer.when is not None and timer.when <= now:
                timer.when = None
                timer.call(timer.argument)
        self._raise_kept()

    def forward(self, udp: bool, host: bytes, host_port: int, guest: bytes, guest_port: int) -> None:
        """A port of the host that leads to one of the guest; addresses are 4 bytes. HostError when the port is taken."""
        if self._library.slirp_add_hostfwd(self._slirp, int(udp), [address(host)], host_port, [address(guest)], guest_port) < 0:
            number = self.ffi.errno
            where = f"{'udp' if udp else 'tcp'} {'.'.join(map(str, host))} port {host_port}"
            raise HostError(f"hostfwd {where}", number, "" if number != 98 else "another program listens there") from None

    def close(self) -> None:
        """Ends all connections."""
        if self._slirp is not None:
            self._library.slirp_cleanup(self._slirp)
            self._slirp = None
            self._error = None


def address(packed: bytes) -> int:
    """An in_addr's number: the bytes stand in network order in memory."""
    return int.from_bytes(packed, sys.byteorder)
