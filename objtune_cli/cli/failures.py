"""What an exception means: an error of ours with its exit code, what the system refused, or a bug."""

import errno

from objtune_cli.cli import streams
from objtune_cli.errors import ObjtuneError, ResourceError

OUT_OF_MEMORY = (
    "use `--set train.gradient_checkpointing=on`, `--set train.batch_size=1`, `--precision bf16`, `--set train.quantize_base=4bit`, or another `--device`; "
    "`objtune train --dry-run` measures what a run needs"
)
FINISHED = "finished work is kept: run the same command with stdout on a disk that has space"
REFUSED = {
    errno.ENOSPC: "free some space and run the same command again", errno.EDQUOT: "free some space and run the same command again",
    errno.EROFS: "its disk is read-only; use another folder", errno.EACCES: "check its owner and mode", errno.EPERM: "check its owner and mode",
    errno.EMFILE: "close other files, or raise the limit: `ulimit -n 4096`", errno.ENFILE: "close other programs: the system has too many open files",
    errno.EIO: "check the disk, or the network to it", errno.ENAMETOOLONG: "use a shorter path", errno.ENOMEM: "close other programs: there is no memory left",
    errno.ETIMEDOUT: "check the network", getattr(errno, "ESTALE", -1): "the folder was replaced on its server; enter it again with `cd`",
    errno.ELOOP: "a link leads to itself; remove it", errno.ENOTDIR: "a file lies where a folder is needed",
    errno.EAGAIN: "the system is busy; try again",
}  # fmt: skip
"""What to do where the system refused a file, by its number of the error."""
REPORT = "this is a bug in objtune; please report it with the lines above"


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether memory ran out, of the machine or of a device."""
    return isinstance(exc, MemoryError) or (
        not isinstance(exc, ObjtuneError | OSError) and "out of memory" in str(exc).lower()
    )


def is_bug(error: ObjtuneError) -> bool:
    """Whether the error stands for an exception that nobody expected."""
    return error.hint == REPORT


def explain(exc: Exception) -> ObjtuneError:
    """The error that an exception means. Anything that is no error of ours and not the system's is a bug."""
    if isinstance(exc, ObjtuneError):
        return exc
    if isinstance(exc, OSError):
        return _explain_os_error(exc)
    if isinstance(exc, ImportError) and (exc.name or "objtune_cli").partition(".")[0] != "objtune_cli":
        return _import_failure(exc)
    return ResourceError("out of memory", OUT_OF_MEMORY) if is_out_of_memory(exc) else _bug(exc)


def _bug(exc: Exception) -> ObjtuneError:
    return ObjtuneError(f"{type(exc).__name__}: {exc}", REPORT)


def _explain_os_error(exc: OSError) -> ObjtuneError:
    """What the system refused: stdout is full, or a file that no other place expected to fail."""
    failure = streams.stdout_failure()
    if failure is not None:
        return ResourceError(f"results cannot be written to stdout: {failure.strerror}", FINISHED)
    if "usable temporary directory" in str(exc):
        return ResourceError("there is no folder for temporary files", "set TMPDIR to a folder that can be written")
    if exc.errno not in REFUSED:
        return _bug(exc)
    where = f"{exc.filename}: " if exc.filename else ""
    return ResourceError(f"{where}{exc.strerror}", REFUSED[exc.errno])


def _import_failure(exc: ImportError) -> ObjtuneError:
    """A package that is broken or not there."""
    name = (exc.name or "").partition(".")[0]
    return ResourceError(
        f"{name} cannot be loaded: {str(exc).splitlines()[0][:200]}",
        "`objtune doctor` names what is missing; `pip install --force-reinstall objtune` installs it",
    )
