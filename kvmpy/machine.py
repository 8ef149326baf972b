"""A whole machine: memory, vCPUs, the devices of a small PC and a user's own, an image to boot, and a run that ends in a verdict."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, cast

from kvmpy.backend import Backend, Vcpu, Vm
from kvmpy.bus import MmioBus, PortBus, place
from kvmpy.clock import HostClock, VirtualClock
from kvmpy.cpu import Cpu
from kvmpy.devices.base import Clock, Device
from kvmpy.doorbells import Bell, Doorbells, make_doorbells
from kvmpy.ends import End, Ends
from kvmpy.errors import ConfigError, HostError, TranslatorError
from kvmpy.host.images.magic import is_qcow2
from kvmpy.host.tap import Tap
from kvmpy.inspection import Inspection
from kvmpy.irq import Inputs, Line, lines_of
from kvmpy.loop import Loop, MsrHandler
from kvmpy.memory import GuestMemory
from kvmpy.native import lib
from kvmpy.verdicts import Reset, Stopped, Verdict

if TYPE_CHECKING:
    from collections.abc import Generator

    from kvmpy.devices.virtio.device import VirtioDevice
    from kvmpy.host.images import DiskSpec
    from kvmpy.host.net.spec import NetSpec
    from kvmpy.trace import Event, Listener
    from kvmpy.trace.binary import TraceWriter
    from kvmpy.trace.filters import Filter
    from kvmpy.trace.watch import Watch, Watcher

Path = str | PathLike[str]

CLOSE_SECONDS = 10
MOST_CPUS = 255
REASONS_TO_REBOOT = ("stop", "reboot")
_WARNED: set[str] = set()


class Machine(Inspection):
    """Memory, vCPUs, interrupt chips and PIT of the backend, and the devices of a machine type:
    "pc" has PCI and what a PC has beside it, "micro" serial ports and virtio-mmio (`kvmpy.board`).

    `devices` are a user's own, PCI functions, and virtio devices, which the machine type puts on its transport.
    `net` has one text for each NIC, as `--net` takes it ("user,model=e1000").
    `serial` is the end of COM1, or a sequence of ends for COM1 to COM4: a text as `--serial` takes it ("stdio", "file:PATH", "pty",
    "unix:PATH", "none"), a CharEnd, or None: then output is kept in `machine.serial`, a Capture.
    `translate` is for the software CPU: "on", "off", or how often a block runs before it is translated to host code.
    `parallel`: the software CPU's vCPUs run beside each other, each in a thread of its own, as KVM's always do; else they take turns.
    `verify_translator` lets it run everything twice, interpreted and translated; `run` raises TranslatorError where the two part.
    `on_reset` says what a reset asked for by the guest does: "stop" ends the run with Reset, "reboot" starts the image again.
    Raises ConfigError for what cannot be built and HostError or MissingCapability for what the host refuses.
    """

    def __init__(
        self,
        memory: int | str = "128M",
        cpus: int = 1,
        cpu: str = "max",
        *,
        machine: str = "pc",
        backend: str | Backend = "auto",
        devices: Sequence[Device | VirtioDevice] = (),
        net: Sequence[str | NetSpec] = (),
        clock: str = "host",
        serial: End | Sequence[End] | None = None,
        console: End | None = None,
        disks: Sequence[Path | DiskSpec] = (),
        assist: bool = True,
        on_reset: str = "stop",
        translate: int | str | None = None,
        parallel: bool = False,
        verify_translator: bool | None = None,
    ) -> None:
        if not isinstance(cpus, int) or not 1 <= cpus <= MOST_CPUS:
            raise ConfigError(f"{cpus} CPUs: a machine has 1 to {MOST_CPUS}")
        if clock not in ("host", "virtual"):
            raise ConfigError(f"clock {clock!r}: one of host, virtual")
        if on_reset not in REASONS_TO_REBOOT:
            raise ConfigError(f"on_reset {on_reset!r}: one of {', '.join(REASONS_TO_REBOOT)}")
        for option, given in (("devices", devices), ("net", net), ("disks", disks)):
            if isinstance(given, (str, os.PathLike)):
                raise ConfigError(f"{option}={os.fspath(given)!r}: a list is wanted: {option}=[{os.fspath(given)!r}]")
        self._closers: list[Callable[[], None]] = []
        self._boot: Callable[[], None] | None = None
        self._faults: Any = None
        self._coverage: Any = None
        self._watch: Watcher | None = None
        self.image = None
        self.debugger: Any = None
        """The GdbServer that commands runs, where there is one."""
        self._running = False
        self._runner = 0  # thread in `run`
        self._idle = threading.Event()
        self._commanded = False
        self._seconds = 0.0
        self._inputs = Inputs(self._drive)
        self._warned: set[str] = set()
        self.ended = None
        self.on_reset = on_reset
        self.resets = 0
        self.device_events: Counter[str] = Counter()
        """What devices reported, by "device: event"."""
        try:
            self._build(memory, cpus, cpu, machine, backend, devices, net, clock, serial, console, disks, assist, translate, parallel,
                        verify_translator)
        except BaseException:
            self.close()
            raise

    def _build(
        self, memory: int | str, cpus: int, cpu: str, machine: str, backend: str | Backend, devices: Sequence[Device | VirtioDevice],
        net: Sequence[str | NetSpec], clock: str, serial: End | Sequence[End] | None, console: End | None,
        disks: Sequence[Path | DiskSpec], assist: bool, translate: int | str | None, parallel: bool, verify_translator: bool | None,
    ) -> None:
        from kvmpy.board import Parts, make_board
        from kvmpy.disks import Disks

        self.memory = GuestMemory(memory)
        self.memory.spaces = lambda cpu: importlib.import_module("kvmpy.debug.spaces").space_of(self, cpu)
        self._closers.append(self.memory.close)
        self.backend = self._open_backend(backend, clock, translate, parallel, verify_translator)
        self.vm: Vm = self.backend.create_vm()
        self._closers.append(self.vm.close)
        if getattr(self.backend, "threshold", 0) and not getattr(self.vm, "translating", True):
            self._warn_once("this host forbids executable memory: guests are interpreted, which is slower")
        self.vm.create_irqchip()
        self.vm.create_pit()
        self.memory.attach(self.vm)
        vcpus = [self.vm.create_vcpu(index) for index in range(cpus)]
        self._set_cpuid(vcpus, cpu)
        self.cpu = [Cpu(vcpu) for vcpu in vcpus]
        self._chips = [self.vm.get_irqchip(number) for number in range(3)]
        self._pit = self.vm.get_pit()

        self.ports, self.mmio = PortBus(), MmioBus()
        self.loop = Loop(self.vm, vcpus, self.ports, self.mmio, assist=self._assist if assist and self._can_assist() else None)
        self.clock: Clock = self._make_clock(clock)
        self._doorbells = self._make_doorbells() if self.asynchronous else None
        self._watch_msrs()

        ends = Ends(self._closers, on_quit=lambda: self.stop(Stopped("quit")))
        serials = ends.of_serial_ports(serial)
        self.serial = serials[0]
        """The end of COM1."""
        self._taps = [Tap(end) for end in serials]
        parts = Parts(self._taps, ends.open(console or "none"), self.memory, (self.ports, self.mmio))
        self.board = make_board(machine, parts)
        """The devices of the machine type."""
        self.devices: list[Device] = []
        for device in (*self.board.devices, *devices):
            self.add(device)
        self.disks = Disks(disks, self.board, self.add, cpus)
        self._closers.append(self.disks.close)
        self.nics: list[Device | VirtioDevice] = []
        """Those of `net`, in its order."""
        for index, wanted in enumerate(net):
            self._add_nic(wanted, index)
        self.board.set_chips(self._chips)
        for chip in self._chips:
            self.vm.set_irqchip(chip)
        self.board.leave_as_firmware_does()

    def _add_nic(self, spec: str | NetSpec, index: int) -> None:
        from kvmpy.nics import make_nic

        nic = make_nic(spec, index, self._warn)
        self.nics.append(nic)
        try:
            self.add(nic)
        except BaseException:
            nic.close()
            raise

    def _watch_msrs(self) -> None:
        """Unknown MSRs exit, so that they can be counted, traced and served; where KVM cannot, it answers #GP itself."""
        try:
            self.vm.set_user_msrs(lib.KVM_MSR_EXIT_REASON_UNKNOWN, [])
        except HostError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTTY):
                raise

    def _make_clock(self, kind: str) -> Clock:
        clock: HostClock | VirtualClock
        if kind == "virtual":
            clock = VirtualClock(self.vm)
            self.loop.timers_due = clock.run_due
        else:
            # the software CPU has a clock of its own, by which its records are stamped
            clock = HostClock(self.loop.post, cast("Any", self.vm).now() if self.vm.name == "soft" else 0)
        self._closers.append(clock.close)
        return clock

    def _make_doorbells(self) -> Doorbells | None:
        doorbells = make_doorbells(self.vm, self.loop.post)
        if doorbells is not None:
            if self.vm.name == "soft":
                self.loop.rung = doorbells.serve
            self.loop.at_rest.append(doorbells.serve)  # before the devices': it gives them work
            self._closers.append(doorbells.close)
        return doorbells

    def _open_backend(
        self, backend: str | Backend, clock: str, translate: int | str | None, parallel: bool, verify_translator: bool | None
    ) -> Backend:
        if not isinstance(backend, str):
            for name, given in (("translate", translate), ("parallel", parallel or None), ("verify_translator", verify_translator)):
                if given is not None:
                    raise ConfigError(f"{name}: the backend is made already, and has a parameter of that name")
            return backend
        from kvmpy.backends import open_backend

        name = "soft" if backend == "auto" and (clock == "virtual" or verify_translator) else backend
        opened = open_backend(name, clock=clock, translate=translate, parallel=parallel, verify_translator=verify_translator)
        if translate is not None and opened.name != "soft":
            raise ConfigError(f"translate: only the software CPU translates, and the backend is {opened.name}")
        if verify_translator and opened.name != "soft":
            raise ConfigError(f"verify_translator: only the software CPU translates, and the backend is {opened.name}")
        close = getattr(opened, "close", None)
        if close is not None:
            self._closers.append(close)
        return opened

    def _set_cpuid(self, vcpus: list[Vcpu], model: str) -> None:
        from kvmpy.cpuid import entries_for

        supported = self.backend.supported_cpuid()
        for vcpu in vcpus:
            vcpu.set_cpuid(entries_for(model, supported, vcpu.index, len(vcpus)))

    # What devices may ask (the Platform of kvmpy.devices.base).

    def stop(self, verdict: Verdict | None = None) -> None:
        """Ends the run after the present exit. From any thread."""
        self.loop.stop(verdict or Stopped("stopped"))

    def event(self, device: Device, what: str, **payload: Any) -> None:
        """Counts and traces what a device has to say."""
        name = device.name or type(device).__name__
        self.device_events[f"{name}: {what}"] += 1
        if self.loop.tracer is not None:
            self.loop.tracer.emit("device", None, device=name, event=what, **payload)

    def warn(self, device: Device, text: str) -> None:
        """Tells the user of trouble on the host's side: one line on stderr, once for each device and text."""
        self._warn(f"{device.name or type(device).__name__}: {text}")

    def _warn(self, line: str) -> None:
        if line not in self._warned:
            self._warned.add(line)
            print(f"kvmpy: {line}", file=sys.stderr, flush=True)

    def _warn_once(self, line: str) -> None:
        """The same once in a process, for what every machine would say."""
        if line not in _WARNED:
            _WARNED.add(line)
            self._warn(line)

    def signal_msi(self, address: int, data: int) -> None:
        """A message of a device to local APICs. One that the guest has addressed to nobody goes nowhere."""
        if self.loop.tracer is not None:
            self.loop.tracer.emit("line", None, address=address, data=data)
        try:
            self.vm.signal_msi(address, data)
        except HostError:
            self.device_events["message to no APIC"] += 1

    @property
    def asynchronous(self) -> bool:
        """Devices may leave work to threads."""
        return isinstance(self.clock, HostClock)

    def doorbell(self, address: int, size: int, value: int | None, call: Callable[[], None]) -> Bell | None:
        """Registers a doorbell (kvmpy.devices.base.Platform)."""
        return None if self._doorbells is None else self._doorbells.add(address, size, value, call)

    @property
    def running(self) -> bool:
        """A `run` has begun and has not ended."""
        return self._running

    def at_rest(self, function: Callable[[], None]) -> None:
        """Has `function` called under the lock at the end of every run."""
        self.loop.at_rest.append(function)

    def call(self, function: Callable[[], None]) -> None:
        """From any thread: runs `function` under the machine's lock soon."""
        self.loop.post(function)

    def add(self, device: Device | VirtioDevice) -> Device:
        """Places a device, before `load`: its ranges on the buses, its interrupt lines on the chips, a PCI function in a slot,
        a virtio device on the machine type's transport. Gives what stands on the bus."""
        if not isinstance(device, Device):
            from kvmpy.devices.virtio.device import VirtioDevice

            if not isinstance(device, VirtioDevice):
                raise ConfigError(f"{device!r} is not a kvmpy.Device")
        device = self.board.carry(device)
        place(device, self.ports, self.mmio)
        device.connect(self)
        for line in lines_of(device):
            line.bind(self._inputs.drive)
        self.devices.append(device)
        self._closers.append(device.close)
        return device

    def lines_high(self, gsi: int) -> set[Line]:
        """The lines that hold an interrupt input high."""
        return self._inputs.high(gsi)

    def _drive(self, gsi: int, level: int) -> None:
        if self.loop.tracer is not None:
            self.loop.tracer.emit("line", None, gsi=gsi, level=level)
        self.vm.irq_line(gsi, level)

    def _can_assist(self) -> bool:
        return self.vm.name == "kvm" and hasattr(lib, "kp_vm_create")

    def _assist(self, vcpu: Vcpu) -> bool:
        assist = importlib.import_module("kvmpy.soft.assist")
        return bool(assist.finish_instruction(self.memory, vcpu, self.loop.serve))

    # Booting and running.

    def load(
        self, path: Path | None, boot: str | None = None, initrd: Path | None = None, append: str = "",
        modules: Sequence[tuple[Path, str]] = (),
    ) -> Machine:
        """Puts an image into memory and the first vCPU at its entry; gives the machine back. ImageError says what is wrong with it.

        `boot` names the protocol ("flat16", "multiboot1", ...; by default it is recognised); without an image the BIOS boots the disks.
        """
        from kvmpy.boot import load, protocol_of

        if path is not None and boot in (None, "auto", "bios") and is_qcow2(path):
            self.disks.boot_from(path)  # the loader reads no such images, and need not
            path = None
        if self.disks.waiting:
            self.disks.settle(protocol_of(path, boot or "auto"))

        def start() -> None:
            state = load(
                self.memory, path, boot=boot or "auto", cmdline=self.board.command_line(append), initrd=initrd, modules=modules,
                hardware=self.board.hardware(len(self.cpu)),
            )
            if state.disk:
                self.disks.boot_from(state.disk)
            self.cpu[0].start_at(state)
            self.boot_state = state

        if self._coverage is not None:
            self._coverage.settle()
        self.image = None if path is None else os.fspath(path)
        self._symbols = None
        if self._boot is not None:
            self._to_power_on()
        else:
            self.board.leave_as_firmware_does()  # devices may have been added since
        start()
        self._boot = start
        return self

    def run(self, timeout: float | None = None, until: str | bytes | Callable[[], bool] | None = None) -> Verdict:
        """Runs until a verdict; may be called again to go on.

        `timeout` is in seconds of the host. `until` ends the run with Stopped("until"): a text on COM1, or a function asked after
        every exit. Ctrl-C raises KeyboardInterrupt and leaves the machine as usable as any other end.
        An exception raised in a device (a bug of its author) is raised here.
        """
        if self._running:
            raise ConfigError("the machine is running already")
        if self.debugger is not None and not self._commanded:
            self._commanded = True
            try:
                verdict: Verdict = self.debugger.run(timeout, until)
                return verdict
            finally:
                self._commanded = False
        text = until.encode() if isinstance(until, str) else until if isinstance(until, bytes) else None
        predicate = None if until is None or text is not None else until
        if text == b"":
            raise ConfigError("an empty text to wait for")
        end = None if timeout is None else time.monotonic() + timeout
        if text is not None:
            self._taps[0].watch(text, lambda: self.stop(Stopped("until")))
        self._running = True
        self.ended = None
        self._runner = threading.get_ident()
        self._idle.clear()
        start = time.monotonic()
        try:
            fresh = True
            while True:
                left = None if end is None else max(end - time.monotonic(), 0.0)
                verdict = self.loop.run(left, predicate, fresh=fresh)  # type: ignore[arg-type]
                fresh = False
                self.ended = verdict
                if not (isinstance(verdict, Reset) and self.on_reset == "reboot"):
                    return verdict
                self.reset()
        except TranslatorError as error:
            error.report = importlib.import_module("kvmpy.debug.mismatch").report_of(self, error)
            error.add_note("\n".join(error.report))
            raise
        finally:
            self._running = False
            self._seconds += time.monotonic() - start
            if text is not None:
                self._taps[0].unwatch(text)
            for tap in self._taps:
                tap.flush()
            self._idle.set()

    def reset(self) -> None:
        """Switches the machine off and on: vCPUs, chips and devices in power-on state, memory zero, the image loaded again."""
        self.resets += 1
        self.ended = None
        self._to_power_on()
        if self._boot is not None:
            self._boot()
        if self.loop.debugger is not None:
            self.loop.debugger.on_reset()

    def _to_power_on(self) -> None:
        for cpu in self.cpu:
            cpu.settle()
        with self.loop.lock:
            for device in self.devices:
                device.reset()
            self.board.leave_as_firmware_does()
        for chip in self._chips:
            self.vm.set_irqchip(chip)
        self.vm.set_pit(self._pit)
        for cpu in self.cpu:
            cpu.power_on()
        self.memory.clear()

    def on_msr(self, handler: MsrHandler | None) -> None:
        """Serves the MSRs that the backend does not know (on KVM: where it has KVM_CAP_X86_USER_SPACE_MSR).

        Called under the machine's lock as handler(vcpu, index, value), with value None for RDMSR; the answer is what RDMSR gives,
        any number after WRMSR, or None: then the guest gets #GP, which is also what happens without a handler.
        """
        self.loop.on_msr = handler

    # Debugging: what Inspection has not.

    def debug(self, where: str = ":1234", *, wait: bool = True, arch: str = "auto", python: bool = False) -> Any:
        """Opens a GDB stub at ":PORT", "HOST:PORT" or "unix:PATH" (without a host: 127.0.0.1) and gives its GdbServer.

        `run` then waits for a debugger, and obeys it until it detaches or the guest ends; without `wait` the guest runs until one comes.
        `arch` is the description that GDB is given: "x86-64", "i386", "i8086", or "auto" for what fits the image.
        `python` lets `monitor py` evaluate Python in this process: whoever reaches the port then commands the host's user too.
        """
        if self.debugger is not None:
            raise ConfigError("the machine has a debugger's stub already")
        server = importlib.import_module("kvmpy.debug.gdb.server").GdbServer(
            self, where, wait=wait, arch=arch, python=python
        )
        self.debugger = server
        self._closers.append(server.close)
        return server

    def last_output(self, port: int = 0) -> bytes:
        """The end of what the guest wrote to a serial port, up to some 2000 bytes."""
        return self._taps[port].last()

    @property
    def faults(self) -> Any:
        """Faults to inject (kvmpy.faults.Faults): of disks, networks, interrupts, clocks, devices."""
        if self._faults is None:
            self._faults = importlib.import_module("kvmpy.faults").Faults(self)
        return self._faults

    @property
    def coverage(self) -> Any:
        """Records which code of the guest is executed (kvmpy.coverage.Recorder): `start`, `stop`, `read`. The software CPU's."""
        if self._coverage is None:
            self._coverage = importlib.import_module("kvmpy.coverage").Recorder(self)
            self._closers.append(self._coverage.settle)
        return self._coverage

    # Looking at it.

    def _switch_doorbells(self, on: bool) -> None:
        """A trace of accesses shows every one, so there are no doorbells meanwhile."""
        if self._doorbells is not None:
            self._doorbells.switch(on)

    def _watcher(self) -> Watcher:
        if self._watch is None:
            from kvmpy.trace.watch import Watcher

            self._watch = Watcher(
                self.loop, self.ports, self.mmio, self.clock.now, virtual=isinstance(self.clock, VirtualClock),
                on_accesses=lambda told: self._switch_doorbells(not told), names=lambda: self.symbols,
            )
        return self._watch

    def _chosen(self, what: tuple[Any, ...], conditions: dict[str, Any]) -> tuple[Filter | None, Listener | None]:
        from kvmpy.trace.watch import LateSymbols, wanted

        return wanted(what, conditions, LateSymbols(lambda: self.symbols))

    def trace(self, *what: str | Filter | Listener, observe: bool = False, **conditions: Any) -> Watch:
        """Calls a listener with an Event for each that filters choose: `trace("io:0x3f8", listener, write=True)`. The Watch given back
        ends that when it is called; without a listener it is a decorator, and a `with` block that gives a list of events.

        Filters and conditions are those of kvmpy.trace.filters. Without any, the listener is told whatever exits anyway, and what
        devices say. With some, its answer counts unless it is to `observe`: None goes on, a number is what is read or written
        instead, and kvmpy.trace.answers has the others. Raises FilterError and MissingCapability.
        """
        from kvmpy.trace.watch import Watch

        return Watch(self._watcher(), *self._chosen(what, conditions), observe)

    def events(self, *what: str | Filter, timeout: float | None = None, **conditions: Any) -> Generator[Event, None, Verdict]:
        """Runs the machine and gives the events that `trace` would, one by one. The machine stands still while one is looked at, and
        goes on with the next. Ends with the run, or after `timeout` seconds of it; a generator's value is the verdict."""
        from kvmpy.trace.stream import events_of

        return events_of(self, self._watcher(), self._chosen(what, conditions)[0], timeout)

    def trace_file(self, path: Path, *what: str | Filter, **conditions: Any) -> TraceWriter:
        """Writes the events that `trace` would give into a binary file, until the writer given back is closed (or the machine):
        without a filter whatever exits anyway, and what devices say.
        kvmpy.trace.binary reads it. On the software CPU the core writes it, without Python. Raises HostError."""
        from kvmpy.trace.binary import write_trace

        writer = write_trace(self, self._watcher(), os.fspath(path), self._chosen(what, conditions)[0])
        self._closers.append(writer.close)
        return writer

    @property
    def statistics(self) -> dict[str, Any]:
        """Counts as plain data: exits by name, unclaimed accesses by address, events of devices, the backend's own counters
        (those that are not zero)."""
        from kvmpy.x86 import msr_name

        backend: Counter[str] = Counter()
        for cpu in self.cpu:
            backend.update({name: count for name, count in cpu.vcpu.statistics().items() if count and "_hist[" not in name})
        return {
            "backend": self.vm.name,
            "seconds": round(self._seconds, 6),
            "exits": self.loop.statistics(),
            "doorbells": 0 if self._doorbells is None else self._doorbells.rings,
            "resets": self.resets,
            "unclaimed_ports": {f"{port:#x}": count for port, count in sorted(self.ports.unclaimed.items())},
            "unclaimed_mmio": {f"{address:#x}": count for address, count in sorted(self.mmio.unclaimed.items())},
            "unknown_msrs": {msr_name(index): count for index, count in sorted(self.loop.unknown_msrs.items())},
            "device_events": dict(self.device_events),
            "vcpus": dict(backend),
        }

    def close(self) -> None:
        """Ends host ends, timers, VM and memory, in the reverse order of their making. Calling it twice is harmless.
        A run in another thread is stopped first (Stopped("closed")); inside a run it is a ConfigError."""
        if self._running:
            if self._runner == threading.get_ident():
                raise ConfigError("a machine cannot be closed from inside its own run: stop() ends that")
            self.stop(Stopped("closed"))
            if not self._idle.wait(CLOSE_SECONDS):
                raise ConfigError(f"the machine is still running {CLOSE_SECONDS} s after it was asked to stop: a device does not return")
        error: BaseException | None = None
        while self._closers:
            try:
                self._closers.pop()()
            except Exception as caught:
                error = error or caught
        if error is not None:
            raise error

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
