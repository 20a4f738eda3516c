"""Reads a command's prompts and negative prompt, and finds the trained objects in them."""

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
from objtune_cli.workflow import prompt_language, prompt_tags
from objtune_cli.workflow import prompt_text as text
from objtune_cli.workflow.context import StageContext
from objtune_cli.workflow.trained_objects import PromptObject, TrainedObjects, has_lora

if TYPE_CHECKING:
    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.models.placeholders import Placeholders

MAX_NOTED = 6
"""Maximum number of pieces of other tools' syntax in one note."""


@dataclass(frozen=True, slots=True)
class PromptRequest:
    """Prompts that are ready for sampling.

    Attributes:
        prompts: Without invisible characters, with names as `<name>`. named: Objects of each prompt, in order of first mention.
        negative: The negative prompt, in the same form. in_negative: Its objects.
        loras: Name and weight of the `<lora:name:0.7>` tags of each prompt.
        advice: Hint for prompts without objects that have an object's name as a plain word.
    """

    prompts: list[str]
    named: list[list[PromptObject]]
    negative: str
    in_negative: list[PromptObject]
    advice: str = ""
    loras: tuple[tuple[tuple[str, float], ...], ...] = ()

    def negative_objects(self, i: int) -> list[PromptObject]:
        """The objects of the negative prompt that prompt i does not name; their tokens are avoided, and their LoRAs do not act."""
        own = {o.name for o in self.named[i]}
        return [o for o in self.in_negative if o.name not in own]

    @property
    def objects(self) -> list[PromptObject]:
        """All objects, each once, from the first prompt that names it; the negative prompt, which has no strengths, is last."""
        by_name: dict[str, PromptObject] = {}
        for item in itertools.chain(*self.named, self.in_negative):
            by_name.setdefault(item.name, item)
        return list(by_name.values())


def read_prompts(
    ctx: StageContext,
    prompts: list[str],
    negative: str = "",
    source: Ref | None = None,
    strength: float = 1.0,
    syntax: str = "plain",
    *,
    editing: bool = False,
) -> PromptRequest:
    """Read prompts, find their objects, and note what the user may have meant otherwise.

    Args:
        source: The adapter of all objects; the negative prompt may name others.
        strength: Default strength of objects. At 0 an object becomes its class word.
        syntax: How weights and breaks are written: "a1111", "comfyui" or "plain".
        editing: Whether the command changes prompts during sampling, as `[a:b:0.5]` says.

    Raises:
        InputError: A prompt is empty or not text, its brackets are not balanced, it names two versions of an object, or the source lacks an object.
        MissingError: There is no adapter for a name; the hint lists the objects.
    """
    trained = TrainedObjects(ctx, source)
    objects: dict[str, PromptObject] = {}
    texts, named, bare, loras, changes = [], [], [], [], list[tuple[str, str]]()
    for i, prompt in enumerate(prompts, 1):
        where = f"prompt {i}" if len(prompts) > 1 else "the prompt"
        plain, tags, changed = _read_text(trained, text.clean_prompt(prompt, where), where, syntax)
        written, strengths = text.take_strengths(plain)
        for name in (name for name in strengths if re.search(rf"<{re.escape(name)}(@[0-9]+)?>", plain)):
            ctx.report.note(
                f"the strength {strengths[name]:g} of one <{name}> in {where} applies to every <{name}> there"
            )
        own = _find_objects(trained, written, objects)
        written, adjusted = _apply_strengths(ctx, written, own, strengths, strength, syntax)
        named.append(adjusted)
        texts.append(written)
        loras.append(tags)
        changes += changed
        bare += [] if own else [written]
    where = "the negative prompt"
    written, tags, changed = _read_text(trained, text.clean_prompt(negative, where, may_be_empty=True), where, syntax)
    written, strengths = text.take_strengths(written)
    if strengths:
        raise InputError(
            f"the negative prompt has a strength for <{min(strengths)}>",
            "remove the strength, which acts in prompts only",
        )
    in_negative = _find_objects(trained, written, objects, in_negative=True)
    request = PromptRequest(texts, named, written, in_negative, _advise_names(trained, bare), tuple(loras))
    _note_changes(ctx, changes + changed)
    _note_advice(ctx, request.advice, len(bare), len(prompts))
    _note_other_syntax(ctx, request, syntax, editing=editing)
    prompt_tags.note_negative_loras(ctx, tags)
    _note_files(ctx, texts)
    _note_language(ctx, [*texts, written])
    return request


def _read_text(
    trained: TrainedObjects, typed: str, where: str, syntax: str
) -> tuple[str, prompt_tags.LoraTags, list[tuple[str, str]]]:
    """A prompt with names as `<name>` and without LoRA tags, its LoRA tags, and what was read as a name."""
    written, changed = text.read_names(typed, trained.has)
    return *prompt_tags.extract_loras(written, where, trained.has, syntax), changed


def _note_language(ctx: StageContext, texts: list[str]) -> None:
    """Note, once per command, that a prompt is not in English."""
    for language in filter(None, map(prompt_language.find_language, texts)):
        ctx.note_once(
            f"the prompt is in {language}: the base {ctx.base.id} learned from English captions and hardly reads it; write it in English"
        )
        return


def _find_objects(
    trained: TrainedObjects, prompt: str, objects: dict[str, PromptObject], *, in_negative: bool = False
) -> list[PromptObject]:
    """The objects of one prompt; `objects`: those of the prompts before it, whose versions must be the same."""
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
    ctx: StageContext,
    prompt: str,
    objects: list[PromptObject],
    strengths: Mapping[str, float],
    others: float,
    syntax: str,
) -> tuple[str, list[PromptObject]]:
    """Apply strengths to a prompt and its objects; objects of strength 0 become class words.

    Raises:
        InputError: A token without LoRA has a strength other than 0 and 1.
    """
    from objtune_cli.models.prompt_editing import has_editing
    from objtune_cli.models.prompt_syntax import name_class_words
    from objtune_cli.models.prompts import with_class_words

    items = [replace(item, strength=strengths.get(item.name, others)) for item in objects]
    for item in items:
        if item.strength not in (0, 1) and not has_lora(ctx, item):
            raise InputError(
                f"<{item.name}> is a token without LoRA; it cannot have the strength {item.strength:g}",
                "use 1, or 0 for its class word",
            )
    off = {o.name: o.class_word for o in items if not o.strength}
    renamed = with_class_words(prompt, off) if has_editing(prompt, syntax) else name_class_words(prompt, off, syntax)
    written = renamed if off else prompt
    return written, [o for o in items if o.strength]


def _note_changes(ctx: StageContext, changes: list[tuple[str, str]]) -> None:
    if changes:
        ctx.report.note(
            "read as object names: " + ", ".join(f"{typed} as {name}" for typed, name in dict.fromkeys(changes))
        )


def _advise_names(trained: TrainedObjects, bare: list[str]) -> str:
    """A hint if prompts without objects have the names of trained objects as plain words; else ""."""
    names: dict[str, str] = {}
    if bare:
        with contextlib.suppress(ObjtuneError):  # damaged adapters do not matter to prompts without objects
            names = text.find_plain_names("\n".join(bare), trained.of_base())
    return "write " + ", ".join(f"<{name}> instead of {word}" for name, word in names.items()) if names else ""


def _note_advice(ctx: StageContext, advice: str, bare: int, prompts: int) -> None:
    if advice:
        which = "the prompt names no object" if prompts == 1 else f"{bare} of {prompts} prompts name no object"
        ctx.report.note(f"{which}: to draw what was trained, {advice}")


def _note_other_syntax(ctx: StageContext, request: PromptRequest, syntax: str, *, editing: bool) -> None:
    """Note once which pieces other tools read as weights, alternatives or options, and this syntax does not."""
    pieces = list(
        dict.fromkeys(
            piece
            for prompt in (*request.prompts, request.negative)
            for piece in prompt_tags.find_unread(prompt, syntax, editing=editing)
        )
    )
    if pieces:
        more = f" and {len(pieces) - MAX_NOTED} more" if len(pieces) > MAX_NOTED else ""
        ctx.report.note(f"drawn as plain text, not as another tool's syntax: {', '.join(pieces[:MAX_NOTED])}{more}")


def _note_files(ctx: StageContext, prompts: list[str]) -> None:
    """Note which prompts are names of files, as other tools accept them."""
    for prompt in prompts:
        with contextlib.suppress(OSError, ValueError):  # most prompts are not valid file names
            if Path(prompt).is_file():
                ctx.report.note(
                    f"{prompt!r} is drawn as a prompt, but it is a file too: `objtune generate - < {shlex.quote(prompt)}` reads prompts from it"
                )


def check_lengths(ctx: StageContext, model: "BaseModel", words: "Placeholders", request: PromptRequest) -> None:
    """Check that the base reads all objects of the prompts, and note where it cuts off other words.

    Raises:
        InputError: A text encoder cuts off tokens of an object.
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
