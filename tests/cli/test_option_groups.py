"""Options and the argument they stand behind."""

import pytest

from objtune_cli.cli.option_groups import split_at_arguments

VALUED = {"--class", "-c", "--point", "--set"}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("", [("", [])]),
        ("a.jpg --class dog b.jpg -c mug", [("", []), ("a.jpg", ["--class", "dog"]), ("b.jpg", ["-c", "mug"])]),
        ("--class dog a.jpg", [("", ["--class", "dog"]), ("a.jpg", [])]),
        (
            "a.jpg --class=dog --quiet b.jpg -cmug",
            [("", []), ("a.jpg", ["--class=dog", "--quiet"]), ("b.jpg", ["-cmug"])],
        ),
        ("a.jpg --point -3,4 - --set", [("", []), ("a.jpg", ["--point", "-3,4"]), ("-", ["--set", ""])]),
        ("a.jpg -- --class b.jpg", [("", []), ("a.jpg", []), ("--class", []), ("b.jpg", [])]),
    ],
)
def test_words_are_split_at_arguments(line: str, found: list[tuple[str, list[str]]]) -> None:
    assert split_at_arguments(line.split(), VALUED) == found
