"""A backend whose vCPUs play scripts: each step fills the record and gives an exit reason, as KVM would."""

from __future__ import annotations

import threading

from kvmpy.native import ffi, lib


class FakeVcpu:
    """`script` is an iterator of callables; each gets the vCPU, fills the record and returns the exit reason."""

    def __init__(self, index, script=()):
        self.index = index
        self.script = iter(script)
        self.pages = ffi.new("uint8_t[8192]")
        self.record = ffi.cast("struct kvm_run *", self.pages)
        self.page = self.pages + 4096
        self.regs = ffi.new("struct kvm_regs *")
        self.sregs = ffi.new("struct kvm_sregs *")
        self.mp_state = 0
        self.kicked = threading.Event()
        self.answers = []

    def run(self):
        if self.kicked.is_set():
            self.kicked.clear()
            self.record.exit_reason = lib.KVM_EXIT_INTR
            return lib.KVM_EXIT_INTR
        step = next(self.script, None)
        if step is None:  # the guest computes, or waits in HLT inside the backend
            self.kicked.wait(5)
            self.kicked.clear()
            reason = lib.KVM_EXIT_INTR
        else:
            reason = step(self)
        self.record.exit_reason = reason
        return reason

    def kick(self):
        self.kicked.set()

    def io_data(self):
        return ffi.buffer(self.page, self.record.io.size * self.record.io.count)

    def get_regs(self):
        return self.regs

    def get_sregs(self):
        return self.sregs

    def get_mp_state(self):
        return self.mp_state

    def position(self):
        return 0x1234, 0


class FakeVm:
    name = "fake"
    traceable = frozenset()
    answerable = frozenset()

    def __init__(self, *scripts, threaded=True):
        self.threaded = threaded
        self.vcpus = [FakeVcpu(index, script) for index, script in enumerate(scripts)]
        self.lines = []

    def run(self):
        self.vcpus[0].run()
        return self.vcpus[0]

    def irq_line(self, gsi, level):
        self.lines.append((gsi, level))


def port_out(port, data, size=1):
    def step(vcpu):
        io = vcpu.record.io
        io.direction, io.size, io.port, io.count, io.data_offset = 1, size, port, len(data) // size, 4096
        ffi.memmove(vcpu.page, data, len(data))
        return lib.KVM_EXIT_IO

    return step


def port_in(port, size=1, count=1):
    """The answer is found in `vcpu.answers` when the script goes on."""

    def step(vcpu):
        io = vcpu.record.io
        io.direction, io.size, io.port, io.count, io.data_offset = 0, size, port, count, 4096
        return lib.KVM_EXIT_IO

    return step


def answer(size):
    """Remembers what the loop put into the record, then lets the vCPU compute a little."""

    def step(vcpu):
        vcpu.answers.append(bytes(ffi.buffer(vcpu.page, size)))
        return lib.KVM_EXIT_INTR

    return step


def mmio(address, data=None, size=4):
    def step(vcpu):
        access = vcpu.record.mmio
        access.phys_addr, access.is_write = address, data is not None
        access.len = size if data is None else len(data)
        if data is not None:
            ffi.memmove(access.data, data, len(data))
        return lib.KVM_EXIT_MMIO

    return step


def exit_with(reason, **fields):
    """An exit with members of the record set: exit_with(lib.KVM_EXIT_X, system_event__type=1)."""

    def step(vcpu):
        for path, value in fields.items():
            target = vcpu.record
            *parents, last = path.split("__")
            for parent in parents:
                target = getattr(target, parent)
            setattr(target, last, value)
        return reason

    return step
