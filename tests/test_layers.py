"""Modules import only from layers below their own; imports under TYPE_CHECKING are for the type checker and do not count."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "kvmpy"

# The longest prefix decides. Layers of one number may import within their own package only; see TOGETHER.
LAYERS = {
    "errors": 0, "record": 0, "units": 0, "x86": 0, "verdicts": 0, "frames": 0, "threads": 0, "workers": 0.5,
    "native": 1,
    "exits": 2, "regs": 2, "backend": 2, "backends": 2, "cpuid": 2, "history": 2,
    "kvm": 3, "soft": 3,
    "iovector": 3.5, "doorbells": 3.5,
    "memory": 3.5, "bus": 3.5, "irq": 3.5, "loop": 3.5, "exit_handlers": 3.5, "clock": 3.5, "trace": 3.5, "watchdog": 3.5,
    "cpu": 3.5,
    "host": 4, "devices": 4, "boot": 4,
    "machine": 5, "inspection": 5, "board": 5, "ends": 5, "pc": 5, "micro": 5, "disks": 5, "nics": 5,
    "debug": 6, "coverage": 6, "faults": 6, "testing": 6, "spy": 6,
    "cli": 7, "__main__": 7.5,
}  # fmt: skip

# Modules of a layer that stand beside each other and may import one another.
TOGETHER = [
    {"errors", "record", "units", "x86", "verdicts", "frames"},
    {"exits", "regs", "backend", "backends", "cpuid", "history"},
    {"memory", "iovector", "doorbells", "bus", "irq", "loop", "exit_handlers", "clock", "trace", "watchdog", "cpu"},
    {"machine", "inspection", "board", "ends", "pc", "micro", "disks", "nics"},
    {"debug", "coverage", "faults", "testing", "spy"},
]

# 3b knows nothing of 3a, though its number is higher.
STRANGERS = [
    ({"memory", "iovector", "doorbells", "bus", "irq", "loop", "exit_handlers", "clock", "trace", "watchdog"}, {"kvm", "soft"}),
]

# The package itself gathers the public names, and the build hook stands outside.
FREE = {"", "_build"}


def _part(module: str) -> str:
    """Top-level part of a module of kvmpy: kvmpy.kvm.vm -> kvm."""
    return module.split(".")[1] if "." in module else ""


def _type_checking(node: ast.If) -> bool:
    test = node.test
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING")


class _Imports(ast.NodeVisitor):
    def __init__(self, module: str, is_package: bool) -> None:
        self.package = module if is_package else module.rpartition(".")[0]
        self.found: set[tuple[str, int]] = set()

    def visit_If(self, node: ast.If) -> None:
        for child in node.orelse if _type_checking(node) else [node.test, *node.body, *node.orelse]:
            self.visit(child)

    def visit_Import(self, node: ast.Import) -> None:
        self.found |= {(alias.name, node.lineno) for alias in node.names if alias.name.split(".")[0] == "kvmpy"}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            parts = self.package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1] + ([node.module] if node.module else []))
        if base == "kvmpy":
            for alias in node.names:
                path = ROOT / alias.name
                known = path.is_dir() or path.with_suffix(".py").exists() or alias.name == "_native"
                self.found.add((f"kvmpy.{alias.name}" if known else "kvmpy", node.lineno))
        elif base.startswith("kvmpy."):
            self.found.add((base, node.lineno))


def _modules() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if "__pycache__" not in path.parts)


def _name(path: Path) -> tuple[str, bool]:
    parts = ("kvmpy", *path.relative_to(ROOT).with_suffix("").parts)
    return (".".join(parts[:-1]), True) if parts[-1] == "__init__" else (".".join(parts), False)


def imports(path: Path) -> set[tuple[str, int]]:
    """(module, line) of every import of kvmpy in a file, inside functions too."""
    module, is_package = _name(path)
    visitor = _Imports(module, is_package)
    visitor.visit(ast.parse(path.read_text()))
    return visitor.found


def complaint(importer: str, imported: str) -> str:
    """Why a part may not import another; empty when it may."""
    if importer == imported or importer in FREE:
        return ""
    if imported == "_native":
        return "" if importer == "native" else "only kvmpy.native may import the compiled module"
    if imported in FREE:
        return f"kvmpy.{importer} imports the package itself"
    for ones, others in STRANGERS:
        if importer in ones and imported in others:
            return f"kvmpy.{importer} may not know kvmpy.{imported}"
    if any(importer in group and imported in group for group in TOGETHER):
        return ""
    mine, its = LAYERS[importer], LAYERS[imported]
    return "" if its < mine else f"kvmpy.{importer} (layer {mine}) imports kvmpy.{imported} (layer {its})"


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downwards(path: Path) -> None:
    importer = _part(_name(path)[0])
    assert importer in FREE or importer in LAYERS, f"kvmpy.{importer} has no layer: give it one in LAYERS"
    wrong = []
    for module, line in sorted(imports(path)):
        imported = _part(module)
        assert imported in FREE or imported in LAYERS or imported == "_native", f"kvmpy.{imported} has no layer: give it one in LAYERS"
        if text := complaint(importer, imported):
            wrong.append(f"{path.relative_to(ROOT.parent)}:{line}: {text}")
    assert not wrong, "\n".join(wrong)


def test_every_name_is_a_part() -> None:
    parts = {_part(_name(path)[0]) for path in _modules()}
    named = {*LAYERS, *(name for group in TOGETHER for name in group), *(name for pair in STRANGERS for group in pair for name in group)}
    assert named <= parts and parts <= {*named, *FREE}


def test_the_walk_sees_what_it_should() -> None:
    assert complaint("devices", "machine") and complaint("kvm", "soft") and complaint("loop", "kvm") and complaint("devices", "boot")
    assert complaint("exits", "_native") and not complaint("native", "_native")
    assert not complaint("machine", "kvm") and not complaint("loop", "bus") and not complaint("kvm", "kvm")
