"""Whole machines on the backends that this host has: tiny guests in real mode, devices, verdicts, reset."""

import importlib
import os
import signal
import threading
import time

import pytest

from kvmpy.devices.base import Device
from kvmpy.errors import ConfigError, ImageError, KvmpyError
from kvmpy.host.chars import Null
from kvmpy.irq import Line
from kvmpy.machine import Machine
from kvmpy.regs import set_protected_mode
from kvmpy.verdicts import Crashed, GuestExit, Halted, PowerOff, Reset, Stopped


def _backends():
    from kvmpy.kvm.probe import unavailable

    why = unavailable()
    yield pytest.param("kvm", marks=pytest.mark.skipif(bool(why), reason=f"no KVM: {why}"))
    missing = not hasattr(importlib.import_module("kvmpy.soft"), "SoftBackend")
    yield pytest.param("soft", marks=pytest.mark.skipif(missing, reason="the software CPU is not built"))


@pytest.fixture(params=_backends())
def backend(request):
    return request.param


@pytest.fixture
def machine(backend):
    made = []

    def make(code=b"", **options):
        machine = Machine(options.pop("memory", "1M"), backend=backend, **options)
        made.append(machine)
        start(machine, code)
        return machine

    yield make
    for machine in made:
        machine.close()


def start(machine, code, at=0x7C00):
    """Real mode at 0:at with a stack below."""
    machine.memory.write(at, code)
    registers = machine.cpu[0].registers
    registers.cs = {"selector": 0, "base": 0}
    registers.rip, registers.rsp, registers.rflags = at, 0x7000, 2


def say(text):
    """mov dx, 3f8h; mov al, c; out dx, al ..."""
    return b"\xba\xf8\x03" + b"".join(bytes((0xB0, byte, 0xEE)) for byte in text.encode())


def leave(code):
    """mov al, code; out 0f4h, al"""
    return bytes((0xB0, code, 0xE6, 0xF4))


def test_serial_output_and_exit_status(machine):
    made = machine(say("hello\n") + leave(42))
    assert made.run(10) == GuestExit(42)
    assert made.serial.text == "hello\n"
    assert made.statistics["exits"]["io"] == 7


def test_halted(machine):
    made = machine(b"\xfa\xf4")
    began = time.monotonic()
    assert made.run(10) == Halted()
    assert time.monotonic() - began < 5


def test_a_triple_fault_is_a_crash(machine):
    made = machine()
    made.memory.write(0x7C00, b"\x90\x0f\x0b")
    vcpu = made.cpu[0].vcpu
    sregs = vcpu.get_sregs()
    set_protected_mode(sregs)
    sregs.idt.limit = 0
    vcpu.set_sregs(sregs)
    verdict = made.run(10)
    assert isinstance(verdict, Crashed) and verdict.why == "triple fault"
    assert verdict.rip == 0x7C01


def test_timeout_and_going_on(machine):
    made = machine(b"\xa0\x00\x05\x84\xc0\x74\xf9" + leave(1))  # until the byte at 0500h is not zero
    assert made.run(0.2) == Stopped("timeout")
    made.memory.write_u8(0x500, 1)
    assert made.run(10) == GuestExit(1)


def test_until_text(machine):
    made = machine(say("one two") + b"\xeb\xfe")
    assert made.run(10, until="two") == Stopped("until")
    assert made.serial.text == "one two"


def test_memory_mapped_and_port_devices_of_a_user(machine):
    class Dice(Device):
        ports = 0x99, 1
        mmio = 0xF0000, 0x1000

        def __init__(self):
            self.line = Line(5)
            self.writes = []

        def read(self, offset, size):
            return 4

        def write(self, offset, size, value):
            self.writes.append((offset, size, value))

    dice = Dice()
    made = machine(
        b"\xe4\x99"  # in al, 99h
        b"\xe6\x99"  # out 99h, al
        b"\xb8\x00\xf0\x8e\xd8"  # mov ax, 0f000h; mov ds, ax
        b"\xa1\x10\x00"  # mov ax, [10h]
        b"\x66\xa3\x20\x00"  # mov [20h], eax
        + leave(0),
        devices=[dice],
    )
    made.memory.carve(0xF0000, 0x1000)
    assert made.run(10) == GuestExit(0)
    assert dice.writes[0] == (0, 1, 4) and dice.writes[1][:2] == (1 + 0x20, 4) and dice.writes[1][2] & 0xFFFF == 4


def test_a_device_cannot_take_the_place_of_another(backend):
    class Rude(Device):
        name = "Rude"
        ports = 0x3FE, 4

    with pytest.raises(ConfigError, match=r"0x3fe-0x401 \(Rude\) overlaps 0x3f8-0x3ff \(Serial COM1\)"):
        Machine("1M", backend=backend, devices=[Rude()])


def test_an_interrupt_wakes_the_cpu(machine):
    """The handler of IRQ 5 leaves with status 9."""

    class Bell(Device):
        ports = 0x99, 1

        def __init__(self):
            self.line = Line(5)

        def write(self, offset, size, value):
            clock = self.platform.clock
            clock.at(clock.now() + 2_000_000, lambda: self.line.set(1))

    code = (
        b"\xb0\x11\xe6\x20\xb0\x08\xe6\x21\xb0\x04\xe6\x21\xb0\x01\xe6\x21\xb0\xdf\xe6\x21"  # 8259: vectors from 8, only IRQ 5
        b"\xc7\x06\x34\x00\x00\x7d\xc7\x06\x36\x00\x00\x00"  # vector 0dh -> 0:7d00h
        b"\xe6\x99"  # ring
        b"\xfb\xf4\xeb\xfd"  # sti; hlt; again
    )
    made = machine(code, devices=[Bell()])
    made.memory.write(0x7D00, leave(9))
    assert made.run(10) == GuestExit(9)


def store(address, value):
    """mov dword [address], value"""
    return b"\xc7\x05" + address.to_bytes(4, "little") + value.to_bytes(4, "little")


def test_a_second_cpu_starts(machine):
    """INIT and SIPI start CPU 1 in real mode at 8000h; it says so in memory and halts; then CPU 0 halts, then all is halted."""
    made = machine(cpus=2)
    wait = b"\xa0\x00\x05\x00\x00\x3c\x5a\x75\xf7"  # mov al, [500h]; cmp al, 5ah; jne
    start_ap = store(0xFEE00310, 1 << 24) + store(0xFEE00300, 0x4500) + store(0xFEE00300, 0x4608)
    made.memory.write(0x7C00, start_ap + wait + b"\xb0\x01\xe6\xf4\xfa\xf4")
    made.memory.write(0x8000, b"\xc6\x06\x00\x05\x5a\xfa\xf4")  # mov byte [500h], 5ah; cli; hlt
    vcpu = made.cpu[0].vcpu
    sregs = vcpu.get_sregs()
    set_protected_mode(sregs)
    vcpu.set_sregs(sregs)
    assert made.run(20) == GuestExit(1)
    assert made.run(20) == Halted()
    assert made.memory.read_u8(0x500) == 0x5A
    made.reset()
    start(made, leave(6))
    assert made.run(20) == GuestExit(6)


def test_reset_is_a_verdict_or_a_reboot(machine):
    code = b"\xfe\x06\x00\x05" + say("x") + b"\xb0\x06\xba\xf9\x0c\xee\xeb\xfe"  # inc [500h]; ...; out cf9h, 6
    made = machine(code)
    made.memory.write(0x500, b"\0")
    assert made.run(10) == Reset("port 0xcf9")
    made.cpu[0].registers.rax = 0x1234
    made.reset()
    assert made.memory.read(0x500, 1) == b"\0", "RAM is not as after power-on"
    registers = made.cpu[0].registers
    assert (registers.rip, registers.cs["base"], registers.rax) == (0xFFF0, 0xFFFF0000, 0)
    start(made, leave(3))
    assert made.run(10) == GuestExit(3)


def test_power_off(machine):
    made = machine(b"\xba\x04\x06\xb8\x00\x34\xef")  # PM1a_CNT: SLP_EN, SLP_TYP 5
    assert made.run(10) == PowerOff()


def test_an_exception_of_a_device_comes_out_and_the_machine_goes_on(machine):
    class Broken(Device):
        ports = 0x99, 1

        def write(self, offset, size, value):
            raise ZeroDivisionError("my bug")

    made = machine(b"\xe6\x99" + leave(2), devices=[Broken()])
    with pytest.raises(ZeroDivisionError, match="my bug"):
        made.run(10)
    assert made.run(10) == GuestExit(2)


def test_ctrl_c(machine):
    made = machine(b"\xeb\xfe")
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        made.run(10)
    start(made, leave(7))
    assert made.run(10) == GuestExit(7)


def test_tracing_counts_exits(machine):
    made = machine(say("ab") + b"\xe4\x42\xe6\xed" + leave(0))
    events = []
    end = made.trace(events.append)
    made.run(10)
    end()
    assert [event.data["value"] for event in events if event.what == "io" and event.data["port"] == 0x3F8] == [0x61, 0x62]
    assert [event.data["port"] for event in events if event.what == "unclaimed"] == [0xED]
    assert made.statistics["unclaimed_ports"] == {"0xed": 1}
    assert events[-1].what == "verdict"


def test_registers_by_name(machine):
    made = machine()
    registers = made.cpu[0].registers
    registers.rbx = 0x1122334455667788
    registers.ds = {"selector": 0x40, "base": 0x400}
    assert registers.rbx == 0x1122334455667788
    assert registers.ds["base"] == 0x400
    assert registers.as_dict()["rbx"] == 0x1122334455667788
    with pytest.raises(AttributeError):
        registers.eax = 1


@pytest.mark.parametrize(
    "options",
    [{"memory": "3"}, {"cpus": 0}, {"cpus": 1000}, {"backend": "bochs"}, {"clock": "sundial"}, {"cpu": "486"}, {"cpu": "max,+warp"},
     {"on_reset": "x"}, {"serial": "tty"}, {"serial": [None] * 5}, {"devices": ["x"]}],
)
def test_what_cannot_be_built(backend, options):
    with pytest.raises(ConfigError):
        Machine(**{"memory": "1M", "backend": backend, **options})


POPCNT = b"\xba\xff\x01\xf3\x0f\xb8\xc2\xe6\xf4"  # mov dx, 1ffh; popcnt ax, dx; out 0f4h, al
INSB = b"\xfc\xbf\x00\x05\xb9\x03\x00\xba\x99\x00\xf3\x6c\xa0\x02\x05\xe6\xf4"  # rep insb from port 99h to 500h


def _needs_assist():
    from kvmpy.kvm.probe import ask, unavailable

    if unavailable():
        pytest.skip(f"no KVM: {unavailable()}")
    if ask("cpl0_on_hardware"):
        pytest.skip("this host's KVM runs every instruction on the processor")


def test_an_instruction_that_kvm_refuses_is_finished_by_the_software_cpu():
    _needs_assist()
    with Machine("1M", backend="kvm") as made:
        events = []
        made.trace(events.append)
        start(made, POPCNT)
        assert made.run(10) == GuestExit(9)
        assert made.statistics["exits"]["assisted"] == 1
        assert [event.data["rip"] for event in events if event.what == "assist"] == [0x7C03]
    with Machine("1M", backend="kvm", assist=False) as made:
        start(made, POPCNT)
        verdict = made.run(10)
        assert isinstance(verdict, Crashed) and verdict.rip == 0x7C03
        assert verdict.details["instruction"].startswith("f3 0f b8 c2")


def test_string_input(machine):
    class Count(Device):
        ports = 0x99, 1
        value = 4

        def read(self, offset, size):
            self.value += 1
            return self.value

    assert machine(INSB, devices=[Count()]).run(10) == GuestExit(7)


def test_virtual_time_repeats_exactly():
    """A guest that counts loops until a timer of a device rings: the count is the same every time."""
    if not hasattr(importlib.import_module("kvmpy.soft"), "SoftBackend"):
        pytest.skip("the software CPU is not built")

    class Bell(Device):
        ports = 0x99, 1

        def connect(self, platform):
            super().connect(platform)
            platform.clock.at(1_000_000, lambda: platform.stop(Stopped("bell")))

    counts = set()
    for _ in range(3):
        with Machine("1M", backend="soft", clock="virtual", devices=[Bell()]) as made:
            start(made, b"\x66\x31\xc0\x66\x40\xeb\xfc")  # xor eax, eax; inc eax; jmp
            assert made.run(20) == Stopped("bell")
            counts.add((made.cpu[0].registers.rax, made.clock.now()))
    assert len(counts) == 1
    (count, now), = counts
    assert count > 1000 and 1_000_000 <= now < 1_100_000


def test_kicks_do_not_move_virtual_time():
    """A turn that a kick interrupts goes on where it was: a repeated instruction must not be cut elsewhere."""
    # outer: mov cx, 3000h; mov di, 8000h; rep stosb; dec bx; jnz outer; rdtsc; mov [500h], eax; out 0f4h, al
    code = b"\xbb\x00\x10" + b"\xb9\x00\x30\xbf\x00\x80\xf3\xaa\x4b\x75\xf5" + b"\x0f\x31\x66\xa3\x00\x05\xe6\xf4"
    ends = []
    for kicks in (False, True):
        with Machine("1M", backend="soft", clock="virtual") as made:
            start(made, code)
            over = threading.Event()

            def disturb(made=made, over=over):
                while not over.wait(0.0005):
                    made.call(lambda: None)

            thread = threading.Thread(target=disturb)
            if kicks:
                thread.start()
            try:
                assert isinstance(made.run(30), GuestExit)
            finally:
                over.set()
                if kicks:
                    thread.join()
            ends.append((made.memory.read_u32(0x500), made.statistics["vcpus"]["instructions"]))
    assert ends[0] == ends[1]


def test_virtual_time_needs_the_software_cpu():
    with pytest.raises(KvmpyError):
        Machine("1M", backend="kvm", clock="virtual")


def test_bad_images(machine, tmp_path):
    made = machine()
    empty = tmp_path / "empty"
    empty.touch()
    for path in (tmp_path / "missing", tmp_path, empty):
        with pytest.raises(ImageError):
            made.load(path)


def test_a_flat_image_and_a_reboot(backend, tmp_path):
    """The guest resets itself until the RTC's memory, which a reset leaves alone, has counted to three."""
    image = tmp_path / "guest.bin"
    count = b"\xb0\x70\xe6\x70\xe4\x71\xfe\xc0\x88\xc3\xb0\x70\xe6\x70\x88\xd8\xe6\x71\x3c\x03\x74\x07"
    image.write_bytes(count + b"\xb0\x06\xba\xf9\x0c\xee\xf4" + leave(33))
    with Machine("1M", backend=backend, on_reset="reboot", serial=Null()).load(image, boot="flat16") as made:
        assert made.run(10) == GuestExit(33)
        assert made.resets == 2


def test_closing_twice_and_after_an_error(backend):
    made = Machine("1M", backend=backend)
    made.close()
    made.close()


def test_a_timeout_ends_a_kvm_run_that_spins():
    """VMCALL at CPL 0 never comes back on a KVM without VT-x or AMD-V; elsewhere it is an unknown hypercall, and the guest goes on."""
    from kvmpy.kvm.probe import ask, unavailable

    if unavailable():
        pytest.skip(f"no KVM: {unavailable()}")
    with Machine("1M", backend="kvm") as made:
        start(made, b"\x0f\x01\xc1" + leave(3))
        began = time.monotonic()
        verdict = made.run(0.5)
        assert verdict == (GuestExit(3) if ask("hypercall") else Stopped("timeout"))
        assert time.monotonic() - began < 5
        made.cpu[0].registers.rip = 0x7C03
        assert made.run(5) == GuestExit(3)


READ_MSR = b"\x66\xb9\x00\x12\x55\x4b\x0f\x32"  # mov ecx, 4b551200h; rdmsr
WRITE_MSR = READ_MSR[:-1] + b"\x30"


def gp_leaves(machine, code):
    """Interrupt 13 of the vector table: mov al, code; out 0f4h, al."""
    machine.memory.write(0x600, leave(code))
    machine.memory.write_u32(13 * 4, 0x600)


def test_an_unknown_msr_is_a_fault_that_is_counted_and_traced(machine):
    made = machine(READ_MSR + leave(1))
    gp_leaves(made, 13)
    events = []
    made.trace(events.append)
    assert made.run(10) == GuestExit(13)
    assert made.statistics["unknown_msrs"] == {"0x4b551200": 1}
    (event,) = [event for event in events if event.what == "msr"]
    assert event.data == {"index": 0x4B551200, "name": "0x4b551200", "write": False, "value": None, "served": False}


def test_a_handler_serves_unknown_msrs(machine):
    seen = []
    made = machine(READ_MSR + WRITE_MSR + b"\xe6\xf4")  # out 0f4h, al: the low byte read
    gp_leaves(made, 13)

    def handler(vcpu, index, value):
        seen.append((vcpu, index, value))
        return 0x11223344_55667788 if value is None else 0

    made.on_msr(handler)
    assert made.run(10) == GuestExit(0x88)
    assert seen == [(0, 0x4B551200, None), (0, 0x4B551200, 0x11223344_55667788)]
    assert made.statistics["unknown_msrs"] == {}


def test_the_table_of_unknown_msrs_is_bounded(machine):
    # #GP handler: inc ecx; cmp cx, 2000; jb rdmsr again, by its own stack: add sp, 6
    code = b"\x66\xb9\x00\x00\x55\x4b\x0f\x32"
    made = machine(code)
    made.memory.write(0x600, b"\x83\xc4\x06\x66\x41\x81\xf9\xd0\x07\x73\x02\x0f\x32" + leave(7))
    made.memory.write_u32(13 * 4, 0x600)
    assert made.run(20) == GuestExit(7)
    assert len(made.statistics["unknown_msrs"]) == 1024


def test_close_stops_a_run_of_another_thread(tmp_path):
    image = tmp_path / "image"
    image.write_bytes(b"\xeb\xfe")
    machine = Machine(memory="16M", backend="soft").load(image, boot="flat32@0x100000")
    verdicts = []
    thread = threading.Thread(target=lambda: verdicts.append(machine.run(30)))
    thread.start()
    while not machine._running:
        time.sleep(0.01)
    machine.close()
    thread.join(10)
    assert verdicts == [Stopped("closed")]


def test_close_inside_a_run_is_refused(tmp_path):
    image = tmp_path / "image"
    image.write_bytes(b"\xe6\x99\xeb\xfe")

    class Closer(Device):
        ports = 0x99, 1

        def write(self, offset, size, value):
            machine.close()

    with Machine(memory="16M", backend="soft", devices=[Closer()]) as machine:
        machine.load(image, boot="flat32@0x100000")
        with pytest.raises(ConfigError, match="inside its own run"):
            machine.run(10)
