"""The phases of sampling: the prompts of a batch change between them, as prompt editing asks for."""

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from objtune_cli.generation.settings import SamplingSettings
from objtune_cli.models import finite_checks
from objtune_cli.models.adapter_state import disabled
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.conditioning import Conditioning
from objtune_cli.models.prompt_editing import schedule
from objtune_cli.models.prompt_syntax import PLAIN


@dataclass(frozen=True, slots=True)
class Phase:
    """Steps in which the prompts of a batch stay the same.

    Attributes:
        start: Number of denoiser calls before it. texts: Prompt of each image. negative: Negative prompt.
    """

    start: int
    texts: list[str]
    negative: str


@dataclass(frozen=True, slots=True)
class PhaseConditions:
    """The conditioning of each phase, N samples each, all of one length.

    Attributes:
        starts: Number of denoiser calls before each phase.
        condition: Of the prompts. first: Of the prompts before the objects act. negative: Of the negative prompts.
    """

    starts: list[int]
    condition: list[Conditioning]
    first: list[Conditioning]
    negative: list[Conditioning]

    def find(self, done: int) -> int:
        """The phase after so many denoiser calls."""
        return bisect.bisect_right(self.starts, done) - 1


def plan_phases(
    model: BaseModel, texts: Sequence[str], settings: SamplingSettings, steps: int, order: int
) -> list[Phase]:
    """The phases of a batch; one unless the settings read prompt editing and a prompt changes.

    Args:
        steps: Number of steps that are taken. order: Number of denoiser calls in each.
    """
    syntax, negative = model.prompt_syntax if settings.prompt_editing else PLAIN, settings.negative_prompt
    schedules = {text: schedule(text, syntax, steps) for text in {*texts, negative}}
    starts = sorted({0, *(end for each in schedules.values() for end, _ in each[:-1])})

    def find_text(text: str, start: int) -> str:
        ends = [end for end, _ in schedules[text]]
        return schedules[text][bisect.bisect_right(ends, start)][1]

    return [
        Phase(start * order, [find_text(text, start) for text in texts], find_text(negative, start)) for start in starts
    ]


def encode_phases(
    model: BaseModel, phases: Sequence[Phase], conditions: Mapping[str, Conditioning], *, with_class_words: bool
) -> PhaseConditions:
    """Encode the prompts of all phases: each text once, and all with the same number of rows.

    Args:
        conditions: Prompt to conditioning of one sample, in place of encoding the prompt.
        with_class_words: Whether the objects act later, so that the first steps read class words.
    """
    encoded = {
        text: conditions[text] if text in conditions else model.encode_prompt([text])
        for text in dict.fromkeys(text for phase in phases for text in (*phase.texts, phase.negative))
    }
    for text in set(encoded) & set(conditions):
        finite_checks.check_condition(model, [text], encoded[text])
    in_class_words: dict[str, Conditioning] = {}
    if with_class_words:
        with disabled(model):
            for text in dict.fromkeys(text for phase in phases for text in phase.texts):
                in_class_words[text] = model.encode_prompt([model.with_class_words(text)])
    firsts = in_class_words or encoded
    rows = [
        [*(encoded[text] for text in each.texts), *(firsts[text] for text in each.texts), encoded[each.negative]]
        for each in phases
    ]
    count, width = len(phases[0].texts), len(rows[0])
    matched = model.match_lengths([each for row in rows for each in row])
    rows = [matched[i : i + width] for i in range(0, len(matched), width)]
    return PhaseConditions(
        [phase.start for phase in phases],
        [Conditioning.concat(row[:count]) for row in rows],
        [Conditioning.concat(row[count : 2 * count]) for row in rows],
        [row[-1].expand(count) for row in rows],
    )
