"""Faults as a guest meets them: disks, interrupts, clocks, stuck devices; networks at their ends."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from kvmpy import ConfigError
from kvmpy.faults.rules import Counter, When, when
from kvmpy.host.net.hub import Hub

PORTS = """\
#include <kvmpy.h>
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
static inline void outb(u16 port, u8 value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline u8 inb(u16 port) { u8 value; __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static inline u16 inw(u16 port) { u16 value; __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static inline void outw(u16 port, u16 value) { __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }
"""

ATA = PORTS + """
static u8 wait(void) { u8 status; while ((status = inb(0x1F7)) & 0x80) ; return status; }
static u8 command(u8 code, u32 sector) {
    outb(0x1F6, 0xE0 | sector >> 24);
    outb(0x1F2, 1);
    outb(0x1F3, sector); outb(0x1F4, sector >> 8); outb(0x1F5, sector >> 16);
    outb(0x1F7, code);
    return wait();
}
static int read(u32 sector) {
    if (command(0x20, sector) & 1) return -1;
    u16 first = inw(0x1F0);
    for (int n = 1; n < 256; n++) inw(0x1F0);
    return first;
}
static int write(u32 sector, u16 word) {
    if (command(0x30, sector) & 0x21) return -1;
    for (int n = 0; n < 256; n++) outw(0x1F0, word);
    return wait() & 0x21 ? -1 : 0;
}
static int flush(void) { return command(0xE7, 0) & 0x21 ? -1 : 0; }
"""

IDT = PORTS + """
struct frame { u64 ip, cs, flags, sp, ss; };
static struct { u16 low, selector, options, middle; u32 high, zero; } __attribute__((aligned(16))) gates[256];
static volatile u32 taken[256];
static volatile u64 counter;
#define HANDLER(vector) \\
    __attribute__((interrupt)) static void on_##vector(struct frame *frame) { \\
        (void)frame; taken[vector]++; kvmpy_show(counter); \\
        *(volatile u32 *)0xFEE000B0 = 0; \\
    }
static void set(int vector, void *handler) {
    u64 at = (u64)handler; u16 cs;
    __asm__ volatile("mov %%cs, %0" : "=r"(cs));
    gates[vector].low = at; gates[vector].selector = cs; gates[vector].options = 0x8E00;
    gates[vector].middle = at >> 16; gates[vector].high = at >> 32;
}
static void load(void) {
    struct { u16 limit; u64 base; } __attribute__((packed)) table = {sizeof gates - 1, (u64)gates};
    __asm__ volatile("lidt %0" : : "m"(table));
    *(volatile u32 *)0xFEE000F0 = 0x1FF; /* the local APIC is on */
}
"""


@pytest.fixture
def disk(tmp_path: Path) -> str:
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(bytes([sector, 0]) * 256 for sector in range(64)))
    return f"{path},bus=ata,format=raw"


def ata(make_machine: Any, assemble: Any, disk: str, body: str) -> Any:
    machine = make_machine(disks=[disk], clock="virtual")
    return machine.load(assemble(ATA + "int main(void) {" + body + " return 0; }", "elf32"))


def test_the_third_request_fails(make_machine: Any, assemble: Any, disk: str) -> None:
    machine = ata(make_machine, assemble, disk, "for (int n = 1; n < 6; n++) kvmpy_expect_equal(read(n), n == 3 ? -1 : n);")
    rule = machine.faults.disk(0).fail(at=3, errno=errno.EIO)
    assert machine.exit_code == 0
    assert [one.what for one in machine.faults.log] == ["disk 0: read of 512 bytes at 0x600 fails: EIO"]
    assert repr(rule) == "DiskFault(disk=0, op='any', errno=5, when=When(at=3, times=1, probability=None, seed=0), sector=None)"


def test_kinds_of_requests_are_counted_apart(make_machine: Any, assemble: Any, disk: str) -> None:
    machine = ata(make_machine, assemble, disk, """
        kvmpy_expect_equal(write(1, 7), 0); kvmpy_expect_equal(write(2, 7), -1); kvmpy_expect_equal(write(3, 7), 0);
        kvmpy_expect_equal(read(1), 7); kvmpy_expect_equal(read(2), 2); kvmpy_expect_equal(read(3), 7);
        kvmpy_expect_equal(flush(), -1); kvmpy_expect_equal(flush(), 0);""")
    machine.faults.disk(0).fail(at=2, op="write", errno=errno.ENOSPC)
    machine.faults.disk(0).fail(op="flush")
    assert machine.exit_code == 0
    assert [one.what.split()[2] for one in machine.faults.log] == ["write", "flush"]


def test_a_bad_sector(make_machine: Any, assemble: Any, disk: str) -> None:
    machine = ata(make_machine, assemble, disk, "for (int n = 0; n < 12; n++) kvmpy_expect_equal(read(n % 4), n % 4 == 2 ? -1 : n % 4);")
    machine.faults.disk(0).fail(op="read", sector=2, times=None)
    assert machine.exit_code == 0 and len(machine.faults.log) == 3
    machine.faults.clear()
    assert not machine.faults.rules and machine.disks.images[0].on_request is None


def test_by_probability_and_seed_a_run_repeats(make_machine: Any, assemble: Any, disk: str) -> None:
    def failed(seed: int) -> tuple[list[Any], list[str]]:
        machine = ata(make_machine, assemble, disk, "for (int n = 0; n < 60; n++) if (read(n) < 0) kvmpy_show(n);")
        machine.faults.disk(0).fail(probability=0.25, times=None, seed=seed)
        assert machine.exit_code == 0
        machine.close()
        return machine.faults.log, machine.guest_log

    first, again, other = failed(1), failed(1), failed(2)
    assert first == again and first[1] != other[1] and 5 < len(first[0]) < 30


def test_a_disk_by_its_number(make_machine: Any, disk: str) -> None:
    machine = make_machine(disks=[disk])
    with pytest.raises(ConfigError, match="no disk 1: the machine has 1"):
        machine.faults.disk(1)
    with pytest.raises(ConfigError, match="op='erase'"):
        machine.faults.disk(0).fail(op="erase")
    with pytest.raises(ConfigError, match="errno=0 is no error number"):
        machine.faults.disk(0).fail(errno=0)


def test_when() -> None:
    def hits(rule: When, count: int = 8) -> list[int]:
        counter = Counter(rule)
        return [n for n in range(1, count + 1) if counter.strikes()]

    assert hits(when(None, 1, None, 0)) == [1]
    assert hits(when(3, 2, None, 0)) == [3, 4]
    assert hits(when(6, None, None, 0)) == [6, 7, 8]
    assert hits(when(None, None, 1.0, 0)) == list(range(1, 9)) and hits(when(None, None, 0.0, 0)) == []
    for wrong in ((0, 1, None, 0), (1, 0, None, 0), (1, 1, 0.5, 0), (None, 1, 1.5, 0)):
        with pytest.raises(ConfigError):
            when(*wrong)  # type: ignore[arg-type]


def test_frames(make_machine: Any) -> None:
    machine = make_machine(net=["hub,name=faults,model=e1000"])
    wire = Hub.named("faults").port()
    seen: list[bytes] = []
    wire.attach(lambda frame, offload: seen.append(bytes(frame)), lambda call: call())
    end = machine.nics[0].end
    frames = [bytes([n]) * 60 for n in range(6)]
    machine.faults.net(0).drop(at=2, direction="out")
    machine.faults.net(0).duplicate(at=4, direction="out")
    machine.faults.net(0).corrupt(at=5, direction="out", byte=20)
    for frame in frames:
        end.send([frame[:14], frame[14:]])
    assert [frame[0] for frame in seen] == [0, 2, 3, 3, 4, 5]
    different = [at for at in range(60) if seen[4][at] != 4]
    assert different == [20] and bin(seen[4][20] ^ 4).count("1") == 1
    assert [one.what for one in machine.faults.log] == [
        "NIC 0: drop frame out, 60 bytes", "NIC 0: duplicate frame out, 60 bytes", "NIC 0: corrupt frame out, 60 bytes",
    ]
    received = end.received
    machine.faults.net(0).drop(at=1, direction="in")
    wire.send([frames[0]])
    wire.send([frames[1]])
    assert machine.faults.log[-1].what.startswith("NIC 0: drop frame in") and end.received <= received + 1
    machine.faults.clear()
    seen.clear()
    end.send([frames[0]])
    assert seen == [frames[0]]
    wire.close()
    with pytest.raises(ConfigError, match="no NIC 1"):
        machine.faults.net(1)


def test_interrupts_from_nowhere(machine: Any, assemble: Any) -> None:
    """A message, an NMI and an edge on a line, while the guest waits."""
    machine.load(assemble(IDT + """
HANDLER(2) HANDLER(0x55) HANDLER(0x24)
int main(void) {
    set(2, on_2); set(0x55, on_0x55); set(0x24, on_0x24);
    load();
    outb(0x20, 0x11); outb(0x21, 0x20); outb(0x21, 4); outb(0x21, 1); outb(0x21, 0xEF); /* 8259: IRQ 4 alone, at 0x24 */
    *(volatile u32 *)0xFEE00350 = 0x700; /* LINT0: ExtINT */
    kvmpy_log("ready");
    __asm__ volatile("sti");
    for (counter = 0; counter < 8; counter++) outb(0x80, 0);
    __asm__ volatile("cli");
    return taken[2] + taken[0x55] + taken[0x24];
}
"""))
    machine.run_until(exit=lambda event: event.data.get("port") == 0x80)
    for ask in (machine.faults.irq.nmi, lambda: machine.faults.irq.vector(0x55), lambda: machine.faults.irq.line(4)):
        ask()
        for _ in range(2):
            machine.run_until(exit=lambda event: event.data.get("port") == 0x80)
    assert machine.exit_code == 3
    assert [one.what for one in machine.faults.log] == ["NMI to vCPU 0", "vector 0x55 to vCPU 0", "edge on line 4"]


def test_a_local_apic_that_is_off_takes_no_vector(machine: Any, assemble: Any) -> None:
    machine.load(assemble("sti; 1: hlt; jmp 1b"))
    with pytest.raises(ConfigError, match="vector 0x80: vCPU 0's local APIC is off and takes none"):
        machine.faults.irq.vector(0x80)
    assert not machine.faults.rules and not machine.faults.log


def test_an_interrupt_at_an_instruction(make_machine: Any, assemble: Any) -> None:
    """On virtual time it comes behind the same instruction in every run; also after sleep."""
    source = IDT + """
HANDLER(0x55)
int main(void) {
    set(0x55, on_0x55);
    load();
    __asm__ volatile("sti");
    while (!taken[0x55]) counter++;
    return 0;
}
"""
    counts = []
    for instructions in (10_000, 10_000, 20_000):
        machine = make_machine(clock="virtual")
        machine.load(assemble(source))
        machine.faults.irq.vector(0x55, instructions=instructions)
        assert machine.exit_code == 0
        counts.append(int(machine.guest_log[0].split()[-1], 0))
    assert counts[0] == counts[1] < counts[2] and (counts[2] - counts[0]) * 2 < 10_000 <= (counts[2] - counts[0]) * 10
    with pytest.raises(ConfigError, match="clock='virtual'"):
        make_machine().faults.irq.nmi(instructions=5)
    irq = make_machine(clock="virtual").faults.irq
    for wrong in (lambda: irq.nmi(cpu=1), lambda: irq.vector(3), lambda: irq.line(24), lambda: irq.nmi(at=1, instructions=1)):
        with pytest.raises(ConfigError):
            wrong()


def test_an_interrupt_at_a_time(make_machine: Any, assemble: Any) -> None:
    machine = make_machine(clock="virtual")
    machine.load(assemble(IDT + """
HANDLER(0x55)
int main(void) {
    set(0x55, on_0x55);
    load();
    __asm__ volatile("sti; hlt");
    return taken[0x55];
}
"""))
    machine.faults.irq.vector(0x55, at=5_000_000)
    assert machine.exit_code == 1 and 5_000_000 <= machine.faults.log[0].time < 5_100_000


CLOCKS = PORTS + """
static u8 cmos(u8 reg) { outb(0x70, reg); return inb(0x71); }
static u32 seconds(void) { u8 s; do s = cmos(0); while (cmos(10) & 0x80); return (s >> 4) * 10 + (s & 15); }
static u32 pm(void) { u32 v; __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"((u16)0x608)); return v & 0xFFFFFF; }
static u64 tsc(void) { u32 a, d; __asm__ volatile("rdtsc" : "=a"(a), "=d"(d)); return (u64)d << 32 | a; }
int main(void) {
    u32 s = seconds(), p = pm(); u64 t = tsc();
    outb(0x80, 1);
    kvmpy_show((seconds() + 60 - s) % 60);
    kvmpy_show((pm() - p & 0xFFFFFF) / 3579545);
    kvmpy_show(tsc() - t);
    return 0;
}
"""


@pytest.mark.parametrize("clock", ["host", "virtual"])
def test_the_clock_jumps(make_machine: Any, assemble: Any, clock: str) -> None:
    machine = make_machine(clock=clock)
    rtc, pm, tsc = jump(machine, assemble)
    assert rtc in (3, 4) and pm == 3 and 3_000 * machine.cpu[0].vcpu.get_tsc_khz() <= tsc
    with pytest.raises(ConfigError, match="never goes back"):
        machine.faults.clock.jump(-1)


def test_the_clock_jumps_on_kvm(kvm_machine: Any, assemble: Any) -> None:
    rtc, pm, tsc = jump(kvm_machine, assemble)
    assert rtc in (3, 4) and pm == 3
    refused = any("TSC" in one.what for one in kvm_machine.faults.log)
    assert refused or tsc >= 3_000 * kvm_machine.cpu[0].vcpu.get_tsc_khz()


def jump(machine: Any, assemble: Any) -> tuple[int, int, int]:
    """What the guest saw pass over a jump of 3 s: seconds of the RTC, of the PM timer, ticks of the TSC."""
    machine.load(assemble(CLOCKS))
    machine.run_until(exit=lambda event: event.data.get("port") == 0x80)
    machine.faults.clock.jump(3_000_000_000)
    assert machine.exit_code == 0
    rtc, pm, tsc = (int(line.split("= ")[-1], 0) for line in machine.guest_log)
    return rtc, pm, tsc


def test_a_jump_in_the_middle_of_a_run(make_machine: Any, assemble: Any) -> None:
    machine = make_machine(clock="virtual")
    machine.load(assemble(CLOCKS.replace("outb(0x80, 1);", "for (int n = 0; n < 20000; n++) outb(0x80, n);")))
    machine.faults.clock.jump(7_000_000_000, instructions=20_000)
    assert machine.exit_code == 0 and machine.guest_log[0].split("= ")[-1] in ("0x7", "0x8")


def test_a_stuck_device(machine: Any, assemble: Any) -> None:
    machine.load(assemble(PORTS + """
int main(void) {
    kvmpy_expect_equal(inb(0x3FD) & 0x60, 0x60);
    outb(0x3F8, 'a');
    outb(0x80, 1);
    outb(0x3F8, 'b');
    kvmpy_show(inb(0x3FD));
    outb(0x3FF, 0x5A);
    kvmpy_show(inb(0x3FF));
    outb(0x80, 1);
    outb(0x3F8, 'c');
    outb(0x80, 1);
    outb(0x3F8, 'd');
    kvmpy_show(inb(0x3FD));
    return 0;
}
"""))
    stop = {"exit": lambda event: event.data.get("port") == 0x80}
    machine.run_until(**stop)
    fault = machine.faults.device("COM1")
    fault.stick()
    machine.run_until(**stop)
    fault.free()
    machine.run_until(**stop)
    machine.faults.device("Serial COM1").stick(value=0x11)
    assert machine.exit_code == 0
    assert machine.output.text == "ac"
    assert [line.split("= ")[-1] for line in machine.guest_log] == ["0x60", "0x0", "0x11"]
    with pytest.raises(ConfigError, match="no devices 'toaster'"):
        machine.faults.device("toaster")
    with pytest.raises(ConfigError, match="2 devices 'Serial'"):
        machine.faults.device("Serial")


def test_a_stuck_device_holds_its_line(soft_machine: Any) -> None:
    line = soft_machine.board.serial[0].line
    soft_machine.faults.device("COM1").stick()
    line.set(1)
    assert line.level == 0
    soft_machine.faults.device("COM1").free()
    line.set(1)
    assert line.level == 1


def test_a_stuck_pci_function(make_machine: Any, disk: str) -> None:
    machine = make_machine(disks=[disk.replace("bus=ata", "bus=virtio")])
    machine.load(None, boot="bios")
    (bar,) = [bar for device in machine.devices for bar in getattr(device, "bars", ()) if "virtio" in bar.name and bar.mapped][:1]
    bus = machine.ports if bar.io else machine.mmio
    assert bus.read(bar.mapped + 0x14, 1) == 0
    machine.faults.device("virtio").stick(value=0xAB)
    assert bus.read(bar.mapped + 0x14, 1) == 0xAB


def test_faults_are_shown_with_a_failure(soft_machine: Any) -> None:
    from kvmpy.testing.describe import describe

    soft_machine.faults.device("COM1").stick()
    assert "fault: StuckDevice(device='Serial COM1', value=None, at=None, instructions=None)" in describe(soft_machine)
    assert "Serial COM1 is stuck" in repr(soft_machine.faults)
