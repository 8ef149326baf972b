"""PCIDs (SDM 3A 4.10): what stays in the TLB and what goes, for data and for code. Where the manual lets a processor keep an entry, the
software CPU's tests ask that it does: the old frame is what shows it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from random import Random

import pytest

from kvmpy.native import lib
from tests.soft.soft_guest import CODE
from tests.soft.system_guest import GP, PF, UD, assemble
from tests.soft.system_guest import Guest as SystemGuest
from tests.soft.translated import forbidden
from tests.soft.window_guest import (
    CR4_PCIDE,
    CR4_PGE,
    CR4_SMAP,
    CR4_SMEP,
    FOUND,
    NO_FLUSH,
    PS,
    SPACES,
    WINDOW,
    G,
    P,
    U,
    W,
    WindowGuest,
    call,
    enter,
    entry,
    frame,
    invlpg,
    invpcid,
    look,
    run,
    set_cr4,
    window_directory,
    window_table,
)  # fmt: skip

VALUES = {n: f".fill 512,8,{n}" for n in range(16)}
CODES = {n: f"mov ${n},%eax\nret" for n in range(16)}
SECONDS = 20
Make = Callable[..., WindowGuest]


@pytest.fixture(params=["off", "1", "on", "verified"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Guests with PCIDs on, interpreted, translated from the first run on, translated as usual, and run twice."""
    made: list[WindowGuest] = []
    if request.param != "off" and forbidden():
        pytest.skip("this host lets no program make code")
    how = {"verify": True, "translate": "on"} if request.param == "verified" else {"translate": request.param}

    def build(source: str, frames: dict[int, str] = VALUES, *, cr4: int = CR4_PCIDE, **options: object) -> WindowGuest:
        made.append(WindowGuest(source + "hlt", frames, cr4=cr4, **{**how, **options}))
        return made[-1]

    yield build
    for guest in made:
        guest.close()


def seen(make: Make, source: str, frames: dict[int, str] = VALUES, **options: int) -> list[int]:
    guest = make(source, frames, **options)
    run(guest)
    return guest.found((guest.vcpu.get_regs().rdi - FOUND) // 8)


FILLED = enter(0, 1) + look(0) + look(1) + enter(1, 2) + look(0) + look(1)
"""Both address spaces have looked at pages 0 and 1, which are frames 0 and 1; PCID 2 is the present one."""
MOVED = "".join(entry(space, page, 4 + 2 * space + page) for space in (0, 1) for page in (0, 1))
"""Now they are frames 4 and 5 in space 0, 6 and 7 in space 1."""
LOOKS = look(0) + look(1) + enter(0, 1) + look(0) + look(1)


@pytest.mark.parametrize(
    ("flush", "found"),
    [
        ("", [0, 1, 0, 1]),
        (enter(1, 2), [0, 1, 0, 1]),
        (enter(1, 2, keep=False), [6, 7, 0, 1]),
        (enter(0, 1, keep=False) + enter(1, 2), [0, 1, 4, 5]),
        (enter(1, 3, keep=False) + enter(1, 2), [0, 1, 0, 1]),
        (invlpg(0), [6, 1, 0, 1]),
        (invpcid(0, 2, WINDOW), [6, 1, 0, 1]),
        (invpcid(0, 1, WINDOW + 0x1234), [0, 1, 0, 5]),
        (invpcid(0, 3, WINDOW), [0, 1, 0, 1]),
        (invpcid(1, 2), [6, 7, 0, 1]),
        (invpcid(1, 1), [0, 1, 4, 5]),
        (invpcid(1, 3), [0, 1, 0, 1]),
        (invpcid(2), [6, 7, 4, 5]),
        (invpcid(3), [6, 7, 4, 5]),
        (set_cr4(CR4_PGE), [6, 7, 4, 5]),
        (set_cr4(CR4_SMEP), [6, 7, 4, 5]),
        (set_cr4(CR4_SMAP), [6, 7, 4, 5]),
        ("mov %cr0,%rax\nxor $0x10000,%rax\nmov %rax,%cr0\n", [6, 7, 4, 5]),
    ],
    ids=[
        "nothing", "kept", "loaded", "other-loaded", "unknown-loaded", "invlpg", "page", "other-page", "unknown-page", "pcid", "other-pcid",
        "unknown-pcid", "all", "all-but-global", "pge", "smep", "smap", "wp",
    ],
)  # fmt: skip
def test_what_a_flush_takes(make: Make, flush: str, found: list[int]) -> None:
    """The window's pages are a user's, code is the supervisor's: neither SMEP nor, with AC set, SMAP forbids what follows."""
    assert seen(make, "stac\n" + FILLED + MOVED + flush + LOOKS, kernel=U) == [0, 1, 0, 1, *found]


@pytest.mark.parametrize(
    ("flush", "found"),
    [
        (enter(1, 2, keep=False), [0, 0]),
        (enter(0, 1, keep=False) + enter(1, 2), [0, 0]),
        (invpcid(0, 2, WINDOW), [0, 0]),
        (invpcid(0, 1, WINDOW), [0, 0]),
        (invpcid(1, 2), [0, 0]),
        (invpcid(3), [0, 0]),
        (invlpg(0), [6, 6]),
        (invpcid(2), [6, 6]),
        (set_cr4(0, CR4_PGE), [6, 4]),
    ],
    ids=["loaded", "other-loaded", "page", "other-page", "pcid", "all-but-global", "invlpg", "all", "pge"],
)
def test_global_pages_belong_to_all_pcids(make: Make, flush: str, found: list[int]) -> None:
    """Page 0 is global; both spaces have it as frame 0 until it is moved."""
    source = enter(0, 1) + look(0) + enter(1, 2) + look(0) + entry(0, 0, 4, G) + entry(1, 0, 6, G) + flush + look(0) + enter(0, 1) + look(0)
    assert seen(make, source, bits=G, cr4=CR4_PCIDE | CR4_PGE) == [0, 0, *found]


def test_pcide_is_set_and_cleared(make: Make) -> None:
    """Set, it keeps what PCID 0 has; cleared, nothing stays, of global pages either."""
    source = look(0) + entry(0, 0, 4, G) + set_cr4(CR4_PCIDE) + look(0) + enter(1, 2) + look(1) + entry(1, 1, 5)
    source += enter(0, 0) + look(0) + set_cr4(0, CR4_PCIDE) + look(0) + set_cr4(CR4_PCIDE) + enter(1, 2) + look(1)
    assert seen(make, source, cr4=CR4_PGE, bits=G) == [0, 0, 1, 0, 4, 5]


def test_without_pcide_a_load_of_cr3_takes_what_is_not_global(make: Make) -> None:
    source = look(0) + look(1) + entry(0, 0, 4) + entry(0, 1, 5) + f"mov ${SPACES[0]},%eax\nmov %rax,%cr3\n" + look(0) + look(1)
    guest = make(source, cr4=CR4_PGE)
    guest.put(window_table(0) + 8, (frame(1) | G | P | W | U).to_bytes(8, "little"))
    run(guest)
    assert guest.found(4) == [0, 1, 4, 1]


@pytest.mark.parametrize("kept", [0, 1])
def test_pieces_of_a_large_page(make: Make, kept: int) -> None:
    """A page of 2 MiB, seen at two of its pieces and by another PCID: each flush of one address takes all of it, of its own PCID."""
    one, other = WINDOW + 0x200000 + frame(0), WINDOW + 0x200000 + frame(1)
    directory = window_directory(0) + 8
    glance = f"mov ${one:#x},%rax\nmov (%rax),%rax\nstosq\nmov ${other:#x},%rax\nmov (%rax),%rax\nstosq\n"
    moved = f"movq ${0x34000 | P | W | U:#x},{directory:#x}\n"
    flush = invpcid(0, 1, one + 0x800) + enter(0, 1) if kept else enter(0, 1) + f"mov ${one + 0x800:#x},%rax\ninvlpg (%rax)\n"
    source = enter(0, 1) + glance + enter(0, 2) + glance + moved + glance + flush + glance + enter(0, 2) + glance
    guest = make(source)
    guest.put(directory, (P | W | U | PS).to_bytes(8, "little"))
    for page in (0x40, 0x41):
        guest.put(0x34000 + 8 * page, (frame(page - 0x40 + 8) | P | W | U).to_bytes(8, "little"))
    run(guest)
    assert guest.found(10) == [0, 1, 0, 1, 0, 1, 8, 9, 0, 1]


# ---- code ----


def test_each_pcid_has_its_code(make: Make) -> None:
    """At one address, 100 times by turns: a jump over the page's end, calls, and a return."""
    frames = {0: "jmp .+0x1000", 1: CODES[1], 2: "jmp .+0x1000", 3: CODES[3]}
    source = "".join(entry(1, page, page + 2) for page in (0, 1))
    source += "mov $100,%ecx\nagain:\n" + enter(0, 1) + call(0) + enter(1, 2) + call(0) + "dec %ecx\njnz again\n"
    guest = make(source, frames)
    run(guest)
    assert guest.found(200) == [1, 3] * 100


@pytest.mark.parametrize(
    ("flush", "found"),
    [
        ("", [0, 0]),
        (enter(1, 2, keep=False), [6, 0]),
        (enter(0, 1, keep=False) + enter(1, 2), [0, 4]),
        (invlpg(0), [6, 0]),
        (invpcid(0, 2, WINDOW), [6, 0]),
        (invpcid(0, 1, WINDOW), [0, 4]),
        (invpcid(1, 2), [6, 0]),
        (invpcid(1, 1), [0, 4]),
        (invpcid(2), [6, 4]),
        (invpcid(3), [6, 4]),
    ],
    ids=["nothing", "loaded", "other-loaded", "invlpg", "page", "other-page", "pcid", "other-pcid", "all", "all-but-global"],
)
def test_code_that_a_flush_takes(make: Make, flush: str, found: list[int]) -> None:
    """What leads to blocks without a look at the TLB ends with the TLB's entries; the code around is global. What the verifier has taken
    back may have to be walked for."""
    warm = "mov $40,%ecx\n1:\n" + enter(0, 1) + call(0) + enter(1, 2) + call(0) + f"mov ${FOUND:#x},%edi\ndec %ecx\njnz 1b\n"
    source = warm + entry(0, 0, 4) + entry(1, 0, 6) + flush + call(0) + enter(0, 1) + call(0)
    guest = make(source, CODES, kernel=G, cr4=CR4_PCIDE | CR4_PGE)
    run(guest)
    walked = [6, 4] if guest.vcpu.statistics()["instructions_verified"] else found
    assert all(value in either for value, *either in zip(guest.found(2), found, walked, strict=True))


@pytest.mark.parametrize(
    ("flush", "found"), [(enter(0, 3, keep=False), [0, 0]), (invlpg(0), [4, 4]), (invpcid(2), [4, 4])], ids=["loaded", "page", "all"]
)
def test_global_code(make: Make, flush: str, found: list[int]) -> None:
    """Found anew by all PCIDs once one has flushed it."""
    warm = "mov $40,%ecx\n1:\n" + enter(0, 1) + call(0) + enter(1, 2) + call(0) + f"mov ${FOUND:#x},%edi\ndec %ecx\njnz 1b\n"
    source = warm + entry(0, 0, 4, G) + entry(1, 0, 4, G) + flush + call(0) + enter(0, 1) + call(0)
    assert seen(make, source, CODES, kernel=G, bits=G, cr4=CR4_PCIDE | CR4_PGE) == found


@pytest.mark.parametrize(
    ("bits", "flush", "found"),
    [
        (0, enter(0, 1), 1),
        (0, enter(0, 1) + invlpg(2), 1),
        (0, invlpg(1) + enter(0, 1), 1),
        (0, invpcid(0, 1, WINDOW + 0x1000) + enter(0, 1), 4),
        (0, enter(0, 1) + invlpg(1), 4),
        (0, enter(0, 1) + invpcid(0, 1, WINDOW + 0x1000), 4),
        (G, invlpg(1) + enter(0, 1), 4),
        (G, invpcid(0, 2, WINDOW + 0x1000) + enter(0, 1), 1),
        (G, enter(0, 1) + invlpg(1), 4),
    ],
    ids=["nothing", "other-page", "other-pcid", "away", "back", "invpcid", "global-away", "global-pcid", "global-back"],
)
def test_way_to_the_code_of_a_pcid(make: Make, bits: int, flush: str, found: int) -> None:
    """PCID 1 has jumped from page 0 to page 1, and is away, where it is not told to be back; PCID 2 has its own code elsewhere."""
    warm = "mov $40,%ecx\n1:\n" + enter(0, 1) + call(0) + enter(1, 2) + call(8) + f"mov ${FOUND:#x},%edi\ndec %ecx\njnz 1b\n"
    guest = make(warm + entry(0, 1, 4, bits) + flush + call(0), {**CODES, 0: "jmp .+0x1000"}, cr4=CR4_PCIDE | CR4_PGE, kernel=G)
    guest.put(window_table(0) + 8, (frame(1) | bits | P | W | U).to_bytes(8, "little"))
    run(guest)
    assert guest.found(1) == [found] or (guest.vcpu.statistics()["instructions_verified"] and guest.found(1) == [4])


def test_code_of_a_large_page_after_the_pcid_has_come_back(make: Make) -> None:
    """INVLPG of another address than code was fetched at, whose entry the TLB has lost meanwhile."""
    at, directory = WINDOW + 0x200000 + frame(0), window_directory(0) + 8
    same_index = "".join(f"mov ${at + (16 << 20) * n:#x},%rax\nmov (%rax),%rax\n" for n in (1, 2))
    go = f"mov ${at:#x},%rax\ncall *%rax\nstosq\n"
    source = enter(0, 1) + go + same_index + enter(1, 2) + enter(0, 1)
    source += f"movq ${0x34000 | P | W | U:#x},{directory:#x}\nmov ${at + 0x5000:#x},%rax\ninvlpg (%rax)\n" + go
    guest = make(source, CODES)
    for n in (0, 8, 16):
        guest.put(directory + 8 * n, (P | W | U | PS).to_bytes(8, "little"))
    guest.put(0x34000 + 8 * 0x40, (frame(8) | P | W | U).to_bytes(8, "little"))
    run(guest)
    assert guest.found(2) == [0, 8]


def test_loads_of_cr3_keep_the_way_to_global_code(make: Make) -> None:
    """Without PCIDs, 2000 loads around calls from page to page: neither walks for code nor ways to blocks are made anew."""
    source = "mov $1000,%ecx\nagain:\nmov %cr3,%rax\nmov %rax,%cr3\n" + call(0) + "mov %cr3,%rax\nmov %rax,%cr3\n" + call(2)
    source += f"mov ${FOUND:#x},%edi\ndec %ecx\njnz again\n"
    guest = make(source, {0: "jmp .+0x1000", 1: CODES[1], 2: "jmp .+0x1000", 3: CODES[3]}, kernel=G, bits=G, cr4=CR4_PGE)
    run(guest)
    found = guest.vcpu.statistics()
    assert found["tlb_fills"] < 200
    assert found["exits_unlinked"] < 500 or found["instructions_verified"]


def test_pcids_keep_their_walks(make: Make) -> None:
    """Two address spaces by turns, 1000 times, eight pages of each touched: no more walks than the first time."""
    looks = "".join(look(page) for page in range(8))
    source = "mov $1000,%ecx\nagain:\n" + enter(0, 1) + looks + enter(1, 2) + looks + f"mov ${FOUND:#x},%edi\ndec %ecx\njnz again\n"
    guest = make(source)
    run(guest)
    found = guest.vcpu.statistics()
    assert found["tlb_fills"] < 200
    assert found["exits_unlinked"] < 500 or found["instructions_verified"]


# ---- many, and what others change ----


def test_more_pcids_than_are_kept(make: Make) -> None:
    """40 PCIDs of one space; the page is another frame whenever one is flushed, and a PCID's own stays or is walked for."""
    source = "".join(entry(0, 0, pcid % 16) + enter(0, pcid, keep=False) + look(0) for pcid in range(1, 41))
    source += entry(0, 0, 15) + "".join(enter(0, pcid) + look(0) for pcid in range(40, 0, -1))
    found = seen(make, source)
    assert found[:40] == [pcid % 16 for pcid in range(1, 41)]
    again = found[40:][::-1]
    assert all(value in (15, pcid % 16) for pcid, value in enumerate(again, 1))
    assert again[-8:] == [pcid % 16 for pcid in range(33, 41)] and again[:20] == [15] * 20


def test_more_pages_than_are_kept(make: Make) -> None:
    """512 pages in two spaces, summed up by turns."""
    loop = f"""
        mov ${WINDOW:#x},%rsi
        mov $512,%ecx
        xor %edx,%edx
    1:  add (%rsi),%rdx
        add $0x1000,%rsi
        dec %ecx
        jnz 1b
        mov %rdx,%rax
        stosq
    """
    source = (enter(0, 1) + loop + enter(1, 2) + loop) * 3
    guest = make(source)
    for space in (0, 1):
        for page in range(512):
            guest.put(window_table(space) + 8 * page, (frame((page * (space + 3)) % 16) | P | W | U).to_bytes(8, "little"))
    run(guest)
    assert guest.found(6) == [sum(page * (space + 3) % 16 for page in range(512)) for space in (0, 1)] * 3


def test_pages_that_share_an_index(make: Make) -> None:
    """Both ways of an index come back, beside a global page that has stayed."""
    far = 16 << 20
    glance = "".join(f"mov ${WINDOW + far * n:#x},%rax\nmov (%rax),%rax\nstosq\n" for n in range(3))
    guest = make((enter(0, 1) + glance + enter(1, 2) + look(0)) * 3 + enter(0, 1) + glance, cr4=CR4_PCIDE | CR4_PGE)
    for n in (1, 2):
        guest.put(window_directory(0) + 8 * (n * far >> 21), (0x34000 + 0x1000 * n | P | W | U).to_bytes(8, "little"))
        guest.put(0x34000 + 0x1000 * n, (frame(4 + n) | P | W | U | (G if n == 2 else 0)).to_bytes(8, "little"))
    guest.put(window_table(1), (frame(9) | P | W | U).to_bytes(8, "little"))
    run(guest)
    assert guest.found(15) == [0, 5, 6, 9] * 3 + [0, 5, 6]


def test_a_global_page_of_the_second_way(make: Make) -> None:
    """What took its place in the first is flushed; it comes back there, and goes when it is flushed itself."""
    far = f"mov ${WINDOW + (16 << 20):#x},%rax\nmov (%rax),%rax\nstosq\n"
    source = look(0) + far + enter(0, 0, keep=False) + look(0) + entry(0, 0, 4, G) + look(0) + invlpg(0) + look(0)
    guest = make(source, bits=G, cr4=CR4_PCIDE | CR4_PGE)
    guest.put(window_directory(0) + 8 * 8, (0x34000 | P | W | U).to_bytes(8, "little"))
    guest.put(0x34000, (frame(9) | P | W | U).to_bytes(8, "little"))
    run(guest)
    assert guest.found(5) == [0, 9, 0, 0, 4]


def test_code_appears_in_a_page_that_another_pcid_has_written(make: Make) -> None:
    """Its stores are noticed from then on, though it finds its entry again."""
    patch = f"mov ${WINDOW:#x},%rax\nincb 1(%rax)\n"  # the immediate of MOV
    source = enter(0, 1) + patch + "mov $40,%ecx\nagain:\n" + enter(1, 2) + call(0) + enter(0, 1) + patch + "dec %ecx\njnz again\n"
    assert seen(make, source, CODES) == list(range(1, 41))


def test_writes_are_logged_after_the_log_was_read(make: Make) -> None:
    store = f"mov ${WINDOW:#x},%rax\nincq (%rax)\n"
    guest = make(enter(0, 1) + store + enter(1, 2) + "hlt\n" + enter(0, 1) + store, chips=False)
    run(guest)
    guest.vm.dirty_log(0)
    run(guest)
    assert int.from_bytes(guest.vm.dirty_log(0), "little") >> (frame(0) >> 12) & 1


def test_registers_set_from_outside_leave_nothing(make: Make) -> None:
    """As a snapshot is restored: the same vCPU with other tables, then with the old ones."""
    guest = make(FILLED + "hlt\n" + enter(0, 1) + look(0) + enter(1, 2) + look(0), chips=False)
    run(guest)
    sregs = guest.vcpu.get_sregs()
    cr3, sregs.cr3 = sregs.cr3, SPACES[0] | 5
    for space in (0, 1):
        guest.put(window_table(space), (frame(4 + space) | P | W | U).to_bytes(8, "little"))
    guest.vcpu.set_sregs(sregs)
    sregs.cr3 = cr3
    guest.vcpu.set_sregs(sregs)
    run(guest)
    assert guest.found(6) == [0, 1, 0, 1, 4, 5]


def test_user_code_of_two_pcids(make: Make) -> None:
    """By turns in ring 3, from page to page and by SYSCALL into the kernel, whose pages are global and which changes the space."""
    source = f"""
        mov $0xc0000080,%ecx
        rdmsr
        or $1,%eax
        wrmsr
        mov $0xc0000081,%ecx
        xor %eax,%eax
        mov $0x00180008,%edx
        wrmsr
        mov $0xc0000082,%ecx
        mov $kernel,%eax
        xor %edx,%edx
        wrmsr
        mov $0xc0000084,%ecx
        xor %eax,%eax
        wrmsr
        mov $200,%r12d
        mov ${SPACES[0] | 1 | NO_FLUSH:#x},%r13
        mov ${SPACES[1] | 2 | NO_FLUSH:#x},%r14
        xor %ebx,%ebx
    back:
        mov %r13,%rax
        mov %rax,%cr3
        xchg %r13,%r14
        mov ${WINDOW:#x},%rcx
        mov $2,%r11d
        sysretq
    kernel:
        add %rax,%rbx
        mov %rbx,%rax
        stosq
        dec %r12d
        jnz back
    """
    frames = {0: "jmp .+0x1000", 1: "mov $1,%eax\nsyscall", 2: "jmp .+0x1000", 3: "mov $1000,%eax\nsyscall"}
    guest = make("".join(entry(1, page, page + 2) for page in (0, 1)) + source, frames, kernel=G | U, cr4=CR4_PCIDE | CR4_PGE)
    run(guest)
    assert guest.found(200)[-1] == 100 * 1001 and guest.found(2) == [1, 1001]
    found = guest.vcpu.statistics()
    assert found["tlb_fills"] < 100
    assert found["exits_unlinked"] < 200 or found["instructions_verified"]


class Model:
    """What the manual lets a processor find: of each PCID and page the frames that its entry has led to since the last flush."""

    def __init__(self, pages: int) -> None:
        self.pages = range(pages)
        self.entry = [[(page, False) for page in self.pages] for _ in SPACES]
        self.cached: dict[tuple[int, int], set[tuple[int, bool]]] = {}
        self.space, self.pcid = 0, 0

    def look(self, page: int) -> set[int]:
        now = self.entry[self.space][page]
        mine = self.cached.setdefault((self.pcid, page), set())
        globals_ = {e for (_, of), some in self.cached.items() if of == page for e in some if e[1]}
        mine.add(now)
        return {number for number, _ in mine | globals_}

    def flush(self, pcid: int | None, page: int | None = None, *, globals_: bool = False, of_all: bool = False) -> None:
        """Of a PCID or of all; global entries too, or (`of_all`) global ones whatever their PCID."""
        for (p, n), some in self.cached.items():
            if page in (None, n):
                mine = pcid in (None, p)
                some -= {e for e in some if (mine and (globals_ or not e[1])) or (of_all and e[1])}

    def moved(self) -> None:
        """An entry that is in use may be walked for, and kept, at any time."""
        for page in self.pages:
            self.cached.setdefault((self.pcid, page), set()).add(self.entry[self.space][page])


@pytest.mark.parametrize("code", [False, True], ids=["data", "code"])
@pytest.mark.parametrize("seed", range(6))
def test_random_programs(make: Make, seed: int, code: bool) -> None:
    """300 steps with five PCIDs and six pages, two of which may be global."""
    random = Random(seed)
    model, source, allowed = Model(6), "", []
    for _ in range(300):
        page, pcid, step = random.randrange(6), random.randrange(5), random.randrange(16)
        if step < 5:
            allowed.append(model.look(page))
            source += call(page) if code else look(page)
        elif step < 9:
            keep = random.random() < 0.7
            model.space, model.pcid = random.randrange(2), pcid
            source += enter(model.space, pcid, keep=keep)
            if not keep:
                model.flush(pcid)
        elif step < 12:
            space, number, bits = random.randrange(2), random.randrange(16), G if page > 3 and random.random() < 0.5 else 0
            model.entry[space][page] = (number, bool(bits))
            source += entry(space, page, number, bits)
        elif step == 12:
            model.flush(model.pcid, page, globals_=True, of_all=True)
            source += invlpg(page)
        elif step == 13:
            model.flush(pcid, page)
            source += invpcid(0, pcid, WINDOW + 0x1000 * page)
        elif step == 14:
            model.flush(pcid)
            source += invpcid(1, pcid)
        else:
            kind = random.choice((2, 3))
            model.flush(None, globals_=kind == 2)
            source += invpcid(kind)
        model.moved()
    found = seen(make, source, CODES if code else VALUES, cr4=CR4_PCIDE | CR4_PGE, kernel=G if seed % 2 else 0)
    wrong = [(n, value, ok) for n, (value, ok) in enumerate(zip(found, allowed, strict=True)) if value not in ok]
    assert not wrong, f"look {wrong[0][0]} of seed {seed} found {wrong[0][1]}, not of {wrong[0][2]}"


# ---- several vCPUs ----


@pytest.mark.parametrize("translate", ["off", "1", "on"])
def test_vcpus_in_parallel_have_their_own(translate: str) -> None:
    """vCPU 0 changes entries and flushes its own TLB by INVPCID of all kinds; vCPU 1 has the old ones, parked and not, until it flushes."""
    if translate != "off" and forbidden():
        pytest.skip("this host lets no program make code")
    wait = "1: pause\ncmpq ${},0x70000\njne 1b\n"
    first = FILLED + wait.format(1) + MOVED + invpcid(2) + invpcid(0, 1, WINDOW) + invpcid(1, 2) + LOOKS + "movq $2,0x70000\nhlt\n"
    second = f"mov ${FOUND + 0x800:#x},%edi\n" + FILLED + "movq $1,0x70000\n" + wait.format(2) + LOOKS
    second += invpcid(1, 2) + enter(1, 2) + look(0) + enter(0, 1) + invpcid(3) + LOOKS + "hlt\n"
    guest = WindowGuest(first, VALUES, cr4=CR4_PCIDE, chips=False, clock="host", cpus=2, parallel=True, translate=translate)
    try:
        code = CODE + 0x2000
        guest.put(code, assemble(second, 64, code))
        guest.set(guest.vcpus[1], rip=code, rsp=0x6800)
        reasons: dict[int, int] = {}
        threads = [threading.Thread(target=lambda n=n: reasons.update({n: guest.vcpus[n].run()}), daemon=True) for n in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
        for vcpu, thread in zip(guest.vcpus, threads, strict=True):
            while thread.is_alive():
                vcpu.kick()
                thread.join(0.1)
        assert reasons == {0: lib.KVM_EXIT_HLT, 1: lib.KVM_EXIT_HLT}
        assert guest.found(8) == [0, 1, 0, 1, 6, 7, 4, 5]
        own = [int.from_bytes(guest.get(FOUND + 0x800 + 8 * n, 8), "little") for n in range(13)]
        assert own == [0, 1, 0, 1, 0, 1, 0, 1, 6, 4, 5, 4, 5]
    finally:
        guest.close()


# ---- faults ----

INVPCID = "push {high}\npush {low}\nmov ${kind},%eax\ninvpcid (%rsp),%rax\nhlt"


@pytest.mark.parametrize("pcide", [False, True])
@pytest.mark.parametrize(
    ("kind", "low", "high", "with_pcide", "without"),
    [
        (0, 5, 0x1000, True, False), (1, 5, 0x1000, True, False), (2, 5, 0x1000, True, True), (3, 5, 0x1000, True, True),
        (0, 0, 0x1000, True, True), (1, 0, 0x1000, True, True), (4, 0, 0, False, False), (0, 0x1000, 0, False, False),
        (1, 0x1000, 0, False, False), (2, 0x1000, 0, False, False), (3, 1 << 63, 0, False, False), (0, 0, 1 << 47, False, False),
        (1, 0, 1 << 47, True, True), (2, 0, 1 << 47, True, True), (3, 0, 1 << 47, True, True),
    ],
)  # fmt: skip
def test_operands_of_invpcid(kind: int, low: int, high: int, with_pcide: bool, without: bool, pcide: bool) -> None:
    source = f"mov ${high:#x},%rbx\nmov ${low:#x},%rcx\n" + (set_cr4(CR4_PCIDE) if pcide else "")
    guest = SystemGuest(source + INVPCID.format(high="%rbx", low="%rcx", kind=kind), "long")
    if with_pcide if pcide else without:
        guest.finish()
        assert guest.regs.rip > CODE
    else:
        assert guest.fault() == (GP, 0)


def test_who_may_not_invalidate() -> None:
    assert SystemGuest("sub $16,%rsp\nxor %eax,%eax\ninvpcid (%rsp),%rax", "long", cpl=3).fault() == (GP, 0)
    assert SystemGuest(f"mov ${0x800000:#x},%rbx\nmov $4,%eax\ninvpcid (%rbx),%rax", "long").fault() == (PF, 0)
    locked = SystemGuest("mov $4,%eax\nlock\ninvpcid (%rsp),%rax", "long")
    locked.finish()
    assert locked.vector == UD


@pytest.mark.parametrize("mode", ["pae", "paging32"])
def test_pcide_outside_long_mode(mode: str) -> None:
    guest = SystemGuest("mov %cr4,%eax\nor $0x20000,%eax\nmov %eax,%cr4\nhlt", mode)
    assert guest.fault() == (GP, 0)
