"""Every error a user can meet, with its exit code. Anything else is a bug and keeps its traceback."""


class ObjtuneError(Exception):
    """Shown as `error: message` and `hint: hint`, never with a traceback.

    The message names what was given; the hint says what to do, commands in backticks.
    """

    code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ObjtuneError):
    """Wrong option, argument or setting."""

    code = 2


class InputError(ObjtuneError):
    """Unusable photo, mask, prompt or imported file."""

    code = 3


class MissingError(ObjtuneError):
    """An artifact that is not there, or a name that fits several."""

    code = 4


class DamagedError(ObjtuneError):
    """A file of the store that is not what it was when it was written."""

    code = 5


class IncompatibleError(ObjtuneError):
    """A newer schema, another base, another kind."""

    code = 6


class ResourceError(ObjtuneError):
    """Disk, memory, device, weights or an optional package are not available."""

    code = 7


class BusyError(ObjtuneError):
    """Somebody else is at it; the same command works later."""

    code = 8


class GateError(ObjtuneError):
    """A result that is not good enough to go on with; nothing was published."""

    code = 9


class NonFiniteError(GateError):
    """Something computed NaN or infinite values; nothing was published.

    Attributes:
        of_base: Whether the base itself is at fault, whatever was learned on it.
    """

    def __init__(self, message: str, hint: str = "", *, of_base: bool = True) -> None:
        super().__init__(message, hint)
        self.of_base = of_base


class Stopped(ObjtuneError):
    """A signal ended the work; its state is saved."""

    def __init__(self, signum: int, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.code = 128 + signum
