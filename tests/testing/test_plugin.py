"""The plugin in runs of pytest of its own: fixtures, marker, reports, JUnit, Ctrl-C, xdist."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

EXIT = "mov ${}, %al\nout %al, $0xf4"
HEAD = "import pytest\n"


def run(directory: Path, source: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """pytest in a process of its own, on one test file."""
    (directory / "test_guest.py").write_text(HEAD + source)
    return subprocess.run(
        command(*arguments), cwd=directory, capture_output=True, text=True, timeout=50, env=os.environ | environment, check=False
    )


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--color=no", *arguments]


def image(directory: Path, source: str = EXIT.format(0), mode: str = "flat32", name: str = "kernel") -> str:
    """An image in the directory; gives its boot protocol."""
    from kvmpy.testing.assemble import build

    (directory / "build").mkdir(exist_ok=True)
    program = build(source, directory / "build", mode, name=name)
    Path(program.path).rename(directory / f"{name}.img")
    return program.boot


def test_the_marker_says_what_boots(tmp_path: Path) -> None:
    boot = image(tmp_path, EXIT.format(3))
    done = run(tmp_path, f"""
pytestmark = pytest.mark.guest("kernel.img", boot={boot!r}, memory="8M")

@pytest.mark.guest(cpus=2, timeout=3)
def test_options(machine):
    assert len(machine.cpu) == 2 and machine.memory.size == 8 << 20 and machine.timeout == 3
    assert machine.exit_code == 3

def test_soft(soft_machine):
    assert soft_machine.vm.name == "soft" and len(soft_machine.cpu) == 1 and soft_machine.timeout == 10
    assert soft_machine.exit_code == 3

def test_several(make_machine):
    machines = [make_machine(), make_machine(memory="16M")]
    assert [one.memory.size >> 20 for one in machines] == [8, 16] and all(one.exit_code == 3 for one in machines)
""", "-q", "--strict-markers")
    assert done.returncode == 0, done.stdout
    assert re.search(r"[34] passed", done.stdout)


def test_backends_are_chosen(tmp_path: Path) -> None:
    source = "def test_it(machine):\n    print('on', machine.vm.name)\n"
    done = run(tmp_path, source, "-q", "--kvmpy-backends", "soft")
    assert "1 passed, 1 deselected" in done.stdout
    (tmp_path / "pytest.ini").write_text("[pytest]\nkvmpy_backends = soft\n")
    assert "1 passed, 1 deselected" in run(tmp_path, source, "-q").stdout
    (tmp_path / "pytest.ini").unlink()
    source += "def test_kvm(kvm_machine): pass\ndef test_soft(soft_machine): pass\ndef test_made(make_machine): make_machine('soft')\n"
    done = run(tmp_path, source, "-q", "--kvmpy-backends", "soft")
    assert "3 passed, 2 deselected" in done.stdout
    done = run(tmp_path, source, "-q", "--kvmpy-backends", "kvm", "--collect-only")
    assert "3/5 tests collected (2 deselected)" in done.stdout and "test_soft" not in done.stdout
    done = run(tmp_path, source, "--kvmpy-backends", "bochs")
    assert done.returncode == 4 and "--kvmpy-backends bochs: of soft, kvm" in done.stderr


def test_without_kvm_tests_are_skipped_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("""
import kvmpy.kvm.probe as probe
class No:
    def as_dict(self): return {"available": False, "why": "/dev/kvm: No such file or directory"}
probe.probe = lambda: No()
""")
    done = run(tmp_path, "def test_one(machine): pass\ndef test_two(kvm_machine): pass\n", "-rs")
    assert done.returncode == 0 and "1 passed, 2 skipped" in done.stdout
    assert "KVM is not usable: /dev/kvm: No such file or directory" in done.stdout
    done = run(tmp_path, "def test_one(machine): pass\ndef test_two(kvm_machine): pass\n", "--kvmpy-strict")
    assert done.returncode == 1 and "1 passed, 2 errors" in done.stdout


def test_what_kvm_must_be_able_to_do(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("""
import kvmpy.kvm.probe as probe
class Old:
    def as_dict(self): return {"available": True, "paging32": False, "real_mode": True}
probe.probe = lambda: Old()
""")
    done = run(tmp_path, """
@pytest.mark.guest(needs="paging32")
def test_a(kvm_machine): pass
@pytest.mark.guest(clock="virtual")
def test_b(kvm_machine): pass
@pytest.mark.guest(needs="coffee")
def test_c(kvm_machine): pass
@pytest.mark.guest(needs="paging32")
def test_d(soft_machine): pass
""", "-rs")
    assert "1 passed, 2 skipped, 1 error" in done.stdout
    assert "this host's KVM lacks paging32" in done.stdout and "virtual time is counted by the software CPU" in done.stdout
    assert "needs='coffee' is no capability" in done.stdout


def test_wrong_markers_are_told_in_a_line(tmp_path: Path) -> None:
    done = run(tmp_path, """
@pytest.mark.guest("absent.elf")
def test_a(soft_machine): pass
@pytest.mark.guest(colour="red")
def test_b(soft_machine): pass
@pytest.mark.guest(append="x")
def test_c(soft_machine): pass
@pytest.mark.guest(memory="3 apples")
def test_d(soft_machine): pass
@pytest.mark.guest(timeout="5")
def test_e(soft_machine): pass
@pytest.mark.guest(cpu=2)
def test_f(soft_machine): pass
@pytest.mark.guest("one", "two")
def test_g(soft_machine): pass
@pytest.mark.guest(memroy="8M")
def test_h(soft_machine): pass
""")
    assert "8 errors" in done.stdout
    for text in (
        "absent.elf: No such file", "no option 'colour': there are timeout, needs, boot, ", "append without a path", "3 apples",
        "timeout '5': a number of seconds above 0", "CPU model 2: a name is wanted", "takes one path",
        "no option 'memroy': did you mean memory?",
    ):  # fmt: skip
        assert text in done.stdout, text
    assert "plugin.py" not in done.stdout  # a line each, no traceback


def test_wrong_calls_show_the_line_of_the_test_alone(tmp_path: Path) -> None:
    source = """
def test_sym(soft_machine, assemble):
    soft_machine.load(assemble("hlt"))
    soft_machine.run_until("mian")
def test_nothing(soft_machine): soft_machine.expect("login")
def test_fault(soft_machine): soft_machine.faults.clock.jump(-5)
def test_re(soft_machine, assemble): soft_machine.load(assemble("hlt")).expect("login[")
def test_exit(soft_machine, assemble): soft_machine.load(assemble("hlt")).run_until(exit="ioo:0x80")
def test_mode(assemble): assemble("hlt", "flat65")
"""
    done = run(tmp_path, source)
    assert "6 failed" in done.stdout
    for text in (
        "no symbol 'mian'", "nothing is loaded: @pytest.mark.guest(", "time never goes back", "'login[' is no regular expression",
        "exit='ioo:0x80' is no exit's reason", "mode 'flat65': one of flat16",
    ):  # fmt: skip
        assert text in done.stdout, text
    assert "kvmpy/" not in done.stdout.replace("/kvmpy/blobs", "") and "descriptor tables" not in done.stdout
    assert "kvmpy/testing/until.py" in run(tmp_path, source, "--full-trace", "-k", "sym").stdout


def test_a_fixture_that_fails_shows_the_guest(tmp_path: Path) -> None:
    done = run(tmp_path, """
@pytest.fixture
def shell(soft_machine, assemble):
    soft_machine.load(assemble("mov $0x3f8, %dx; mov $33, %al; out %al, %dx; cli; hlt", "flat32"))
    soft_machine.expect("login: ", timeout=2)
def test_it(shell): pass
""", "--junitxml=out.xml")
    assert "1 error" in done.stdout and "Captured stdout of guest (autopsy) setup" in done.stdout
    assert "(COM1) setup" in done.stdout and 'name="kvmpy serial" value="!"' in (tmp_path / "out.xml").read_text()


def test_the_screen_is_shown(tmp_path: Path) -> None:
    done = run(tmp_path, """
def test_it(soft_machine, assemble):
    soft_machine.load(assemble("movl $0x07210748, 0xB8000; cli; hlt", "flat32"))
    soft_machine.screen.wait_for_text("login", timeout=2)
""", "--junitxml=out.xml")
    assert re.search(r"no match for 'login' on the screen: the guest ended \(halted.*\nE +it shows:\nE +H!", done.stdout)
    assert "Captured stdout of guest (screen) call" in done.stdout and "\nthe text screen\n  H!" in done.stdout
    assert 'name="kvmpy screen" value="H!"' in (tmp_path / "out.xml").read_text()


@pytest.mark.parametrize("xml", ["no", pytest.param("system-out", marks=pytest.mark.slow)])
def test_a_failure_shows_the_guest(tmp_path: Path, xml: str) -> None:
    done = run(tmp_path, """
SOURCE = '''
#include <kvmpy.h>
int main(void) {
    for (const char *at = "booting\\\\x1b[1m\\\\n"; *at; at++) __asm__ volatile("outb %0, %1" : : "a"(*at), "Nd"((short)0x3F8));
    kvmpy_log("almost there");
    kvmpy_time("tried");
    kvmpy_assert_equal(6 * 7, 41);
    return 0;
}
'''
def test_kernel(soft_machine, assemble):
    soft_machine.load(assemble(SOURCE))
    assert soft_machine.exit_code == 0

def test_crash(soft_machine, assemble):
    soft_machine.load(assemble("mov $0, %eax\\nud2", "flat32"))
    assert soft_machine.exit_code == 0
""", "--junitxml=out.xml", "-o", f"junit_logging={xml}")
    assert done.returncode == 1
    out = done.stdout
    assert "guest assertion failed: guest.c:7: 6 * 7 == 41 (got 0x2a, wanted 0x29)" in out
    assert "Captured stdout of guest (COM1)" in out and "booting" in out and "almost there" in out
    assert "guest (autopsy)" in out and "=> 0x100005" in out and "ud2" in out and "triple fault" in out
    assert "testing/machine.py" not in out  # where the plugin raises is nobody's business
    kernel = next(case for case in ElementTree.parse(tmp_path / "out.xml").iter("testcase") if case.get("name") == "test_kernel")
    found = {one.get("name"): one.get("value") for one in kernel.iter("property")}
    assert found["kvmpy backend"] == "soft" and found["kvmpy verdict"] == "guest exit, status 1"
    assert "booting" in (found["kvmpy serial"] or "") and found["kvmpy log"] == "almost there" and int(found["kvmpy time tried"] or 0) > 0
    captured = kernel.findtext("system-out") or ""
    assert ("booting" in captured) == (xml == "system-out")


def test_a_passing_test_has_its_output_in_the_xml(tmp_path: Path) -> None:
    boot = image(tmp_path, "mov $'k', %al\nmov $0x3f8, %dx\nout %al, %dx\n" + EXIT.format(0))
    source = f"@pytest.mark.guest('kernel.img', boot={boot!r})\ndef test_it(soft_machine): assert soft_machine.exit_code == 0\n"
    assert run(tmp_path, source, "--junitxml=out.xml").returncode == 0
    found = {one.get("name"): one.get("value") for one in ElementTree.parse(tmp_path / "out.xml").iter("property")}
    assert found["kvmpy serial"] == "k" and found["kvmpy verdict"] == "guest exit, status 0"


def test_hooks(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("""
def pytest_kvmpy_machine_made(item, machine): print("made", item.name, machine.last)
def pytest_kvmpy_machine_ends(item, machine): print("ends", item.name, machine.last)
""")
    boot = image(tmp_path)
    source = f"@pytest.mark.guest('kernel.img', boot={boot!r})\ndef test_it(soft_machine): soft_machine.run()\n"
    done = run(tmp_path, source, "-s")
    assert "made test_it None" in done.stdout and "ends test_it guest exit, status 0" in done.stdout


def test_a_fixture_of_ones_own(tmp_path: Path) -> None:
    """A project may have a fixture or a parameter called machine, and a marker called guest with other arguments is not touched."""
    done = run(tmp_path, """
@pytest.mark.parametrize("machine", ["kvm", "lathe"])
def test_parameter(machine): assert machine in ("kvm", "lathe")
""", "-q")
    assert "2 passed" in done.stdout


def test_without_binutils(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    source = "def test_it(soft_machine, assemble): soft_machine.load(assemble('hlt'))\n"
    done = run(tmp_path, source, "-rs", PATH=str(tmp_path / "empty"))
    assert "1 skipped" in done.stdout and "building a guest needs binutils" in done.stdout


def test_ctrl_c_ends_the_run(tmp_path: Path) -> None:
    boot = image(tmp_path, "mov $'r', %al\nmov $0x3f8, %dx\nout %al, %dx\n1: jmp 1b")
    (tmp_path / "test_guest.py").write_text(HEAD + f"""
@pytest.mark.guest("kernel.img", boot={boot!r}, timeout=40)
def test_it(machine):
    machine.expect("r")
    open("running", "w").close()
    machine.run()
def test_after(): open("after", "w").close()
""")
    process = subprocess.Popen(command("-q"), cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        limit = time.monotonic() + 30
        while not (tmp_path / "running").exists() and time.monotonic() < limit:
            time.sleep(0.05)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 2 and "KeyboardInterrupt" in out and time.monotonic() - began < 15
    assert not (tmp_path / "after").exists()


def test_time_is_bounded(tmp_path: Path) -> None:
    began = time.monotonic()
    done = run(tmp_path, """
@pytest.mark.guest(timeout=0.3)
def test_it(machine, assemble):
    machine.load(assemble("1: jmp 1b"))
    assert machine.exit_code == 0
""")
    assert "the guest gave no exit code: stopped: timeout after 0.3 s" in done.stdout and time.monotonic() - began < 30


@pytest.mark.slow
def test_in_parallel(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    boot = image(tmp_path, EXIT.format(4))
    done = run(tmp_path, f"""
@pytest.mark.guest("kernel.img", boot={boot!r})
@pytest.mark.parametrize("n", range(8))
def test_it(soft_machine, n, assemble):
    assert soft_machine.exit_code == 4
    soft_machine.load(assemble("#include <kvmpy.h>\\nint main(void) {{ kvmpy_time(\\"t\\"); return 5; }}"))
    assert soft_machine.exit_code == (5 if n != 7 else 6)
""", "-q", "-n", "2", "--junitxml=out.xml")
    assert "7 passed" in done.stdout and "1 failed" in done.stdout, done.stdout
    assert "guest (autopsy)" in done.stdout
    assert (tmp_path / "out.xml").read_text().count("kvmpy backend") == 8


def test_the_plugin_costs_little(tmp_path: Path) -> None:
    """It is loaded in every run of pytest; kvmpy itself is not before a test asks for it."""
    done = run(tmp_path, """
import sys
def test_it(): assert not [name for name in sys.modules if name.startswith("kvmpy.") and "testing" not in name]
""")
    assert done.returncode == 0, done.stdout
