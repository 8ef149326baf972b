"""The benchmark of what a trace costs that nobody asks for: it must take out what is there for the trace, and nothing else."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import kvmpy
from tests.bench.untraced import ASKING, MODULES, taken_out


@pytest.mark.parametrize("name", MODULES)
def test_what_asks_for_a_listener_is_found(name: str) -> None:
    source = Path(kvmpy.__file__).parent.joinpath(f"{name.partition('.')[2]}.py").read_text("utf-8")
    tree, count = taken_out(source)
    compile(tree, name, "exec")
    assert count >= 2
    before, after = (sum(isinstance(node, ast.If) for node in ast.walk(one)) for one in (ast.parse(source), tree))
    assert before == count + after
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.If) and ASKING & _names(node.test)]


def _names(test: ast.expr) -> set[str]:
    return {getattr(part, "attr", "") for part in ast.walk(test)}
