"""`run`: what a jobs file may say, and that one failing photo stops no other."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from objtune_cli.errors import InputError
from objtune_cli.workflow import job_file, job_results
from tests.support.json_schema import check
from tests.support.quick_runs import FAST_SETTINGS, NO_GATE_SETTINGS

pytestmark = pytest.mark.usefixtures("fast_sampling", "cached_segmentation")

SETTINGS = [*FAST_SETTINGS, *NO_GATE_SETTINGS, "train.max_steps=4", "train.rank=2", "train.self_evaluation=false"]


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "jobs.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_job_is_the_commands_that_a_person_would_type(tmp_path):
    file = written(
        tmp_path,
        """
        [defaults]
        base = "toybox"
        set = ["train.learning_rate=1e-3", "train.rank=2"]
        [[job]]
        photo = "photos/rex.jpg"
        class = "dog"
        name = "rex"
        mask = "rex.png"
        prompts = ["a photo of <rex>", "-"]
        n = 2
        seed = 7
        max_time = "45m"
        [[job]]
        photo = "/abs/pair.jpg"
        class = ["dog", "coffee mug"]
        box = ["dog=1,2,3,4"]
        refine_mask = "coffee-mug=masks/mug.png"
        set = "train.rank=4"
        """,
    )
    one, two = job_file.read_jobs(file)
    model = ("--base=toybox", "--set=train.learning_rate=1e-3", "--set=train.rank=2")
    assert one.commands == (
        ("train", "--class=dog", "--name=rex", f"--mask={tmp_path / 'rex.png'}", *model, "--seed=7", "--max-time=45m", "--",
         str(tmp_path / "photos/rex.jpg")),
        ("generate", *model, "--seed=7", "-n", "2", "--", "a photo of <rex>", "-"),
    )  # fmt: skip
    assert (two.names, two.classes, len(two.commands)) == (("dog", "coffee-mug"), ("dog", "coffee mug"), 1)
    assert (
        two.commands[0][-1] == "/abs/pair.jpg"
        and f"--refine-mask=coffee-mug={tmp_path / 'masks/mug.png'}" in two.commands[0]
    )
    assert "--set=train.rank=4" in two.commands[0] and "--set=train.learning_rate=1e-3" not in two.commands[0]


def test_a_job_draws_with_every_option_of_its_commands(tmp_path):
    file = written(
        tmp_path,
        """
        [[job]]
        photo = "cup.jpg"
        class = "mug"
        name = "cup"
        prompts = "a photo of <cup>"
        seeds = [1, 2]
        n = 8
        best = 2
        grid = ["strength=0.6,1"]
        size = "832x1216"
        guidance = 5.5
        strength = 0.8
        scheduler = "euler_a"
        from = "old.png"
        change = 0.4
        out = "images"
        format = "webp"
        no_metadata = true
        sheet = "sheet.png"
        base = "sd15"
        [[job.place]]
        prompt = "<cup>"
        into = "table.jpg"
        at = [0.5, 0.4, 0.9, 0.9]
        change = 0.9
        seed = 3
        base = "./fill"
        strict = true
        steps = 20
        [[job.place]]
        prompt = "<cup>"
        into = "https://example.org/a.jpg"
        mask = "where.png"
        replace = "dog"
        retries = 2
        [job.compose]
        prompt = "<cup> and <rex>"
        places = {cup = "left", rex = [0.5, 0.4, 0.9, 0.9]}
        strict = false
        """,
    )
    (job,) = job_file.read_jobs(file)
    shared = ("-n", "8")
    more = ("--guidance=5.5", "--strength=0.8", "--scheduler=euler_a", f"--out={tmp_path / 'images'}", "--format=webp", "--no-metadata")  # fmt: skip
    generate = ("--size=832x1216", f"--from={tmp_path / 'old.png'}", "--change=0.4", "--best=2", "--grid=strength=0.6,1", f"--sheet={tmp_path / 'sheet.png'}")  # fmt: skip
    assert job.commands[1:] == (
        ("generate", "--base=sd15", "--seed=1,2", *shared, *more, *generate, "--", "a photo of <cup>"),
        ("compose", "--base=sd15", "--seed=1,2", "--place=cup=left", "--place=rex=0.5,0.4,0.9,0.9", *shared, *more, "--size=832x1216", "--", "<cup> and <rex>"),
        ("place", "--base=sd15", f"--into={tmp_path / 'table.jpg'}", "--at=0.5,0.4,0.9,0.9", "--change=0.9", "--seed=3", *shared, *more, "--steps=20", "--strict",
         f"--base={tmp_path / 'fill'}", "--", "<cup>"),
        ("place", "--base=sd15", "--seed=1,2", "--into=https://example.org/a.jpg", f"--mask={tmp_path / 'where.png'}", "--replace=dog", *shared, *more,
         "--retries=2", "--", "<cup>"),
    )  # fmt: skip


def test_every_option_that_draws_is_a_key_of_a_job():
    from objtune_cli.cli.drawing import CHOICE
    from objtune_cli.cli.sampling_options import SAMPLING
    from objtune_cli.workflow import job_keys

    assert {name.strip("_") for name in (*SAMPLING, *CHOICE)} - {"steps"} <= set(job_keys.KEYS)
    assert {name.strip("_") for name in SAMPLING} <= set(job_keys.COMPOSE_KEYS)
    assert {name.strip("_") for name in SAMPLING} - set(job_keys.SIZE_KEYS) <= set(job_keys.PLACE_KEYS)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("place = {prompt = '<cup>'}", "place in job 1 of {} has no into"),
        ("place = {prompt = '<cup>', into = 'a.jpg', inot = 1}", "unknown key inot in place in job 1 of {}"),
        ("place = 'a.jpg'", "place in job 1 of {} is 'a.jpg'"),
        ("strength = 'much'", "strength in job 1 of {} is 'much'"),
        ("no_metadata = 1", "no_metadata in job 1 of {} is 1"),
        ("seeds = [1, 'a']", "seeds in job 1 of {} is [1, 'a']"),
    ],
)
def test_wrong_values_of_drawings_are_one_line(lines, message, tmp_path):
    file = written(tmp_path, f"[[job]]\nphoto = 'a.jpg'\nclass = 'mug'\nname = 'cup'\n{lines}")
    with pytest.raises(InputError) as caught:
        job_file.read_jobs(file)
    assert caught.value.message == message.format(file) and caught.value.hint


@pytest.mark.parametrize(
    ("lines", "end"),
    [
        ("photo = ['a.jpg']", ("--", "{}/a.jpg")),
        ("photo = ['a.jpg', '-b.heic']", ("{}/a.jpg", "{}/-b.heic")),
        ("photo = ['a.jpg', 'b.heic']\nmask = ['', 'm.png']", ("{}/a.jpg", "{}/b.heic", "--mask={}/m.png")),
        (
            "photo = ['a.jpg', 'b.heic']\nbox = [[1, 2, 3, 4], '']\npoint = [[5, 6], [7, 8]]\nselect = 'left'",
            ("--select=left", "{}/a.jpg", "--box=1,2,3,4", "--point=5,6", "{}/b.heic", "--point=7,8"),
        ),
    ],
)
def test_a_job_may_have_several_photos_of_its_object(lines, end, tmp_path):
    (job,) = job_file.read_jobs(written(tmp_path, f"[[job]]\nclass = 'dog'\nname = 'rex'\n{lines}"))
    expected = ("train", "--class=dog", "--name=rex", *(word.format(tmp_path) for word in end))
    assert job.commands == (expected,) and job.names == ("rex",)


def test_a_photo_is_never_read_as_an_option(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("jobs.toml").write_text("[[job]]\nclass = 'dog'\nphoto = ['-a.jpg', 'b.jpg']")
    (job,) = job_file.read_jobs(Path("jobs.toml"))
    assert job.commands[0][-2:] == ("./-a.jpg", "b.jpg")


def test_former_keys_are_read_with_one_note(tmp_path):
    text = """
        [defaults]
        which = "left"
        [[job]]
        photo = "a.jpg"
        class = "dog"
        not_point = [3, 4]
        [[job]]
        photo = "b.jpg"
        class = "cat"
        select = "right"
        not_point = "5,6"
        rough = "m.png"
        """
    notes: list[str] = []
    dog, cat = job_file.read_jobs(written(tmp_path, text), notes.append)
    assert {"--select=left", "--negative-point=3,4"} <= set(dog.commands[0])
    assert {"--select=right", "--negative-point=5,6", f"--refine-mask={tmp_path / 'm.png'}"} <= set(cat.commands[0])
    assert notes == [
        "the key not_point is now negative_point (jobs.toml)",
        "the key rough is now refine_mask (jobs.toml)",
        "the key which is now select (jobs.toml)",
    ]
    with pytest.raises(InputError, match="has which and select") as refused:
        job_file.read_jobs(
            written(tmp_path, text.replace('select = "right"', 'select = "right"\n        which = "top"'))
        )
    assert refused.value.hint == "keep select alone"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "lists no jobs"),
        ("[[job", "is not valid TOML"),
        ("job = 3", "lists no jobs"),
        ("job = [3]", "job 1 of .* is not a table"),
        ("jobs = []", "unknown key jobs"),
        ("[[job]]\nphoto = 'a'", "job 1 of .* has no class"),
        ("[[job]]\nclass = 'dog'", "job 1 of .* has no photo"),
        ("[[job]]\nphoto = 'a'\nclass = 'dog'\ncolour = 'red'", "unknown key colour in job 1"),
        ("[[job]]\nphoto = 3\nclass = 'dog'", "photo in job 1 of .* is 3"),
        ("[[job]]\nphoto = []\nclass = 'dog'", "photo in job 1 of .* is"),
        ("[[job]]\nphoto = ['a', 3]\nclass = 'dog'", "photo in job 1 of .* is"),
        ("[[job]]\nphoto = ['a', 'b']\nclass = ['dog', 'mug']", "job 1 of .* has several photos and several classes"),
        ("[[job]]\nphoto = ['a', 'b']\nclass = 'dog'\nmask = 'm'", "mask in job 1 of .* has 1 values for 2 photos"),
        ("[[job]]\nphoto = ['a', 'b']\nclass = 'dog'\nbox = [1, 2, 3, 4]", "box in job 1 of .* has 1 values for 2"),
        ("[[job]]\nphoto = 'a'\nclass = []", "class in job 1 of .* is"),
        ("[[job]]\nphoto = 'a'\nclass = 'dog'\nn = true", "n in job 1 of .* is True"),
        ("[[job]]\nphoto = 'a'\nclass = 'dog'\nname = 'Rex!'", "'Rex!' cannot be a name in job 1"),
        ("[[job]]\nphoto = 'a'\nclass = '\ue000'", "no name can be made from the class"),
        ("[[job]]\nphoto = 'a'\nclass = 'dog'\n[[job]]\nphoto = 'b'\nclass = 'dog'", "two jobs of .* make dog"),
        (
            "[[job]]\nphoto = 'a'\nclass = ['dog', 'cup']\n[[job]]\nphoto = 'b'\nclass = 'dog'\nname = 'dog-cup'",
            "two jobs of .* make dog-cup",
        ),
        ("[defaults]\nstepz = 1\n[[job]]\nphoto = 'a'\nclass = 'dog'", r"unknown key stepz in \[defaults\]"),
        ("[[job]]\nphoto = 'a'\nclass = 'dog'\nseed = -1", "seed in job 1 of .* is -1"),
        (
            "[[job]]\nphoto = 'a'\nclass = 'dog'\nseed = 18446744073709551616",
            "seed in job 1 of .* is 18446744073709551616",
        ),
        ("defaults = 3", r"\[defaults\] of .* is not a table"),
    ],
)
def test_a_wrong_jobs_file_is_3(text, words, tmp_path):
    with pytest.raises(InputError, match=words) as caught:
        job_file.read_jobs(written(tmp_path, text))
    assert caught.value.hint


def of_one(tmp_path, line, *, before="", encoding="utf-8"):
    """The first command of a job with one more line."""
    file = tmp_path / "jobs.toml"
    word = "" if line.startswith("class") else "class = 'dog'\n"
    file.write_bytes(f"{before}[[job]]\nphoto = 'dog.jpg'\n{word}name = 'rex'\n{line}\n".encode(encoding))
    return job_file.read_jobs(file)[0].commands[0]


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("box = [110, 240, 530.5, 530]", ["--box=110,240,530.5,530"]),
        ("point = [[1, 2], [3, 4]]", ["--point=1,2", "--point=3,4"]),
        ("box = {rex = [1, 2, 3, 4]}", ["--box=rex=1,2,3,4"]),
        ("box = [[1, 2], [3.5, 4]]", ["--box=1,2,3.5,4"]),
        ("box = {rex = [[1, 2], [3, 4]]}", ["--box=rex=1,2,3,4"]),
        (
            'set = {"train.learning_rate" = 1e-3, train.max_steps = 2}',
            ["--set=train.learning_rate=0.001", "--set=train.max_steps=2"],
        ),
        ('set = {"train.early_stopping" = "off"}', ["--set=train.early_stopping=off"]),
    ],
)
def test_natural_forms_of_a_value_are_read(line, options, tmp_path):
    said = of_one(tmp_path, line)
    assert [word for word in said if word.startswith(("--box", "--point", "--set"))] == options


def test_two_objects_of_one_name_are_told_by_the_files_key(tmp_path):
    file = tmp_path / "jobs.toml"
    file.write_text("[[job]]\nphoto = 'a.jpg'\nclass = ['dog', 'dog']\n")
    with pytest.raises(InputError) as caught:
        job_file.read_jobs(file)
    assert '`name = ["…", "…"]`' in caught.value.hint


def test_a_jobs_file_of_windows_editors_is_read(tmp_path):
    assert of_one(tmp_path, "box = '1,2,3,4'\r", encoding="utf-8-sig") == of_one(
        tmp_path, "box = '1,2,3,4'", encoding="utf-16"
    )


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("steps = 20", '`set = "train.max_steps=20"`'),
        ("train = {steps = 20}", '`set = "train.max_steps=20"`'),
        ("image = 'a.jpg'", 'did you mean `photo = "photos/rex.jpg"`?'),
        ("max-time = '45m'", 'did you mean `max_time = "45m"`?'),
        ("box = [1, 2, true, 4]", '`box = "110,240,530,530"`'),
        ("set = 3", '`set = "train.max_steps=20"`'),
        ("seed = '7'", "`seed = 0`"),
        ("mask = 3", '`mask = "rex.png"`'),
        ("mask = {rex = 3}", '`mask = "rex.png"`'),
        (
            "class = ['dog', 'mug']\nbox = [[1, 2, 3, 4], [5, 6, 7, 8]]",
            '`box = {rex = "110,240,530,530", mug = "110,240,530,530"}`',
        ),
        ("mask = '~nobody-at-all/m.png'", "write the folder's path instead"),
    ],
)
def test_a_wrong_value_is_answered_with_a_right_one(line, hint, tmp_path):
    with pytest.raises(InputError) as caught:
        of_one(tmp_path, line)
    assert hint in caught.value.hint
    assert "job 1 of" in caught.value.message


@pytest.mark.parametrize(
    ("text", "hint"),
    [("[[jobs]]\nphoto = 'a'", "`[[job]]`"), ("[job]\nphoto = 'a'", "`[[job]]`"), ("[default]\nn = 2", "`[defaults]`")],
)
def test_a_wrong_table_is_answered_with_the_right_one(text, hint, tmp_path):
    with pytest.raises(InputError) as caught:
        job_file.read_jobs(written(tmp_path, text))
    assert hint in caught.value.hint


def test_every_path_starts_at_the_jobs_file(tmp_path, monkeypatch):
    """Of the base and of settings, in a job and in [defaults], too; names of the hub stay what they are."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (tmp_path / "tiny").mkdir()
    before = "[defaults]\nbase = 'tiny'\nset = ['segment.sam_checkpoint=sam.pth', 'train.rank=2', 'tower=openai/clip,./clip', 'segment.detector=~/owl']\n"
    said = of_one(tmp_path, "mask = 'dog=~/m.png'", before=before)
    assert said[-1] == str(tmp_path / "dog.jpg")
    assert f"--base={tmp_path}/tiny" in said and f"--mask=dog={home}/m.png" in said
    assert [word for word in said if word.startswith("--set")] == [
        f"--set=segment.sam_checkpoint={tmp_path}/sam.pth", "--set=train.rank=2", f"--set=tower=openai/clip,{tmp_path}/clip", f"--set=segment.detector={home}/owl",
    ]  # fmt: skip
    for name in ("sd15", "toybox", "org/name"):
        assert f"--base={name}" in of_one(tmp_path, f"base = '{name}'")


def test_a_missing_jobs_file_is_3(cli, project):
    done = cli("run", "none.toml")
    assert (done.code, done.out) == (3, "") and "none.toml cannot be read" in done.err
    assert cli("run", ".").code == 3


@pytest.mark.parametrize(("codes", "worst"), [([], 0), ([0, 0], 0), ([0, 3, 9], 9), ([1, 9], 1), ([143, 1, 3], 143)])
def test_the_worst_code_is_the_one_to_leave_with(codes, worst):
    assert job_results.exit_code([job_results.JobResult("x", code=code) for code in codes]) == worst


@pytest.fixture
def batch(base, dog_photo, project) -> Path:
    """Two photos that can be learned, and one that cannot."""
    (project / "words.jpg").write_text("these are words")
    many = ", ".join(f'"{s}"' for s in SETTINGS)
    (project / "jobs.toml").write_text(
        f'[defaults]\nbase = "{base}"\nset = [{many}]\n'
        f'[[job]]\nphoto = "{dog_photo}"\nclass = "dog"\nname = "rex"\nprompts = "<rex> at night"\nn = 1\n'
        f'place = {{prompt = "<rex>", into = "{dog_photo}", at = "left", steps = 2, retries = 0}}\n'
        '[[job]]\nphoto = "words.jpg"\nclass = "dog"\nname = "bad"\n'
        f'[[job]]\nphoto = "{dog_photo.with_name("mug.jpg")}"\nclass = "mug"\nname = "cup"\n'
    )
    return project / "jobs.toml"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_photo_that_fails_stops_no_other_and_the_rest_is_reused(cli, batch, project):
    first = cli("run", batch, "--jobs", 2, "--json")
    document = json.loads(first.out)
    check(document, "output", "run")
    assert [(j["name"], j["state"], j["code"]) for j in document["jobs"]] == [
        ("rex", "done", 0),
        ("bad", "failed", 3),
        ("cup", "done", 0),
    ]
    assert first.code == 3
    assert document["jobs"][0]["refs"] == ["adapter/rex@1", "scene/rex@1", "scene/rex@2"]
    assert Path(document["jobs"][0]["images"][-1]).name == "001.png"
    assert "words.jpg is not a picture" in document["jobs"][1]["message"]
    assert "Traceback" not in (project / ".objtune/log/bad.txt").read_text()
    before = {p: p.read_bytes() for p in (project / "artifacts").rglob("*") if p.is_file()}

    second = cli("run", batch)
    rows = [line.split("\t") for line in second.out.splitlines()]
    assert [row[:3] for row in rows] == [["rex", "reused", "0"], ["bad", "failed", "3"], ["cup", "reused", "0"]]
    assert "1 of 3 jobs failed" in second.err and second.code == 3
    assert {p: p.read_bytes() for p in (project / "artifacts").rglob("*") if p.is_file()} == before


@pytest.mark.commands
@pytest.mark.timeout(300)
def test_a_signal_is_handed_on_and_the_same_command_goes_on(batch, project):
    text = batch.read_text().replace("train.max_steps=4", "train.max_steps=100000")
    batch.write_text(text.split('[[job]]\nphoto = "words.jpg"')[0])
    line = [sys.executable, "-m", "objtune_cli", "run", "jobs.toml", "--json"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=project) as child:
        log = project / ".objtune/log/rex.txt"
        until = time.monotonic() + 200
        while not (log.exists() and "encoding augmented views" in log.read_text()) and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(1)
        child.send_signal(signal.SIGTERM)
        document = json.loads(child.communicate(timeout=60)[0])
    assert child.returncode == 143
    assert [(j["name"], j["state"], j["code"]) for j in document["jobs"]] == [("rex", "stopped", 143)]
    assert "state saved" in document["jobs"][0]["message"]
    assert len(list((project / ".objtune/state").rglob("*.safetensors"))) == 1
