"""From `--net` to a NIC: the network end, the model, the MAC address."""

from __future__ import annotations

from collections.abc import Callable

from kvmpy.devices.base import Device
from kvmpy.devices.virtio.device import VirtioDevice
from kvmpy.host.net.spec import NetSpec, open_net, parse_net


def make_nic(net: str | NetSpec, index: int = 0, on_trouble: Callable[[str], None] | None = None) -> Device | VirtioDevice:
    """The NIC of a text as `--net` takes it, the machine's number `index`. Errors as from `parse_net` and `open_net`."""
    spec = parse_net(net) if isinstance(net, str) else net
    end, mac = open_net(spec, index, on_trouble)
    if spec.model == "virtio":
        from kvmpy.devices.net.virtio_net import VirtioNet

        return VirtioNet(end, mac, mtu=spec.mtu)
    if spec.model == "e1000":
        from kvmpy.devices.net.e1000 import E1000

        return E1000(end, mac)
    from kvmpy.devices.net import ne2000

    return ne2000.Ne2000Isa(end, mac) if spec.model == "ne2000-isa" else ne2000.Ne2000Pci(end, mac)
