"""The receive filter of virtio-net, as the control queue sets it (virtio 1.2 §5.1.6.5.1 to §5.1.6.5.3)."""

from __future__ import annotations

from typing import Any

BROADCAST = b"\xff" * 6
VLAN_TAG = b"\x81\x00"
VLANS = 4096
MOST_ADDRESSES = 64
"""Entries of one address table; a longer one is taken as "all of them", which lets more pass and never less."""

FLAGS = ("promiscuous", "all_multicast", "all_unicast", "no_multicast", "no_unicast", "no_broadcast")
"""In the order of the VIRTIO_NET_CTRL_RX commands."""


class RxFilter:
    """What passes to the driver. At first everything does: a driver without a control queue can not ask for more."""

    def __init__(self, mac: bytes) -> None:
        self.power_on = mac
        self.reset()

    def reset(self) -> None:
        self.mac = self.power_on
        self.promiscuous = True
        self.all_multicast = self.all_unicast = self.no_multicast = self.no_unicast = self.no_broadcast = False
        self.unicast: frozenset[bytes] = frozenset()
        self.multicast: frozenset[bytes] = frozenset()
        self._too_many_unicast = self._too_many_multicast = False
        self.by_vlan = False
        """VLAN filtering was negotiated: tagged frames pass only for VLANs that were added."""
        self.vlans = bytearray(VLANS // 8)

    def set_tables(self, unicast: list[bytes], multicast: list[bytes]) -> None:
        """The driver's two address tables."""
        self._too_many_unicast, self._too_many_multicast = len(unicast) > MOST_ADDRESSES, len(multicast) > MOST_ADDRESSES
        self.unicast = frozenset(unicast[:MOST_ADDRESSES])
        self.multicast = frozenset(multicast[:MOST_ADDRESSES])

    def set_vlan(self, number: int, wanted: bool) -> None:
        """A VLAN passes, or no more."""
        bit = 1 << number % 8
        self.vlans[number // 8] = self.vlans[number // 8] & ~bit | (bit if wanted else 0)

    def passes(self, frame: bytes | memoryview) -> bool:
        """The frame is for the driver."""
        if self.by_vlan and frame[12:14] == VLAN_TAG and len(frame) >= 16:
            number = (frame[14] << 8 | frame[15]) % VLANS
            if not self.vlans[number // 8] >> number % 8 & 1:
                return False
        if self.promiscuous:
            return True
        target = bytes(frame[:6])
        if target == BROADCAST:
            return not self.no_broadcast
        if target[0] & 1:
            return not self.no_multicast and (self.all_multicast or self._too_many_multicast or target in self.multicast)
        if self.no_unicast:
            return False
        return self.all_unicast or self._too_many_unicast or target == self.mac or target in self.unicast

    def state(self) -> dict[str, Any]:
        return {
            "mac": self.mac, "flags": [getattr(self, name) for name in FLAGS], "unicast": sorted(self.unicast),
            "multicast": sorted(self.multicast), "too_many": [self._too_many_unicast, self._too_many_multicast],
            "by_vlan": self.by_vlan, "vlans": bytes(self.vlans),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.mac, self.by_vlan = state["mac"], state["by_vlan"]
        for name, value in zip(FLAGS, state["flags"], strict=True):
            setattr(self, name, value)
        self.unicast, self.multicast = frozenset(state["unicast"]), frozenset(state["multicast"])
        self._too_many_unicast, self._too_many_multicast = state["too_many"]
        self.vlans[:] = state["vlans"]
