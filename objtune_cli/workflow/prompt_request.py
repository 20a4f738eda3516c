"""Reads what a command is asked to draw: its prompts and its negative prompt, with the trained objects that they name."""

import contextlib
import itertools
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from objtune_cli.errors import InputError, ObjtuneError
from objtune_cli.store.refs import Ref
from objtune_cli.workflow import prompt_language
from objtune_cli.workflow import prompt_text as text
from objtune_cli.workflow.context import StageContext
from objtune_cli.workflow.trained_objects import PromptObject, TrainedObjects, has_lora

if TYPE_CHECKING:
    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.models.placeholders import Placeholders

MAX_NOTED = 6
"""Pieces of other tools' syntax that one note lists."""


@dataclass(frozen=True, slots=True)
class PromptRequest:
    """Prompts as they are drawn.

    Attributes:
        prompts: Without invisible characters, each name in plain brackets. named: objects of each prompt, in order of first mention.
        negative: The negative prompt, read in the same way. in_negative: objects that it names.
        advice: What to write in prompts that name no object but have an object's name as a plain word.
    """

    prompts: list[str]
    named: list[list[PromptObject]]
    negative: str
    in_negative: list[PromptObject]
    advice: str = ""

    def negative_objects(self, i: int) -> list[PromptObject]:
        """The objects that the negative prompt names and prompt i does not: their tokens are avoided, their LoRA does not act."""
        own = {o.name for o in self.named[i]}
        return [o for o in self.in_negative if o.name not in own]

    @property
    def objects(self) -> list[PromptObject]:
        """All objects, each once, as the first prompt that names it has it; the negative prompt comes last, because it knows no strengths."""
        by_name: dict[str, PromptObject] = {}
        for item in itertools.chain(*self.named, self.in_negative):
            by_name.setdefault(item.name, item)
        return list(by_name.values())


def read_prompts(
    ctx: StageContext, prompts: list[str], negative: str = "", source: Ref | None = None, strength: float = 1.0
) -> PromptRequest:
    """Read prompts, find their objects, and tell the user what is read in another way than it may be meant.

    Args:
        source: The adapter that all objects are taken from; the negative prompt may name others.
        strength: Of objects of which the prompt says none. An object of strength 0 is its class word.

    Raises:
        InputError: A prompt is empty or no text, mentions two versions of one object, or the source does not hold one.
        MissingError: No adapter holds a name; the hint lists what there is.
    """
    trained, changes = TrainedObjects(ctx, source), []
    objects: dict[str, PromptObject] = {}
    texts, named, bare = [], [], []
    for i, prompt in enumerate(prompts, 1):
        where = f"prompt {i}" if len(prompts) > 1 else "the prompt"
        written, changed = text.read_names(text.clean_prompt(prompt, where), trained.has)
        plain, (written, strengths) = written, text.take_strengths(written)
        for name in (name for name in strengths if re.search(rf"<{re.escape(name)}(@[0-9]+)?>", plain)):
            ctx.report.note(
                f"{where} says the strength {strengths[name]:g} of one <{name}>: it is that of every <{name}> in it"
            )
        own = _find_objects(trained, written, objects)
        written, adjusted = _apply_strengths(ctx, written, own, strengths, strength)
        named.append(adjusted)
        texts.append(written)
        changes += changed
        bare += [] if own else [written]
    written, changed = text.read_names(
        text.clean_prompt(negative, "the negative prompt", may_be_empty=True), trained.has
    )
    written, strengths = text.take_strengths(written)
    if strengths:
        raise InputError(
            f"the negative prompt gives <{min(strengths)}> a strength",
            "a strength acts on what is drawn: leave it away there",
        )
    in_negative = _find_objects(trained, written, objects, in_negative=True)
    request = PromptRequest(texts, named, written, in_negative, _advise_names(trained, bare))
    _note_changes(ctx, changes + changed)
    if request.advice:
        which = (
            "the prompt names no object"
            if len(prompts) == 1
            else f"{len(bare)} of {len(prompts)} prompts name no object"
        )
        ctx.report.note(f"{which}: to draw what was trained, {request.advice}")
    _note_other_syntax(ctx, request)
    _note_files(ctx, texts)
    _note_language(ctx, [*texts, written])
    return request


def _note_language(ctx: StageContext, texts: list[str]) -> None:
    """Say, once in a command, that a prompt is not in English."""
    for language in filter(None, map(prompt_language.find_language, texts)):
        ctx.note_once(
            f"the prompt is in {language}: the base {ctx.base.id} learned from English captions and hardly reads it; write it in English"
        )
        return


def _find_objects(
    trained: TrainedObjects, prompt: str, objects: dict[str, PromptObject], *, in_negative: bool = False
) -> list[PromptObject]:
    """The objects that one prompt names; `found`: those of the prompts before it, which have the same versions."""
    from objtune_cli.models.prompts import PLACEHOLDER

    text.check_brackets(prompt, trained.has)
    own: dict[str, PromptObject] = {}
    for match in PLACEHOLDER.finditer(prompt):
        name = match[1]
        item = trained.find(name, int(match[2] or 0), elsewhere=in_negative)
        if name in objects and objects[name].record.ref != item.record.ref:
            raise InputError(
                f"the prompts ask for {objects[name].record.ref} and {item.record.ref}",
                "use one version of an object at a time",
            )
        own[name] = objects.setdefault(name, item)
    return list(own.values())


def _apply_strengths(
    ctx: StageContext, prompt: str, objects: list[PromptObject], strengths: Mapping[str, float], others: float
) -> tuple[str, list[PromptObject]]:
    """A prompt and its objects with their strengths; those of strength 0 are drawn by the base alone, as class words.

    Raises:
        InputError: A token without LoRA is to be something between.
    """
    from objtune_cli.models.prompts import with_class_words

    items = [replace(item, strength=strengths.get(item.name, others)) for item in objects]
    for item in items:
        if item.strength not in (0, 1) and not has_lora(ctx, item):
            raise InputError(
                f"<{item.name}> is a token alone, without LoRA; it has no strength of {item.strength:g}",
                "1 draws it, 0 its class",
            )
    return with_class_words(prompt, {o.name: o.class_word for o in items if not o.strength}), [
        o for o in items if o.strength
    ]


def _note_changes(ctx: StageContext, changes: list[tuple[str, str]]) -> None:
    if changes:
        ctx.report.note(
            "read as object names: " + ", ".join(f"{typed} as {name}" for typed, name in dict.fromkeys(changes))
        )


def _advise_names(trained: TrainedObjects, bare: list[str]) -> str:
    """What to write where objects of this base stand as plain words in prompts that name none; empty where there are none."""
    names: dict[str, str] = {}
    if bare:
        with contextlib.suppress(ObjtuneError):  # a damaged adapter is no matter of a prompt without objects
            names = text.find_plain_names("\n".join(bare), trained.of_base())
    return "write " + ", ".join(f"<{name}> instead of {word}" for name, word in names.items()) if names else ""


def _note_other_syntax(ctx: StageContext, request: PromptRequest) -> None:
    """Say once which pieces other tools read as weights, alternatives or options."""
    pieces = list(
        dict.fromkeys(
            piece for prompt in (*request.prompts, request.negative) for piece in text.find_other_syntax(prompt)
        )
    )
    if pieces:
        more = f" and {len(pieces) - MAX_NOTED} more" if len(pieces) > MAX_NOTED else ""
        ctx.report.note(f"drawn as plain text, not as another tool's syntax: {', '.join(pieces[:MAX_NOTED])}{more}")


def _note_files(ctx: StageContext, prompts: list[str]) -> None:
    """Say which prompts are names of files, as other tools take them."""
    for prompt in prompts:
        with contextlib.suppress(OSError, ValueError):  # most prompts can be no file's name
            if Path(prompt).is_file():
                ctx.report.note(
                    f"{prompt!r} is drawn as a prompt, but it is a file too: `objtune generate - < {shlex.quote(prompt)}` reads prompts from it"
                )


def check_lengths(ctx: StageContext, model: "BaseModel", words: "Placeholders", request: PromptRequest) -> None:
    """Check that the base reads all objects of the prompts, and tell the user where it cuts off plain words.

    Raises:
        InputError: An object stands, all or in part, behind the last token that a text encoder reads.
    """
    from objtune_cli.models.placeholders import check_objects_read

    texts = dict.fromkeys([*request.prompts, request.negative])
    for prompt in texts:
        where = "the negative prompt" if prompt == request.negative and prompt not in request.prompts else "the prompt"
        readings = check_objects_read(model, words.expand(prompt), where)
        others = [
            limit
            for _, limit in model.family.t5_tokenizers(model)
            if limit not in {reading.limit for reading in readings}
        ]
        for reading in readings:
            start = (
                f" that begins with {prompt[:24]!r}" if len(request.prompts) > 1 and prompt in request.prompts else ""
            )
            ctx.report.note(
                f"{where}{start} has {reading.count} tokens; the base reads the first {reading.limit}{', and all of it with another encoder' if others else ''}"
            )
