"""Former option names: the command does the same and one note names today's option; help and completion leave them out."""

import json
from pathlib import Path

import pytest

from objtune_cli.cli import former_options
from objtune_cli.cli.commands.bench import SUITES
from objtune_cli.errors import UsageError


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


@pytest.mark.parametrize(
    ("line", "today", "notes"),
    [
        ("--speed --quick", "speed --quick", ["bench --speed is now bench speed"]),
        (
            "--json --many 3 --prompts scene",
            "throughput 3 --json --prompts scene",
            ["bench --many is now bench throughput"],
        ),
        ("--photos=dir", "dreambooth dir", ["bench --photos is now bench dreambooth"]),
        ("--table f.jsonl", "show f.jsonl", ["bench --table is now bench show"]),
        ("--objects 3", "--objects 3", []),
    ],
)
def test_former_modes_are_subcommands(line, today, notes):
    assert former_options.translate_to_subcommand("bench", line.split()) == (today.split(), notes)


def test_two_former_modes_are_refused():
    with pytest.raises(UsageError, match="--speed and --masks are different benchmarks") as refused:
        former_options.translate_to_subcommand("bench", ["--speed", "--masks"])
    assert refused.value.hint == "choose one: `objtune bench speed` or `objtune bench masks`"


@pytest.fixture
def seen(monkeypatch):
    """What the benchmark of methods on objects was called with, instead of running it."""
    from objtune_cli.bench.suites import objects

    calls = []
    monkeypatch.setattr(
        objects,
        "run",
        lambda ctx, out, methods, config, reuse=None: calls.append((list(methods), config.seed, reuse)) or [],
    )
    return calls


@pytest.mark.parametrize(
    ("line", "notes"),
    [
        ("bench --methods objtune --seed 3 --reuse r.jsonl --json", ""),
        ("bench objects --methods objtune --seed 3 --reuse r.jsonl --json", ""),
        ("bench --json --seed 3 objects --methods objtune --reuse=r.jsonl", ""),
        ("--json bench --seed 3 --methods objtune --from r.jsonl", "the option --from is now --reuse\n"),
    ],
)
def test_bench_alone_is_the_suite_of_objects(line, notes, cli, seen):
    done = cli(*line.split())
    assert (done.code, done.err) == (0, notes)
    assert seen == [(["objtune"], 3, Path("r.jsonl"))]
    assert json.loads(done.out)["command"] == "bench"


def test_a_former_mode_prints_the_same_table(cli):
    published = Path(__file__).parents[2] / "docs" / "results.jsonl"
    today, former = cli("bench", "show", published), cli("bench", "--table", published)
    assert (today.code, former.code) == (0, 0) and former.out == today.out != ""
    assert (today.err, former.err) == ("", "bench --table is now bench show\n")


def test_a_subcommand_that_does_not_exist_is_wrong_usage(cli):
    done = cli("bench", "seed", "--json")
    assert done.code == 2 and "No such command 'seed'" in done.err and json.loads(done.out)["command"] == "bench"


def test_help_of_bench_lists_subcommands_and_no_former_option(cli):
    shown = cli("bench", "--help").out
    assert all(f"\n  {name} " in shown for name in SUITES)
    pages = [cli("bench", name, "--help").out for name in SUITES]
    former = (*former_options.SUBCOMMANDS["bench"], *former_options.RENAMED["bench"])
    assert not [option for option in former for page in [shown, *pages] if f"{option} " in page]
    assert "Usage: objtune bench objects" in cli("bench", "--seed", "1", "--help").out


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
        shown = cli(command, *(["objects"] if command == "bench" else []), "--help").out
        for former, today in renamed.items():
            assert today in shown and f"{former} " not in shown
