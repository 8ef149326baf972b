"""The `monitor` commands: what GDB has no word for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvmpy import x86
from kvmpy.boot.hardware import IOAPIC_BASE
from kvmpy.debug.chips import lapic_lines, pic_lines
from kvmpy.debug.code import listing
from kvmpy.debug.control import KERNEL
from kvmpy.debug.gdb.fields import ARCHITECTURES
from kvmpy.debug.gdb.packets import BadPacket
from kvmpy.debug.pagetable import MOST_LEAVES, page_table, pages, ranges, size_text
from kvmpy.debug.unwind.backtrace import MOST_FRAMES
from kvmpy.errors import KvmpyError
from kvmpy.regs import dump, mode_name, paging_name

if TYPE_CHECKING:
    from kvmpy.debug.gdb.session import Session

_MOST_LINES = 4000
_KERNEL_SECONDS = 60
_FLUSH = "in GDB: maintenance flush register-cache"
_CHIPS = [(IOAPIC_BASE, IOAPIC_BASE + 0x1000, "I/O APIC (of the backend)")]
_CHIP_PORTS = [
    (0x20, 0x22, "8259 master (of the backend)"), (0x40, 0x44, "8254 (of the backend)"),
    (0x61, 0x62, "8254 gate and speaker (of the backend)"), (0xA0, 0xA2, "8259 slave (of the backend)"),
    (0x4D0, 0x4D2, "8259 trigger modes (of the backend)"),
]  # fmt: skip
"""What the bus does not have: chips of KVM, or of the software CPU in the same role."""
Command = Callable[["Monitor", list[str]], str]


class Usage(Exception):
    """A command's arguments are wrong; the text says what is wanted."""


class Monitor:
    """Commands of one session; each gives its output as text."""

    def __init__(self, session: Session, *, python: bool = False) -> None:
        self.session = session
        self._names: dict[str, Any] | None = {} if python else None

    def do(self, line: str) -> str:
        """Runs a command line; what is wrong with it comes as text too."""
        words = line.split()
        if words[:1] == ["py"] and len(words) > 1:
            return self.python(line.strip()[2:].strip())
        for count in (2, 1):
            entry = _COMMANDS.get(" ".join(words[:count]))
            if entry is not None and len(words) >= count:
                try:
                    return entry[0](self, words[count:])
                except Usage as usage:
                    return f"usage: monitor {' '.join(words[:count])} {usage}"
                except (BadPacket, KvmpyError) as error:
                    return f"{' '.join(words[:count])}: {error}"
        if not words:
            return self.help([])
        if words[0] == "info":
            return "info: one of " + ", ".join(name[5:] for name in _COMMANDS if name.startswith("info "))
        return f"unknown command {line.strip()!r}; monitor help lists all"

    def help(self, _: list[str]) -> str:
        """The list of commands."""
        return "\n".join(f"{name + ' ' + usage:34} {about}".rstrip() for name, (_, usage, about) in _COMMANDS.items())

    # What is shown.

    def registers(self, _: list[str]) -> str:
        """All registers, decoded."""
        current = self.session.current
        return f"CPU {self.session.thread}\n" + dump(current.regs, current.sregs)

    def mode(self, _: list[str]) -> str:
        """Mode and paging of every vCPU."""
        lines = []
        for index, one in enumerate(self.session.registers):
            mark = "*" if index == self.session.thread else " "
            where = self.session.machine.where(index)
            lines.append(
                f"{mark} CPU {index}: {mode_name(one.sregs, one.regs.rflags)}, paging {paging_name(one.sregs)}, "
                f"{int(one.sregs.cs.selector):04x}:{int(one.regs.rip):x} = {one.linear_pc():#x}  {where}"
            )
        return "\n".join(lines)

    def mem(self, _: list[str]) -> str:
        """Ranges of linear addresses with the same rights."""
        found = ranges(pages(self.session.machine.memory, self.session.current.sregs), physical=False, flags=False)
        return self._table([f"{m.linear:016x}-{m.linear + m.size - 1:016x} {m.rights} {size_text(m.size)}" for m in found])

    def tlb(self, words: list[str]) -> str:
        """Every range that adjoins in memory too, with flags; `all`: every page by itself."""
        if words not in ([], ["all"]):
            raise Usage("[all]")
        return self._cut(str(page_table(self.session.machine.memory, self.session.current.sregs, each=bool(words))).split("\n"))

    def _table(self, lines: list[str]) -> str:
        if not self.session.current.sregs.cr0 & x86.CR0_PG:
            return "paging is off: linear addresses are physical"
        return self._cut(lines) or "nothing is mapped"

    @staticmethod
    def _cut(lines: list[str]) -> str:
        if len(lines) > _MOST_LINES:
            return "\n".join([*lines[:_MOST_LINES], f"... cut at {_MOST_LINES} lines (tables are followed to {MOST_LEAVES} pages)"])
        return "\n".join(lines)

    def walk(self, words: list[str]) -> str:
        """The page walk of an address."""
        if len(words) != 1:
            raise Usage("ADDRESS")
        return str(self.session.machine.page_walk(self._address(words[0]), self.session.thread))

    def pic(self, _: list[str]) -> str:
        """8259s and I/O APIC."""
        return "\n".join(pic_lines(self.session.machine))

    def lapic(self, _: list[str]) -> str:
        """The local APIC of the current vCPU."""
        return "\n".join(lapic_lines(self.session.current.vcpu))

    def mtree(self, _: list[str]) -> str:
        """Memory regions, and who has which ports and MMIO addresses."""
        machine = self.session.machine
        lines = ["memory"]
        lines += [
            f"  {region.gpa:012x}-{region.end - 1:012x} {'ROM' if region.readonly else 'RAM'}"
            + (f" {region.name}" if region.name not in ("", "RAM") else "")
            for region in machine.memory.regions
        ]
        apic = int(self.session.current.sregs.apic_base)
        local = [(apic & ~0xFFF, (apic & ~0xFFF) + 0x1000, "local APIC (of the backend)")] if apic >> 11 & 1 else []
        for title, bus, chips, width in (("MMIO", machine.mmio, [*_CHIPS, *local], 12), ("ports", machine.ports, _CHIP_PORTS, 4)):
            lines.append(title)
            ranges = [*((entry.first, entry.end, entry.name) for entry in bus.entries), *chips]
            lines += [f"  {first:0{width}x}-{end - 1:0{width}x} {name}" for first, end, name in sorted(ranges)]
        return "\n".join(lines)

    def exits(self, _: list[str]) -> str:
        """Exits so far, by reason, and accesses that nobody answered."""
        found = self.session.machine.statistics
        lines = [f"{count:10} {name}" for name, count in sorted(found["exits"].items(), key=lambda item: -item[1])]
        for what in ("unclaimed_ports", "unclaimed_mmio"):
            lines += [f"{count:10} {what.replace('_', ' ')} {address}" for address, count in found[what].items()]
        return "\n".join(lines) or "no exits yet"

    def points(self, _: list[str]) -> str:
        """Break- and watchpoints in force."""
        return "\n".join(f"{p.kind:9} {p.address:#x}, {p.size} bytes" for p in self.session.control.points) or "none"

    def disassemble(self, words: list[str]) -> str:
        """Instructions in the vCPU's present mode, which GDB may not know of."""
        if len(words) > 2:
            raise Usage("[COUNT] [ADDRESS]")
        count = self._number(words[0]) if words else 10
        address = self._address(words[1]) if len(words) == 2 else None
        return str(listing(self.session.machine, address, count, cpu=self.session.thread, read=self.session.read))

    def where(self, _: list[str]) -> str:
        """Symbol and source line of the current vCPU."""
        return str(self.session.machine.where(self.session.thread))

    def backtrace(self, words: list[str]) -> str:
        """The call stack of the current vCPU."""
        if len(words) > 1:
            raise Usage("[COUNT]")
        found = self.session.machine.backtrace(self.session.thread, self._number(words[0]) if words else MOST_FRAMES)
        return f"{found}\n({found.end})"

    def value(self, words: list[str]) -> str:
        """What a path leads to."""
        if not words:
            raise Usage("PATH")
        found = self.session.machine.symbols.value(" ".join(words), self.session.thread)
        return repr(found) if not isinstance(found, int) else f"{found:#x}"

    def processes(self, _: list[str]) -> str:
        """Processes of a Linux guest."""
        return str(self.session.machine.linux.processes())

    def modules(self, _: list[str]) -> str:
        """Modules of a Linux guest."""
        return str(self.session.machine.linux.modules())

    def messages(self, words: list[str]) -> str:
        """Messages of a Linux guest's kernel."""
        if len(words) > 1:
            raise Usage("[COUNT]")
        found = self.session.machine.linux.dmesg()
        return "\n".join(map(str, found[-self._number(words[0]) :] if words else found)) or "no messages"

    def no_python(self, _: list[str]) -> str:
        """`py` alone."""
        raise Usage("CODE")

    def python(self, text: str) -> str:
        """An expression or a statement of Python, where the stub was opened with leave to."""
        if self._names is None:
            return "py: the stub was opened without Python (kvmpy run --gdb-python, machine.debug(python=True))"
        from kvmpy.debug.prompt import evaluate

        machine = self.session.machine
        self._names.update(machine=machine, cpu=machine.cpu[self.session.thread], mem=machine.memory, symbols=machine.symbols)
        answer = evaluate(text, self._names)
        self.session.forget()
        return answer

    def kallsyms(self, _: list[str]) -> str:
        """Symbols of the Linux kernel in the guest's memory."""
        return f"{self.session.machine.symbols.add_kernel(self.session.machine.memory)} symbols"

    def kernel(self, words: list[str]) -> str:
        """Runs until a Linux kernel has its place."""
        if len(words) > 1:
            raise Usage("[SECONDS]")
        stop = self.session.control.run_to_kernel(self._number(words[0]) if words else _KERNEL_SECONDS)
        self.session.moved_on(stop.vcpu)
        if stop.verdict != KERNEL:
            return f"no kernel yet: {stop.verdict if stop.hit is None else 'a point was met'}; {_FLUSH}"
        offset = self.session.machine.symbols.kernel_offset
        if offset is None:
            return f"the kernel has its place; --symbols vmlinux would tell where that is; {_FLUSH}"
        return f"the kernel has moved by {offset:#x}; in GDB: symbol-file -o {offset:#x} vmlinux, and {_FLUSH.removeprefix('in GDB: ')}"

    def symbol(self, words: list[str]) -> str:
        """The address of a name, or the name of an address."""
        if len(words) != 1:
            raise Usage("NAME|ADDRESS")
        symbols = self.session.machine.symbols
        found = symbols.address(words[0])
        return f"{found:#x}" if found is not None else str(symbols.where(self._number(words[0])))

    # What is set.

    def physical(self, words: list[str]) -> str:
        """Addresses in packets are physical."""
        self.session.physical = self._switch(words, self.session.physical)
        return f"addresses are {'physical' if self.session.physical else 'linear'}"

    def arch(self, words: list[str]) -> str:
        """The architecture that is described to the debugger."""
        if len(words) > 1 or (words and words[0] not in ("auto", *ARCHITECTURES)):
            raise Usage(f"[auto|{'|'.join(ARCHITECTURES)}]")
        if not words:
            return f"architecture {self.session.arch}"
        self.session.set_arch(words[0])
        return f"architecture {self.session.arch}: GDB takes it with `unset tdesc filename`"

    def linear(self, words: list[str]) -> str:
        """The instruction pointer is shown with CS.base added."""
        on = self._switch(words, self.session.registers[0].linear)
        for registers in self.session.registers:
            registers.linear = on
        return f"the instruction pointer is {'linear (CS.base added)' if on else 'as the processor holds it'}"

    def reset(self, _: list[str]) -> str:
        """The machine starts again, stopped at its first instruction."""
        self.session.reset()
        return f"reset; {_FLUSH}"

    @staticmethod
    def _switch(words: list[str], now: bool) -> bool:
        if not words:
            return now
        if len(words) != 1 or words[0] not in ("on", "off"):
            raise Usage("[on|off]")
        return words[0] == "on"

    @staticmethod
    def _number(word: str) -> int:
        try:
            value = int(word, 0)
        except ValueError:
            raise Usage(f"{word}: a number is wanted") from None
        if value < 0:
            raise Usage(f"{word}: a number from 0 on is wanted")
        return value

    def _address(self, word: str) -> int:
        found = self.session.machine.symbols.address(word)
        return found if found is not None else self._number(word) & (1 << 64) - 1


_COMMANDS: dict[str, tuple[Command, str, str]] = {
    "help": (Monitor.help, "", "this list"),
    "info registers": (Monitor.registers, "", "all registers of the current CPU, flags and modes decoded"),
    "info mode": (Monitor.mode, "", "mode, paging and place of every CPU"),
    "where": (Monitor.where, "", "symbol and source line of the current CPU"),
    "bt": (Monitor.backtrace, "[COUNT]", "call stack: by ORC, CFI, frame pointers, across interrupts"),
    "value": (Monitor.value, "PATH", "a variable by its C type: table[3]->next, {struct T}ADDRESS.member"),
    "info mem": (Monitor.mem, "", "linear ranges by rights"),
    "info tlb": (Monitor.tlb, "[all]", "what the page tables map, with flags; all: page by page"),
    "info pic": (Monitor.pic, "", "8259 pair and I/O APIC"),
    "info lapic": (Monitor.lapic, "", "local APIC of the current CPU"),
    "info mtree": (Monitor.mtree, "", "RAM, ROM, MMIO and ports with their owners"),
    "info exits": (Monitor.exits, "", "exits by reason, accesses that nobody answered"),
    "info points": (Monitor.points, "", "break- and watchpoints in force"),
    "walk": (Monitor.walk, "ADDRESS", "page walk of an address or symbol"),
    "symbol": (Monitor.symbol, "NAME|ADDRESS", "an address by name, a name by address"),
    "kernel": (Monitor.kernel, "[SECONDS]", "run until Linux has unpacked itself and has its place (KASLR)"),
    "kallsyms": (Monitor.kallsyms, "", "take the symbols of the Linux kernel in memory (after it has been unpacked)"),
    "ps": (Monitor.processes, "", "processes of a Linux guest"),
    "lsmod": (Monitor.modules, "", "modules of a Linux guest"),
    "dmesg": (Monitor.messages, "[COUNT]", "messages of a Linux guest's kernel, the last COUNT"),
    "py": (Monitor.no_python, "CODE", "Python, with machine, cpu, mem, symbols (needs --gdb-python)"),
    "disas": (Monitor.disassemble, "[COUNT] [ADDRESS]", "instructions as the CPU's present mode decodes them"),
    "phys": (Monitor.physical, "[on|off]", "memory commands take physical addresses"),
    "arch": (Monitor.arch, "[auto|x86-64|i386|i8086]", "which architecture's registers GDB is shown"),
    "linear": (Monitor.linear, "[on|off]", "$pc is CS.base + RIP (on at the start)"),
    "reset": (Monitor.reset, "", "switch off and on, stop at the first instruction"),
}
