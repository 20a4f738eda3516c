"""Prompts that change during sampling: the schedules that A1111 documents, and images of the right prompt at each step."""

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from objtune_cli.evaluation.best_images import class_prompt
from objtune_cli.generation.sampling import resample, sample
from objtune_cli.generation.settings import SamplingSettings
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.prompt_editing import all_prompts, has_editing, schedule
from objtune_cli.store import refs
from objtune_cli.store.store import Store

ALTERNATE = [(step, "cow" if step % 2 else "horse") for step in range(1, 11)]
DOCUMENTED = {
    "test": [(10, "test")],
    "a [b:3]": [(3, "a "), (10, "a b")],
    "a [b: 3]": [(3, "a "), (10, "a b")],
    "a [[[b]]:2]": [(2, "a "), (10, "a [[b]]")],
    "[(a:2):3]": [(3, ""), (10, "(a:2)")],
    "a [b : c : 1] d": [(1, "a b  d"), (10, "a  c  d")],
    "a[b:[c:d:2]:1]e": [(1, "abe"), (2, "ace"), (10, "ade")],
    "a [unbalanced": [(10, "a [unbalanced")],
    "a [b:.5] c": [(5, "a  c"), (10, "a b c")],
    "a [b:1.5] c": [(10, "a  c")],
    "((a][:b:c [d:3]": [(3, "((a][:b:c "), (10, "((a][:b:c d")],
    "[cow|horse]": ALTERNATE,
    "[fe|]male": [(step, "female" if step % 2 else "male") for step in range(1, 11)],
    "[fe|||]male": [(1, "female"), (4, "male"), (5, "female"), (8, "male"), (9, "female"), (10, "male")],
    "a [b::4]": [(4, "a b"), (10, "a ")],
    "[<|rex:0|> <|rex:1|>:a cat:0.3]": [(3, "<|rex:0|> <|rex:1|>"), (10, "a cat")],
    r"a \[b:c:3\]": [(10, r"a \[b:c:3\]")],
    "[blurry] (a:1.2)": [(10, "[blurry] (a:1.2)")],
}
"""Prompts with their schedules for ten steps; most are the examples of A1111's `prompt_parser.py`, equal neighbours joined."""


@pytest.mark.parametrize("text", DOCUMENTED)
def test_schedules_are_those_that_a1111_documents(text: str) -> None:
    assert schedule(text, "a1111", 10) == DOCUMENTED[text]
    assert schedule(text, "comfyui", 10) == schedule(text, "plain", 10) == [(10, text)]


@given(st.text("ab[]()|:.0<1> \\", max_size=24), st.integers(1, 12))
def test_every_text_has_a_schedule(text: str, steps: int) -> None:
    found = schedule(text, "a1111", steps)
    ends = [end for end, _ in found]
    assert ends == sorted(set(ends)) and ends[-1] == steps
    assert has_editing(text, "a1111") or found == [(steps, text)]
    assert all_prompts(text, "a1111")


PROMPT, BEFORE, AFTER = "a [dog:cat:0.5] on grass", "a dog on grass", "a cat on grass"


class Spy:
    """Records which text features the denoiser gets at each call."""

    def __init__(self, model: BaseModel) -> None:
        self.calls: list[torch.Tensor] = []
        self.handle = model.denoiser.register_forward_pre_hook(self.add, with_kwargs=True)

    def add(self, module: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        self.calls.append(kwargs["encoder_hidden_states"].clone())


@pytest.fixture
def reading(model: BaseModel):
    model.prompt_syntax = "a1111"
    yield model
    model.prompt_syntax = "plain"


@pytest.mark.parametrize("scheduler", ["ddim", "heun"])
def test_each_step_reads_its_own_prompt(reading: BaseModel, scheduler: str) -> None:
    spy = Spy(reading)
    settings = SamplingSettings(6, 3.0, scheduler, negative_prompt="[mud:snow:0.5]", prompt_editing=True)
    sample(reading, [PROMPT, AFTER], [1, 2], settings)
    spy.handle.remove()
    early = reading.encode_prompt(["mud", "mud", BEFORE, AFTER]).sequence
    late = reading.encode_prompt(["snow", "snow", AFTER, AFTER]).sequence
    switch = next(i for i, call in enumerate(spy.calls) if not torch.equal(call, spy.calls[0]))
    assert switch == len(spy.calls) / 2 or (scheduler == "heun" and switch == 6)
    assert all(torch.equal(call, early) for call in spy.calls[:switch])
    assert all(torch.equal(call, late) for call in spy.calls[switch:])


def test_editing_after_the_last_step_and_at_the_first_is_the_plain_prompt(reading: BaseModel) -> None:
    editing = SamplingSettings(4, 2.0, prompt_editing=True)
    plain = SamplingSettings(4, 2.0)
    for prompt, same in (("a [dog:cat:4] on grass", BEFORE), ("a [dog:cat:0] on grass", AFTER)):
        assert torch.equal(sample(reading, prompt, [3], editing), sample(reading, same, [3], plain))
    start = sample(reading, BEFORE, [3], plain)
    for prompt, same in ((PROMPT, BEFORE), ("a [dog:cat:0.0] on grass", AFTER)):
        ours, theirs = (resample(reading, start, text, [3], 0.25, s) for text, s in ((prompt, editing), (same, plain)))
        assert torch.equal(ours, theirs) == (
            prompt != PROMPT
        )  # one step is taken, of which no half is left for the dog
    assert torch.equal(sample(reading, PROMPT, [3], plain), sample(reading, PROMPT, [3], plain))


def test_the_guidance_of_the_base_follows_the_prompt(reading: BaseModel) -> None:
    from objtune_cli.generation.guidance import extra_guidance

    reading.classes = {"rex": "dog"}
    try:
        phases = [["a photo of <rex> in the snow"], ["a photo of <rex> at night"], ["a photo of <rex>"]]
        z, condition = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), reading.encode_prompt(["x"])
        side = reading.resolution
        with extra_guidance(reading, phases, 1.0, 0.0, side, side) as select:
            guided = []
            for phase in (0, 1, 2, 0):
                select(phase)
                guided.append(reading.predict(z, torch.tensor([500]), condition))
        assert torch.equal(guided[0], guided[3]) and not torch.equal(guided[0], guided[1])
        assert torch.equal(guided[2], reading.predict(z, torch.tensor([500]), condition))
    finally:
        reading.classes = {}


def test_images_say_what_changed_and_plain_prompts_keep_their_records(cli, base, trained_artifacts) -> None:
    Path("objtune.toml").write_text(f'base = "{base}"\n')
    shutil.copytree(trained_artifacts, "artifacts")
    quick = ("--steps", 2, "-n", 1)
    result = cli("generate", "a photo of [<dog>:<cup>:0.5] [wet|dry]", *quick)
    assert result.code == 0 and "plain text" not in result.err, result.err
    text = Image.open(result.out.strip()).text["parameters"]
    assert text.startswith("a photo of [<dog>:<cup>:0.5] [wet|dry]\n")
    store = Store.at(Path())
    record = store.read_record(refs.Ref("scene", "dog-cup", 1))
    assert record.config["prompt_editing"] and record.config["prompt_syntax"] == "a1111"
    assert class_prompt(record) == "a photo of a mug dry"
    other = cli("generate", "a photo of [<dog>:<cup>:0.5] [wet|dry]", *quick, "--set", "generate.prompt_syntax=plain")
    assert other.code == 0 and "drawn as plain text" in other.err and "v002" in other.out
    off = cli("generate", "a photo of [<dog:0>:<cup>:0.5]", *quick)
    assert off.code == 0 and "scene/cup/" in off.out
    cli("generate", "a photo of <dog>", *quick)
    assert "prompt_editing" not in store.read_record(refs.Ref("scene", "dog", 1)).config
    both = cli("compose", "[<dog>|a cat] and <cup>", *quick, "--retries", 0)
    assert both.code == 0 and "drawn as plain text" in both.err
