"""An unmodified Linux (`make linux`) on the network, on the software CPU: DHCP and a page from the host's loopback by `user`, a ping
between two VMs, a tap in a network namespace. The general kernel's NICs run where its files are (see docs/network.md)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmpy.machine import Machine
from kvmpy.verdicts import PowerOff
from tests.guests.linux import CACHE, PASSED, ROOT, digest, needs, needs_user_network, web_page

SECONDS = 120
CONTENT = os.urandom(3 << 20)
SUM = digest(CONTENT)

pytestmark = pytest.mark.slow


@pytest.fixture
def port() -> Iterator[int]:
    needs_user_network()
    with web_page(CONTENT) as number:
        yield number


def boot(kind: str, net: str, append: str, kernel: str = "vmlinuz", initrd: str = "initrd.cpio.gz") -> str:
    """The serial output of a guest that ends well."""
    with Machine("128M", machine=kind, backend="soft", net=[net]) as machine:
        machine.load(CACHE / kernel, initrd=CACHE / initrd, append=f"console=ttyS0 kvmpy.test=net {append}")
        verdict = machine.run(SECONDS)
        text = machine.serial.text
        assert isinstance(verdict, PowerOff) and PASSED in text, f"{verdict}\n{text}"
        assert not machine.device_events, machine.device_events
        return text


@pytest.mark.parametrize("kind", ["pc", "micro"])
def test_dhcp_and_a_page_by_user(kind: str, port: int, tmp_path: Path) -> None:
    needs("net")
    text = boot(kind, f"user,mac=52:54:00:aa:bb:cc,pcap={tmp_path / 'x.pcap'}", f"kvmpy.ping=10.0.2.2 kvmpy.url=http://10.0.2.2:{port}/")
    assert "mac 52:54:00:aa:bb:cc mtu 1500 driver virtio_net" in text
    assert "dhcp 10.0.2.15 router 10.0.2.2 dns 10.0.2.3" in text
    assert f"fetched {len(CONTENT)} bytes {SUM}" in text
    assert (tmp_path / "x.pcap").stat().st_size > len(CONTENT)


@pytest.mark.parametrize(("model", "driver"), [("e1000", "e1000"), ("ne2000", "ne2k-pci")])
def test_the_general_kernels_drivers(model: str, driver: str, port: int) -> None:
    needs("net", files=("vmlinuz-general", "initrd-general.cpio.gz"))
    append = f"kvmpy.ping=10.0.2.2 kvmpy.url=http://10.0.2.2:{port}/"
    text = boot("pc", f"user,model={model}", append, "vmlinuz-general", "initrd-general.cpio.gz")
    assert f"driver {driver}" in text and f"fetched {len(CONTENT)} bytes {SUM}" in text


def test_two_machines_by_a_socket(tmp_path: Path) -> None:
    needs("net")
    texts: dict[str, str] = {}

    def run(name: str, kind: str, append: str) -> None:
        texts[name] = boot(kind, f"socket,path={tmp_path / 's'},pcap={tmp_path / name}.pcap", append)

    first = threading.Thread(target=run, args=("one", "pc", "kvmpy.address=10.1.0.1/24 kvmpy.stay=60"))
    first.start()
    run("two", "micro", "kvmpy.address=10.1.0.2/24 kvmpy.ping=10.1.0.1")
    first.join(SECONDS)
    assert "ping 10.1.0.1 answers" in texts["two"] and "answered 3" in texts["one"], texts
    macs = {text.partition("kvmpy-guest: mac ")[2][:17] for text in texts.values()}
    assert len(macs) == 2


def test_a_tap_in_a_namespace(tmp_path: Path) -> None:
    """The machine runs in a namespace of its own, pings its tap's other side and fetches a page there, offloads and all."""
    needs("net")
    if os.geteuid() or not shutil.which("ip") or not os.path.exists("/dev/net/tun"):
        pytest.skip("a tap in a network namespace takes root, iproute2 and /dev/net/tun")
    (tmp_path / "page").write_bytes(CONTENT)
    script = f"""
set -e
ip link set lo up
ip tuntap add dev ktap0 mode tap
ip addr add 10.9.0.1/24 dev ktap0
ip link set ktap0 up
{sys.executable} -m http.server -b 10.9.0.1 -d {tmp_path} 8000 >/dev/null 2>&1 &
server=$!
{sys.executable} -m kvmpy.cli.main run {CACHE / 'vmlinuz'} --backend soft --initrd {CACHE / 'initrd.cpio.gz'} --timeout 100 \
    --net tap,ifname=ktap0,pcap={tmp_path / 'tap.pcap'} \
    --append "console=ttyS0 kvmpy.test=net kvmpy.address=10.9.0.2/24 kvmpy.ping=10.9.0.1 kvmpy.url=http://10.9.0.1:8000/page" || status=$?
kill $server
exit ${{status:-0}}
"""
    done = subprocess.run(
        ["unshare", "--net", "bash", "-c", script], capture_output=True, text=True, timeout=150, check=False,
        cwd=ROOT,
    )  # fmt: skip
    if "unshare failed" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert "ping 10.9.0.1 answers" in done.stdout and f"fetched {len(CONTENT)} bytes {SUM}" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stderr
