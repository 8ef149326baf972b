"""One Python target under atheris (libFuzzer): python -m tests.fuzz.cover TARGET [libFuzzer's options, directories, files]."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["kvmpy"], enable_loader_override=False):  # type: ignore[attr-defined]
    from tests.fuzz import targets

    RUN = targets.find(sys.argv.pop(1))

if __name__ == "__main__":
    atheris.Setup(sys.argv, RUN)
    atheris.Fuzz()
