"""What pyelftools raises on files that are damaged or use DWARF in ways it does not know."""

from elftools.common.exceptions import DWARFError, ELFError

DAMAGE = (
    DWARFError, ELFError, ValueError, KeyError, IndexError, AssertionError, AttributeError, TypeError, NotImplementedError, ArithmeticError,
    RecursionError, MemoryError,
)  # fmt: skip
