"""`objtune doctor`: what this machine and project have, what is missing, and a self-test."""

from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from objtune_cli import paths
from objtune_cli.cli import console
from objtune_cli.cli.runner import CommandResult, CommandRun
from objtune_cli.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from objtune_cli.doctor.checks import Check


def doctor(
    run: CommandRun,
    quick: Annotated[
        bool, typer.Option("--quick", help="Skip the checks of libraries and devices, which load torch.")
    ] = False,
    self_test: Annotated[
        bool,
        typer.Option(
            "--run",
            help="Self-test: train a few steps, generate, export, load the files in diffusers alone, and compare.",
        ),
    ] = False,
    photo: Annotated[
        Path | None,
        typer.Option("--photo", metavar="FILE", help="Photo of the self-test.", show_default="one of the package"),
    ] = None,
    class_word: Annotated[
        str | None, typer.Option("--class", metavar="WORD", help="What is in the photo.", show_default=False)
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            "--mask", metavar="FILE", help="Mask of the photo; else the segmenter finds the object.", show_default=False
        ),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", help="Training steps of the self-test.", min=1, max=1000)] = 20,
) -> CommandResult:
    if (photo or class_word or mask) and not self_test:
        raise UsageError("`--photo`, `--class` and `--mask` belong to the self-test", "add `--run`")
    if (photo is None) != (class_word is None) or (mask and not photo):
        raise UsageError(
            "the self-test's photo needs its class word, and a mask needs its photo",
            "for example `--photo mug.jpg --class mug`",
        )
    results = _run_checks(run, quick=quick, is_report=self_test)
    code = ResourceError.code if any(check.state == "bad" for check in results) else 0
    extra: dict[str, Any] = {"checks": [check.to_json() for check in results]}
    if self_test:
        extra["self_test"], failure = _run_self_test(run, photo, class_word or "", mask, steps)
        code = failure or code
    return CommandResult(printed="nothing", extra=extra, code=code)


def _run_checks(run: CommandRun, *, quick: bool, is_report: bool) -> "list[Check]":
    """Check and print.

    Args:
        is_report: Whether the output is for the authors of objtune, and contains no private paths.
    """
    from objtune_cli.doctor import checks

    base = run.options.get("base")
    results = checks.run_checks(run.project(), paths.to_model(base) if base else "")
    results += [] if quick else [checks.check_libraries(), *checks.check_devices()]
    if is_report:
        from objtune_cli.doctor.self_test_report import hide_private, private_folders

        private = private_folders(run.project().folder)
        results = [checks.Check(*(hide_private(text, private) for text in astuple(check))) for check in results]
    if not run.options["json"]:
        console.print_table(("what", "state", "", "remedy"), [(c.what, c.state, c.detail, c.remedy) for c in results])
        for check in results:
            if check.state == "bad":
                run.report.note(f"bad: {check.what}: {check.detail}")
    return results


def _run_self_test(
    run: CommandRun, photo: Path | None, class_word: str, mask: Path | None, steps: int
) -> tuple[dict[str, Any], int]:
    """Run the self-test and print its report; the report as JSON, and the exit code of its first failure."""
    from objtune_cli.doctor import self_test

    own = self_test.SelfTestPhoto("a photo of the user", photo, class_word, mask) if photo else None
    report = self_test.run(run.context(create=False), own, steps)
    if not run.options["json"]:
        console.print_table(("self-test", ""), report.to_pairs())
        console.print_table(("step", "state", "time", "memory", ""), report.to_rows())
    failed = next((step for step in report.steps if step.code), None)
    if failed is not None:
        run.report.note(f"self-test: {failed.name} failed: {failed.message}")
    return report.to_json(), report.code
