"""The machine loop on scripted vCPUs: exits, verdicts, stopping, errors."""

import os
import signal
import sys
import threading
import time

import pytest

from kvmpy.bus import MmioBus, PortBus, place
from kvmpy.clock import VirtualClock
from kvmpy.devices.base import Device
from kvmpy.loop import Loop
from kvmpy.native import ffi, lib
from kvmpy.trace import Event, Tracer
from kvmpy.trace.tracer import Sink
from kvmpy.verdicts import Crashed, GuestExit, Halted, PowerOff, Reset, Stopped

sys.path.insert(0, os.path.dirname(__file__))
from fakes import FakeVm, answer, exit_with, mmio, port_in, port_out


class Box(Device):
    """Reads count up, writes are kept; writing 0xFF stops."""

    name = "box"

    def __init__(self, ports=(0x10, 4), memory=(0xFED00000, 0x1000)):
        self.ports, self.mmio = ports, memory
        self.log = []
        self.counter = 0
        self.loop = None

    def read(self, offset, size):
        self.counter += 1
        return self.counter

    def write(self, offset, size, value):
        self.log.append((offset, size, value))
        if value == 0xFF:
            self.loop.stop(GuestExit(7))
        if value == 0xEE:
            raise RuntimeError("a bug of the device")


END = port_out(0x10, b"\xff")


def make(*scripts, threaded=True, assist=None):
    vm = FakeVm(*scripts, threaded=threaded)
    ports, memory = PortBus(), MmioBus()
    loop = Loop(vm, vm.vcpus, ports, memory, assist=assist)
    box = Box()
    box.loop = loop
    place(box, ports, memory)
    return loop, box, vm


both = pytest.mark.parametrize("threaded", [True, False])


@both
def test_ports_in_and_out(threaded):
    loop, box, vm = make(
        [port_out(0x11, b"A"), port_in(0x12, 2), answer(2), port_out(0x10, b"\1\2\3\4", 2), port_in(0x10, 1, 3), answer(3), END],
        threaded=threaded,
    )
    assert loop.run(5) == GuestExit(7)
    assert box.log == [(1, 1, 0x41), (0, 2, 0x201), (0, 2, 0x403), (0, 1, 0xFF)]
    assert vm.vcpus[0].answers == [b"\1\0", b"\2\3\4"]
    assert loop.statistics() == {"io": 5}


def mmio_answer(vcpu):
    vcpu.answers.append(bytes(vcpu.record.mmio.data))
    return lib.KVM_EXIT_INTR


@both
def test_parts_of_mmio_accesses_at_a_page_s_end(threaded):
    loop, box, vm = make([mmio(0xFED00FFD, b"\1\2\3"), mmio(0xFED00FFD, size=3), mmio_answer, END], threaded=threaded)
    assert loop.run(5) == GuestExit(7)
    assert box.log[0] == (4 + 0xFFD, 3, 0x30201) and vm.vcpus[0].answers[0][:3] == b"\1\0\0"


def test_a_device_placed_later_is_seen():
    loop, box, vm = make([port_in(0x12), answer(1), END])
    assert loop.run(5) == GuestExit(7)
    loop.ports.remove(box)
    late = Box()
    late.loop, late.counter = loop, 0x40
    place(late, loop.ports, MmioBus())
    vm.vcpus[0].script = iter([port_in(0x12), answer(1), END])
    assert loop.run(5) == GuestExit(7)
    assert vm.vcpus[0].answers == [b"\1", b"\x41"]


@both
def test_mmio(threaded):
    loop, box, vm = make(
        [mmio(0xFED00004, b"\x78\x56\x34\x12"), mmio(0xFED00000), mmio(0x1000_0000, size=8), mmio_answer, END], threaded=threaded
    )
    assert loop.run(5) == GuestExit(7)
    assert box.log[0] == (8, 4, 0x12345678)
    assert vm.vcpus[0].answers == [b"\xff" * 8]
    assert loop.mmio.unclaimed == {0x1000_0000: 1}
    assert loop.statistics() == {"mmio": 3, "io": 1}


@pytest.mark.parametrize(
    ("step", "verdict"),
    [
        (exit_with(lib.KVM_EXIT_HLT), Halted()),
        (exit_with(lib.KVM_EXIT_SHUTDOWN), Crashed(0x1234, "triple fault")),
        (exit_with(lib.KVM_EXIT_SYSTEM_EVENT, system_event__type=lib.KVM_SYSTEM_EVENT_SHUTDOWN), PowerOff()),
        (exit_with(lib.KVM_EXIT_SYSTEM_EVENT, system_event__type=lib.KVM_SYSTEM_EVENT_RESET), Reset("system event")),
        (exit_with(lib.KVM_EXIT_DEBUG), Stopped("debug")),
        (exit_with(35), Crashed(0x1234, "exit RISCV_SBI (not known on x86)")),
        (exit_with(777), Crashed(0x1234, "exit unknown exit reason 777")),
        (exit_with(lib.KVM_EXIT_FAIL_ENTRY, fail_entry__hardware_entry_failure_reason=0x80000021),
         Crashed(0x1234, "exit FAIL_ENTRY hardware reason 0x80000021 on host CPU 0")),
        (exit_with(lib.KVM_EXIT_INTERNAL_ERROR, internal__suberror=2, internal__ndata=0),
         Crashed(0x1234, "INTERNAL_ERROR 2 (simultaneous exceptions)")),
    ],
)
def test_exits_that_end_a_run(step, verdict):
    loop, _, vm = make([step])
    vm.vcpus[0].regs.rip = 0x1234
    assert loop.run(5) == verdict


def test_exits_that_do_not():
    loop, _, _ = make([
        exit_with(lib.KVM_EXIT_IRQ_WINDOW_OPEN), exit_with(lib.KVM_EXIT_SET_TPR), exit_with(lib.KVM_EXIT_IOAPIC_EOI),
        exit_with(lib.KVM_EXIT_HYPERCALL, hypercall__nr=5), END,
    ])
    assert loop.run(5) == GuestExit(7)
    assert loop.statistics() == {"irq_window_open": 1, "set_tpr": 1, "ioapic_eoi": 1, "hypercall": 1, "io": 1}


def refuse(vcpu):
    failure = vcpu.record.emulation_failure
    failure.suberror, failure.ndata, failure.flags, failure.insn_size = 1, 8, 1, 3
    ffi.memmove(failure.insn_bytes, b"\xcc\x90\xf4", 3)
    return lib.KVM_EXIT_INTERNAL_ERROR


def test_the_assist_finishes_what_the_backend_refuses():
    helped = []
    loop, _, vm = make([refuse, refuse, END], assist=lambda vcpu: helped.append(vcpu) or True)
    assert loop.run(5) == GuestExit(7)
    assert helped == [vm.vcpus[0]] * 2
    assert loop.statistics() == {"internal_error": 2, "io": 1, "assisted": 2}


def test_device_accesses_of_an_assisted_instruction():
    other = FakeVm([port_out(0x11, b"A"), mmio(0xFED00000, b"\1")]).vcpus[0]

    def assist(vcpu):
        for _ in range(2):
            other.run()
            loop.serve(other)
        return True

    loop, box, _ = make([refuse, END], assist=assist)
    assert loop.run(5) == GuestExit(7)
    assert box.log == [(1, 1, 0x41), (4, 1, 1), (0, 1, 0xFF)]


@pytest.mark.parametrize("assist", [None, lambda vcpu: False])
def test_without_an_assist_a_refused_instruction_is_a_crash(assist):
    loop, _, vm = make([refuse], assist=assist)
    vm.vcpus[0].regs.rip = 0x7C00
    verdict = loop.run(5)
    assert verdict == Crashed(0x7C00, "KVM cannot emulate the instruction (cc 90 f4)")
    assert verdict.details["instruction"] == "cc 90 f4"


@both
def test_timeout_and_running_again(threaded):
    loop, _, vm = make([], threaded=threaded)
    start = time.monotonic()
    assert loop.run(0.1) == Stopped("timeout")
    assert time.monotonic() - start < 3
    vm.vcpus[0].script = iter([END])
    assert loop.run(5) == GuestExit(7)


@both
def test_a_device_that_raises_ends_the_run_and_the_machine_stays_usable(threaded):
    loop, _, vm = make([port_out(0x10, b"\xee")], threaded=threaded)
    with pytest.raises(RuntimeError, match="a bug of the device"):
        loop.run(5)
    vm.vcpus[0].script = iter([END])
    assert loop.run(5) == GuestExit(7)


@both
def test_until(threaded):
    loop, box, _ = make([port_in(0x10)] * 10, threaded=threaded)
    assert loop.run(5, until=lambda: box.counter == 4) == Stopped("until")
    assert box.counter == 4


def test_halted_is_seen_without_an_exit():
    loop, _, vm = make([])
    vm.vcpus[0].mp_state = 3
    start = time.monotonic()
    assert loop.run(5) == Halted()
    assert time.monotonic() - start < 1


def test_a_halt_with_interrupts_on_is_a_wait():
    loop, _, vm = make([])
    vm.vcpus[0].mp_state = 3
    vm.vcpus[0].regs.rflags = 0x202
    assert loop.run(0.3) == Stopped("timeout")


def test_two_vcpus_halt_together_only():
    loop, _, vm = make([], [])
    vm.vcpus[0].mp_state = 3
    assert loop.run(0.5) == Stopped("timeout")
    vm.vcpus[1].mp_state = 1  # never started
    assert loop.run(5) == Halted()


def test_vcpus_share_the_devices_under_the_lock():
    busy = []

    class Slow(Device):
        ports = 0x20, 1

        def write(self, offset, size, value):
            busy.append(1)
            assert len(busy) == 1, "two vCPUs in one device"
            time.sleep(0.001)
            busy.pop()

    loop, _, _vm = make([port_out(0x20, b"a")] * 20 + [END], [port_out(0x20, b"b")] * 20)
    place(Slow(), loop.ports, MmioBus())
    assert loop.run(10) == GuestExit(7)


@both
def test_posted_calls_run_under_the_lock(threaded):
    loop, _, _ = make([], threaded=threaded)
    held = []

    def call():
        held.append(loop.lock.locked())
        loop.stop(Reset("post"))

    timer = threading.Timer(0.05, lambda: loop.post(call))
    timer.start()
    assert loop.run(5) == Reset("post")
    assert held == [True]
    loop.post(lambda: held.append(loop.lock.locked()))
    assert held == [True, True], "a call posted to a machine at rest runs at once"


def test_a_post_from_within_a_device_runs_after_it():
    loop, _, _ = make([port_out(0x20, b"x"), END])
    order = []

    class Poster(Device):
        ports = 0x20, 1

        def write(self, offset, size, value):
            loop.post(lambda: order.append("posted"))
            order.append("written")

    place(Poster(), loop.ports, MmioBus())
    loop.run(5)
    assert order == ["written", "posted"]


@both
def test_a_doorbell_s_work_is_done_and_what_it_posts(threaded):
    loop, _, _ = make([answer(0)], threaded=threaded)
    done = []

    def rung():
        assert loop.lock.locked()
        if not done:
            done.append("work")
            threading.Thread(target=loop.post, args=(lambda: done.append("posted") or loop.stop(Stopped("done")),)).start()
            time.sleep(0.05)  # the lock is not free: whoever has it finds the call

    loop.rung = rung
    assert loop.run(5) == Stopped("done") and done == ["work", "posted"]


def test_an_error_between_two_runs_comes_out_of_the_next():
    loop, _, _ = make([END])
    loop.post(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loop.run(5)
    assert loop.run(5) == GuestExit(7)


def test_a_stop_between_two_runs():
    loop, _, _ = make([END, END])
    loop.stop(Reset("early"))
    assert loop.run(5) == GuestExit(7), "a fresh run forgets it"
    loop.stop(Reset("between"))
    assert loop.run(5, fresh=False) == Reset("between")


@both
def test_an_error_in_a_posted_call_comes_out_of_run(threaded):
    loop, _, _ = make([], threaded=threaded)
    timer = threading.Timer(0.05, lambda: loop.post(lambda: 1 / 0))
    timer.start()
    with pytest.raises(ZeroDivisionError):
        loop.run(5)


@both
def test_ctrl_c_leaves_the_machine_usable(threaded):
    loop, _, vm = make([], threaded=threaded)
    timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        loop.run(5)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    vm.vcpus[0].script = iter([END])
    assert loop.run(5) == GuestExit(7)


def test_virtual_time_runs_timers_between_two_runs():
    """The backend ends its run at the deadline; the timer of a device is served there, and sets the next one."""
    rings = []

    def compute(vcpu):
        vm.time = vm.deadline
        return lib.KVM_EXIT_INTR

    loop, _, vm = make([compute, compute, compute, END], threaded=False)
    vm.time, vm.deadline = 0, 0
    vm.now = lambda: vm.time
    vm.set_deadline = lambda when: setattr(vm, "deadline", when)
    clock = VirtualClock(vm)
    loop.timers_due = clock.run_due

    def ring():
        rings.append(clock.now())
        clock.at(clock.now() + 1000, ring)

    clock.at(500, ring)
    assert loop.run(5) == GuestExit(7)
    assert rings == [500, 1500, 2500]


def test_tracing_and_a_listener_that_raises(caplog):
    loop, _, _ = make([port_out(0x11, b"A"), mmio(0xFED00000), exit_with(lib.KVM_EXIT_IRQ_WINDOW_OPEN), END])
    tracer = Tracer(loop, lambda: 42)
    events = []

    def bad(event):
        raise ValueError("no")

    tracer.add(Sink(bad))
    tracer.add(Sink(events.append))
    loop.run(5)
    assert [event.what for event in events] == ["io", "mmio", "exit", "io", "verdict"]
    data = {"port": 0x11, "size": 1, "count": 1, "write": True, "value": 0x41, "device": "box"}
    assert events[0] == Event("io", 0, 42, data, 0x1234, events[0].host, 0, events[0].cost, 0)
    assert events[0].host > 0 and events[0].cost > 0 and events[1].guest > 0
    assert len(tracer) == 1
    assert caplog.text.count("a trace listener raised") == 1
