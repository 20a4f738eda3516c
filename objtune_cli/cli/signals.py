"""INT, TERM and HUP: the first asks the work to save and stop, the second ends it at once."""

import os
import signal
from types import FrameType

HANDLED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stop:
    """Which signal has come, 0 for none."""

    def __init__(self) -> None:
        self.signum = 0

    def install(self) -> None:
        """Take over the signals of this process, except those it was told to ignore (nohup)."""
        for signum in HANDLED:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, self._handle)

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if self.signum:
            os._exit(128 + signum)
        self.signum = signum
