"""The tracing of a command or of running processes: waits for stops, follows threads, tells KVM calls and exits as events."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from kvmpy.errors import ConfigError, HostError, MissingCapability
from kvmpy.spy import ioctls, tracee
from kvmpy.spy.fds import FdTable, Vcpu, Vm
from kvmpy.spy.memory import ProcessMemory
from kvmpy.spy.runs import RecordReader
from kvmpy.spy.start import CLOSE, CLOSE_RANGE, DUP2, DUP3, IOCTL, MMAP, WATCHED, Started
from kvmpy.spy.tracee import Gone
from kvmpy.trace.event import Event, Listener

_WALL = 0x40000000
_SI_KERNEL = 0x80
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_SIGNALS = (signal.SIGCHLD, *_ENDING)
_MAP_SHARED = 1
_PATIENCE = 0.25
"""Seconds after which an exit is told though nobody has answered it yet."""


class _Process:
    """One traced process; a silent one is attached only because the filter would break its calls otherwise."""

    def __init__(self, pid: int, reader: Callable[[ProcessMemory], RecordReader], *, silent: bool) -> None:
        self.pid = pid
        self.silent = silent
        self.memory = ProcessMemory(pid)
        self.fds = FdTable(pid, self.memory)
        self.reader = reader(self.memory)

    def vcpus(self) -> list[Vcpu]:
        return [owner for owner in self.fds if isinstance(owner, Vcpu)]


class _Thread:
    """One traced thread."""

    __slots__ = ("began", "call", "process", "tid", "vcpu")

    def __init__(self, tid: int, process: _Process) -> None:
        self.tid = tid
        self.process = process
        self.call: tracee.Call | None = None
        """The call whose end is waited for."""
        self.began = 0
        self.vcpu: Vcpu | None = None
        """The one that it ran last."""


class Spy:
    """Traces; every event goes to `listener`. One session per process, in the thread that made it (ptrace wants that).

    `follow`: child processes too. `addresses`: RIP with every exit; `registers`: all of them. `calls`: False tells exits only.
    `runs`: KVM_RUN as a call, too.
    """

    def __init__(
        self, listener: Listener, *, follow: bool = False, addresses: bool = False, registers: bool = False, calls: bool = True,
        runs: bool = False, say: Callable[[str], object] = lambda text: None,
    ) -> None:  # fmt: skip
        self._listener = listener
        self._follow = follow
        self._reader = partial(RecordReader, addresses=addresses, registers=registers)
        self._calls = calls
        self._runs = runs
        self._say = say
        self._threads: dict[int, _Thread] = {}
        self._stopped: tuple[_Thread, int] | None = None
        """The thread that waits for us to go on, and the signal that it is to get."""
        self._processes: dict[int, _Process] = {}
        self._started: Started | None = None
        self._filtered = False
        self._root = 0
        self._status: int | None = None
        self._running = False
        self._detaching = False
        self._said: set[str] = set()
        self._start = self._next_look = time.monotonic_ns()
        self._mask: set[int] = set(signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS))
        # Ignored, SIGCHLD would not be sent, and children not be waited for.
        self._before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.kvm_used = False
        """Whether a KVM call was seen, chosen or not."""

    # Beginning and end.

    def start(self, command: Sequence[str]) -> None:
        """Starts a command. Raises HostError where it cannot be run, MissingCapability where ptrace is forbidden."""
        self._started = Started(command, self._mask)
        self._root = self._started.pid
        self._add(self._root, self._root)
        self._filtered = True
        self._started.go()
        while not self._running and self._threads:
            self._step()
        if not self._running:
            self._started.filtered()  # raises: there was no exec

    def attach(self, pid: int) -> None:
        """Attaches to all threads of a process, which goes on. Raises HostError, MissingCapability, ConfigError with the remedy."""
        status = tracee.read_status(pid)
        if not status:
            raise ConfigError(f"there is no process {pid}")
        pid = int(status.get("Tgid", pid))
        _refuse_32_bit(pid)
        process = self._process(pid)
        options = tracee.OPTIONS | (tracee.FORKS if self._follow else 0)
        self._root = self._root or pid
        fresh = True
        while fresh:
            # A thread may make another one until it is traced itself.
            fresh = False
            for tid in _tasks(pid):
                if tid not in self._threads:
                    fresh = self._attach_thread(tid, pid, options) or fresh
        self._running = True
        process.fds.scan()
        if not any(isinstance(owner, (Vm, Vcpu)) for owner in process.fds) and not self._follow:
            self.detach()
            raise MissingCapability(f"process {pid} ({status.get('Name', '?')}) has no VM of KVM: nothing to trace")

    def _attach_thread(self, tid: int, pid: int, options: int) -> bool:
        try:
            tracee.attach(tid, options)
            self._add(tid, pid)
            tracee.interrupt(tid)
        except Gone:
            self._threads.pop(tid, None)
            return False
        return True

    def run(self) -> int | None:
        """Traces until all processes have ended, or a signal asks to detach. Gives the command's exit status (128 + its signal);
        None for a process that was attached to."""
        while self._threads:
            self._step()
        return self._status

    def detach(self) -> None:
        """Lets all go on without us. A started command under a filter cannot be left alone: it is killed."""
        if self._filtered:
            self._kill()
        elif not self._detaching:
            self._detaching = True
            if self._stopped is not None:
                # Something went wrong while it was being looked at: it will not tell of another stop.
                (thread, number), self._stopped = self._stopped, None
                with suppress(Gone):
                    self._let_go(thread, number)
            for tid in list(self._threads):
                with suppress(Gone):
                    tracee.interrupt(tid)
        while self._threads:
            self._step()

    def _kill(self) -> None:
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Detaches from whatever is left, and gives the signals back."""
        self._listener = lambda event: None
        try:
            self.detach()
        finally:
            for process in self._processes.values():
                process.memory.close()
            signal.signal(signal.SIGCHLD, self._before)
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def __enter__(self) -> Spy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Waiting.

    def _step(self) -> None:
        """Handles one stop, or waits for one."""
        try:
            tid, status = os.waitpid(-1, os.WNOHANG | _WALL)
        except ChildProcessError:
            self._threads.clear()
            return
        if tid:
            host = time.monotonic_ns()
            with suppress(Gone):
                self._handle(tid, status, host)
            if host > self._next_look:
                self._tell_waiting()
            return
        info = signal.sigtimedwait(_SIGNALS, _PATIENCE)
        if info is None:
            self._tell_waiting()
        elif info.si_signo in _ENDING:
            self._asked(info)

    def _asked(self, info: signal.struct_siginfo) -> None:
        """A signal for us. What the terminal sends has reached the command without our help."""
        if self._started is None:
            self.detach()
        elif info.si_code != _SI_KERNEL:
            with suppress(ProcessLookupError):
                os.kill(self._root, info.si_signo)

    def _tell_waiting(self) -> None:
        now, patience = time.monotonic_ns(), int(_PATIENCE * 1e9)
        self._next_look = now + patience
        for process in self._processes.values():
            for vcpu in process.vcpus():
                if vcpu.pending is not None and vcpu.pending.host < now - patience:
                    self._tell_exit(process, vcpu, 0)

    def _handle(self, tid: int, status: int, host: int) -> None:
        stop = tracee.read_stop(status)
        thread = self._threads.get(tid)
        kind = stop.kind
        if kind in ("exited", "killed"):
            if thread is not None:
                self._end(thread, stop)
            return
        if thread is None:
            # The first stop of a new thread may come before its maker's event.
            thread = self._add(tid, int(tracee.read_status(tid).get("Tgid", tid)))
        number = stop.number if kind == "signal" else 0
        self._stopped = thread, number
        if kind == "call":
            if thread.call is not None:
                self._leave(thread, tracee.result_of(tid), host)
            elif not thread.process.silent:
                self._enter(thread)
        elif kind == "entry" and not thread.process.silent:
            self._enter(thread)
        elif kind == "event" and stop.number == tracee.EXEC:
            self._exec(thread)
        self._stopped = None
        if self._detaching:
            self._let_go(thread, number)
        elif kind == "stopped":
            tracee.listen(tid)
        else:
            how = tracee.SYSCALL if thread.call is not None or not self._filtered else tracee.CONT
            tracee.resume(tid, how, number)

    # Threads and processes.

    def _process(self, pid: int) -> _Process:
        process = self._processes.get(pid)
        if process is None:
            silent = bool(self._root) and pid != self._root and not self._follow
            process = self._processes[pid] = _Process(pid, self._reader, silent=silent)
        return process

    def _add(self, tid: int, pid: int) -> _Thread:
        thread = self._threads[tid] = _Thread(tid, self._process(pid))
        return thread

    def _exec(self, thread: _Thread) -> None:
        process = thread.process
        # Whichever thread called it goes on under the process's id; all others are gone.
        for tid in [tid for tid, other in self._threads.items() if other.process is process and other is not thread]:
            self._drop(self._threads.pop(tid))
        thread.call = None
        self._tell_all(process)
        process.fds.clear()
        process.memory.close()
        if process.pid == self._root and not self._running:
            assert self._started is not None
            _refuse_32_bit(process.pid)
            self._filtered = self._started.filtered()
            self._running = True
            if not self._filtered:
                self._say("no seccomp filter here: the command stops at every system call")

    def _end(self, thread: _Thread, stop: tracee.Stop) -> None:
        process = thread.process
        del self._threads[thread.tid]
        self._drop(thread)
        if thread.tid != process.pid:
            return
        self._tell_all(process)
        del self._processes[process.pid]
        process.memory.close()
        if process.pid == self._root and self._running:
            name = "" if stop.kind == "exited" else signal.Signals(stop.number).name if stop.number in set(signal.Signals) else "signal"
            text = f"exit status {stop.number}" if stop.kind == "exited" else f"killed by {name} ({stop.number})"
            now = time.monotonic_ns()
            self._tell(Event("verdict", -1, now - self._start, {"verdict": f"process {process.pid}: {text}"}, host=now))
            if self._started is not None:
                self._status = stop.number if stop.kind == "exited" else 128 + stop.number

    def _drop(self, thread: _Thread) -> None:
        """The thread is gone: its unfinished call has no result."""
        if thread.call is not None and thread.call.number == IOCTL and thread.call.arguments[1] & 0xFFFFFFFF != ioctls.RUN:
            self._tell_call(thread, None, {"argument": thread.call.arguments[2]})
        thread.call = None

    def _let_go(self, thread: _Thread, number: int) -> None:
        """Detaches one that is stopped."""
        del self._threads[thread.tid]
        try:
            if not any(other.process is thread.process for other in self._threads.values()):
                self._tell_all(thread.process)
                for vcpu in thread.process.vcpus():
                    thread.process.reader.restore(vcpu)
                thread.process.memory.close()
        finally:
            tracee.detach(thread.tid, number)

    # Calls.

    def _enter(self, thread: _Thread) -> None:
        """A system call begins."""
        call = tracee.call_of(thread.tid)
        if call is None or not call.native or call.number not in WATCHED:
            return
        fds, first = thread.process.fds, call.arguments[0] & 0xFFFFFFFF
        number = call.number
        if number == IOCTL:
            if call.arguments[1] >> 8 & 0xFF != ioctls.KVMIO:
                return
            owner = fds.find(first)
            if owner is None:
                return
            thread.call = call
            self.kvm_used = True
            if isinstance(owner, Vcpu) and call.arguments[1] & 0xFFFFFFFF == ioctls.RUN:
                self._enter_run(thread, owner)
        elif number == MMAP:
            if call.arguments[3] & _MAP_SHARED and not call.arguments[5] and isinstance(fds.find(call.arguments[4] & 0xFFFFFFFF), Vcpu):
                thread.call = call
        elif number == CLOSE:
            self._forget(thread.process, first)
        elif number in (DUP2, DUP3):
            self._forget(thread.process, call.arguments[1] & 0xFFFFFFFF)
        elif number == CLOSE_RANGE:
            self._forget(thread.process, first, call.arguments[1] & 0xFFFFFFFF)
        thread.began = time.monotonic_ns()

    def _forget(self, process: _Process, first: int, last: int = -1) -> None:
        for vcpu in process.fds.forget(first, last):
            self._tell_exit(process, vcpu, 0)

    def _enter_run(self, thread: _Thread, vcpu: Vcpu) -> None:
        process = thread.process
        thread.vcpu = vcpu
        try:
            process.reader.enter(vcpu, process.fds)
        except (MissingCapability, OSError) as error:
            self._say_once(f"process {process.pid}: {error}; its exits are not told")
        if vcpu.pending is not None:
            self._tell_exit(process, vcpu, time.monotonic_ns() - vcpu.pending.host)

    def _leave(self, thread: _Thread, result: int, host: int) -> None:
        """The call that was waited for has ended."""
        call, process = thread.call, thread.process
        thread.call = None
        assert call is not None
        fd, request = call.arguments[0] & 0xFFFFFFFF, call.arguments[1] & 0xFFFFFFFF
        if call.number == MMAP:
            vcpu = process.fds.find(call.arguments[4] & 0xFFFFFFFF)
            if isinstance(vcpu, Vcpu) and not -4096 < result < 0:
                vcpu.record, vcpu.record_size = result, call.arguments[1]
            return
        if request == ioctls.RUN and thread.vcpu is not None:
            thread.vcpu.pending = process.reader.leave(thread.vcpu, result, host, host - thread.began)
            if thread.vcpu.pending is not None and not self._runs:
                return
        values = ioctls.arguments(request, call.arguments[2], result, process.memory.read)
        self._learn(process, fd, request, call.arguments[2], result, values)
        thread.call = call
        self._tell_call(thread, result, values)
        thread.call = None

    def _learn(self, process: _Process, fd: int, request: int, argument: int, result: int, values: dict[str, Any]) -> None:
        """What a call that succeeded says of descriptors and memory."""
        if result < 0:
            return
        if request == ioctls.CREATE_VM:
            process.fds.new_vm(result)
        elif request == ioctls.CREATE_VCPU:
            process.fds.new_vcpu(result, process.fds.find(fd), argument & 0xFFFFFFFF)
        elif request in ioctls.MEMORY_REGIONS and "slot" in values:
            vm = process.fds.find(fd)
            if isinstance(vm, Vm):
                vm.memory.set_slot(values["slot"], values["guest_phys_addr"], values["memory_size"], values["userspace_addr"])

    # Telling.

    def _tell(self, event: Event) -> None:
        self._listener(event)

    def _tell_exit(self, process: _Process, vcpu: Vcpu, cost: int) -> None:
        """The vCPU's last exit, where it is not told yet."""
        pending, vcpu.pending = vcpu.pending, None
        if pending is not None:
            self._label(process, vcpu, pending.data)
            self._tell(pending.event(vcpu.index, self._start, cost))

    def _tell_all(self, process: _Process) -> None:
        for vcpu in process.vcpus():
            self._tell_exit(process, vcpu, 0)

    def _tell_call(self, thread: _Thread, result: int | None, values: dict[str, Any]) -> None:
        if not self._calls:
            return
        assert thread.call is not None
        fd, request = thread.call.arguments[0] & 0xFFFFFFFF, thread.call.arguments[1] & 0xFFFFFFFF
        owner = thread.process.fds.find(fd)
        data: dict[str, Any] = {"fd": fd, "name": ioctls.name_of(request), "arguments": values, "result": result}
        if result is not None and result < 0:
            data["error"] = errno.errorcode.get(-result, "?")
        vcpu = owner if isinstance(owner, Vcpu) else None
        self._label(thread.process, owner, data)
        index = -1 if vcpu is None else vcpu.index
        now = time.monotonic_ns()
        self._tell(Event("ioctl", index, now - self._start, data, None, thread.began, 0, now - thread.began))

    def _label(self, process: _Process, owner: object, data: dict[str, Any]) -> None:
        """Which VM and process, where there are several."""
        vm = owner.vm if isinstance(owner, Vcpu) else owner
        if process.fds.many_vms and isinstance(vm, Vm):
            data["vm"] = vm.number
        if self._follow:
            data["pid"] = process.pid

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._say(text)


def _tasks(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except FileNotFoundError:
        raise ConfigError(f"there is no process {pid}") from None
    except OSError as error:
        raise HostError(f"/proc/{pid}/task", error.errno or errno.EACCES) from None


def _refuse_32_bit(pid: int) -> None:
    try:
        with open(f"/proc/{pid}/exe", "rb") as file:
            head = file.read(5)
    except OSError:
        return
    if head[:4] == b"\x7fELF" and head[4] != 2:
        raise MissingCapability(f"process {pid} is a 32-bit program: kvmpy spy reads the calls of 64-bit programs")
