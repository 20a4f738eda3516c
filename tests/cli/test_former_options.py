"""Former option names: the command does the same and one note names today's option; help and completion leave them out."""

import pytest

from objtune_cli.cli import former_options


@pytest.mark.parametrize(
    ("command", "line", "today", "notes"),
    [
        ("segment", "a.jpg --class dog", "a.jpg --class dog", []),
        (
            "train",
            "a.jpg --which left --rough=dog=m.png",
            "a.jpg --select left --refine-mask=dog=m.png",
            ["the option --which is now --select", "the option --rough is now --refine-mask"],
        ),
        (
            "segment",
            "--not-point 1,2 a.jpg --not-point 3,4",
            "--negative-point 1,2 a.jpg --negative-point 3,4",
            ["the option --not-point is now --negative-point"],
        ),
        ("import", "a --word sks", "a --trigger sks", ["the option --word is now --trigger"]),
        ("export", "a --word sks", "a --word sks", []),
        ("train", "-- --which", "-- --which", []),
    ],
)
def test_former_names_are_replaced(command, line, today, notes):
    assert former_options.translate(command, line.split()) == (today.split(), notes)


def test_a_former_option_works_with_a_note(cli, dog_photo):
    common = ("segment", dog_photo, "--class", "dog", "--box", "0.1,0.1,0.9,0.9", "--json")
    first = cli(*common, "--negative-point", "0.01,0.01")
    again = cli(*common, "--not-point", "0.01,0.01")
    assert (first.code, again.code) == (0, 0), first.err + again.err
    assert '"reused": true' in again.out
    note = "the option --not-point is now --negative-point\n"
    assert note in again.err and note not in first.err


def test_help_leaves_former_names_out(cli):
    for command, renamed in former_options.RENAMED.items():
        shown = cli(command, "--help").out
        for former, today in renamed.items():
            assert today in shown and f"{former} " not in shown
