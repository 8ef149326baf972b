"""Which code of a guest has been executed: recorded by the software CPU without the guest's help, told by address, symbol and line."""

from kvmpy.coverage.data import Coverage, Page
from kvmpy.coverage.recorder import Recorder

__all__ = ["Coverage", "Page", "Recorder"]
