"""How the prompts of a scene are read: in the syntax of the settings, or as plain text where that gives the same."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from objtune_cli.config.sections import Generate
from objtune_cli.store.kinds import adapter
from objtune_cli.workflow.context import StageContext
from objtune_cli.workflow.trained_objects import PromptObject

if TYPE_CHECKING:
    from objtune_cli.workflow.prompt_request import PromptRequest


def with_scene_syntax(
    ctx: StageContext, request: "PromptRequest", i: int, config: Generate, *, editing: bool = False
) -> Generate:
    """The settings of the scene of prompt i, with the syntax of that prompt and the negative prompt.

    Args:
        editing: Whether the command changes prompts during sampling.

    Returns:
        It is "plain" if neither has weights or breaks and both fit the text encoder's window. Such scenes keep their identity and their bytes.
    """
    from objtune_cli.models.prompt_syntax import PLAIN, has_syntax

    texts = [(request.prompts[i], request.named[i]), (request.negative, request.in_negative)]
    if config.prompt_syntax == PLAIN or any(has_syntax(text, config.prompt_syntax) for text, _ in texts):
        return config
    if editing and has_editing_in(request, i, config.prompt_syntax):
        return config
    is_plain = all(_fits(ctx, text, objects) for text, objects in texts)
    return replace(config, prompt_syntax="plain") if is_plain else config


def has_editing_in(request: "PromptRequest", i: int, syntax: str) -> bool:
    """Whether prompt i or the negative prompt changes during sampling."""
    from objtune_cli.models.prompt_editing import has_editing

    return any(has_editing(text, syntax) for text in (request.prompts[i], request.negative))


def editing_settings(request: "PromptRequest", i: int, syntax: str) -> dict[str, bool]:
    """The entry of a scene's record for a prompt that changes during sampling; empty for others, which keep their identity."""
    return {"prompt_editing": True} if has_editing_in(request, i, syntax) else {}


def _fits(ctx: StageContext, text: str, objects: Sequence[PromptObject]) -> bool:
    from objtune_cli.models import token_count
    from objtune_cli.models.prompts import PLACEHOLDER

    mentions = [match[1] for match in PLACEHOLDER.finditer(text)]
    counts = {item.name: _count_vectors(ctx, item) for item in objects}
    object_tokens = sum(counts.get(name, 0) for name in mentions)
    return token_count.fits_window(ctx.base, PLACEHOLDER.sub(" ", text), object_tokens)


def _count_vectors(ctx: StageContext, item: PromptObject) -> int:
    """Number of an object's token vectors; only the header is read."""
    specs = ctx.store.read_tensor_specs(item.record.ref)
    return next((int(specs[name][1][0]) for name in adapter.token_names(item.own_name) if name in specs), 0)
