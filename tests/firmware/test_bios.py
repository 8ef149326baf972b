"""The BIOS on every backend: each service called by a boot sector, results read from guest memory (those of disks in test_disks)."""

from __future__ import annotations

import struct
import threading
import time

from kvmpy.boot import memory_map
from kvmpy.verdicts import GuestExit, Halted
from tests.boot.boot_images import bzimage
from tests.firmware.bios_guest import Kept, assemble


def screen(machine, row, column=0, count=80):
    raw = machine.memory.read(0xB8000 + 2 * (80 * row + column), 2 * count)
    return raw[::2], raw[1::2]


def test_entry_state(boot):
    machine = boot("keep 0\nmovw %cs, %ax\nmovw %ss, %bx\nmovw %sp, %cx\nkeep 1\nexit 0")
    entry = Kept(machine.memory, 0)
    assert entry.dl == 0x80 and entry.ds == entry.es == 0 and entry.flags & 0x200
    assert (Kept(machine.memory, 1).ax, Kept(machine.memory, 1).bx, Kept(machine.memory, 1).cx) == (0, 0, 0x7C00)


def test_from_memory(boot):
    machine = boot("keep 0\nexit 7", boot="bios-memory", want=GuestExit(7))
    assert Kept(machine.memory, 0).dl == 0x80


def test_teletype(boot):
    machine = boot("""
        movw    $text, %si
1:      lodsb
        testb   %al, %al
        jz      2f
        movb    $0x0E, %ah
        movw    $7, %bx
        int     $0x10
        jmp     1b
2:      movb    $0x03, %ah
        movb    $0, %bh
        int     $0x10
        keep 0
        exit 0
text:   .asciz  "Hello\\r\\nworld\\b!\\007"
    """)
    assert machine.serial.data == b"Hello\r\nworld\b!\x07"
    assert screen(machine, 0, 0, 5)[0] == b"Hello" and screen(machine, 1, 0, 5)[0] == b"worl!"
    kept = Kept(machine.memory, 0)
    assert kept.dx == 0x0105 and kept.cx == 0x0607


def test_lines_wrap_and_scroll(boot):
    machine = boot("""
        movw    $100, %cx
1:      pushw   %cx
        out_char '#'
        popw    %cx
        loop    1b
        movw    $30, %cx
2:      movw    $0x0E0A, %ax
        movw    $7, %bx
        int     $0x10
        loop    2b
        out_char 'x'
        exit 0
    """)
    assert machine.serial.data == b"#" * 80 + b"\r\n" + b"#" * 20 + b"\n" * 30 + b"x"
    assert screen(machine, 24, 20, 1)[0] == b"x"
    assert screen(machine, 23)[0] == b" " * 80


def test_cells_strings_and_windows(boot):
    machine = boot("""
        movw    $0x0003, %ax
        int     $0x10
        movb    $0x02, %ah
        movb    $0, %bh
        movw    $0x050A, %dx            # row 5, column 10
        int     $0x10
        movw    $0x0900 + 0xC4, %ax     # a line of code page 437
        movw    $0x001E, %bx
        movw    $3, %cx
        int     $0x10
        movb    $0x08, %ah
        int     $0x10
        keep 0
        movw    $0x0A41, %ax
        movw    $1, %cx
        int     $0x10
        movw    $0x1301, %ax
        movw    $0x0007, %bx
        movw    $5, %cx
        movw    $0x0A02, %dx
        movw    $text, %bp
        int     $0x10
        movb    $0x0F, %ah
        int     $0x10
        keep 1
        movb    $0x03, %ah
        int     $0x10
        keep 2
        movw    $0x0701, %ax            # window 5,10 - 6,12 one line down
        movb    $0x70, %bh
        movw    $0x050A, %cx
        movw    $0x060C, %dx
        int     $0x10
        exit 0
text:   .ascii  "abcde"
    """)
    assert Kept(machine.memory, 0).ax == 0x1EC4
    assert screen(machine, 6, 10, 3) == (b"A\xc4\xc4", b"\x1e\x1e\x1e")
    assert screen(machine, 5, 10, 3) == (b"   ", b"\x70\x70\x70")
    assert screen(machine, 10, 2, 5)[0] == b"abcde"
    assert (Kept(machine.memory, 1).ax, Kept(machine.memory, 1).bh) == (0x5003, 0)
    assert Kept(machine.memory, 2).dx == 0x0A07
    text = machine.serial.data.decode()
    assert text.startswith("\x1b[6;11H\x1b[0m\x1b[33;44;1m───")
    assert "\x1b[11;3H\x1b[0mabcde" in text


def test_clearing_the_screen_reaches_the_terminal_only_after_output(boot):
    machine = boot("""
        movw    $3, %ax
        int     $0x10
        out_char 'a'
        movw    $0x0600, %ax
        movb    $7, %bh
        xorw    %cx, %cx
        movw    $0x184F, %dx
        int     $0x10
        exit 0
    """)
    assert machine.serial.data == b"a\x1b[0m\x1b[2J\x1b[H"
    assert screen(machine, 0, 0, 2)[0] == b"  "


def test_memory_sizes(boot):
    machine = boot("""
        int     $0x12
        keep 0
        int     $0x11
        keep 1
        movb    $0x88, %ah
        int     $0x15
        keep 2
        movw    $0xE801, %ax
        int     $0x15
        keep 3
        movb    $0xC0, %ah
        int     $0x15
        movb    %es:2(%bx), %al
        keep 4
        movb    $0x53, %ah
        int     $0x15
        keep 5
        exit 0
    """)
    kept = [Kept(machine.memory, n) for n in range(6)]
    assert kept[0].ax == 639
    assert kept[1].ax & 0x32 == 0x22 and kept[1].ax >> 9 & 7 == 2
    assert kept[2].ax == 63 * 1024 and not kept[2].carry
    assert (kept[3].ax, kept[3].bx, kept[3].cx, kept[3].dx) == (15 * 1024, 48 * 16, 15 * 1024, 48 * 16)
    assert not kept[4].carry and kept[4].al == 0xFC
    assert kept[5].carry and kept[5].ah == 0x86


def test_e820(boot):
    machine = boot("""
        movw    $0xA000, %di
        xorl    %ebx, %ebx
        xorw    %bp, %bp
1:      movl    $0xE820, %eax
        movl    $20, %ecx
        movl    $0x534D4150, %edx
        int     $0x15
        jc      2f
        cmpl    $0x534D4150, %eax
        jne     2f
        addw    $20, %di
        incw    %bp
        testl   %ebx, %ebx
        jnz     1b
2:      keep 0
        movl    $99, %ebx
        movl    $0xE820, %eax
        movl    $0x534D4150, %edx
        int     $0x15
        keep 1
        exit 0
    """)
    count = Kept(machine.memory, 0).ebp & 0xFFFF
    found = [struct.unpack("<QQI", machine.memory.read(0xA000 + 20 * i, 20)) for i in range(count)]
    assert found == [(r.base, r.size, r.kind) for r in memory_map(machine.memory.ram_ranges())]
    assert Kept(machine.memory, 1).carry


def test_a20_and_block_move(boot):
    machine = boot("""
        movw    $0x2402, %ax
        int     $0x15
        keep 0
        movw    $0x2403, %ax
        int     $0x15
        keep 1
        movb    $0x87, %ah
        movw    $256, %cx
        movw    $gdt, %si
        int     $0x15
        keep 2
        movw    $0x1234, %fs:0          # segments are real-mode ones again
        exit 0
        .balign 8
gdt:    .quad   0, 0
        .quad   0x000093007C00FFFF      # 7C00
        .quad   0x000093200000FFFF      # 200000
        .quad   0, 0
    """)
    assert Kept(machine.memory, 0).al == 1 and Kept(machine.memory, 1).bx == 3
    assert not Kept(machine.memory, 2).carry and Kept(machine.memory, 2).ah == 0
    assert machine.memory.read(0x200000, 16) == machine.memory.read(0x7C00, 16) != bytes(16)


def test_time(boot):
    machine = boot("""
        movb    $0x00, %ah
        int     $0x1A
        keep 0
        movb    $0x86, %ah
        movw    $3, %cx                 # 250 ms
        movw    $0xD090, %dx
        int     $0x15
        keep 1
        movb    $0x00, %ah
        int     $0x1A
        keep 2
        movb    $0x02, %ah
        int     $0x1A
        keep 3
        movb    $0x04, %ah
        int     $0x1A
        keep 4
        movb    $0x7F, %ah
        int     $0x1A
        keep 5
        exit 0
    """)
    kept = [Kept(machine.memory, n) for n in range(6)]
    start, end = (((k.ecx & 0xFFFF) << 16) + (k.edx & 0xFFFF) for k in (kept[0], kept[2]))
    assert 4 <= end - start <= 12
    assert not kept[1].carry
    seconds = start * 65536 / 1193182
    stored = sum(scale * int(f"{value:x}") for value, scale in ((kept[3].ch, 3600), (kept[3].cl, 60), (kept[3].dh, 1)))
    assert min(abs(seconds - stored), 86400 - abs(seconds - stored)) < 5
    assert kept[4].ch in (0x19, 0x20) and 0x01 <= kept[4].dh <= 0x12
    assert kept[5].carry


PCI = """
        .macro  pci function, n
        movw    $0xB100 + \\function, %ax
        int     $0x1A
        keep \\n
        .endm
"""


def test_pci_functions_are_found(boot):
    machine = boot(PCI + """
        pci     0x01, 0                 # is there PCI
        movw    $0x7110, %cx
        movw    $0x8086, %dx
        xorw    %si, %si
        pci     0x02, 1                 # the ISA bridge by its IDs
        incw    %si
        pci     0x02, 2                 # there is no second one
        movl    $0x060100, %ecx
        xorw    %si, %si
        pci     0x03, 3                 # the ISA bridge by its class
        movw    $0xFFFF, %dx
        pci     0x02, 4                 # nobody's ID
        exit 0
    """)
    kept = [Kept(machine.memory, n) for n in range(5)]
    assert [k.carry for k in kept] == [False, False, True, False, True]
    assert kept[0].edx == 0x20494350 and (kept[0].ax, kept[0].bx, kept[0].cl) == (0x0001, 0x0210, 0)
    assert kept[1].bx == kept[3].bx == 1 << 3
    assert (kept[2].ah, kept[4].ah) == (0x86, 0x83)


def test_pci_configuration_space(boot):
    machine = boot(PCI + """
        movw    $0x0008, %bx
        xorw    %di, %di
        pci     0x0A, 0                 # the IDs of the ISA bridge
        movw    $0x60, %di
        movb    $0x05, %cl
        pci     0x0B, 1                 # PIRQA# to IRQ 5
        xorl    %ecx, %ecx
        pci     0x08, 2
        movw    $3, %di
        pci     0x09, 3                 # a word cannot stand there
        movw    $0x00F8, %bx
        movw    $0, %di
        pci     0x09, 4                 # nobody is in slot 31
        exit 0
    """)
    kept = [Kept(machine.memory, n) for n in range(5)]
    assert [k.carry for k in kept] == [False, False, False, True, False]
    assert (kept[0].ecx, kept[2].cl, kept[3].ah, kept[4].cx) == (0x71108086, 0x05, 0x87, 0xFFFF)


READ_KEYS = """
        movw    $0xA000, %di
1:      movb    $0x10, %ah
        int     $0x16
        stosw
        cmpb    $'.', %al
        jne     1b
        exit 0
"""


def keys_of(machine):
    found = []
    for at in range(0xA000, 0xA080, 2):
        found.append(machine.memory.read_u16(at))
        if found[-1] & 0xFF == ord("."):
            return found
    return found


def run_and(machine, act):
    """Runs the machine while `act` works from another thread, under the machine's lock."""
    def later():
        time.sleep(0.3)
        machine.call(act)

    thread = threading.Thread(target=later)
    thread.start()
    try:
        return machine.run(20)
    finally:
        thread.join()


def test_keys_from_the_serial_console(boot):
    machine = boot(READ_KEYS, run=False)
    assert run_and(machine, lambda: machine.serial.send(b"aZ1\r\x7f\x1b[A\x1b[3~\n.")) == GuestExit(0)
    assert keys_of(machine) == [0x1E61, 0x2C5A, 0x0231, 0x1C0D, 0x0E08, 0x48E0, 0x53E0, 0x1C0D, 0x342E]


def test_keys_from_the_keyboard(boot):
    machine = boot(READ_KEYS, run=False)
    keyboard = machine.board.keyboard_controller.keyboard
    assert run_and(machine, lambda: keyboard.type("aZ1\n.")) == GuestExit(0)
    assert keys_of(machine) == [0x1E61, 0x2C5A, 0x0231, 0x1C0D, 0x342E]


def test_key_check_shift_state_and_push(boot):
    machine = boot("""
        movb    $0x01, %ah
        int     $0x16
        keep 0
        movb    $0x05, %ah
        movw    $0x3920, %cx
        int     $0x16
        keep 1
        movb    $0x01, %ah
        int     $0x16
        keep 2
        movb    $0x02, %ah
        int     $0x16
        keep 3
        movb    $0x00, %ah
        int     $0x16
        keep 4
        exit 0
    """)
    kept = [Kept(machine.memory, n) for n in range(5)]
    assert kept[0].flags & 0x40 and kept[1].al == 0
    assert not kept[2].flags & 0x40 and kept[2].ax == 0x3920
    assert kept[3].al == 0 and kept[4].ax == 0x3920


def test_serial_port(boot):
    machine = boot("""
        movb    $0x03, %ah
        movw    $0, %dx
        int     $0x14
        keep 0
        movw    $0x0100 + 'S', %ax
        int     $0x14
        movb    $0x03, %ah
        movw    $3, %dx
        int     $0x14
        keep 1
        exit 0
    """)
    assert Kept(machine.memory, 0).ah & 0x60 == 0x60 and machine.serial.data == b"S"
    assert Kept(machine.memory, 1).ah == 0x80


def test_faults_are_named(boot):
    machine = boot("ud2", want=Halted())
    assert machine.serial.data == b"\r\nBIOS: invalid opcode at 0000:7C00\r\n"
    machine = boot("movb $0, %cl\ndivb %cl", want=Halted())
    assert machine.serial.data.endswith(b"BIOS: division error at 0000:7C02\r\n")


def test_reset_boots_again(boot):
    machine = boot("""
        movw    $0x40, %ax
        movw    %ax, %ds
        movb    $0x06, %al
        movw    $0xCF9, %dx
        outb    %al, %dx
        hlt
    """, run=False, on_reset="reboot")
    machine.run(20, until=lambda: machine.resets == 2)
    assert machine.resets >= 2


def test_linux_setup_code_is_entered(boot, tmp_path):
    # At 9020:0000 stands what is 200h in the file; it must jump over the header.
    code = assemble(tmp_path, """
        keep 0
        movw %sp, %ax
        movw %ss, %bx
        movw %cs, %cx
        keep 1
        movw $0x0E00 + 'L', %ax
        movw $7, %bx
        int $0x10
        exit 0
    """).read_bytes()[:300]
    image = bytearray(bzimage(version=0x203, setup_sects=3))
    image[0x200:0x202] = b"\xeb\x6a"
    # The macros store by CS, so the code itself stands at 0000:7C00.
    image[0x26C : 0x26C + 5] = b"\xea" + struct.pack("<HH", 0x7C00, 0)
    path = tmp_path / "kernel"
    path.write_bytes(image)
    machine = boot(image=path, run=False)
    machine.memory.write(0x7C00, code)
    assert machine.run(20) == GuestExit(0)
    kept = Kept(machine.memory, 0)
    assert kept.ds == kept.es == 0x9000
    assert (Kept(machine.memory, 1).ax, Kept(machine.memory, 1).bx) == (0xE000, 0x9000)
    assert machine.serial.data == b"L"
