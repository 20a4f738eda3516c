"""Choices, wildcards, styles, negative prompts by base and files of prompts: what a command draws, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from objtune_cli.errors import InputError, UsageError
from objtune_cli.store.refs import Ref
from objtune_cli.store.store import Store
from objtune_cli.workflow import prompt_choices
from objtune_cli.workflow.prompt_choices import choose, has_choices

pytestmark = pytest.mark.usefixtures("fast_sampling")

ANIMALS = "# animals\ncat\n\n  big {red|blue} dog  \n__bird__\n"


@pytest.fixture
def wildcards(tmp_path: Path) -> Path:
    folder = tmp_path / "wildcards"
    (folder / "more").mkdir(parents=True)
    (folder / "animal.txt").write_text(ANIMALS)
    (folder / "bird.txt").write_text("owl\n")
    (folder / "more" / "place_names.txt").write_text("beach\n")
    (folder / "loop.txt").write_text("a __loop__\n")
    (folder / "empty.txt").write_text("# nothing\n")
    return folder


def test_the_seed_chooses_and_the_same_seed_chooses_the_same(wildcards: Path) -> None:
    text = "a __animal__ {on|at|in} the __more/place_names__"
    chosen = [choose(text, wildcards, seed) for seed in range(90)]
    assert chosen == [choose(text, wildcards, seed) for seed in range(90)]
    animals = {each.removeprefix("a ").split(" on the ")[0] for each in chosen if " on the " in each}
    assert animals == {"cat", "big red dog", "big blue dog", "owl"} and all(
        each.endswith("the beach") for each in chosen
    )
    assert "".join(choose("{a|b|c|d}", None, seed) for seed in range(4)) == "bdab"  # on every machine


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("{a|b}", {"a", "b"}),
        ("x {a|{b|c}} y", {"x a y", "x b y", "x c y"}),
        ("{|very }old", {"old", "very old"}),
        ("{a}", {"{a}"}),
        ("{a|b", {"{a|b"}),
        ("a|b}", {"a|b}"}),
        ("{2$$a|b} {0.5::a|b}", {"{2$$a|b} {0.5::a|b}"}),
        ("{prompt} __none__ ___ __", {"{prompt} __none__ ___ __"}),
    ],
)
def test_alternatives(text: str, options: set[str]) -> None:
    assert {choose(text, None, seed) for seed in range(60)} == options
    assert has_choices(text, None) == (options != {text})


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet="ab{|}_ $:", max_size=40), seed=st.integers(0, 2**64 - 1))
def test_choices_never_fail_and_leave_none(text: str, seed: int) -> None:
    chosen = choose(text, None, seed)
    assert len(chosen) <= len(text) and (chosen != text or not has_choices(text, None))
    assert not has_choices(chosen, None) or "{" in chosen


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("a __animl__", "there is no wildcard __animl__ in", "did you mean __animal__? known: __animal__, __bird__"),
        ("a __more/../animal__", "there is no wildcard __more/../animal__", "known: "),
        ("a __empty__", "has no lines", "one text a line"),
        ("a __loop__", "name each other without end", "remove a wildcard"),
    ],
)
def test_wildcards_that_cannot_be_read(text: str, said: str, hint: str, wildcards: Path) -> None:
    with pytest.raises(InputError, match=said.replace(".", r"\.")) as caught:
        choose(text, wildcards, 0)
    assert hint in caught.value.hint
    with pytest.raises(UsageError, match="is no folder of wildcards"):
        prompt_choices.check_folder(wildcards / "animal.txt")


@pytest.fixture
def drawn(cli, base: Path):
    Path("objtune.toml").write_text(
        f'base = "{base}"\ngenerate.num_images = 1\ngenerate.num_inference_steps = 1\n'
        '[styles.watercolor]\nprompt = "{prompt}, watercolor"\nnegative = "photo"\n'
        '[styles.film]\nprompt = "grain"\n[negative_prompts]\nsd1 = "blurry"\nother = "x"\n'
    )
    return cli


def config_of(version: int) -> dict:
    return dict(Store.at(Path()).read_record(Ref("scene", "scene", version)).config)


def test_every_image_makes_its_own_choice(drawn, wildcards: Path) -> None:
    shutil.copytree(wildcards, "wildcards")
    done = drawn("generate", "a __animal__ {on|at} sea", "-n", 4, "--seed", 3, "--wildcards", "wildcards", "--json")
    assert done.code == 0, done.err
    prompts = json.loads(done.out)["prompts"]
    expected = [choose("a __animal__ {on|at} sea", wildcards, seed) for seed in range(3, 7)]
    assert [each["prompt"] for each in prompts] == expected and [each["seed"] for each in prompts] == [3, 4, 5, 6]
    assert config_of(1)["prompt"] == expected[0] and config_of(4)["num_images"] == 1 and len(set(expected)) > 1
    alone = drawn("generate", "a __animal__ {on|at} sea", "--seed", 5, "--set", "generate.wildcards=wildcards")
    assert alone.code == 0 and alone.out == "artifacts/scene/scene/v003/001.png\n", alone.err
    unread = drawn("generate", "a __animal__ on {red|blue} sea")
    assert unread.code == 0 and "drawn as plain text, not as another tool's syntax: __animal__" in unread.err
    assert "{red|blue}" not in unread.err
    plain = drawn("generate", "a {red|blue} sea", "--set", "generate.prompt_syntax=plain")
    assert plain.code == 0 and config_of(6)["prompt"] == "a {red|blue} sea"
    missing = drawn("generate", "a __animal__", "--wildcards", "nowhere")
    assert missing.code == 2 and "nowhere is no folder of wildcards" in missing.err
    wrong = drawn("generate", "a __animl__", "--wildcards", "wildcards")
    assert wrong.code == 3 and "did you mean __animal__?" in wrong.err


def test_styles_are_around_prompts_and_negative_prompts(drawn) -> None:
    done = drawn("generate", "a dog", "--style", "watercolor", "--style", "film", "--negative", "cat", "--json")
    assert done.code == 0, done.err
    assert config_of(1)["prompt"] == "a dog, watercolor, grain" and config_of(1)["negative_prompt"] == "cat, photo"
    (said,) = json.loads(done.out)["prompts"]
    assert said == {"ref": "scene/scene@1", "prompt": "a dog, watercolor, grain", "negative_prompt": "cat, photo", "syntax": "plain", "seed": 0}  # fmt: skip
    parameters = Image.open("artifacts/scene/scene/v001/001.png").text["parameters"]
    assert parameters.startswith("a dog, watercolor, grain\nNegative prompt: cat, photo\n")
    same = drawn("generate", "a dog, watercolor, grain", "--negative", "cat, photo")
    assert same.code == 0 and "scene/scene@1 is up to date" in same.err
    unknown = drawn("generate", "a dog", "--style", "watercolour")
    assert unknown.code == 2 and "there is no style watercolour" in unknown.err
    assert "did you mean watercolor? styles: film, watercolor" in unknown.err


def test_a_base_has_its_own_negative_prompt(drawn, base: Path) -> None:
    for negative, expected in ((None, "blurry"), ("auto", "blurry"), ("", ""), ("cat", "cat")):
        options = [] if negative is None else ["--negative", negative]
        done = drawn("generate", "a dog", *options, "--json")
        assert done.code == 0 and json.loads(done.out)["prompts"][0]["negative_prompt"] == expected, done.err
    toml = Path("objtune.toml")
    toml.write_text(toml.read_text() + f'{base.name} = "ugly"\n')
    done = drawn("generate", "a dog", "--json")
    assert json.loads(done.out)["prompts"][0]["negative_prompt"] == "ugly"
    toml.write_text(f'base = "{base}"\ngenerate.num_images = 1\ngenerate.num_inference_steps = 1\n')
    done = drawn("generate", "a dog", "--json")
    assert json.loads(done.out)["prompts"][0]["negative_prompt"] == ""


def test_prompts_from_a_file(drawn) -> None:
    Path("prompts.txt").write_bytes("\ufeffa dog\r\n\r\n a cat \n".encode("utf-16"))
    done = drawn("generate", "--prompts", "prompts.txt", "a car", "--json")
    assert done.code == 0 and [each["prompt"] for each in json.loads(done.out)["prompts"]] == [
        "a car",
        "a dog",
        "a cat",
    ]
    for name, data, code, said in (
        ("empty.txt", b"\n \n", 2, "there is no prompt in empty.txt"),
        ("nosuch.txt", None, 3, "nosuch.txt cannot be read: No such file"),
        ("bad.txt", b"a dog\n\x1b[31m\n", 3, "line 2 of bad.txt contains the control character"),
    ):
        if data is not None:
            Path(name).write_bytes(data)
        refused = drawn("generate", "--prompts", name)
        assert refused.code == code and said in refused.err, refused.err
    nothing = drawn("generate")
    assert nothing.code == 2 and "there is no prompt" in nothing.err


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("styles = 3", "styles in objtune.toml is 3"),
        ("[styles]\nx = 'y'", "the style x in objtune.toml is 'y'"),
        ("[styles.x]\ncolour = 'y'", r"unknown key colour in \[styles.x\]"),
        ("[styles.x]\nprompt = 3", r"prompt in \[styles.x\] of objtune.toml is 3"),
        ("[styles.'a,b']\nprompt = 'c'", "has a comma in its name"),
        ("negative_prompts = 'x'", "negative_prompts in objtune.toml is no text"),
        ("[negative_prompts]\nsd1 = 3", r"sd1 in \[negative_prompts\] of objtune.toml is no text"),
    ],
)
def test_tables_of_another_form_are_refused(toml: str, said: str, tmp_path: Path) -> None:
    from objtune_cli.config.resolve import Settings

    (tmp_path / "objtune.toml").write_text(toml)
    with pytest.raises(UsageError, match=said):
        Settings(tmp_path / "objtune.toml", {})


def test_jobs_have_styles_wildcards_and_files_of_prompts(drawn, dog_photo: Path, tmp_path: Path) -> None:
    from objtune_cli.workflow.job_file import check_prompts, read_jobs

    folder = tmp_path / "jobs"
    folder.mkdir()
    (folder / "prompts.txt").write_text("a <rex> {on|at} sea\n<rex> <lora:film:1>\n")
    (folder / "jobs.toml").write_text(
        f'[[job]]\nphoto = "{dog_photo}"\nclass = "dog"\nname = "rex"\nprompts = "(<rex>:1.2)"\nprompts_file = "prompts.txt"\n'
        'style = ["watercolor"]\nwildcards = "wild"\nnegative = "blurry"\n'
    )
    (job,) = read_jobs(folder / "jobs.toml")
    assert job.commands[1] == (
        "generate", "--negative=blurry", "--style=watercolor", f"--wildcards={folder / 'wild'}", "--",
        "(<rex>:1.2)", "a <rex> {on|at} sea", "<rex> <lora:film:1>",
    )  # fmt: skip
    check_prompts([job], Store.at(tmp_path))
    (folder / "prompts.txt").write_text("a (<rex>\n")
    (job,) = read_jobs(folder / "jobs.toml")
    with pytest.raises(
        InputError, match=r"a prompt of the job rex is wrong at character 3, `\(<rex>`: `\(` is not closed"
    ):
        check_prompts([job], Store.at(tmp_path))
    check_prompts([job], Store.at(tmp_path), "plain")
