"""What a process's file descriptors are to KVM: the system, a VM, a vCPU, a device. Known from the calls that made them, else from
/proc/PID/fd: "anon_inode:kvm-vm", "anon_inode:kvm-vcpu:0"."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvmpy.errors import HostError, MissingCapability
from kvmpy.spy.memory import GuestMemory, ProcessMemory

if TYPE_CHECKING:
    from kvmpy.spy.runs import Pending

_DEVICE = os.makedev(10, 232)
_VCPU = re.compile(r"anon_inode:kvm-vcpu(?::(\d+))?$")
_KCMP, _KCMP_FILE = 312, 0
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S{4} 0+ \S+ \d+\s+(anon_inode:kvm-vcpu\S*)")


class Kvm:
    """/dev/kvm, or a device made by KVM_CREATE_DEVICE: whatever is neither a VM nor a vCPU."""


class Vm:
    """One VM of the traced process; `number` counts them from 0."""

    def __init__(self, number: int, memory: ProcessMemory) -> None:
        self.number = number
        self.memory = GuestMemory(memory)


class Vcpu:
    """One vCPU."""

    def __init__(self, index: int, vm: Vm | None) -> None:
        self.index = index
        self.vm = vm
        """None where the process had several VMs before the tracing began."""
        self.record = 0
        """Address of its struct kvm_run in the process; 0 while that is not known."""
        self.record_size = 0
        self.pending: Pending | None = None
        """The last exit, until the vCPU runs again."""
        self.added = 0
        """Bits that were set in kvm_valid_regs from outside."""


Owner = Kvm | Vm | Vcpu


class FdTable:
    """The file descriptors of one process that belong to KVM."""

    def __init__(self, pid: int, memory: ProcessMemory) -> None:
        self.pid = pid
        self._memory = memory
        self._known: dict[int, Owner | None] = {}
        self._vms = 0
        self._libc = ctypes.CDLL(None)

    def clear(self) -> None:
        """After exec."""
        self._known.clear()

    def __iter__(self) -> Iterator[Owner]:
        """Each once, however many descriptors it has."""
        return iter({id(owner): owner for owner in self._known.values() if owner is not None}.values())

    def scan(self) -> None:
        """Looks at all descriptors that are open: VMs first, so that a lone one's vCPUs find it. Raises HostError."""
        try:
            numbers = sorted(int(name) for name in os.listdir(f"/proc/{self.pid}/fd"))
        except OSError as error:
            raise HostError(f"/proc/{self.pid}/fd", error.errno or 0) from None
        links = {number: self._link(number) for number in numbers}
        for number in sorted(numbers, key=lambda n: (links[n] != "anon_inode:kvm-vm", n)):
            self.find(number)

    def find(self, fd: int) -> Owner | None:
        """What descriptor `fd` is; None where it has nothing to do with KVM."""
        if fd not in self._known:
            self._known[fd] = self._identify(fd)
        return self._known[fd]

    def forget(self, first: int, last: int = -1) -> list[Vcpu]:
        """A descriptor, or a range of them, was closed or is another file now. Gives the vCPUs that have none left."""
        gone = [fd for fd in self._known if first <= fd <= max(first, last)]
        owners = {id(owner): owner for owner in map(self._known.pop, gone) if isinstance(owner, Vcpu)}
        return [owner for owner in owners.values() if not any(owner is other for other in self._known.values())]

    def new_vm(self, fd: int) -> None:
        """KVM_CREATE_VM gave `fd`."""
        self._known[fd] = Vm(self._vms, self._memory)
        self._vms += 1

    def new_vcpu(self, fd: int, vm: Owner | None, index: int) -> None:
        """KVM_CREATE_VCPU gave `fd`."""
        self._known[fd] = Vcpu(index, vm if isinstance(vm, Vm) else None)

    @property
    def many_vms(self) -> bool:
        """True once the process has had more than one."""
        return self._vms > 1

    def locate(self, vcpu: Vcpu) -> None:
        """Finds the record of a vCPU whose mapping was not seen, in /proc/PID/maps. Raises MissingCapability where several could be it."""
        taken = {other.record for other in self if isinstance(other, Vcpu)}
        found = []
        with open(f"/proc/{self.pid}/maps") as file:
            for line in file:
                match = _MAPPING.match(line)
                if match and match[3] in ("anon_inode:kvm-vcpu", f"anon_inode:kvm-vcpu:{vcpu.index}") and int(match[1], 16) not in taken:
                    found.append((int(match[1], 16), int(match[2], 16)))
        if len(found) != 1:
            many = "cannot be told from that of another VM: start the program with kvmpy spy -- COMMAND"
            why = many if found else "is mapped nowhere"
            raise MissingCapability(f"the record of vCPU {vcpu.index} {why}")
        vcpu.record, vcpu.record_size = found[0][0], found[0][1] - found[0][0]

    def _link(self, fd: int) -> str:
        try:
            return os.readlink(f"/proc/{self.pid}/fd/{fd}")
        except OSError:
            return ""

    def _identify(self, fd: int) -> Owner | None:
        link = self._link(fd)
        if not link.startswith("anon_inode:kvm-") and not link.startswith("anon_inode:[kvm") and not self._is_system(fd):
            return None
        for other, owner in self._known.items():
            # Two descriptors of one open file, by dup or from a parent.
            if owner is not None and self._libc.syscall(_KCMP, self.pid, self.pid, _KCMP_FILE, fd, other) == 0:
                return owner
        if link == "anon_inode:kvm-vm":
            self._vms += 1
            return Vm(self._vms - 1, self._memory)
        match = _VCPU.match(link)
        if match is None:
            return Kvm()
        vms = [owner for owner in self if isinstance(owner, Vm)]
        return Vcpu(int(match[1] or 0), vms[0] if len(vms) == 1 else None)

    def _is_system(self, fd: int) -> bool:
        try:
            return os.stat(f"/proc/{self.pid}/fd/{fd}").st_rdev == _DEVICE
        except OSError:
            return False
