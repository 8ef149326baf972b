"""Small guests from source text: GNU as or C, linked for a boot protocol, with start-up code where C wants it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from kvmpy.errors import ConfigError, ImageError, MissingCapability
from kvmpy.record import Record
from kvmpy.testing.include_dir import include_dir

SECONDS = 60
START = Path(__file__).resolve().parent / "start"

C_FLAGS = (
    "-std=gnu11", "-O1", "-g", "-Wall", "-ffreestanding", "-nostdlib", "-fno-pic", "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables", "-mno-red-zone", "-mgeneral-regs-only", "-fcf-protection=none", "-fno-tree-loop-distribute-patterns",
)  # fmt: skip


class Mode(Record, frozen=True):
    """How one kind of image is built."""

    bits: int
    origin: int
    flat: bool
    about: str


MODES = {
    "flat16": Mode(16, 0x7C00, True, "raw code in real mode; _start is its first byte"),
    "flat32": Mode(32, 0x100000, True, "raw code in protected mode"),
    "flat64": Mode(64, 0x100000, True, "raw code in 64-bit mode"),
    "elf32": Mode(32, 0x100000, False, "ELF in protected mode"),
    "elf64": Mode(64, 0x100000, False, "ELF in 64-bit mode"),
    "multiboot": Mode(32, 0x100000, False, "ELF with a multiboot 1 header, which the builder adds"),
    "pvh": Mode(32, 0x100000, False, "ELF with a PVH note, which the builder adds; the entry is 32-bit code"),
}
BOOT = {"elf32": "elf", "elf64": "elf", "multiboot": "multiboot1", "pvh": "pvh"}


class Program(Record, frozen=True):
    """A built guest. It stands for its path wherever a path is wanted."""

    path: str
    boot: str
    """The boot protocol that starts it."""
    elf: str
    """The linked file, with symbols and lines; `path` itself where that is ELF."""

    def __fspath__(self) -> str:
        return self.path


def missing_tools(c: bool) -> str:
    """What the builder wants and does not find; empty when all is there."""
    missing = [name for name in ("as", "ld", "objcopy") if shutil.which(name) is None]
    if shutil.which(compiler()) is None and c:
        missing.append(compiler())
    if not missing:
        return ""
    wanted = "binutils and gcc" if c else "binutils"
    return f"{', '.join(missing)} not found: building a guest needs {wanted} (apt-get install gcc binutils)"


def compiler() -> str:
    """The C compiler's command: $CC or gcc."""
    return os.environ.get("CC") or "gcc"


def build(
    source: str | os.PathLike[str], directory: str | os.PathLike[str], mode: str = "", *, lang: str = "", name: str = "guest",
    origin: int | None = None, flags: Sequence[str] = (), also: Sequence[str | os.PathLike[str]] = (),
) -> Program:
    """Builds a guest from source text, or from the file that a path names, into `directory`. `also` are further files, C or assembly.

    `lang` is "c" or "asm"; without it a file's name tells (.c, .S, .s), and text is C when it has a function `main(`.
    `mode` is one of MODES: by default flat16 for assembly, elf64 for C. Assembly begins at `_start`, which is put before the first
    line when the source defines none. C has `int main(void)`, whose value is the exit code; kvmpy.h is on the include path.
    Raises ImageError with the messages of the tools, MissingCapability where one is missing, ConfigError for an unknown mode.
    """
    given = Path(source) if isinstance(source, os.PathLike) else None
    try:
        text = str(source) if given is None else given.read_text()
    except OSError as error:
        raise ImageError(f"{given}: {error.strerror}") from None
    lang = lang or _language(text, given)
    mode = mode or ("elf64" if lang == "c" else "flat16")
    if mode not in MODES:
        raise ConfigError(f"mode {mode!r}: one of {', '.join(MODES)}")
    if lang not in ("c", "asm"):
        raise ConfigError(f"lang {lang!r}: c or asm")
    if why := missing_tools(c=lang == "c" or shutil.which(compiler()) is not None or "#include" in text):
        raise MissingCapability(why)
    return _Build(Path(directory), mode, name, origin, flags).program(text, lang, given, [Path(one) for one in also])


def _language(text: str, given: Path | None) -> str:
    if given is not None and given.suffix in (".c", ".S", ".s"):
        return "c" if given.suffix == ".c" else "asm"
    return "c" if "main(" in text else "asm"


class _Build:
    def __init__(self, directory: Path, mode: str, name: str, origin: int | None, flags: Sequence[str]) -> None:
        self.directory = directory
        self.mode = mode
        self.how = MODES[mode]
        self.name = name
        self.origin = self.how.origin if origin is None else origin
        self.flags = flags
        self.width = {16: "-m16", 32: "-m32", 64: "-m64"}[self.how.bits]

    def program(self, text: str, lang: str, given: Path | None, also: list[Path]) -> Program:
        objects = [self._c(text, given)] if lang == "c" else [self._asm(text, given)]
        for number, path in enumerate(also):
            how = C_FLAGS if path.suffix == ".c" else self._asm_flags()
            objects.append(self._compile(path, f"{self.name}-{number}", *how, self.width if path.suffix == ".c" else self._asm_width()))
        if lang == "c":
            objects.insert(0, self._start("start"))
        if self.mode in ("multiboot", "pvh"):
            objects.append(self._start(self.mode))
        elf = self.directory / f"{self.name}.elf"
        script = self.directory / f"{self.name}.ld"
        script.write_text(LINK.format(origin=f"{self.origin:#x}", symbol="_start"))
        machine = "elf_x86_64" if self.how.bits == 64 else "elf_i386"
        options = ("-z", "noexecstack", "-z", "max-page-size=4096", "--build-id=none")
        self._tool("ld", "-m", machine, *options, "-T", script, "-o", elf, *objects)
        if not self.how.flat:
            return Program(str(elf), BOOT[self.mode], str(elf))
        flat = self.directory / f"{self.name}.bin"
        self._tool("objcopy", "-O", "binary", elf, flat)
        return Program(str(flat), f"{self.mode}@{self.origin:#x}", str(elf))

    def _c(self, text: str, given: Path | None) -> Path:
        source = given or self._write(".c", text)
        return self._compile(source, self.name, *C_FLAGS, self.width)

    def _asm_flags(self) -> tuple[str, ...]:
        return "-g", f"-DKVMPY_BITS={self.how.bits}"

    def _asm_width(self) -> str:
        return "-m64" if self.how.bits == 64 else "-m32"

    def _asm(self, text: str, given: Path | None) -> Path:
        head = f"\t.code{self.how.bits}\n\t.section .text.start, \"ax\"\n\t.globl _start\n"
        if "_start:" not in text:
            head += "_start:\n"
        preprocessed = shutil.which(compiler()) is not None
        lines = f'{"#line" if preprocessed else "#"} 1 "{(given or Path(self.name + ".S")).name}"\n'
        source = self._write(".S", head + lines + text + "\n")
        if preprocessed:
            return self._compile(source, self.name, *self._asm_flags(), self._asm_width())
        target = source.with_suffix(".o")
        self._tool("as", "--64" if self.how.bits == 64 else "--32", "-g", "-o", target, source)
        return target

    def _start(self, name: str) -> Path:
        target = self.directory / f"{self.name}-{name}.o"
        source = START / f"{name}.S"
        if shutil.which(compiler()) is not None:
            self._tool(compiler(), self._asm_width(), f"-DKVMPY_BITS={self.how.bits}", "-c", source, "-o", target)
        else:
            self._tool("as", "--64" if self.how.bits == 64 else "--32", "-o", target, source)
        return target

    def _compile(self, source: Path, name: str, *flags: str) -> Path:
        target = self.directory / f"{name}.o"
        # Messages and __FILE__ name the source as the author does.
        near = source.parent if source.parent != Path() else Path.cwd()
        command = [compiler(), *flags, *self.flags, f"-I{include_dir()}", "-c", source.name, "-o", str(target.resolve())]
        self._run(command, near)
        return target

    def _write(self, suffix: str, text: str) -> Path:
        path = self.directory / (self.name + suffix)
        path.write_text(text)
        return path

    def _tool(self, *command: str | Path) -> None:
        self._run([str(part) for part in command], None)

    def _run(self, command: list[str], directory: Path | None) -> None:
        try:
            done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
        except OSError as error:
            raise MissingCapability(f"{command[0]}: {error.strerror}") from None
        except subprocess.TimeoutExpired:
            raise ImageError(f"{self.name}: {command[0]} did not end in {SECONDS} s") from None
        if done.returncode:
            raise ImageError(f"{self.name}: {command[0]} failed\n{done.stderr.strip()}")


LINK = """\
ENTRY({symbol})
PHDRS {{ note PT_NOTE FLAGS(4); all PT_LOAD FLAGS(7); }}
SECTIONS {{
    . = {origin};
    .text : {{ *(.text.start) *(.multiboot) *(.text .text.*) }} :all
    .note.pvh : {{ KEEP(*(.note.pvh)) }} :all :note
    .rodata : {{ *(.rodata .rodata.*) }} :all
    .data : {{ *(.data .data.*) }} :all
    .bss : {{ *(.bss .bss.*) *(COMMON) }} :all
    /DISCARD/ : {{ *(.eh_frame*) *(.note.gnu*) *(.note.GNU*) *(.comment) }}
}}
"""
