"""The compiled module: the core is in it, and the one error function."""

from __future__ import annotations

import errno
import re
import sys
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from kvmpy.errors import HostError
from kvmpy.native import check, remedy

ROOT = Path(__file__).resolve().parent.parent.parent


def ffi_module_file() -> str:
    return sys.modules["kvmpy._native"].__file__ or ""


def test_every_function_of_the_core_is_there() -> None:
    # The wrapper refers to the core weakly: what is missing stands in the dynamic symbol table without a section.
    with open(ffi_module_file(), "rb") as file:
        symbols = ELFFile(file).get_section_by_name(".dynsym").iter_symbols()
        missing = sorted(s.name for s in symbols if s.name.startswith("kp_") and s["st_shndx"] == "SHN_UNDEF")
    assert not missing, f"declared in core.inc and not in the module: {' '.join(missing)}"


def test_check_passes_answers_and_raises_errors() -> None:
    assert check("KVM_RUN", 0) == 0 and check("KVM_CREATE_VM", 7) == 7
    with pytest.raises(HostError) as caught:
        check("KVM_GET_SREGS2", -errno.ENOTTY)
    assert (caught.value.call, caught.value.errno) == ("KVM_GET_SREGS2", errno.ENOTTY)
    assert str(caught.value) == "KVM_GET_SREGS2: Inappropriate ioctl for device: this kernel's KVM does not know the call"


def test_remedies() -> None:
    assert "--device /dev/kvm" in remedy("/dev/kvm", errno.EPERM)
    assert remedy("KVM_SET_REGS", errno.EINVAL) == ""


def test_no_constant_is_declared_twice() -> None:
    text = "".join(path.read_text() for path in (ROOT / "kvmpy/abi").glob("*.inc"))
    names = re.findall(r"^#define (\w+)", text, re.M)
    assert len(names) == len(set(names))
