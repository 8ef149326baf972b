"""The KVM backend: typed Python over the x86 ioctls of /dev/kvm."""

from kvmpy.kvm.events import CoalescedWrite
from kvmpy.kvm.irqchip import MsiRoute, PinRoute, default_routes
from kvmpy.kvm.system import KvmBackend
from kvmpy.kvm.vcpu import KvmVcpu
from kvmpy.kvm.vm import KvmVm

__all__ = ["CoalescedWrite", "KvmBackend", "KvmVcpu", "KvmVm", "MsiRoute", "PinRoute", "default_routes"]
