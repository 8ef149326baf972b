"""Translated code holds the lower halves of the vector registers or the whole of them in the host's: what changes between blocks."""

from __future__ import annotations

import pytest

from kvmpy.native import lib
from tests.soft.soft_guest import Guest

BLOCKS = bytes.fromhex(
    "0f20e0 0d00060400 0f22e0"  # CR4: OSFXSR, OSXMMEXCPT, OSXSAVE
    "31c9 31d2 b807000000 0f01d1"  # XCR0: x87, SSE, AVX
    "b914000000"  # mov ecx, 20
    "660f6ed1 660ffeca eb00"  # 1: movd xmm2, ecx; paddd xmm1, xmm2
    "c4e27d58e2 c5f5fedc c4e37538cb01 eb00"  # vpbroadcastd ymm4, xmm2; vpaddd ymm3, ymm1, ymm4; vinserti128 ymm1, ymm1, xmm3, 1
    "660fefe1 c5fc53ec 660ffedc eb00"  # pxor xmm4, xmm1; vrcpps ymm5, ymm4: by its handler; paddd xmm3, xmm4
    "c5cdfef3 c5d9effb 83f907 7503 c5f877"  # 4: vpaddd ymm6, ymm6, ymm3; vpxor xmm7, xmm4, xmm3; where ecx is 7: vzeroupper
    "ffc9 75c3 85f6 7410"  # dec ecx; jnz 1b; test esi, esi; jz to the HLT
    "0f20c0 83c808 0f22c0 b901000000 ebd8 f4"  # CR0.TS; mov ecx, 1; jmp 4b; hlt
)


def _run(threshold: int, denied: int) -> tuple[int, bytes, int] | None:
    guest = Guest(BLOCKS, "long")
    try:
        if not guest.vm.translate(threshold) and threshold:
            return None
        guest.set(rsi=denied)
        reason = guest.vcpu.run()
        return reason, bytes(guest.vcpu.get_xsave()), guest.vcpu.get_regs().rip
    finally:
        guest.close()


@pytest.mark.parametrize("denied", [0, 1])
def test_legacy_and_vex_blocks_take_turns(denied: int) -> None:
    translated = _run(1, denied)
    if translated is None:
        pytest.skip("this host lets no program make code")
    assert translated == _run(0, denied)
    # #NM without a descriptor table shuts down
    assert translated[0] == (lib.KVM_EXIT_SHUTDOWN if denied else lib.KVM_EXIT_HLT)
    upper = translated[1][576:][:256]
    assert any(upper[3 * 16 : 4 * 16]) and not any(upper[7 * 16 : 8 * 16])  # YMM3's, written last; YMM7's, always cleared
