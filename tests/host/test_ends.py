"""Character ends against the real things at their other side."""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time

import pytest

from kvmpy.errors import ConfigError, HostError
from kvmpy.host.capture import Capture
from kvmpy.host.chars import Null, Tee
from kvmpy.host.ends import File, Pty, UnixSocket, open_end
from kvmpy.host.output import Output
from kvmpy.host.terminal import Terminal

LIMIT = 5.0


def until(condition):
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def read_until(fd, text):
    got = b""
    while text not in got:
        ready, _, _ = select.select([fd], [], [], LIMIT)
        assert ready, f"only {got!r}"
        got += os.read(fd, 4096)
    return got


@pytest.fixture
def terminal_pair():
    """A terminal, from its keyboard's side and from the process's."""
    master, slave = os.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


@pytest.fixture
def owned(monkeypatch):
    """The test's terminal counts as the process's own."""
    monkeypatch.setattr(os, "tcgetpgrp", lambda fd: os.getpgrp())


def test_capture_waits_across_threads():
    capture = Capture()
    threading.Timer(0.05, lambda: [capture.write(b"boo"), capture.write(b"t ok\nlogin: ")]).start()
    assert capture.wait("boot ok", LIMIT) == b"boot ok"
    assert capture.wait(re.compile(rb"log\w+"), LIMIT) == b"\nlogin"
    with pytest.raises(TimeoutError, match="login: "):
        capture.wait("boot ok", 0.02)
    assert capture.text == "boot ok\nlogin: "


def test_capture_watch_and_send():
    capture, seen, got = Capture(), [], []
    capture.attach(got.append)
    capture.watch("done", lambda: seen.append(capture.text))
    for byte in b"not yet done, done":
        capture.write(bytes((byte,)))
    capture.send("ls\n")
    assert seen == ["not yet done"] and got == [b"ls\n"]
    capture.watch(b"not", lambda: seen.append("at once"))
    assert seen[-1] == "at once"


def test_tee():
    one, two, got = Capture(), Capture(), []
    tee = Tee(one, two, Null())
    tee.attach(got.append)
    tee.write(b"x")
    two.send(b"y")
    tee.close()
    assert one.data == two.data == b"x" and got == [b"y"]


def test_output_at_newline_and_at_a_pause():
    reader, writer = os.pipe()
    output = Output(writer)
    output.write(b"one\n")
    assert select.select([reader], [], [], 0)[0] and os.read(reader, 99) == b"one\n"
    output.write(b"prompt>")
    assert read_until(reader, b">") == b"prompt>"
    output.write(b"last")
    output.close()
    assert os.read(reader, 99) == b"last"
    output.write(b"ignored")
    os.close(reader)
    os.close(writer)


def test_output_survives_a_lost_reader():
    reader, writer = os.pipe()
    output = Output(writer)
    os.close(reader)
    output.write(b"into the void\n")
    assert output.broken
    output.write(b"more\n")
    output.close()
    os.close(writer)


def test_output_to_a_closed_descriptor():
    reader, writer = os.pipe()
    os.close(writer)
    os.close(reader)
    output = Output(writer)
    output.write(b"x\n")
    assert output.broken
    output.close()


def test_terminal_is_raw_and_restored(terminal_pair, owned):
    master, slave = terminal_pair
    before = termios.tcgetattr(slave)
    got = []
    terminal = Terminal(slave, slave)
    terminal.attach(got.append)
    raw = termios.tcgetattr(slave)
    assert not raw[3] & (termios.ICANON | termios.ECHO | termios.ISIG) and raw[1] == before[1]
    os.write(master, b"ls\r\x03")
    until(lambda: b"".join(got) == b"ls\r\x03")
    terminal.write(b"hello\n")
    assert read_until(master, b"hello")
    terminal.close()
    terminal.close()
    assert termios.tcgetattr(slave) == before


def test_terminal_escapes(terminal_pair, owned):
    master, slave = terminal_pair
    got, quits = [], []
    terminal = Terminal(slave, slave, on_quit=lambda: quits.append(1))
    terminal.attach(got.append)
    try:
        os.write(master, b"a\x01hb\x01\x01c\x01?\x01zd\x01")
        until(lambda: b"".join(got) == b"ab\x01cd")
        assert b"Ctrl-A x" in read_until(master, b"Ctrl-A Ctrl-A")
        os.write(master, b"x")
        until(lambda: quits)
    finally:
        terminal.close()


def test_terminal_closed_from_its_own_thread(terminal_pair, owned):
    master, slave = terminal_pair
    before = termios.tcgetattr(slave)
    terminal = Terminal(slave, slave)
    terminal.on_quit = terminal.close
    terminal.attach(lambda data: None)
    os.write(master, b"\x01x")
    until(lambda: termios.tcgetattr(slave) == before)
    terminal.close()


def test_terminal_on_a_pipe_and_on_nothing():
    reader, writer = os.pipe()
    out_reader, out_writer = os.pipe()
    got = []
    terminal = Terminal(reader, out_writer)
    terminal.attach(got.append)
    os.write(writer, b"\x01x is data here")
    os.close(writer)
    until(lambda: got == [b"\x01x is data here"])
    terminal.close()
    os.close(reader)
    Terminal(reader, out_writer).attach(got.append)  # closed: no input, no exception
    os.close(out_reader)
    os.close(out_writer)


def test_terminal_on_a_regular_file(tmp_path):
    path = tmp_path / "input"
    path.write_bytes(b"typed ahead")
    got = []
    with open(path, "rb") as file:
        terminal = Terminal(file.fileno(), 1)
        terminal.attach(got.append)
        until(lambda: got == [b"typed ahead"])
        terminal.close()


CHILD = """
import fcntl, os, sys, termios, time
os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from kvmpy.host.terminal import Terminal
terminal = Terminal(); terminal.attach(lambda data: None); terminal.write(b"ready\\n")
{then}
"""


@pytest.mark.parametrize(
    ("then", "number"),
    [("time.sleep(20)", signal.SIGTERM), ("time.sleep(20)", signal.SIGHUP), ("raise SystemError", None), ("sys.exit(3)", None)],
)
def test_terminal_restored_however_the_process_ends(terminal_pair, then, number):
    master, slave = terminal_pair
    before = termios.tcgetattr(slave)
    child = subprocess.Popen([sys.executable, "-c", CHILD.format(then=then)], stdin=slave, stdout=slave, stderr=subprocess.DEVNULL)
    try:
        read_until(master, b"ready")
        if number is not None:
            assert not termios.tcgetattr(slave)[3] & termios.ECHO
            child.send_signal(number)
        status = child.wait(LIMIT)
    finally:
        child.kill()
        child.wait()
    assert termios.tcgetattr(slave) == before
    assert status == (-number if number else 1 if "raise" in then else 3)


def test_terminal_is_raw_again_after_a_stop(terminal_pair):
    master, slave = terminal_pair
    before = termios.tcgetattr(slave)
    program = CHILD.format(then="time.sleep(20)")
    child = subprocess.Popen([sys.executable, "-c", program], stdin=slave, stdout=slave, stderr=subprocess.DEVNULL)
    try:
        read_until(master, b"ready")
        raw = termios.tcgetattr(slave)
        child.send_signal(signal.SIGSTOP)
        termios.tcsetattr(slave, termios.TCSANOW, before)  # as a shell does
        child.send_signal(signal.SIGCONT)
        until(lambda: termios.tcgetattr(slave) == raw)
        child.terminate()
        child.wait(LIMIT)
        assert termios.tcgetattr(slave) == before
    finally:
        child.kill()
        child.wait()


def test_threads_and_descriptors_end_with_their_ends(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        for name in ("pty", f"unix:{tmp_path}/s", f"file:{tmp_path}/f"):
            end = open_end(name, lambda line: None)
            end.write(b"x")
            end.close()
            end.write(b"y")
    assert len(os.listdir("/proc/self/fd")) == before
    assert not [thread for thread in threading.enumerate() if thread.name == "host input"]


def test_file(tmp_path):
    end = File(str(tmp_path / "log"))
    end.write(b"line\nrest")
    end.close()
    end.close()
    assert (tmp_path / "log").read_bytes() == b"line\nrest"
    with pytest.raises(HostError, match="No such file"):
        File(str(tmp_path / "no" / "log"))


def test_pty_round_trip():
    pty, got = Pty(), []
    pty.attach(got.append)
    pty.write(b"before anybody came\r\n")
    fd = os.open(pty.path, os.O_RDWR | os.O_NOCTTY)
    assert read_until(fd, b"\n") == b"before anybody came\r\n"
    os.write(fd, b"\x03in\r")
    until(lambda: b"".join(got) == b"\x03in\r")
    os.close(fd)
    fd = os.open(pty.path, os.O_RDWR | os.O_NOCTTY)  # and again
    pty.write(b"x" * 100_000)
    total = 0
    while total < 100_000:
        total += len(read_until(fd, b"x"))
    os.close(fd)
    pty.close()
    pty.close()
    assert total == 100_000 and pty.lost == 0


def test_pty_without_a_reader_does_not_block():
    pty = Pty()
    for _ in range(40):
        pty.write(b"y" * 65536)
    assert pty.lost > 0
    pty.close()


def test_unix_socket_serves_one_client_after_the_other(tmp_path):
    path = str(tmp_path / "serial")
    end, got = UnixSocket(path), []
    end.attach(got.append)
    end.write(b"early ")
    for word in (b"one", b"two"):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(LIMIT)
            client.connect(path)
            client.sendall(word)
            until(lambda word=word: word in b"".join(got))
            end.write(word)
            text = b""
            while not text.endswith(word):
                text += client.recv(99)
    assert text == b"two"
    end.close()
    end.close()
    assert not os.path.exists(path)


def test_unix_socket_replaces_a_stale_one_only(tmp_path):
    path = str(tmp_path / "serial")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    UnixSocket(path).close()
    (tmp_path / "file").write_text("precious")
    with pytest.raises(HostError, match="listen on"):
        UnixSocket(str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "precious"
    with pytest.raises(HostError):
        UnixSocket("x" * 200)


def test_names(tmp_path):
    lines = []
    for name, kind in (("none", Null), ("stdio", Terminal), ("pty", Pty), (f"file:{tmp_path}/f", File), (f"unix:{tmp_path}/u", UnixSocket)):
        end = open_end(name, lines.append)
        assert type(end) is kind
        end.close()
    assert len(lines) == 2 and "/dev/pts/" in lines[0]
    for bad in ("", "file:", "pty:3", "tcp:1", "stdio:x"):
        with pytest.raises(ConfigError):
            open_end(bad)
