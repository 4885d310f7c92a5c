"""Three Linux calls Python 3.11 has no name for: prctl for subreapers and parent death, and a boot-time timer.

Standard library only: used by the guardian.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_TFD_TIMER_ABSTIME: Final = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


def _checked(result: int) -> int:
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
    return result


def become_subreaper() -> None:
    """Make orphaned descendants children of this process rather than of init. Raises OSError."""
    _checked(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def die_with_parent() -> None:
    """Have this process killed when the thread that forked it dies; kept over exec. Raises OSError.

    The caller must check its parent afterwards: one that died before the call does not count.
    """
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0))


class BoottimeTimer:
    """A descriptor that becomes readable at an instant of CLOCK_BOOTTIME, which goes on while the machine sleeps."""

    def __init__(self) -> None:
        self.fd: Final = _checked(_libc.timerfd_create(time.CLOCK_BOOTTIME, os.O_NONBLOCK | os.O_CLOEXEC))

    def set(self, boottime_ns: int) -> None:
        """Fire at `boottime_ns` (at once when that has passed), instead of any instant set before."""
        # An all-zero value would disarm the timer.
        seconds, nanoseconds = divmod(max(boottime_ns, 1), 1_000_000_000)
        spec = _Itimerspec(_Timespec(0, 0), _Timespec(seconds, nanoseconds))
        _checked(_libc.timerfd_settime(self.fd, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None))

    def clear(self) -> None:
        """Forget that it fired."""
        try:
            os.read(self.fd, 8)
        except BlockingIOError:
            pass  # it was set anew between poll and here
