"""Exit statuses of the kvmpy command (sysexits.h where it has one), and which verdict gives which."""

from __future__ import annotations

from kvmpy.verdicts import Crashed, GuestExit, Halted, Stopped, Verdict

OK = 0
USAGE = 64
BAD_IMAGE = 65
UNAVAILABLE = 69
CRASHED = 70
TIMEOUT = 124
INTERRUPTED = 130
BROKEN_PIPE = 141

TABLE = """\
exit status of kvmpy run:
  the guest's   low 8 bits of what it wrote to the debug-exit port 0xF4
  0    it powered off, halted for good, or reset under --no-reboot; --until saw its text; Ctrl-A x
  64   wrong usage, or a machine that cannot be built so
  65   the image, initrd or disk cannot be used
  69   the host lacks something, or refused it
  70   the guest crashed, or ended in another way than --until asked for
  124  --timeout
  130  Ctrl-C
  141  nobody reads standard output any more
"""


def of(verdict: Verdict, until: bool = False) -> int:
    """The exit status for a verdict. With `until`, a guest that halts without having said the text has failed."""
    if isinstance(verdict, GuestExit):
        return verdict.code & 0xFF
    if isinstance(verdict, Crashed):
        return CRASHED
    if isinstance(verdict, Stopped):
        return {"timeout": TIMEOUT, "interrupt": INTERRUPTED, "output": BROKEN_PIPE, "debug": CRASHED}.get(verdict.why, OK)
    if until and isinstance(verdict, Halted):
        return CRASHED
    return OK
