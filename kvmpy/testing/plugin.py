"""The pytest plugin: fixtures that give machines, the marker that says what they boot, and what is shown of them afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from kvmpy.testing.assemble import Program
    from kvmpy.testing.machine import GuestMachine

# Nothing of kvmpy is imported before a test asks for it: the plugin is loaded in every run of pytest.

PACKAGE = Path(__file__).resolve().parents[1]
BACKENDS = ("soft", "kvm")
LOADING = ("boot", "initrd", "append", "modules")
MOST_OUTPUT = 65536
"""Characters of a guest's output in a report."""
MARKER = (
    "guest(path=None, *, timeout=10, needs=(), boot, initrd, append, modules, **options): the image that the test's machine boots, a "
    "path from the test's file or the root directory; seconds that it may run in all; what KVM must be able to do (names as in `kvmpy "
    "info --json`); arguments of Machine.load and of Machine (cpus, memory, disks, net, machine, clock, ...)"
)
_MACHINES = pytest.StashKey[list["GuestMachine"]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kvmpy", "virtual machines")
    group.addoption(
        "--kvmpy-backends", default=None, metavar="LIST",
        help="run tests on these backends alone: soft, kvm, or both with a comma (default: both; what this host lacks is skipped)",
    )
    group.addoption(
        "--kvmpy-strict", action="store_true",
        help="tests fail where they would be skipped because this host has no usable KVM, or no compiler and binutils",
    )
    from kvmpy.testing import coverage_options

    coverage_options.add(group)
    parser.addini("kvmpy_backends", "as --kvmpy-backends", default="")


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    from kvmpy.testing import hooks

    pluginmanager.add_hookspecs(hooks)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)
    if wrong := [name for name in _wanted(config) if name not in BACKENDS]:
        raise pytest.UsageError(f"--kvmpy-backends {','.join(wrong)}: of {', '.join(BACKENDS)}")
    if config.getoption("--guest-cov") is not None or config.getoption("--guest-cov-report"):
        from kvmpy.testing.coverage import GuestCoverage

        config.pluginmanager.register(GuestCoverage(config), "kvmpy-guest-cov")


def _wanted(config: pytest.Config) -> tuple[str, ...]:
    """The backends that are tested."""
    text = config.getoption("--kvmpy-backends") or config.getini("kvmpy_backends")
    return tuple(name.strip() for name in text.split(",") if name.strip()) or BACKENDS


def _lacking(config: pytest.Config, why: str) -> NoReturn:
    """The host lacks what it was meant to have."""
    if config.getoption("--kvmpy-strict"):
        pytest.fail(why, pytrace=False)
    pytest.skip(why)


def _why_not(config: pytest.Config, name: str, options: dict[str, Any], needs: tuple[str, ...]) -> str:
    """Why a test cannot run on a backend; empty when it can."""
    from kvmpy.backends import probe_kvm
    from kvmpy.errors import KvmpyError

    if name == "soft":
        return ""
    try:
        kvm = probe_kvm().as_dict()
    except KvmpyError as error:
        _lacking(config, f"KVM: {error}")
    if not kvm["available"]:
        _lacking(config, f"KVM is not usable: {kvm['why']}")
    if options.get("clock") == "virtual":
        return "virtual time is counted by the software CPU"
    if unknown := [need for need in needs if need not in kvm]:
        pytest.fail(f"marker guest: needs={unknown[0]!r} is no capability (see kvmpy info --json)", pytrace=False)
    if missing := [need for need in needs if not kvm[need]]:
        return f"this host's KVM lacks {', '.join(missing)}"
    return ""


def _options(request: pytest.FixtureRequest) -> tuple[str | None, dict[str, Any]]:
    """Path and options of the marker; the closest one decides, option by option."""
    path: str | None = None
    options: dict[str, Any] = {}
    for mark in reversed(list(request.node.iter_markers("guest"))):
        if len(mark.args) > 1:
            pytest.fail(f"{request.node.nodeid}: marker guest takes one path", pytrace=False)
        path = mark.args[0] if mark.args else path
        options |= mark.kwargs
    return path, options


def _find(request: pytest.FixtureRequest, path: str) -> Path:
    """An image beside the test's file, or below the root directory."""
    for base in (request.path.parent, request.config.rootpath):
        if (base / path).exists():
            return base / path
    return request.path.parent / path


def _unknown_option(options: dict[str, Any]) -> str:
    """What is wrong with an option that Machine does not have; empty when it has all."""
    import difflib
    import inspect

    from kvmpy.machine import Machine

    known = {*inspect.signature(Machine.__init__).parameters, "timeout"} - {"self", "backend"}
    for name in options.keys() - known:
        near = difflib.get_close_matches(name, sorted({*known, "needs", *LOADING}), 1)
        others = f"there are timeout, needs, {', '.join(LOADING)}, and those of Machine"
        return f"no option {name!r}: " + (f"did you mean {near[0]}?" if near else others)
    return ""


def _make(request: pytest.FixtureRequest, backend: str, **more: Any) -> GuestMachine:
    from kvmpy.errors import KvmpyError

    path, options = _options(request)
    options |= more
    needs = options.pop("needs", ())
    if why := _why_not(request.config, backend, options, (needs,) if isinstance(needs, str) else tuple(needs)):
        pytest.skip(why)
    from kvmpy.testing.machine import GuestMachine

    loading = {name: options.pop(name) for name in LOADING if name in options}
    failed = ""
    try:
        if wrong := _unknown_option(options):
            pytest.fail(f"{request.node.nodeid}: marker guest: {wrong}", pytrace=False)
        machine = GuestMachine(backend=backend, **options)
        request.node.stash.setdefault(_MACHINES, []).append(machine)
        request.addfinalizer(machine.close)
        request.addfinalizer(lambda: request.config.hook.pytest_kvmpy_machine_ends(item=request.node, machine=machine))
        request.config.hook.pytest_kvmpy_machine_made(item=request.node, machine=machine)
        if path is not None:
            machine.load(_find(request, path), **loading)
        elif loading:
            pytest.fail(f"{request.node.nodeid}: marker guest: {', '.join(loading)} without a path", pytrace=False)
    except KvmpyError as error:
        failed = f"{request.node.nodeid}: {error}"
    if failed:
        pytest.fail(failed, pytrace=False)  # out here it does not show as a second error
    return machine


@pytest.fixture
def soft_machine(request: pytest.FixtureRequest) -> GuestMachine:
    """A machine on the software CPU, as the marker `guest` describes it."""
    return _make(request, "soft")


@pytest.fixture
def kvm_machine(request: pytest.FixtureRequest) -> GuestMachine:
    """A machine on KVM; the test is skipped, with the reason, where it cannot be had."""
    return _make(request, "kvm")


@pytest.fixture(params=BACKENDS)
def machine(request: pytest.FixtureRequest) -> GuestMachine:
    """A machine on each backend in turn; those that this host lacks are skipped with the reason."""
    return _make(request, request.param)


@pytest.fixture
def make_machine(request: pytest.FixtureRequest) -> Callable[..., GuestMachine]:
    """A function that makes further machines: make_machine(backend="soft", **options), options over those of the marker."""

    def make(backend: str = "soft", **options: Any) -> GuestMachine:
        return _make(request, backend, **options)

    return make


@pytest.fixture
def assemble(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Program]:
    """Builds a guest from source: assemble(text_or_path, mode="flat16"), see kvmpy.testing.assemble.build. Skips without binutils."""
    from kvmpy.errors import ImageError, MissingCapability
    from kvmpy.testing.assemble import build

    count = 0

    def make(source: str | Path, mode: str = "", **options: Any) -> Program:
        nonlocal count
        count += 1
        options.setdefault("name", f"guest{count}" if count > 1 else "guest")
        try:
            return build(source, tmp_path, mode, **options)
        except MissingCapability as error:
            missing, failed = str(error), ""
        except ImageError as error:
            missing, failed = "", str(error)
        if missing:
            _lacking(request.config, missing)
        pytest.fail(failed, pytrace=False)

    return make


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """--kvmpy-backends: tests of other backends are deselected, not skipped."""
    wanted = set(_wanted(config))
    out = [item for item in items if not _backends_of(item) <= wanted]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in set(out)]


def _backends_of(item: pytest.Item) -> set[str]:
    """Those that a test cannot do without: of soft_machine and kvm_machine, and the parameter that the fixture `machine` gave it."""
    found = {name for name in BACKENDS if f"{name}_machine" in getattr(item, "fixturenames", ())}
    name = getattr(item, "callspec", None) and item.callspec.params.get("machine")  # type: ignore[attr-defined]
    return found | {name} if name in BACKENDS else found


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Adds to the test, before its report is made, what its machines have to say: after the test, or a fixture that failed."""
    failed = call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception)
    if failed:
        _hide_own_frames(item, call)
    if call.when != "call" and not (call.when == "setup" and failed):
        return
    machines = item.stash.get(_MACHINES, [])
    for number, one in enumerate(machines, 1):
        which = f" {number}" if len(machines) > 1 else ""
        _add_properties(item, one, which)
        _add_sections(item, call.when, one, which, failed)


def _hide_own_frames(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Of an error that kvmpy reports (a wrong argument, say) the test's lines are shown, not those of kvmpy that noticed."""
    assert call.excinfo is not None
    if item.config.getoption("fulltrace") or not any(kind.__module__ == "kvmpy.errors" for kind in type(call.excinfo.value).__mro__):
        return
    last, at = None, call.excinfo.tb
    while at is not None:
        if PACKAGE not in Path(at.tb_frame.f_code.co_filename).parents:
            last = at
        at = at.tb_next  # type: ignore[assignment]
    if last is not None:
        last.tb_next = None


def _add_properties(item: pytest.Item, machine: GuestMachine, which: str) -> None:
    """What JUnit's XML shows as properties of the test, passed or failed."""
    from kvmpy.debug.textscreen import readable

    item.user_properties.append((f"kvmpy backend{which}", machine.vm.name))
    item.user_properties.append((f"kvmpy verdict{which}", str(machine.last)))
    if output := machine.output.text:
        item.user_properties.append((f"kvmpy serial{which}", output[-MOST_OUTPUT:]))
    if screen := readable(machine.memory):
        item.user_properties.append((f"kvmpy screen{which}", screen))
    if log := machine.guest_log:
        item.user_properties.append((f"kvmpy log{which}", "\n".join(log)[-MOST_OUTPUT:]))
    for one in machine.timestamps:
        item.user_properties.append((f"kvmpy time{which} {one.name}", one.time))


def _add_sections(item: pytest.Item, when: str, machine: GuestMachine, which: str, failed: bool) -> None:
    """Shown beside a failure. What is called stdout also goes into JUnit's system-out, where that is asked for."""
    from kvmpy.debug.textscreen import readable

    if output := machine.output.text:
        item.add_report_section(when, f"stdout of guest{which} (COM1)", output[-MOST_OUTPUT:])
    if screen := readable(machine.memory):
        item.add_report_section(when, f"stdout of guest{which} (screen)", screen)
    if log := machine.guest_log:
        item.add_report_section(when, f"stdout of guest{which} (log)", "\n".join(log)[-MOST_OUTPUT:])
    if failed:
        from kvmpy.testing.describe import describe

        try:
            text = describe(machine)
        except Exception as error:  # the test's own failure must be seen in any case
            text = f"the machine cannot be described: {error!r}"
        item.add_report_section(when, f"stdout of guest{which} (autopsy)", text)
