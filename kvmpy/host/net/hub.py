"""`hub`: several NICs of one process, of one machine or of several, on one wire. Every frame goes to all others."""

from __future__ import annotations

import threading

from kvmpy.frames import Offload
from kvmpy.host.net.end import End, Pieces


class Hub:
    """A wire; `port` gives a new end on it. `Hub.named` gives the process's wire of that name."""

    _known: dict[str, Hub] = {}
    _lock = threading.Lock()

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.ports: tuple[HubPort, ...] = ()
        self._made = 0

    @classmethod
    def named(cls, name: str) -> Hub:
        """The wire of that name, made when first asked for; it goes with its last port."""
        with cls._lock:
            return cls._known.setdefault(name, Hub(name))

    def port(self) -> HubPort:
        """A new end; `number` counts from 0 in the order of making."""
        with Hub._lock:
            port = HubPort(self, self._made)
            self._made += 1
            self.ports = (*self.ports, port)
        return port

    def _leave(self, port: HubPort) -> None:
        with Hub._lock:
            self.ports = tuple(other for other in self.ports if other is not port)
            if not self.ports and Hub._known.get(self.name) is self:
                del Hub._known[self.name]


class HubPort(End):
    """One end of a hub. A frame that a neighbour has no room for is lost for that one alone."""

    kind = "hub"

    def __init__(self, hub: Hub, number: int) -> None:
        super().__init__()
        self.hub = hub
        self.number = number

    def _send(self, frame: Pieces, size: int, offload: Offload | None) -> bool:
        others = [port for port in self.hub.ports if port is not self and not port._closed]
        if others:
            data = b"".join(frame)
            for port in others:
                port.deliver(data)
        return bool(others)

    def _close(self) -> None:
        self.hub._leave(self)
