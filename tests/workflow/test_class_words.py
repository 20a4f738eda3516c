"""Class words as people write them: cleaned, named in any script, and compared with the words that the base knows."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import objtune_cli
from objtune_cli.errors import InputError, UsageError
from objtune_cli.models import prompts
from objtune_cli.store import refs
from objtune_cli.store.refs import Ref
from objtune_cli.store.store import Store
from objtune_cli.toybox.world import CLASSES
from objtune_cli.workflow import class_words, job_file
from objtune_cli.workflow.class_synonyms import SYNONYMS

pytestmark = pytest.mark.usefixtures("fast_sampling", "cached_segmentation")

TOYBOX = ("dog", "cat", "car", "mug", "house", "fish")
FAST = """
[init-embedding]
steps = 1
[prior]
num_class_images = 1
num_predictions = 2
[train]
max_steps = 1
rank = 2
num_augmentations = 2
num_teacher_samples = 1
self_evaluation = false
"""


@pytest.fixture
def fast(project: Path) -> Path:
    """Settings for a run of one step; the mask picture of what stands on the left of a photo of 64 px."""
    (project / "objtune.toml").write_text(FAST)
    sides = np.zeros((2, 64, 64), np.uint8)
    sides[0, 10:50, 4:28], sides[1, 10:50, 36:60] = 255, 255
    for name, side in zip(("left", "right"), sides, strict=True):
        Image.fromarray(side).save(f"{name}.png")
    Image.fromarray(np.dstack([sides[0], sides[1], sides[0] // 2 + 60])).save("photo.png")
    return project


@pytest.fixture
def small(project: Path, dog_photo: Path) -> Path:
    """The example photo at a size at which a class word is quickly found."""
    path = project / "small.png"
    Image.open(dog_photo).resize((200, 200)).save(path)
    return path


@pytest.mark.parametrize(
    "typed",
    ["dog", "dog.", "a dog", "the dog", " dog ", "dog\u00a0", "my dog", "a\u00a0dog", "“a dog”", "'dog'", "The dog!", "\ufeffdog", "dog\u200b", "your  dog\n", "dog。"],
)  # fmt: skip
def test_what_stands_around_a_class_word_is_no_part_of_it(typed: str) -> None:
    assert class_words.pair_with_names([typed]) == [("dog", "dog")]


@pytest.mark.parametrize(
    ("typed", "word", "name"),
    [
        ("Dog", "Dog", "dog"), ("Coffee  mug", "Coffee mug", "coffee-mug"), ("St. Bernard", "St. Bernard", "st-bernard"), ("the", "the", "the"),
        ("Café", "Café", "cafe"), ("e\u0301clair", "éclair", "eclair"), ("Straße", "Straße", "strae"), ("dog 🐕", "dog 🐕", "dog"),
        ("犬", "犬", "quan"), ("собака", "собака", "sobaka"), ("מטבע\u200f", "מטבע", "mtv"), ("مزهرية", "مزهرية", "mzhryh"), ("🐕", "🐕", "dog2"),
        ("कुत्ता", "कुत्ता", "kutta"), ("หมา", "หมา", "hma"), ("강아지", "강아지", "gangaji"), ("\u0633\u06af\u200c\u0647\u0627", "\u0633\u06af\u200c\u0647\u0627", "sgh"),
        ("👨‍👩‍👧", "👨‍👩‍👧", "man-woman-girl"), ("❤️", "❤️", "heart"), ("кружка 2", "кружка 2", "kruzhka-2"), ("ＤＯＧ", "ＤＯＧ", "dog"),
    ],
)  # fmt: skip
def test_a_class_of_any_script_has_a_name(typed: str, word: str, name: str) -> None:
    assert class_words.pair_with_names([typed]) == [(word, name)]
    assert refs.name_of_class(word) == name
    assert class_words.pair_with_names([typed], ["rex"]) == [(word, "rex")]


@pytest.mark.parametrize("word", ["aux", "CON", "\ue000"])
def test_a_class_without_a_name_of_its_own_takes_the_one_that_is_given(word: str) -> None:
    with pytest.raises(UsageError, match="no name can be made|Windows reserves it") as caught:
        class_words.pair_with_names([word])
    assert "--name" in caught.value.hint
    assert class_words.pair_with_names([word], ["rex"]) == [(word, "rex")]
    assert refs.check_name(refs.name_of_class(word)).startswith("class-")


@pytest.mark.parametrize("word", ["", " \t", "!!!", "“”", "d\x1bg", "d\udcffg", "<dog>"])
def test_what_is_no_class_word_is_refused(word: str) -> None:
    with pytest.raises(UsageError) as caught:
        class_words.pair_with_names([word], ["rex"])
    assert "`--class dog`" in caught.value.hint


@pytest.mark.parametrize("text", ["dog, cat", "dog|cat", "dog;cat", "dog、cat", "a dog, cat."])
def test_a_list_is_no_class_word(text: str) -> None:
    with pytest.raises(UsageError, match="is a list") as caught:
        class_words.clean_class_word(text)
    assert "--class cat`" in caught.value.hint


def test_a_class_word_from_a_command_line_of_the_c_locale_is_read() -> None:
    assert class_words.clean_class_word("犬".encode().decode("ascii", "surrogateescape")) == "犬"


def test_two_classes_that_give_one_name_are_told() -> None:
    with pytest.raises(UsageError, match="Café and cafe would both be cafe") as caught:
        class_words.pair_with_names(["Café", "cafe"])
    assert "--name" in caught.value.hint
    assert class_words.pair_with_names(["Café", "cafe"], ["one"]) == [("Café", "one"), ("cafe", "cafe")]


def test_the_words_that_a_base_knows() -> None:
    found = {
        w: class_words.match_known(w, TOYBOX)
        for w in ("dog", "Dog", "DOGS", "houses", "fishes", "dog's", "perro", "red mug", "s", "")
    }
    assert list(found.values()) == ["dog", "dog", "dog", "house", "fish", "dog", None, None, None, None]
    assert (
        class_words.match_known("knives", ["knife"]) == "knife"
        and class_words.match_known("puppies", ["Puppy"]) == "Puppy"
    )
    assert (
        class_words.match_last_word("red mugs", TOYBOX) == "mug"
        and class_words.match_last_word("mug", TOYBOX) is None
        and class_words.match_last_word("dog toy", TOYBOX) is None
    )
    assert (
        class_words.sort_by_likeness("doog", TOYBOX)[0] == "dog"
        and class_words.sort_by_likeness("coffee mug", TOYBOX)[0] == "mug"
    )
    assert sorted(class_words.sort_by_likeness("犬", TOYBOX)) == sorted(TOYBOX)


@pytest.mark.parametrize(
    ("word", "nearest"),
    [("puppy", "dog"), ("Puppies", "dog"), ("golden retriever", "dog"), ("automobile", "car"), ("coffee cup", "mug"), ("Kitten", "cat")],
)  # fmt: skip
def test_the_nearest_known_word_is_one_of_the_same_meaning(word: str, nearest: str) -> None:
    assert class_words.sort_by_likeness(word, TOYBOX)[0] == nearest == class_words.find_synonym(word, TOYBOX)
    assert class_words.match_known(word, TOYBOX) is None  # it is named, not taken
    assert class_words.find_synonym(word, ["rocket"]) is None


def test_synonyms_are_of_one_class_each() -> None:
    every = [word for words in SYNONYMS.values() for word in words]
    assert len(set(every)) == len(every) and not set(every) & set(SYNONYMS)
    assert set(SYNONYMS) == set(CLASSES)


def test_a_synonym_is_in_the_hint(cli, small: Path) -> None:
    done = cli("segment", small, "--class", "puppy")
    assert done.code == 3 and "does not know the class 'puppy'; it knows dog," in done.err
    assert "hint: `--class dog`" in done.err


def test_a_class_word_is_read_as_it_stands_wherever_it_is_put_in() -> None:
    for word in (r"b\d", r"\g<1>", "犬", "🐕"):
        assert prompts.with_class_words("my <rex>, <rex>", {"rex": word}) == f"my {word}, a {word}"


@pytest.mark.parametrize("typed", ["Dog", "dog.", "a dog", "dogs"])
def test_spellings_of_a_known_class_find_it(cli, small: Path, typed: str) -> None:
    done = cli("segment", small, "--class", typed, "--name", "rex")
    assert (done.code, done.out) == (0, "mask/rex@1\n"), done.err
    record = Store.at(Path()).read_record(Ref("mask", "rex", 1))
    assert record.objects == {"rex": "dog"} and record.metrics["likeness"] > 0.7
    assert ("'dogs' is read as 'dog'" in done.err) == (typed == "dogs")
    assert cli("segment", small, "--class", "dog", "--name", "rex").out == "mask/rex@1\n"


def test_an_unknown_class_is_refused_before_anything_is_looked_for(
    cli, dog_photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from objtune_cli.segmentation import from_class_word

    monkeypatch.setattr(from_class_word, "segment_objects", lambda *_: pytest.fail("a mask was looked for"))
    for command in (("segment",), ("train", "--no-preview")):
        for word, hint in {"perro": "give one of these if it is one", "doog": "`--class dog`", "犬": "--box"}.items():
            done = cli(*command, dog_photo, "--class", word)
            assert (done.code, done.out) == (3, "")
            assert (
                f"the base toybox does not know the class {word!r}; it knows " in done.err
                and hint in done.err
                and "--box" in done.err
            )
    assert not Path("artifacts").exists()


def test_a_longer_class_that_ends_with_a_known_one_is_found(cli, small: Path) -> None:
    done = cli("segment", small, "--class", "small dog")
    assert (done.code, done.out) == (0, "mask/small-dog@1\n"), done.err
    assert "the class 'small dog' is read as 'dog', which the base toybox knows" in done.err
    record = Store.at(Path()).read_record(Ref("mask", "small-dog", 1))
    assert record.objects == {"small-dog": "dog"}


def test_a_class_of_another_script_trains_by_command_library_and_jobs(cli, fast, base: Path) -> None:
    line = ("--mask", "left.png", "--base", base, "--no-preview")
    done = cli("train", "photo.png", "--class", "犬", "--name", "inu", *line)
    assert (done.code, done.out) == (0, "adapter/inu@1\n"), done.err
    assert cli("train", "photo.png", "--class", "犬", "--name", "inu", *line).out == "adapter/inu@1\n"
    store = Store.at(Path())
    record = store.read_record(Ref("adapter", "inu", 1))
    assert record.objects == {"inu": "犬"} and record.inputs["prior.quan"]["ref"] == "prior/quan@1"

    file = Path("jobs.toml")
    file.write_text(
        f'[defaults]\nbase = "{base}"\n[[job]]\nphoto = "photo.png"\nclass = "aux"\nname = "aux1"\nmask = "aux1=left.png"\n',
        encoding="utf-8",
    )
    assert (
        cli(*job_file.read_jobs(file)[0].commands[0][:-2], "--no-preview", "--", "photo.png").out == "adapter/aux1@1\n"
    )
    assert store.list_names("prior") == ["class-aux", "quan"]

    ctx = objtune_cli.project(base=str(base))
    trained = objtune_cli.train(ctx, "photo.png", "犬の花瓶", mask="left.png", preview=False)
    assert str(trained.ref) == "adapter/quannohuaping@1"
    listed = cli("list", "adapter")
    assert "犬の花瓶" in listed.out


def test_classes_of_one_name_have_priors_of_their_own(cli, fast, base: Path) -> None:
    """Both are kept under prior/cafe; the adapter remembers the two."""
    masks = ("--mask", "one=left.png", "--mask", "two=right.png")
    done = cli(
        "train",
        "photo.png",
        "--class",
        "Café",
        "--class",
        "cafe",
        "--name",
        "one",
        "--name",
        "two",
        *masks,
        "--base",
        base,
        "--no-preview",
        "--force",
    )
    assert (done.code, done.out) == (0, "adapter/one-two@1\n"), done.err
    store = Store.at(Path())
    inputs = store.read_record(Ref("adapter", "one-two", 1)).inputs
    priors = sorted(given["ref"] for role, given in inputs.items() if role.startswith("prior."))
    assert priors == ["prior/cafe@1", "prior/cafe@2"]
    assert {store.read_record(Ref("prior", "cafe", n)).class_word for n in (1, 2)} == {"Café", "cafe"}


def test_a_name_that_is_of_another_class_already_is_told(cli, fast) -> None:
    """Both are quan in ASCII."""
    line = ("segment", "photo.png", "--mask", "left.png", "--class")
    assert cli(*line, "犬").out == "mask/quan@1\n"
    other = cli(*line, "圏")
    assert (
        other.out == "mask/quan@2\n"
        and "mask/quan@1 is of the class '犬', this is '圏'" in other.err
        and "--name" in other.err
    )
    assert "is of the class" not in cli(*line, "圏", "--force").err


@pytest.mark.parametrize(
    ("name", "example"),
    [("Rex", "`rex`"), ("犬", "`quan`"), ("my dog", "`my-dog`"), ("con.txt", "`my-con`"), ("aux", "`my-aux`")],
)
def test_a_name_that_cannot_be_used_has_one_like_it(name: str, example: str) -> None:
    with pytest.raises(UsageError, match="cannot be a name") as caught:
        class_words.pair_with_names(["dog"], [name])
    assert caught.value.hint.endswith(f"for example {example}")
    assert refs.check_name(example.strip("`"))


def test_a_class_that_no_sentence_has_room_for_is_refused(cli, fast, base: Path) -> None:
    done = cli(
        "train", "photo.png", "--class", "x" * 65, "--name", "x", "--mask", "left.png", "--base", base, "--no-preview"
    )
    assert done.code == 3 and "has 78 tokens; the base reads 77" in done.err and "shorter word" in done.err
    assert not Path("artifacts/embedding").exists()


def test_import_takes_a_class_of_any_script(project: Path, base: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):  # the class is no obstacle: the file is
        objtune_cli.import_files(objtune_cli.project(base=str(base)), ["none.safetensors"], "собака")
