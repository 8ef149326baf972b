"""NICs of a machine, as `net` and `--net` name them."""

from __future__ import annotations

import pytest

from kvmpy.devices.net.e1000 import E1000
from kvmpy.devices.net.ne2000 import Ne2000Isa, Ne2000Pci
from kvmpy.devices.net.virtio_net import VirtioNet
from kvmpy.devices.virtio.mmio import VirtioMmio
from kvmpy.devices.virtio.pci import VirtioPci
from kvmpy.errors import ConfigError
from kvmpy.host.net.hub import Hub
from kvmpy.machine import Machine


def test_every_model_in_its_place() -> None:
    texts = ["hub,name=m", "hub,name=m,model=e1000", "none,model=ne2000", "none,model=ne2000-isa"]

    def places() -> list[tuple[str, int, int]]:
        with Machine("16M", backend="soft", net=texts) as machine:
            nics = machine.devices[-4:]
            assert isinstance(nics[0], VirtioPci) and isinstance(nics[0].device, VirtioNet) and isinstance(nics[1], E1000)
            assert isinstance(nics[2], Ne2000Pci) and isinstance(nics[3], Ne2000Isa)
            assert len(Hub.named("m").ports) == 2
            return [(nic.name, getattr(nic, "slot", -1), len(nic.state())) for nic in nics]

    assert places() == places()
    assert not Hub.named("m").ports


def test_machines_on_one_hub_have_addresses_of_their_own() -> None:
    with (
        Machine("16M", backend="soft", net=["hub,name=two"]) as one,
        Machine("16M", machine="micro", backend="soft", net=["hub,name=two"]) as two,
    ):
        nics = [one.devices[-1], two.devices[-1]]
        assert isinstance(nics[0], VirtioPci) and isinstance(nics[1], VirtioMmio)
        macs = [bytes(nic.device.config[:6]) for nic in nics]  # type: ignore[union-attr]
        assert macs[0] != macs[1] and all(mac[:3] == b"\x52\x54\x00" for mac in macs)
        one.reset()


def test_a_nic_that_cannot_be_closes_those_before() -> None:
    with pytest.raises(ConfigError, match="no PCI"):
        Machine("16M", machine="micro", backend="soft", net=["hub,name=gone", "hub,name=gone,model=e1000"])
    assert not Hub.named("gone").ports
    with pytest.raises(ConfigError, match="model"):
        Machine("16M", backend="soft", net=["hub,name=gone", "hub,name=gone,model=x"])
    assert not Hub.named("gone").ports
