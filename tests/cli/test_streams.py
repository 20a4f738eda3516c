"""Streams that are closed, full, or narrow, and a working folder that is gone: one line or none, and the work is kept."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from objtune_cli.cli import app, console, failures, runner, streams
from objtune_cli.cli.stdin import read_prompts
from objtune_cli.errors import UsageError
from tests.test_architecture import one_mask  # noqa: F401  (a fixture)

OBJTUNE = [sys.executable, "-P", "-m", "objtune_cli"]
CLOSED = -1
FULL = "/dev/full"


@dataclass(frozen=True)
class Ended:
    """How a process of objtune ended, and what it wrote."""

    code: int
    out: str
    err: str


Forked = Callable[..., Ended]


@pytest.fixture
def forked(one_mask: Path, tmp_path: Path) -> Forked:  # noqa: F811
    """`forked("list", out=CLOSED)`: `main` in a process whose descriptors are what is said; in a project with one mask."""

    def run(
        line: str,
        *,
        out: int | str = "",
        err: int | str = "",
        given: int | str = os.devnull,
        before: Callable[[], object] = lambda: None,
    ) -> Ended:
        files = [given, out or str(tmp_path / "stdout"), err or str(tmp_path / "stderr")]
        for file in files[1:]:
            if file not in (CLOSED, FULL):
                Path(file).unlink(missing_ok=True)
        pid = os.fork()
        if not pid:
            os._exit(_main(line.split(), files, before))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said = [Path(file).read_text() if file not in (CLOSED, FULL) else "" for file in files[1:]]
        return Ended(code, *said)

    return run


def _main(argv: list[str], files: list[int | str], before: Callable[[], object]) -> int:
    """Open the descriptors, run, and do what the interpreter's end does."""
    for number, (name, file) in enumerate(zip(("stdin", "stdout", "stderr"), files, strict=True)):
        os.close(number)
        setattr(sys, name, None)
        if not isinstance(file, int):
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
            os.dup2(handle, number)
            if handle != number:
                os.close(handle)
    before()
    sys.argv = ["objtune", *argv]
    try:
        app.main()
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else 0
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return 120
    return code


def test_closed_streams(forked: Forked, one_mask: Path) -> None:  # noqa: F811
    assert forked("init --project a", out=CLOSED).code == 0
    assert (one_mask / "a/objtune.toml").exists()
    assert forked("list", out=CLOSED, err=CLOSED, given=CLOSED).code == 0
    assert forked("list", err=CLOSED) == Ended(0, "mask/x@1\tdog\t\t\n", "")
    done = forked("show -", given=CLOSED)
    assert done.code == 2 and "there is no ref" in done.err


@pytest.mark.parametrize("line", ["list", "list --json", "--help", "--version", "show x", "bases"])
def test_full_stdout_is_7(line: str, forked: Forked) -> None:
    done = forked(line, out=FULL)
    assert done.code == 7 and done.err.startswith(
        "error: results cannot be written to stdout: No space left on device\nhint: "
    ), done.err
    assert done.err.count("\n") == 2


def test_full_streams_beside_other_trouble(forked: Forked) -> None:
    done = forked("show none --json", out=FULL)
    assert done.code == 4 and done.err.startswith("error: there is no mask/none\n")
    assert forked("verify", err=FULL).code == 0
    assert forked("show none", err=FULL).code == 4
    assert forked("show none", out=FULL, err=FULL).code == 4


def test_a_reader_of_stderr_that_leaves_stops_nothing(forked: Forked) -> None:
    def leave() -> None:
        ours, theirs = os.pipe()
        os.close(ours)
        os.dup2(theirs, 2)

    assert forked("verify", before=leave).code == 0
    assert forked("show none", before=leave).code == 4


def test_narrow_encodings_lose_no_result(one_mask: Path) -> None:  # noqa: F811
    (one_mask / "größe").mkdir()
    (one_mask / "artifacts").rename(one_mask / "größe/artifacts")
    line = [*OBJTUNE, "show", "mask/x", "--project", "größe"]
    done = subprocess.run(
        line, cwd=one_mask, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True
    )
    assert done.returncode == 0 and "gr\\xf6\\xdfe" in done.stdout, done.stderr


def test_the_working_folder_is_gone(forked: Forked, one_mask: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    def go() -> None:
        Path("gone").mkdir()
        os.chdir("gone")
        Path("../gone").rmdir()

    for line in (
        "list",
        "doctor --quick",
        "init",
        "show x --project .",
        "segment dog.jpg --class dog",
        "export x --project /tmp",
        "run jobs.toml",
    ):
        done = forked(line, before=go)
        assert done.code == 2 and done.err.startswith("error: the current folder does not exist any more\nhint: "), done
    assert "sd15\tnot here\t`objtune fetch --base sd15`" in forked("bases", before=go).out
    assert forked(f"list --project {one_mask}", before=go) == Ended(0, "mask/x@1\tdog\t\t\n", "")


def test_descriptors_of_closed_streams_are_not_given_to_files(tmp_path: Path) -> None:
    script = "import sys; from objtune_cli.cli import streams; streams.prepare(); f = open(sys.argv[1], 'w'); print(f.fileno() > 2, file=f)"
    line = f'"{sys.executable}" -c "{script}" "$1" <&- >&- 2>&-; cat "$1"'
    assert (
        subprocess.run(["bash", "-c", line, "bash", str(tmp_path / "x")], capture_output=True, text=True).stdout
        == "True\n"
    )


def test_what_libraries_print_is_no_result(capfd: pytest.CaptureFixture[str]) -> None:
    """From Python while a command runs; and from C at any time, in a process of ours."""

    def chatty(run: runner.CommandRun) -> runner.CommandResult:
        print("[ERROR] of a library")
        console.print_lines(["result"])
        return runner.CommandResult(printed="nothing")

    given = {"project": None, "json": False, "quiet": True, "verbose": False, "events": None}
    assert runner._run("list", chatty, given, {}, []) == 0
    assert capfd.readouterr() == ("result\n", "[ERROR] of a library\n")
    script = "import os; from objtune_cli.cli import streams; streams.prepare(); os.write(1, b'from C'); print('result', flush=True)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("result\n", "from C")


@pytest.mark.parametrize(("text", "prompts"), [("\ufeffa <rex>\r\n\n b \n", ["a <rex>", "b"]), ("a", ["a"])])
def test_prompts_from_stdin_of_windows(text: str, prompts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert read_prompts(["-"]) == prompts
    monkeypatch.setattr("sys.stdin", io.StringIO("\ufeff\n"))
    with pytest.raises(UsageError):
        read_prompts(["-"])


@pytest.mark.parametrize(
    ("error", "words", "code"),
    [
        (PermissionError(13, "Permission denied", "/x"), "/x: Permission denied", 7), (OSError(24, "Too many open files"), "ulimit -n", 7),
        (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), "set TMPDIR", 7), (OSError(5, "Input/output error", "a"), "a: Input", 7),
        (FileNotFoundError(2, "No such file", "a"), "Traceback", 1), (ImportError("libcudart.so.12: cannot open", name="torch"), "torch cannot be loaded", 7),
        (ImportError("cannot import name", name="objtune_cli.x"), "Traceback", 1), (ValueError("x"), "Traceback", 1),
    ],
)  # fmt: skip
def test_what_the_system_refuses_is_one_line(
    error: Exception, words: str, code: int, cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: runner.CommandRun, **_: object) -> None:
        raise error

    monkeypatch.setattr(runner.CommandRun, "project", fail)
    done = cli("list")
    assert done.code == code and words in done.err
    assert ("Traceback" in done.err) == (code == 1)


def test_streams_of_tests_have_no_failure() -> None:
    assert streams.stdout_failure() is None and streams.stdout_descriptor() is None and failures.REFUSED
