"""Results as rows: the scale of the truth, differences over the same objects, and what contains no results."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from objtune_cli.bench import tables
from objtune_cli.bench.result_cache import Measurement, ResultCache
from objtune_cli.errors import InputError
from objtune_cli.evaluation.statistics import confidence_interval
from tests.conftest import REPOSITORY
from tests.support.fixtures import Notes

SHARES = st.floats(0, 1, allow_nan=False)


def _by_name(rows: list[dict]) -> dict[tuple[str, str], dict]:
    return {(row["method"], row["measure"]): row for row in rows}


def test_shares_are_on_the_scale_of_the_truths_over_all_objects() -> None:
    """The truth follows 1 and 1/2 of its prompts, 3/4 in all: a method with 3/8 has a half."""

    def held(**measures: float) -> dict:
        return {"scale": {"identity": (0.25, 0.75)}, "measures": measures}

    found = {
        "truth": [held(prompt=1.0, identity=1.0), held(prompt=0.5, identity=0.9)],
        "ours": [held(prompt=0.375, identity=0.5)] * 2,
    }
    rows = _by_name(tables.build_table(found))
    assert {k: row["mean"] for k, row in rows.items()} == {
        ("truth", "prompt"): 1, ("truth", "identity"): 0.95, ("ours", "prompt"): 0.5, ("ours", "identity"): 0.5,
        ("calibration floor", "identity"): 0.25, ("calibration ceiling", "identity"): 0.75, ("calibration ceiling", "prompt"): 0.75,
    }  # fmt: skip
    assert rows["ours", "prompt"]["n"] == rows["calibration ceiling", "prompt"]["n"] == 2


def test_a_truth_that_is_never_right_divides_nothing() -> None:
    held = {"scale": {}, "measures": {"all_present": 0.0}}
    rows = _by_name(tables.build_table({"truth": [held], "ours": [{"scale": {}, "measures": {"all_present": 0.5}}]}))
    assert rows["ours", "all_present"]["mean"] == 0.5


def _held(case: str, **found: float) -> dict:
    return {"case": case, "scale": {}, "measures": found}


@given(st.lists(st.tuples(SHARES, SHARES), min_size=2, max_size=12), st.randoms())
def test_differences_are_those_of_the_same_objects_in_whatever_order(
    pairs: list[tuple[float, float]], chance: random.Random
) -> None:
    """On the scale of the truth's shares; objects that only one of the two has are left out."""
    ours = [_held(str(i), prompt=a, seconds=1) for i, (a, _) in enumerate(pairs)] + [
        _held("ours alone", prompt=1, seconds=1)
    ]
    theirs = [_held(str(i), prompt=b, seconds=1) for i, (_, b) in enumerate(pairs)] + [
        _held("theirs alone", prompt=0, seconds=1)
    ]
    chance.shuffle(theirs)
    rows = _by_name(tables.build_table({"truth": [_held("0", prompt=0.5)], "objtune": ours, "theirs": theirs}))
    row = rows["objtune - theirs", "prompt"]
    assert (row["mean"], row["low"], row["high"]) == pytest.approx(
        confidence_interval([2 * (a - b) for a, b in pairs]), abs=1e-4
    ) and row["n"] == len(pairs)


def test_what_was_not_trained_and_what_no_object_shares_is_not_compared() -> None:
    ours = [_held("a", identity=0.9, seconds=1)]
    rows = tables.build_table(
        {"truth": [_held("a", identity=1.0)], "objtune": ours, "other": [_held("b", identity=0.5, seconds=1)]}
    )
    assert [row["method"] for row in rows if " - " in row["method"]] == []
    assert not any(
        " - " in row["method"] for row in tables.build_table({"truth": [_held("a")], "one": ours, "two": ours})
    )


def test_a_diverged_training_is_no_difference() -> None:
    rows = tables.build_table(
        {"truth": [_held("a")], "objtune": [_held("a", identity=0.9, seconds=1)], "other": [_held("a")]}
    )
    assert not any(" - " in row["method"] for row in rows)


def test_the_median_says_what_one_slow_run_does_not() -> None:
    rows = _by_name(
        tables.build_table({"truth": [_held("a")], "x": [_held(str(s), seconds=s) for s in (50, 60, 1500)]})
    )
    assert rows["x", "seconds_median"]["mean"] == 60 and rows["x", "seconds"]["mean"] > 500


def test_of_several_results_of_one_object_the_last_is_read(tmp_path: Path) -> None:
    """Files of several machines, one behind the other, may repeat an object."""
    lines = [{"method": "x", "key": "", **_held("a", identity=v)} for v in (0.1, 0.2)]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [row["measures"] for row in tables.read_results(tmp_path / "all.jsonl")["x"]] == [{"identity": 0.2}]


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "\n",
        "{",
        '{"method": "one"}',
        "[1]",
        "null",
        '{"method": "a", "case": "b", "key": "", "scale": 1, "measures": {}}',
    ],
)
def test_what_holds_no_results_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"x\.jsonl"):
        tables.read_results(tmp_path / "x.jsonl")


def test_results_without_the_truth_have_no_scale() -> None:
    with pytest.raises(InputError, match="truth"):
        tables.build_table({"objtune": [_held("a", identity=0.9)]})


def test_the_table_of_the_documentation_is_what_the_published_results_say() -> None:
    """Means of the methods and paired differences, to the digits that docs/experiments/benchmark.md gives."""
    rows = _by_name(tables.build_table(tables.read_results(REPOSITORY / "docs" / "results.jsonl")))
    page = (REPOSITORY / "docs" / "experiments" / "benchmark.md").read_text()
    text = page[page.index("## Tables") :]
    for name in (
        "objtune",
        "objtune+generate.subject_conditioning_start=0.9",
        "objtune+generate.subject_conditioning_start=1",
        "objtune+generate.prompt_guidance_scale=2.5+generate.autoguidance_scale=0.5+generate.subject_conditioning_start=1",
        "objtune+generate.prompt_guidance_scale=0+generate.subject_conditioning_start=1",
        "textual-inversion",
        "dreambooth-lora",
        "masked-lora",
        "break-a-scene",
        "custom-diffusion",
    ):
        cells = [
            rows[name, m] for m in ("identity", "prompt", "diversity", "background_leakage", "drift", "all_present")
        ]
        line = " | ".join(f"{c['mean']:.2f} ±{(c['high'] - c['low']) / 2:.2f}" for c in cells)
        assert f"| {name} | {line} |" in text, (name, line)
        if not name.startswith("objtune"):
            cells = [rows[f"objtune - {name}", m] for m in ("identity", "prompt", "drift")]
            line = " | ".join(f"{c['mean']:+.2f} ±{(c['high'] - c['low']) / 2:.2f}" for c in cells)
            assert f"| {name} | {line} |" in text, (name, line)


def test_results_of_earlier_versions_have_the_present_names(tmp_path: Path) -> None:
    row = {
        "method": "stranger",
        "key": "k",
        "case": "a",
        "scale": {},
        "measures": {"leak": 0.1, "twice": 0.2, "prompt": 1.0},
    }
    (tmp_path / "results.jsonl").write_text(json.dumps(row) + "\n")
    assert tables.read_results(tmp_path / "results.jsonl") == {
        "other-instance": [
            {
                "key": "k",
                "case": "a",
                "scale": {},
                "measures": {"background_leakage": 0.1, "duplicate_rate": 0.2, "prompt": 1.0},
            }
        ]
    }


def test_a_cached_result_under_a_former_name_is_not_measured_again(tmp_path: Path) -> None:
    former, present = (tmp_path / "results" / name / "dog-000.json" for name in ("stranger", "other-instance"))
    former.parent.mkdir(parents=True)
    former.write_text(json.dumps({"key": "k", "case": "dog-000", "measures": {"found": 1.0}}))
    former.with_suffix(".png").write_bytes(b"")
    cache = ResultCache(tmp_path, Notes(), 1)

    def measure() -> Measurement:
        raise AssertionError("it is measured")

    for _ in range(2):
        result = cache.get_or_measure("other-instance", "dog-000", "k", measure, dict)
        assert result["measures"] == {"detection_rate": 1.0}
        assert present.is_file() and present.with_suffix(".png").is_file() and not former.exists()
    with pytest.raises(AssertionError, match="it is measured"):
        cache.get_or_measure("other-instance", "dog-000", "another key", measure, dict)
