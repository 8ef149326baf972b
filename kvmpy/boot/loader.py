"""`load`: finds the boot protocol of an image, or takes the one named, and fills guest memory with it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from types import ModuleType

from kvmpy.boot import bios_area
from kvmpy.boot.hardware import Hardware
from kvmpy.boot.image import Image, read_head, read_image
from kvmpy.boot.job import Job, Module
from kvmpy.boot.layout import Layout, Memory
from kvmpy.boot.state import BootState
from kvmpy.errors import ConfigError
from kvmpy.record import Record
from kvmpy.units import MIB, parse_number

Path = str | os.PathLike[str]


class Protocol(Record, frozen=True):
    """One way to start an image. Without `test` it is only taken when named."""

    name: str
    about: str
    module: str
    """Module of kvmpy.boot that has the functions. It is loaded when one of them is called."""
    function: str
    """Loads an image: takes a Job, gives a BootState."""
    test: str = ""
    """Recognises an image."""
    takes_address: bool = False

    def load(self, job: Job) -> BootState:
        """Fills guest memory."""
        state: BootState = getattr(self._home(), self.function)(job)
        return state

    def recognises(self, image: Image) -> bool:
        """True for an image of this protocol. Never for one that must be named."""
        return bool(self.test) and bool(getattr(self._home(), self.test)(image))

    def _home(self) -> ModuleType:
        return importlib.import_module(f"kvmpy.boot.{self.module}")


# In the order of recognition. A disk goes before multiboot: GRUB's own core, which is on many, has a multiboot header.
PROTOCOLS = (
    Protocol("bios", "a disk or floppy image with a boot sector (55 AA), by the BIOS", "firmware", "load", "recognises"),
    Protocol("multiboot2", "header E85250D6 in the first 32 KiB", "multiboot2", "load", "recognises"),
    Protocol("multiboot1", "header 1BADB002 in the first 8 KiB", "multiboot1", "load", "recognises"),
    Protocol("pvh", "ELF with a Xen PHYS32_ENTRY note", "pvh", "load", "recognises"),
    Protocol("vmlinux", "an uncompressed Linux kernel (ELF)", "linux", "load_vmlinux", "is_vmlinux"),
    Protocol("elf", "a static ELF32 or ELF64 file, at its entry point", "plain", "load", "recognises"),
    Protocol("linux", "a bzImage, by its best entry", "linux", "load", "recognises"),
    Protocol("linux64", "a bzImage, by its 64-bit entry", "linux", "load64"),
    Protocol("linux32", "a bzImage, by its 32-bit entry", "linux", "load32"),
    Protocol("linux16", "a bzImage, by its 16-bit entry, after the BIOS", "linux", "load16"),
    Protocol("bios-memory", "a boot sector put at 0000:7C00, started by the BIOS", "firmware", "load_memory_sector"),
    Protocol("sector", "a boot sector at 0000:7C00 without a BIOS", "flat", "load_sector"),
    Protocol("flat16", "raw code in real mode, flat16@ADDRESS (0x7c00)", "flat", "load_flat16", takes_address=True),
    Protocol("flat32", "raw code in protected mode, flat32@ADDRESS (0x100000)", "flat", "load_flat32", takes_address=True),
    Protocol("flat64", "raw code in 64-bit mode, flat64@ADDRESS (0x100000)", "flat", "load_flat64", takes_address=True),
)
BY_NAME = {protocol.name: protocol for protocol in PROTOCOLS}
DISK_SCAN = 16 * MIB
"""A larger file is first looked at as a disk, so that it is not read as a whole."""


def parse_boot(text: str) -> tuple[Protocol | None, int | None]:
    """"auto", a protocol's name, or name@address. ConfigError when it is none of these."""
    name, at, rest = text.partition("@")
    if text == "auto":
        return None, None
    protocol = BY_NAME.get(name)
    if protocol is None:
        raise ConfigError(f"unknown boot protocol {name!r}: auto, {', '.join(BY_NAME)}")
    if at and not protocol.takes_address:
        raise ConfigError(f"boot protocol {name} takes no address")
    address = parse_number(rest) if at else None
    if address is not None and not 0 <= address < 1 << 52:
        raise ConfigError(f"{rest} is not a guest physical address")
    return protocol, address


def identify(image: Image) -> Protocol:
    """The protocol of an image. ImageError naming what was looked for when there is none."""
    for protocol in PROTOCOLS:
        if protocol.recognises(image):
            return protocol
    tried = ", ".join(p.name for p in PROTOCOLS if p.test)
    raise image.error(f"not a bootable image: no header of {tried} was found (raw code is started with --boot flat16, flat32 or flat64)")


def _open(path: Path, protocol: Protocol | None) -> Image:
    """The image; of a large disk only its first sector, which is all that the loader looks at."""
    wants_disk = protocol is BY_NAME["bios"]
    try:
        large = os.path.getsize(path) > DISK_SCAN
    except (OSError, ValueError):
        large = False
    if large and (wants_disk or protocol is None):
        image = Image(os.fspath(path), read_head(path, 0x1000))
        if BY_NAME["bios"].recognises(image) or (wants_disk and image.data):
            return image
    return read_image(path)


def protocol_of(image: Path | None, boot: str = "auto") -> str:
    """Name of the boot protocol that `load` would take. ImageError and ConfigError as there."""
    protocol, _ = parse_boot(boot)
    if protocol is not None:
        return protocol.name
    return "bios" if image is None else identify(_open(image, None)).name


def load(
    memory: Memory,
    image: Path | Image | None,
    *,
    boot: str = "auto",
    cmdline: str | bytes = "",
    initrd: Path | None = None,
    modules: Sequence[tuple[Path, str]] = (),
    hardware: Hardware | None = None,
) -> BootState:
    """Fills `memory` so that the returned state starts the image. Without an image the BIOS boots the machine's disks.

    `initrd` and then each (path, command line) of `modules` go to multiboot, PVH and ELF guests as modules, to Linux as one
    initrd. ImageError, one line, names the file and what is wrong with it; ConfigError is for a wrong `boot`.
    """
    protocol, address = parse_boot(boot)
    layout = Layout(memory)
    text = cmdline.encode("utf-8", "surrogateescape") if isinstance(cmdline, str) else cmdline
    if b"\0" in text:
        raise ConfigError("the command line holds a zero byte")
    if image is None:
        if protocol not in (None, BY_NAME["bios"]):
            raise ConfigError(f"boot protocol {boot} needs an image")
        source = Image("disks", b"")
    else:
        source = image if isinstance(image, Image) else _open(image, protocol)
    loaded = [Module(read_image(path, "module"), line.encode("utf-8", "surrogateescape")) for path, line in modules]
    if initrd is not None:
        loaded.insert(0, Module(read_image(initrd, "initrd"), os.fsencode(os.path.basename(initrd))))
    if image is None:
        chosen = None
    else:
        chosen = protocol or identify(source)
    rsdp = bios_area.install(layout, hardware or Hardware())
    job = Job(source, layout, text, loaded, rsdp, address)
    if chosen is None:
        job.no_modules("a disk")
        from kvmpy.boot import firmware

        return firmware.start(job, "bios", summary="boots the first disk")
    return chosen.load(job)
