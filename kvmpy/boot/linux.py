"""Linux kernels: bzImage by its 64-bit, 32-bit and 16-bit entries, and vmlinux (Documentation/arch/x86/boot.rst).

    linux     the 64-bit entry where the kernel has one (XLF_KERNEL_64), else the 32-bit one from protocol 2.10 on, else the 16-bit one
    linux64   load address + 200h, 64-bit mode, RSI = boot_params
    linux32   code32_start, protected mode without paging, ESI = boot_params
    linux16   9020:0000 after the BIOS has run, with the setup code at 9000:0000
    vmlinux   an ELF kernel: by its PVH note when it has one, else its 64-bit entry with boot_params
"""

from __future__ import annotations

import struct

from kvmpy.boot import bootparams as bp
from kvmpy.boot import firmware, pvh
from kvmpy.boot.elf import EM_X86_64, Elf, is_elf
from kvmpy.boot.flat import stack_top
from kvmpy.boot.image import Image
from kvmpy.boot.job import Job
from kvmpy.boot.layout import E820_RAM, VGA
from kvmpy.boot.paging import identity_map
from kvmpy.boot.state import BootState, long_mode, protected_mode
from kvmpy.units import GIB, MIB, PAGE

HIGH_LOAD = 0x100000
LOW_LOAD = 0x10000
ENTRY64 = 0x200
SETUP = 0x90000
SETUP_CMDLINE = 0x9E000
SETUP_HEAP_END = 0xE000
"""Offset in segment 9000h where heap and stack of the setup code end."""
ENTRY32_VERSION = 0x20A
"""Loaders of other things (iPXE, memdisk) carry older headers and have a 16-bit entry only."""
PLAIN_CMDLINE_SIZE = 2047
"""COMMAND_LINE_SIZE of an x86 kernel less its final zero."""


def recognises(image: Image) -> bool:
    return bp.is_bzimage(image)


def is_vmlinux(image: Image) -> bool:
    """True for a 64-bit ELF file that holds Linux's banner."""
    return is_elf(image) and b"Linux version " in image.data


def _header(job: Job) -> bp.SetupHeader:
    if not bp.is_bzimage(job.image):
        raise job.image.error('no Linux bzImage: 55 AA at 0x1fe and "HdrS" at 0x202 are not both there')
    header = bp.SetupHeader(job.image)
    if header["version"] < 0x200:
        raise job.image.error(f"the Linux setup header has version {header['version']:#x}, older than 2.00")
    return header


def _check_cmdline(job: Job, limit: int) -> None:
    if len(job.cmdline) > limit:
        raise job.image.error(f"the command line has {len(job.cmdline)} bytes, this kernel takes {limit}")


def _initrd(job: Job) -> bytes:
    """All initrds one after another, each padded to 4 bytes: the kernel unpacks them in order."""
    data = b""
    for module in job.modules:
        data += bytes(-len(data) % 4) + module.image.data
    return data


def _put_initrd(job: Job, highest: int, above_4g: bool) -> tuple[int, int]:
    """Loads the initrd as high as allowed, where the decompressing kernel does not come: (address, size)."""
    data = _initrd(job)
    if not data:
        return 0, 0
    limit = min(highest + 1, 4 * GIB)
    base = job.layout.find(len(data), align=PAGE, low=MIB, high=limit, top=True)
    if base is None and above_4g:
        base = job.layout.find(len(data), align=PAGE, low=4 * GIB, high=1 << 52)
    if base is None:
        room = sum(min(r.end, limit) - max(r.base, MIB) for r in job.layout.map if r.kind == E820_RAM and MIB <= r.base < limit)
        raise job.modules[0].image.error(
            f"initrd too large: {len(data) / MIB:.1f} MiB do not fit beside the kernel "
            f"into the {room / MIB:.1f} MiB of memory below {limit:#x}"
        )
    job.layout.take(job.image, base, len(data), "the initrd")
    job.layout.memory.write(base, data)
    return base, len(data)


def _payload(job: Job, header: bp.SetupHeader) -> bytes:
    """The protected-mode part; ImageError when the file holds less than the header promises."""
    start = header.setup_size
    body = job.image.data[start:]
    # syssize counts paragraphs; a file may carry up to 15 bytes less, and a signature after it.
    promised = header["syssize"] * 16
    if not body or len(body) + 15 < promised:
        raise job.image.error(
            f"truncated: the header promises {promised + start:#x} bytes, the file has {len(job.image):#x}"
        )
    return body


def _place_kernel(job: Job, header: bp.SetupHeader) -> int:
    """Loads the protected-mode part and keeps the room that it unpacks itself into. Returns its address."""
    if not header["loadflags"] & bp.LOADED_HIGH:
        raise job.image.error("an old zImage (not loaded high) can only be started by its 16-bit entry: --boot linux16")
    body = _payload(job, header)
    base = header["pref_address"] if header["relocatable_kernel"] and not job.layout.usable(HIGH_LOAD, len(body)) else HIGH_LOAD
    runtime = max(base, header["pref_address"]) if header["relocatable_kernel"] else header["pref_address"] or base
    align = header["kernel_alignment"]
    if header["relocatable_kernel"] and align and not align & (align - 1):
        runtime = -(-runtime // align) * align
    job.layout.take(job.image, base, len(body), "the kernel")
    if header["init_size"]:
        job.layout.take(job.image, runtime, header["init_size"], "the kernel's working memory (init_size)", shared=True)
    job.layout.memory.write(base, body)
    return base


def _zero_page(job: Job, header: bp.SetupHeader | None) -> bp.BootParams:
    params = bp.BootParams(header)
    params["type_of_loader"] = bp.LOADER_UNDEFINED
    params.set_memory(job.layout.map)
    params.set_text_screen()
    params.set_rsdp(job.rsdp)
    params.set_cmdline(job.layout.put(job.cmdline + b"\0", "command line", high=VGA))
    return params


def load64(job: Job) -> BootState:
    header = _header(job)
    if not header["xloadflags"] & bp.XLF_KERNEL_64:
        raise job.image.error("this Linux kernel has no 64-bit entry (XLF_KERNEL_64 is not set): --boot linux32")
    _check_cmdline(job, header["cmdline_size"])
    base = _place_kernel(job, header)
    params = _zero_page(job, header)
    params["code32_start"] = base
    above = bool(header["xloadflags"] & bp.XLF_CAN_BE_LOADED_ABOVE_4G)
    initrd = _put_initrd(job, header["initrd_addr_max"], above)
    params.set_initrd(*initrd)
    gprs = {"rsi": job.layout.put(bytes(params.raw), "boot_params", align=PAGE, high=VGA), "rsp": stack_top(job)}
    state = long_mode("linux64", base + ENTRY64, identity_map(job.layout), gprs=gprs, summary=_summary(base, initrd, header))
    return job.finish(state)


def load32(job: Job) -> BootState:
    header = _header(job)
    _check_cmdline(job, header["cmdline_size"])
    base = _place_kernel(job, header)
    params = _zero_page(job, header)
    params["code32_start"] = base
    initrd = _put_initrd(job, header["initrd_addr_max"], False)
    params.set_initrd(*initrd)
    gprs = {"rsi": job.layout.put(bytes(params.raw), "boot_params", align=PAGE, high=VGA), "rsp": stack_top(job)}
    return job.finish(protected_mode("linux32", base, gprs=gprs, summary=_summary(base, initrd, header)))


def load16(job: Job) -> BootState:
    """The setup code at 9000:0000 runs in real mode and asks the BIOS for memory and video itself."""
    header = _header(job)
    _check_cmdline(job, min(header["cmdline_size"], 0x9FC00 - SETUP_CMDLINE - 1))
    setup = bytearray(job.image.bytes(0, header.setup_size, "the real-mode setup code"))
    if len(setup) > 0x8000:
        raise job.image.error(f"the real-mode setup code has {len(setup):#x} bytes, it must have at most 0x8000")
    body = _payload(job, header)
    base = HIGH_LOAD if header["loadflags"] & bp.LOADED_HIGH else LOW_LOAD
    job.layout.take(job.image, SETUP, SETUP_CMDLINE + 0x1C00 - SETUP, "the setup code")
    job.layout.take(job.image, base, len(body), "the kernel")
    runtime = header["pref_address"]
    if header["init_size"]:
        job.layout.take(job.image, runtime, header["init_size"], "the kernel's working memory (init_size)", shared=True)
    initrd = _put_initrd(job, header["initrd_addr_max"], False)

    def patch(name: str, value: int) -> None:
        offset, code = bp.FIELDS[name]
        struct.pack_into("<" + code, setup, offset, value)

    patch("type_of_loader", bp.LOADER_UNDEFINED)
    patch("ramdisk_image", initrd[0])
    patch("ramdisk_size", initrd[1])
    if header["version"] >= 0x201:
        patch("heap_end_ptr", SETUP_HEAP_END - 0x200)
        patch("loadflags", header["loadflags"] | bp.CAN_USE_HEAP)
    if header["version"] >= 0x202:
        patch("cmd_line_ptr", SETUP_CMDLINE)
    else:
        # Protocol 2.00/2.01: a magic number and an offset in the boot sector's place (boot.rst, "The Kernel Command Line").
        struct.pack_into("<HH", setup, 0x20, 0xA33F, SETUP_CMDLINE - SETUP)
        patch("setup_move_size", SETUP_CMDLINE - SETUP + len(job.cmdline) + 1)
    job.layout.memory.write(SETUP, bytes(setup))
    job.layout.memory.write(SETUP_CMDLINE, job.cmdline + b"\0")
    job.layout.memory.write(base, body)
    entry = firmware.FarEntry(cs=(SETUP >> 4) + 0x20, ip=0, data=SETUP >> 4, sp=SETUP_HEAP_END)
    return firmware.start(job, "linux16", entry=entry, summary=_summary(base, initrd, header))


def load(job: Job) -> BootState:
    header = _header(job)
    if header["xloadflags"] & bp.XLF_KERNEL_64:
        return load64(job)
    return load32(job) if header["version"] >= ENTRY32_VERSION and header["loadflags"] & bp.LOADED_HIGH else load16(job)


def load_vmlinux(job: Job) -> BootState:
    elf = Elf(job.image)
    if pvh.entry_note(elf) is not None:
        return pvh.load(job)
    if elf.bits != 64 or elf.machine != EM_X86_64:
        raise job.image.error("a 32-bit vmlinux without a PVH note cannot be started; use its bzImage")
    _check_cmdline(job, PLAIN_CMDLINE_SIZE)
    placed = elf.load(job.layout)
    entry = elf.physical_entry(placed)
    params = _zero_page(job, None)
    for name, value in {
        "boot_flag": bp.BOOT_FLAG, "header": bp.MAGIC, "version": 0x20F, "loadflags": bp.LOADED_HIGH, "kernel_alignment": MIB,
        "relocatable_kernel": 0, "xloadflags": bp.XLF_KERNEL_64, "cmdline_size": PLAIN_CMDLINE_SIZE,
    }.items():
        params[name] = value
    initrd = _put_initrd(job, 0x7FFFFFFF, False)
    params.set_initrd(*initrd)
    gprs = {"rsi": job.layout.put(bytes(params.raw), "boot_params", align=PAGE, high=VGA), "rsp": stack_top(job)}
    summary = f"{len(placed)} segments, entry {entry:#x}"
    return job.finish(long_mode("vmlinux", entry, identity_map(job.layout), gprs=gprs, summary=summary))


def _summary(base: int, initrd: tuple[int, int], header: bp.SetupHeader) -> str:
    version = header["version"]
    text = f"Linux boot protocol {version >> 8}.{version & 0xFF:02d}, kernel at {base:#x}"
    return text + (f", initrd {initrd[0]:#x}-{initrd[0] + initrd[1] - 1:#x}" if initrd[1] else "")
