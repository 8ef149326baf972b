"""A small VMM to be traced: `vmm.py VMS VCPUS ROUNDS [stuck]`. Every vCPU has a thread; a round is IN, OUT, an MMIO write and HLT.
With `stuck` the last vCPU's first HLT is never answered.

Says "ready" and then "round N" after each round of the first vCPU, at some 50 a second; ends with status 7.
"""

import mmap
import sys
import threading
import time

from kvmpy.kvm import KvmBackend
from kvmpy.native import ffi, lib
from kvmpy.regs import set_real_mode

SIZE, CODE = 1 << 16, 0x8000
# in al, 10h; out 20h, al; mov [1234h], al; hlt; jmp to the start
PROGRAM = bytes.fromhex("e410 e620 a23412 f4 ebf6")
ANSWER = 0x5A


def make(backend, vcpus):
    """A VM with its vCPUs at CODE."""
    memory = mmap.mmap(-1, SIZE)
    memory[CODE : CODE + len(PROGRAM)] = PROGRAM
    view = ffi.from_buffer(memory)
    vm = backend.create_vm()
    vm.set_memory(0, 0, int(ffi.cast("uintptr_t", view)), SIZE)
    made = []
    for index in range(vcpus):
        vcpu = vm.create_vcpu(index)
        vcpu.set_cpuid(backend.supported_cpuid())
        vcpu.set_msrs({0xC0000082: 0x1122334455667788})
        sregs = vcpu.get_sregs()
        set_real_mode(sregs, ds=0xB000)
        vcpu.set_sregs(sregs)
        regs = vcpu.get_regs()
        regs.rip, regs.rflags, regs.rbx = CODE, 2, 0xABC0 + index
        vcpu.set_regs(regs)
        made.append(vcpu)
    return vm, memory, view, made


def serve(vcpu, rounds, tell, stuck):
    """Runs one vCPU."""
    done = 0
    while done < rounds:
        reason = vcpu.run()
        if reason == lib.KVM_EXIT_IO and vcpu.record.io.direction == lib.KVM_EXIT_IO_IN:
            vcpu.io_data()[0:1] = bytes((ANSWER,))
        elif reason == lib.KVM_EXIT_HLT:
            done += 1
            if stuck:
                return
            tell(done)
            time.sleep(0.02)


def main():
    vms, vcpus, rounds = map(int, sys.argv[1:4])
    with KvmBackend() as backend:
        made = [make(backend, vcpus) for _ in range(vms)]
        print("ready", flush=True)
        threads = []
        for number, (_, _, _, cpus) in enumerate(made):
            for vcpu in cpus:
                first = number == 0 and vcpu is cpus[0]
                tell = (lambda done: print("round", done, flush=True)) if first else (lambda done: None)
                threads.append(threading.Thread(target=serve, args=(vcpu, rounds, tell, sys.argv[4:] == ["stuck"] and vcpu is cpus[-1])))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    sys.exit(7)


if __name__ == "__main__":
    main()
