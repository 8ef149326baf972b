"""kvmpy info: what this host can do, which backend `auto` takes and why, the CPU models."""

from __future__ import annotations

import importlib
import json
from argparse import Namespace
from typing import Any

from kvmpy.backends import choose_backend, probe_kvm
from kvmpy.cli import status
from kvmpy.cpuid import MODELS, features_of

ABOUT = {
    "cpl0_on_hardware": "kernel code runs on the processor (no: in the kernel's instruction emulator)",
    "real_mode": "real mode",
    "paging32": "32-bit paging",
    "paging_pae": "PAE paging",
    "long_mode": "64-bit mode",
    "sse_at_cpl0": "SSE in kernel code",
    "x87_at_cpl0": "x87 in kernel code",
    "int_n_at_cpl0": "INT n in kernel code",
    "int_n_from_user": "INT n from user code",
    "syscall_from_user": "SYSCALL from user code enters the kernel",
    "hypercall": "VMCALL comes back",
    "singlestep_kernel": "single-stepping kernel code",
    "singlestep_user": "single-stepping user code",
    "breakpoint_kernel": "hardware breakpoints in kernel code",
    "breakpoint_user": "hardware breakpoints in user code",
    "watchpoint_kernel": "data watchpoints in kernel code",
}


def gather() -> dict[str, Any]:
    """Everything that is shown, as plain data."""
    kvm = probe_kvm().as_dict()
    choice = choose_backend("auto")
    return {"auto": {"backend": choice.name, "why": choice.why}, "kvm": kvm, "soft": _soft(), "cpu_models": MODELS}


def _soft() -> dict[str, Any]:
    """The software CPU, if it is built in."""
    soft: Any = importlib.import_module("kvmpy.soft")
    if not hasattr(soft, "SoftBackend"):
        return {"available": False, "features": [], "translator": False}
    backend = soft.SoftBackend(translate="on")
    with backend.create_vm() as vm:
        translating = vm.translating
    return {"available": True, "features": sorted(features_of(backend.supported_cpuid())), "translator": translating}


def info(arguments: Namespace) -> int:
    """The subcommand."""
    if arguments.include:
        from kvmpy.testing.include_dir import include_dir

        print(include_dir())
        return status.OK
    found = gather()
    if arguments.json:
        print(json.dumps(found))
        return status.OK
    auto, kvm, soft = found["auto"], found["kvm"], found["soft"]
    print(f"--backend auto takes {auto['backend']}: {auto['why']}")
    print()
    if not kvm["available"]:
        print(f"KVM: not usable: {kvm['why']}")
    else:
        print(f"KVM: usable ({', '.join(kvm['modules']) or 'modules unknown'})")
        for name, about in ABOUT.items():
            if name in kvm:
                print(f"  {'yes' if kvm[name] else 'no ':3}  {about}")
        have = [name for name, value in kvm["capabilities"].items() if value]
        print(f"  capabilities: {', '.join(have)}")
        missing = [name for name, value in kvm["capabilities"].items() if not value]
        if missing:
            print(f"  lacking: {', '.join(missing)}")
    print()
    if soft["available"]:
        print("software CPU: usable everywhere")
        how = "hot code is translated to host code" if soft["translator"] else "code is interpreted: this host forbids executable memory"
        print(f"  {how}")
        print(f"  features: {' '.join(soft['features'])}")
    else:
        print("software CPU: not built into this installation")
    print()
    print("CPU models for --cpu (then ,+feature or ,-feature):")
    for name, about in found["cpu_models"].items():
        print(f"  {name:10}  {about}")
    return status.OK
