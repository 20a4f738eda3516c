"""What stops work: INT, TERM and HUP, of which the first asks it to save and stop and the second ends it at once; and a time limit."""

import math
import os
import signal
import time
from types import FrameType

HANDLED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


TIME_LIMIT = 14
"""What a time limit stops work with: the number of ALRM."""


class StopFlag:
    """Which signal has come, 0 for none; and when the time is up."""

    def __init__(self) -> None:
        self.signum = 0
        self.until = math.inf

    def stop_signal(self) -> int:
        """The signal that asks the work to stop, 0 for none."""
        return self.signum or (TIME_LIMIT if time.monotonic() >= self.until else 0)

    def install(self) -> None:
        """Take over the signals of this process, except those it was told to ignore (nohup)."""
        for signum in HANDLED:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, self._handle)

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if self.signum:
            os._exit(128 + signum)
        self.signum = signum
