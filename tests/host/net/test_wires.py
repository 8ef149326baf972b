"""socket, hub, captures: frames between two ends."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fake_machine import Bench

from kvmpy.errors import ConfigError, HostError
from kvmpy.frames import MAX_FRAME
from kvmpy.host.net.end import BACKLOG
from kvmpy.host.net.hub import Hub
from kvmpy.host.net.pcap import Pcap
from kvmpy.host.net.socketnet import SocketNet
from kvmpy.host.net.spec import open_net, parse_net

FRAME = bytes(range(60))


def pair(tmp_path: Path) -> tuple[Bench, Bench]:
    one, two = (Bench(SocketNet(str(tmp_path / "s"))) for _ in range(2))
    assert one.end.listening and not two.end.listening and one.end.wait(5) and two.end.wait(5)
    return one, two


def close(*benches: Bench) -> None:
    for bench in benches:
        bench.end.close()
        assert not bench.errors


def test_both_directions_of_a_socket(tmp_path: Path) -> None:
    one, two = pair(tmp_path)
    big = os.urandom(MAX_FRAME)
    one.send(FRAME[:20], FRAME[20:])
    two.send(big)
    assert two.until(1) == [FRAME] and one.until(1) == [big]
    close(one, two)
    assert not (tmp_path / "s").exists()


def test_order_and_backpressure_of_a_socket(tmp_path: Path) -> None:
    one, two = pair(tmp_path)
    with two.lock:
        two.end.set_receiving(False)
    count = 3 * BACKLOG
    sent = 0
    limit = time.monotonic() + 10
    while sent < count and time.monotonic() < limit:
        before = one.end.lost_out
        one.send(sent.to_bytes(4, "big") + bytes(60))
        sent += one.end.lost_out == before
        if sent > BACKLOG + 1000:
            with two.lock:
                two.end.set_receiving(True)
    frames = two.until(count, 10)
    assert [int.from_bytes(frame[:4], "big") for frame in frames] == list(range(count)) and not two.end.lost_in
    close(one, two)


def test_qemus_framing(tmp_path: Path) -> None:
    bench = Bench(SocketNet(str(tmp_path / "s")))
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(tmp_path / "s"))
        other.sendall(b"\0\0\0\x3c" + FRAME[:10])
        time.sleep(0.05)
        other.sendall(FRAME[10:])
        assert bench.until(1) == [FRAME]
        bench.send(FRAME)
        assert other.recv(100) == b"\0\0\0\x3c" + FRAME
        third = socket.socket(socket.AF_UNIX)
        third.connect(str(tmp_path / "s"))
        third.settimeout(5)
        assert third.recv(1) == b""  # two VMs, no more
        third.close()
        other.sendall(b"\0\1\xff\xff")  # no length of a frame
        other.settimeout(5)
        assert other.recv(1) == b""
    again = Bench(SocketNet(str(tmp_path / "s")))
    assert again.end.wait(5) and bench.end.wait(5)
    close(again, bench)


def test_whoever_is_left_waits_for_another(tmp_path: Path) -> None:
    one, two = pair(tmp_path)
    one.end.close()
    limit = time.monotonic() + 5
    while not two.end._listener and time.monotonic() < limit:
        time.sleep(0.05)
    three = Bench(SocketNet(str(tmp_path / "s")))
    assert three.end.wait(5) and two.end.wait(5) and not three.end.listening
    three.send(FRAME)
    assert two.until(1) == [FRAME]
    close(two, three)


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="longer"):
        SocketNet(str(tmp_path / ("x" * 120)))
    with pytest.raises(HostError, match="No such file"):
        SocketNet(str(tmp_path / "missing" / "s"))
    (tmp_path / "file").write_text("precious")
    with pytest.raises(HostError):
        SocketNet(str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "precious"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "stale"))
    stale.close()
    SocketNet(str(tmp_path / "stale")).close()


def test_two_at_once(tmp_path: Path) -> None:
    for number in range(10):
        ends: list[SocketNet] = []
        path = str(tmp_path / f"{number}")
        threads = [threading.Thread(target=lambda path=path, ends=ends: ends.append(SocketNet(path))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(end.listening for end in ends) == [False, True]
        for end in ends:
            end.close()


def test_a_hub_tells_everyone_else() -> None:
    hub = Hub()
    benches = [Bench(hub.port()) for _ in range(3)]
    benches[0].send(FRAME[:14], FRAME[14:])
    assert benches[1].until(1) == benches[2].until(1) == [FRAME] and not benches[0].frames
    benches[2].end.close()
    benches[1].send(FRAME)
    assert benches[0].until(1) == [FRAME]
    close(*benches)
    one, two = (open_net(parse_net("hub,name=lan"))[0] for _ in range(2))
    assert one.hub is two.hub  # type: ignore[attr-defined]
    one.close()
    two.close()
    assert Hub.named("lan").ports == ()


def test_a_full_neighbour_loses_its_own_frames_alone() -> None:
    hub = Hub()
    one, two, three = (Bench(hub.port()) for _ in range(3))
    with two.lock:
        two.end.set_receiving(False)
    for _ in range(BACKLOG + 5):
        one.send(FRAME)
    assert two.end.lost_in == 5 and len(three.frames) == BACKLOG + 5
    with two.lock:
        two.end.set_receiving(True)
    assert len(two.until(BACKLOG)) == BACKLOG
    close(one, two, three)


def read_pcap(path: Path) -> list[tuple[float, bytes]]:
    data = path.read_bytes()
    magic, major, minor, _, _, snap, link = struct.unpack_from("=IHHiIII", data)
    assert (magic, major, minor, link) == (0xA1B23C4D, 2, 4, 1) and snap >= MAX_FRAME
    at, frames = 24, []
    while at < len(data):
        seconds, ns, kept, size = struct.unpack_from("=IIII", data, at)
        assert kept == size
        frames.append((seconds + ns / 1e9, data[at + 16 : at + 16 + size]))
        at += 16 + size
    return frames


def test_a_capture_has_both_directions(tmp_path: Path) -> None:
    hub = Hub.named("captured")
    end, _ = open_net(parse_net(f"hub,name=captured,pcap={tmp_path / 'x.pcap'}"))
    one, two = Bench(end), Bench(hub.port())
    began = time.time()
    arp = bytes.fromhex("ffffffffffff525400123456080600010800060400015254001234560a00020f0000000000000a000202")
    one.send(arp[:20], arp[20:])
    two.send(FRAME)
    one.until(1)
    frames = read_pcap(tmp_path / "x.pcap")
    assert [frame for _, frame in frames] == [arp, FRAME]
    assert all(abs(when - began) < 5 for when, _ in frames) and frames[0][0] <= frames[1][0]
    close(one, two)
    if shutil.which("tcpdump"):
        done = subprocess.run(["tcpdump", "-nr", str(tmp_path / "x.pcap")], capture_output=True, text=True, timeout=20, check=True)
        assert "link-type EN10MB" in done.stderr and "who-has 10.0.2.2 tell 10.0.2.15" in done.stdout


def test_a_capture_ends_with_the_disk(tmp_path: Path) -> None:
    said: list[str] = []
    capture = Pcap(str(tmp_path / "x"), said.append)
    os.close(capture._fd)
    capture._fd = os.open("/dev/full", os.O_WRONLY)
    capture.record([FRAME])
    capture.record([FRAME])
    assert len(said) == 1 and "No space left" in said[0]
    with pytest.raises(HostError, match="open"):
        Pcap(str(tmp_path / "missing" / "x"))


def test_many_pieces(tmp_path: Path) -> None:
    one, two = pair(tmp_path)
    pieces: list[Any] = [bytes([number & 0xFF]) for number in range(3000)]
    one.end.pcap = Pcap(str(tmp_path / "x"))
    one.send(*pieces)
    assert two.until(1) == [b"".join(pieces)] == [read_pcap(tmp_path / "x")[0][1]]
    close(one, two)
