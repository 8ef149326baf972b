"""Build hook: writes the cffi wrapper and the ABI assertions, and lends setuptools the Makefile's rules.

As a script: `_build.py wrapper OUT.c`, `_build.py check OUT.c`, `_build.py include` (directory of Python.h).
Imported by setuptools from its file, so it may import nothing of the package.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

ABI = ("constants", "capabilities", "ioctls", "registers", "run", "vm")
GLUE = ("abi/history.inc", "abi/core.inc", "abi/translator.inc", "kvm/glue.inc", "iovector.inc", "devices/virtio/vring.inc")

PRELUDE = '#include "abi/abi.h"\n' + "".join(f'#include "{name}"\n' for name in GLUE)

# Structs and members newer than the oldest kernel header in use (Linux 6.1), with a macro that came together with them.
NEWER_STRUCTS = {
    "kvm_userspace_memory_region2": "KVM_MEM_GUEST_MEMFD", "kvm_memory_attributes": "KVM_SET_MEMORY_ATTRIBUTES",
    "kvm_create_guest_memfd": "KVM_CREATE_GUEST_MEMFD", "kvm_pre_fault_memory": "KVM_PRE_FAULT_MEMORY",
}  # fmt: skip
NEWER_MEMBERS = {("kvm_run", "memory_fault"): "KVM_EXIT_MEMORY_FAULT"}


def _text(path: Path) -> str:
    """The file without its C preprocessor inclusions, which cffi does not read."""
    return re.sub(r"^\s*#\s*include.*$", "", path.read_text(), flags=re.M)


def _abi_cdef() -> str:
    return "\n".join(_text(HERE / "abi" / f"{name}.inc") for name in ABI)


def make_ffi() -> Any:
    import cffi

    ffi = cffi.FFI()
    ffi.cdef(_abi_cdef())
    for name in GLUE:
        ffi.cdef(_text(HERE / name))
    # Weak references: the module loads while a function of the core is not there yet; a test names those that are missing.
    weak = "".join(f"#pragma weak {name}\n" for name in re.findall(r"\b(kp_\w+)\(", _text(HERE / "abi" / "core.inc")))
    ffi.set_source("kvmpy._native", PRELUDE + weak, py_limited_api=True)
    return ffi


def write_wrapper(out: str) -> None:
    make_ffi().emit_c_code(out)


def _members(path: str, ctype: Any, base: int) -> list[tuple[str, int, int]]:
    """(member path, offset, size) of every member that offsetof can name, unions and inner structs included."""
    found = []
    for name, field in ctype.fields:
        if field.bitsize >= 0:
            continue
        where = f"{path}.{name}" if path and name else path or name
        offset = base + field.offset
        inner = field.type
        if name:
            flexible = inner.kind == "array" and inner.length is None
            found.append((where, offset, -1 if flexible else _sizeof(inner)))
        if inner.kind in ("struct", "union") and (not name or not re.match(r"(struct|union) kvm_", inner.cname)):
            found += _members(where, inner, offset)
    return found


def _sizeof(ctype: Any) -> int:
    import cffi

    return int(cffi.FFI().sizeof(ctype))


def write_check(out: str) -> None:
    """A C file that compiles only if cffi's layout of every struct and every constant agree with <linux/kvm.h>."""
    import cffi

    ffi = cffi.FFI()
    text = _abi_cdef()
    ffi.cdef(text)
    lines = ["#if defined(__has_include) && __has_include(<linux/kvm.h>)", "#include <stddef.h>", "#include <linux/kvm.h>"]
    lines.append("#include <linux/kvm_para.h>")
    lines.append("#define SAME(a, b) _Static_assert((unsigned long long)(a) == (unsigned long long)(b), #a)")
    for name, value in re.findall(r"^#define (KVM_\w+) (\S+)$", text, re.M):
        lines += [f"#ifdef {name}", f"SAME({name}, {value}ull);", "#endif"]
    for struct in re.findall(r"^struct (kvm_\w+) \{", text, re.M):
        ctype = ffi.typeof(f"struct {struct}")
        guard = NEWER_STRUCTS.get(struct)
        if guard:
            lines.append(f"#ifdef {guard}")
        lines.append(f"SAME(sizeof(struct {struct}), {ffi.sizeof(ctype)});")
        for member, offset, size in _members("", ctype, 0):
            newer = NEWER_MEMBERS.get((struct, member.split(".")[0]))
            if newer:
                lines.append(f"#ifdef {newer}")
            lines.append(f"SAME(offsetof(struct {struct}, {member}), {offset});")
            if size >= 0:
                lines.append(f"SAME(sizeof(((struct {struct} *)0)->{member}), {size});")
            if newer:
                lines.append("#endif")
        if guard:
            lines.append("#endif")
    lines += ["#endif", "extern int kvmpy_abi_checked;", "int kvmpy_abi_checked = 1;", ""]
    Path(out).write_text("\n".join(lines))


def main(argv: list[str]) -> None:
    if argv[:1] == ["wrapper"]:
        write_wrapper(argv[1])
    elif argv[:1] == ["check"]:
        write_check(argv[1])
    elif argv[:1] == ["include"]:
        print(sysconfig.get_paths()["include"])
    else:
        sys.exit(__doc__)


def _make(*arguments: str) -> None:
    jobs = str(min(os.cpu_count() or 1, 4))
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    subprocess.run(["make", "-C", str(ROOT), "-j", jobs, f"PYTHON={sys.executable}", *arguments], check=True, env=environment)


if __name__ == "__main__":
    main(sys.argv[1:])
else:
    from setuptools.command.build_ext import build_ext
    from setuptools.command.build_py import build_py
    from setuptools.command.sdist import sdist

    class BuildPy(build_py):
        """Makes the firmware's and guests' blobs before package data is collected."""

        def run(self) -> None:
            _make("blobs")
            super().run()

    class BuildExt(build_ext):
        """Builds kvmpy._native with the Makefile: in place for an editable install, else into the wheel's tree."""

        def build_extension(self, ext: Any) -> None:
            target = Path(self.get_ext_fullpath(ext.name)).resolve()
            objects = ROOT / "build" / ("native" if self.inplace or self.editable_mode else "wheel")
            target.parent.mkdir(parents=True, exist_ok=True)
            _make("native", f"NATIVE={target}", f"NATIVE_OBJ={os.path.relpath(objects, ROOT)}")

    class Sdist(sdist):
        """Adds what the build needs beside the Python files."""

        def make_distribution(self) -> None:
            wanted = {"", ".css", ".js"}  # scripts of the Linux guests, Makefile; the page of a trace
            wanted |= {".c", ".h", ".inc", ".def", ".S", ".s", ".ld", ".mk", ".py", ".typed", ".md", ".sh", ".txt", ".bin", ".img"}
            for top in ("kvmpy", "firmware", "guests", "examples", "tests", "docs"):
                for path in sorted((ROOT / top).rglob("*")):
                    here = path.relative_to(ROOT)
                    built = "blobs" in here.parts or "__pycache__" in here.parts or path.name.startswith("_native")
                    if path.is_file() and not built and path.suffix in wanted:
                        self.filelist.append(str(here))
            self.filelist.append("Makefile")
            super().make_distribution()
