"""`python -m kvmpy`: the kvmpy command by the interpreter that has the package, where the script is not on the path."""

from __future__ import annotations

import sys

from kvmpy.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
