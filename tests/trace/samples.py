"""Events of every kind, for the tests of what writes and counts them."""

from __future__ import annotations

from kvmpy.trace import Event

RIP = 0x100012
EVENTS = [
    (Event("io", 0, 1000, {"port": 0x3F8, "size": 1, "count": 1, "write": True, "value": 0x41, "device": "serial"}, RIP, 5000, 300, 1900),
     "outb 0x3f8 <- 0x41 'A' (serial)", "out 0x3f8 (serial)"),
    (Event("io", 0, 2000, {"port": 0x60, "size": 1, "count": 1, "write": False, "value": 0x41}),
     "inb 0x60 -> 0x41 (i8042)", "in 0x60 (i8042)"),
    (Event("io", 0, 2000, {"port": 0xCF8, "size": 4, "count": 1, "write": True, "value": 0x80000810}),
     "outl 0xcf8 <- 0x80000810 [00:01.0 reg 0x10] (pci)", "out 0xcf8 (pci)"),
    (Event("io", 0, 2000, {"port": 0x3F8, "size": 1, "count": 5, "write": True, "value": int.from_bytes(b"hello", "little")}),
     "outsb 0x3f8 <- 5 x 'hello' (com1)", "out 0x3f8 (com1)"),
    (Event("io", 0, 2000, {"port": 0x1F0, "size": 2, "count": 64, "write": False, "value": 0x80000001}),
     "insw 0x1f0 -> 64 x 0001 8000 0000 0000 0000 0000 0000 0000 0000 0000 0000 0000... (ide0)", "in 0x1f0 (ide0)"),
    (Event("mmio", 1, 3000, {"address": 0xFEE00020, "size": 4, "write": False, "value": 0}, RIP), "mmio read4 0xfee00020 -> 0x0 (lapic)",
     "read 0xfee00020 (lapic)"),
    (Event("mmio", 1, 3000, {"address": 0xFEBF0000, "size": 8, "write": True, "value": None}),
     "mmio write8 0xfebf0000 <- ?", "write 0xfebf0000"),
    (Event("msr", 0, 4000, {"index": 0xC0000080, "name": "EFER", "write": True, "value": 0x500, "served": True}),
     "wrmsr EFER = 0x500 [LME LMA]", "wrmsr EFER"),
    (Event("msr", 0, 4000, {"index": 0xC0000080, "write": False, "value": 0x500}), "rdmsr EFER -> 0x500 [LME LMA]", "rdmsr EFER"),
    (Event("msr", 0, 4000, {"index": 0x1234, "name": "0x1234", "write": False, "value": None, "served": False}),
     "rdmsr 0x1234 (#GP)", "rdmsr 0x1234"),
    (Event("cpuid", 0, 4000, {"leaf": 7, "subleaf": 0, "eax": 1, "ebx": 2, "ecx": 3, "edx": 4}),
     "cpuid 0x7.0x0 -> eax=0x1 ebx=0x2 ecx=0x3 edx=0x4", "0x7.0x0"),
    (Event("irq", 0, 4000, {"vector": 0x30}), "irq 0x30", "vector 0x30"),
    (Event("exception", 0, 4000, {"vector": 14, "name": "#PF", "error": 2, "address": 0xFFFF800000001000}),
     "exception #PF error 0x2 [write] at 0xffff800000001000", "#PF"),
    (Event("exception", 0, 4000, {"vector": 6, "name": "#UD", "error": None, "address": None}), "exception #UD", "#UD"),
    (Event("hypercall", 0, 4000, {"number": 5, "arguments": [1, 2]}), "hypercall 0x5 (0x1, 0x2)", "number 0x5"),
    (Event("line", -1, 4000, {"gsi": 4, "level": 1}), "line gsi 4 high", "gsi 4"),
    (Event("line", -1, 4000, {"address": 0xFEE00000, "data": 0x4031}), "message 0xfee00000 data 0x4031", "message 0xfee00000"),
    (Event("exit", 0, 4000, {"reason": "hlt", "text": "HLT"}), "exit hlt", "hlt"),
    (Event("exit", 0, 4000, {"reason": "shutdown", "text": "triple fault"}), "exit shutdown: triple fault", "shutdown"),
    (Event("assist", 0, 4000, {"rip": 16, "instruction": "0f ae 00"}), "assist 0f ae 00", "0f ae 00"),
    (Event("unclaimed", -1, 4000, {"port": 0x2E8, "size": 1, "write": False}), "unclaimed read1 port 0x2e8", "read 0x2e8"),
    (Event("device", -1, 4000, {"device": "disk\x1b[2J", "event": "bad request", "sector": 9, "ok": False}),
     "device disk\\x1b[2J: bad request sector=9 ok=false", "disk\\x1b[2J: bad request"),
    (Event("block", 0, 4000, {"address": 0x1000, "count": 5}), "block 0x1000 (5 instructions)", "0x1000"),
    (Event("instruction", 0, 4000, {"address": 0x1000}), "instruction 0x1000", ""),
    (Event("memory", 0, 4000, {"address": 0x1000, "size": 8, "write": True, "value": 7}), "write8 0x1000 <- 0x7", "write 0x1000"),
    (Event("ioctl", 0, 4000, {"fd": 9, "name": "KVM_SET_REGS", "arguments": {"rip": 0x7C00}, "result": 0}),
     "ioctl(9, KVM_SET_REGS, {rip=0x7c00}) = 0", "KVM_SET_REGS"),
    (Event("verdict", -1, 4000, {"verdict": "powered off"}), "verdict: powered off", "powered off"),
    (Event("io", 0, 4000, {"port": "what?"}), "io port=what?", ""),
    (Event("weather", 2, 4000, {"sun": True}), "weather sun=true", ""),
]  # fmt: skip


class Symbols:
    """Knows one function."""

    def where(self, address: int) -> str:
        return f"main+{address - 0x100000:#x} (hello.c:12)" if 0x100000 <= address < 0x101000 else f"{address:#x}"
