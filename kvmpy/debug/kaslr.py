"""Where a Linux kernel has moved itself (KASLR), by pointers into it that the processor holds, and by its banner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kvmpy import x86
from kvmpy.debug.code import read_linear
from kvmpy.debug.spaces import image_distance
from kvmpy.debug.symbol_file import KERNEL_HALF
from kvmpy.errors import KvmpyError, MemoryAccessError

if TYPE_CHECKING:
    from kvmpy.debug.symbol_file import SymbolFile
    from kvmpy.machine import Machine

_BANNER = b"Linux version "
_STEP, _SPAN = 2 << 20, 1 << 30
"""The image is aligned to 2 MiB, and stays within 1 GiB."""
_GATES = (
    (14, ("asm_exc_page_fault", "page_fault", "async_page_fault")), (3, ("asm_exc_int3", "int3")),
    (8, ("asm_exc_double_fault", "double_fault")),
)  # fmt: skip


def find_offset(machine: Machine, file: SymbolFile) -> int | None:
    """Bytes that the kernel of a file has moved by; None as long as no vCPU has that kernel mapped."""
    names = {symbol.name: symbol.address for symbol in file.symbols if symbol.address >= KERNEL_HALF}
    for cpu in machine.cpu:
        try:
            sregs = cpu.vcpu.get_sregs()
            if not (sregs.efer & x86.EFER_LMA and sregs.cr0 & x86.CR0_PG):
                continue
            for offset in _candidates(machine, cpu.vcpu, sregs, names):
                if offset % 0x1000 == 0 and _fits(machine, cpu.vcpu, sregs, names["linux_banner"] + offset):
                    return offset
        except KvmpyError:
            continue
    return None


def _candidates(machine: Machine, vcpu: Any, sregs: Any, names: dict[str, int]) -> Iterator[int]:
    yield 0
    entry = int(vcpu.get_msrs([x86.MSR_LSTAR]).get(x86.MSR_LSTAR, 0))
    if entry >= KERNEL_HALF and "entry_SYSCALL_64" in names:
        yield entry - names["entry_SYSCALL_64"]
    for vector, known in _GATES:
        gate = read_linear(machine.memory, sregs, int(sregs.idt.base) + 16 * vector, 12)
        handler = int.from_bytes(gate[0:2] + gate[6:12], "little") if len(gate) == 12 else 0
        if handler >= KERNEL_HALF:
            yield from (handler - names[name] for name in known if name in names)
    # The kernel has its own page tables long before it has set up the rest.
    for address in range(KERNEL_HALF, KERNEL_HALF + _SPAN, _STEP):
        if read_linear(machine.memory, sregs, address, 1):
            break
    else:
        return
    start = names["linux_banner"] // _STEP * _STEP - KERNEL_HALF
    yield from range(-start, _SPAN - start, _STEP)


def _fits(machine: Machine, vcpu: Any, sregs: Any, banner: int) -> bool:
    if not KERNEL_HALF <= banner < 1 << 64:
        return False
    data = read_linear(machine.memory, sregs, banner, len(_BANNER))
    if not data:  # under user page tables the image is not there, but for its entries; it lies in one piece
        found = image_distance(machine, vcpu)
        try:
            data = machine.memory.read(banner + found[1], len(_BANNER)) if found is not None else b""
        except MemoryAccessError:
            return False
    return data == _BANNER
