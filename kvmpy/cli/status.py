"""Exit statuses of the kvmpy command (sysexits.h where it has one), and which verdict gives which."""

from __future__ import annotations

from kvmpy.verdicts import Crashed, GuestExit, Halted, Stopped, Verdict

OK = 0
USAGE = 64
BAD_IMAGE = 65
UNAVAILABLE = 69
CRASHED = 70
HALTED = 71
TRANSLATOR = 76
TIMEOUT = 124
INTERRUPTED = 130
BROKEN_PIPE = 141

COMMON = """\
kvmpy COMMAND --help tells more of each.

exit status of every command (run, trace and spy have more):
  0    done
  64   wrong usage
  65   a file that was named cannot be used
  69   the host lacks something, or refused it
  130  Ctrl-C
  141  nobody reads standard output any more
"""

TABLE = """\
exit status of kvmpy run:
  the guest's   low 8 bits of what it wrote to the debug-exit port 0xF4
  0    it powered off, or reset under --no-reboot; --until saw its text; Ctrl-A x
  64   wrong usage, or a machine that cannot be built so
  65   the image, initrd or disk cannot be used
  69   the host lacks something, or refused it
  70   the guest crashed
  71   the guest halted for good, without saying how it ended
  76   --verify-translator: translated code did something else than the interpreter
  124  --timeout
  130  Ctrl-C
  141  nobody reads standard output any more
"""


def of(verdict: Verdict) -> int:
    """The exit status for a verdict. Halting is no success: a kernel that panics does it too."""
    if isinstance(verdict, GuestExit):
        return verdict.code & 0xFF
    if isinstance(verdict, Crashed):
        return CRASHED
    if isinstance(verdict, Stopped):
        return {"timeout": TIMEOUT, "interrupt": INTERRUPTED, "debug": CRASHED}.get(verdict.why, OK)
    return HALTED if isinstance(verdict, Halted) else OK
