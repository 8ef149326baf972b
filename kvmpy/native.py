"""The one door to the compiled module: `ffi`, `lib`, and `check`, which turns negative errno codes into HostError."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import Any

from kvmpy.errors import HostError


def _load() -> Any:
    """The module kvmpy._native; KVMPY_NATIVE names another file to load in its place (a build under sanitizers)."""
    path = os.environ.get("KVMPY_NATIVE")
    if not path:
        try:
            return importlib.import_module("kvmpy._native")
        except ModuleNotFoundError:
            raise ImportError("kvmpy's native module is not built: run make setup, or pip install .") from None
    from importlib import machinery, util  # for this case alone

    loader = machinery.ExtensionFileLoader("kvmpy._native", path)
    spec = util.spec_from_file_location("kvmpy._native", path, loader=loader)
    assert spec is not None
    module = util.module_from_spec(spec)
    sys.modules["kvmpy._native"] = module
    loader.exec_module(module)
    return module


_module = _load()
ffi: Any = _module.ffi
lib: Any = _module.lib

CData = Any

_REMEDIES = {
    ("/dev/kvm", errno.EACCES): "add yourself to group kvm: sudo usermod -aG kvm $USER, then log in again",
    ("/dev/kvm", errno.EPERM): "this sandbox or container keeps /dev/kvm away: run it with --device /dev/kvm",
    ("/dev/kvm", errno.ENOENT): "KVM is not loaded: sudo modprobe kvm_intel (or kvm_amd); virtualization must be on in the firmware set-up",
    ("/dev/kvm", errno.ENODEV): "the kvm module has no hardware under it: switch on virtualization in the firmware set-up",
    ("/dev/kvm", errno.ENXIO): "the kvm module has no hardware under it: switch on virtualization in the firmware set-up",
    ("/dev/kvm", errno.EBUSY): "another hypervisor holds the processor's virtualization: end it first",
    ("KVM_CREATE_VM", errno.EBUSY): "another hypervisor holds the processor's virtualization: end it first",
    ("KVM_SET_USER_MEMORY_REGION", errno.EEXIST): "the slot overlaps another slot in guest physical memory",
    ("KVM_SET_USER_MEMORY_REGION", errno.EINVAL): "addresses and size must be page aligned, and a slot cannot be resized: delete it first",
    ("KVM_CREATE_VCPU", errno.EEXIST): "a vCPU of this index exists already, or the interrupt chip must be created before it",
    ("KVM_CREATE_IRQCHIP", errno.EEXIST): "the interrupt chip exists already",
    ("KVM_INTERRUPT", errno.ENXIO): "the interrupt chip is in the kernel: use interrupt lines or MSI",
    ("KVM_INTERRUPT", errno.EEXIST): "an interrupt is queued already: wait for KVM_EXIT_IRQ_WINDOW_OPEN",
    ("KVM_RUN", errno.EFAULT): "the guest touched memory whose backing pages cannot be read or written",
}

_GENERAL = {
    errno.ENOTTY: "this kernel's KVM does not know the call",
    errno.ENOSYS: "this kernel's KVM does not know the call",
    errno.ENOMEM: "the host is out of memory",
    errno.EMFILE: "too many open files: raise ulimit -n",
    errno.ENFILE: "the host's table of open files is full",
}


def remedy(call: str, code: int) -> str:
    """What mends error `code` (a positive errno) of `call`, or an empty text."""
    return _REMEDIES.get((call, code)) or _GENERAL.get(code, "")


def check(call: str, code: int) -> int:
    """`code` when it is not negative; otherwise raises HostError of errno `-code` with the remedy."""
    if code < 0:
        raise HostError(call, -code, remedy(call, -code))
    return code
