"""The prompts of a sampling command: with styles, the base's negative prompt and all choices made, ready to be read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from objtune_cli.config import styles
from objtune_cli.config.sections import Generate, seed_after
from objtune_cli.store.refs import Ref
from objtune_cli.workflow import prompt_choices, prompt_request, prompt_text
from objtune_cli.workflow.context import StageContext
from objtune_cli.workflow.prompt_request import PromptRequest

AUTO, PLAIN = "auto", "plain"


@dataclass(frozen=True, slots=True)
class Draw:
    """A prompt with the seed of its first image and its number of images."""

    prompt: str
    seed: int
    num_images: int


def read(
    ctx: StageContext,
    prompts: Sequence[str],
    config: Generate,
    source: Ref | None = None,
    *,
    per_image: bool = False,
    editing: bool = False,
) -> tuple[PromptRequest, list[Draw]]:
    """Apply styles, make choices, and read the prompts.

    Args:
        source: The adapter of all objects.
        per_image: Whether each image of a prompt with choices makes its own; else all images have those of the first seed.
        editing: Whether the command changes prompts during sampling.

    Returns:
        The request, and the draw of each of its prompts.

    Raises:
        UsageError: There is no such style or folder of wildcards. InputError, MissingError: As `prompt_request.read_prompts`.
    """
    chosen_styles = styles.find_styles(
        ctx.settings.styles, [name.strip() for name in config.style.split(",") if name.strip()]
    )
    folder = Path(config.wildcards) if config.wildcards else None
    if folder is not None:
        prompt_choices.check_folder(folder)
    draws = []
    for i, prompt in enumerate(prompts, 1):
        text = prompt_text.clean_prompt(prompt, f"prompt {i}" if len(prompts) > 1 else "the prompt")
        text = styles.apply_styles(text, [style.prompt for style in chosen_styles])
        draws += _plan(text, folder, config, per_image=per_image)
    negative = _find_negative(ctx, config.negative_prompt)
    negative = styles.apply_styles(negative, [style.negative for style in chosen_styles])
    if config.prompt_syntax != PLAIN:
        negative = prompt_choices.choose(negative, folder, config.seed)
    request = prompt_request.read_prompts(
        ctx, [draw.prompt for draw in draws], negative, source, config.strength, config.prompt_syntax, editing=editing
    )
    return request, draws


def _plan(text: str, folder: Path | None, config: Generate, *, per_image: bool) -> list[Draw]:
    """The draws of one prompt: one for all its images, or one for each image that makes its own choices."""
    if config.prompt_syntax == PLAIN or not prompt_choices.has_choices(text, folder):
        return [Draw(text, config.seed, config.num_images)]
    if not per_image:
        return [Draw(prompt_choices.choose(text, folder, config.seed), config.seed, config.num_images)]
    seeds = [seed_after(config.seed, k) for k in range(config.num_images)]
    return [Draw(prompt_choices.choose(text, folder, seed), seed, 1) for seed in seeds]


def _find_negative(ctx: StageContext, negative: str) -> str:
    """The negative prompt; "auto" is that of `[negative_prompts]` for the base, else for its family, else empty."""
    if negative != AUTO:
        return negative
    by_base = ctx.settings.negative_prompts
    return by_base.get(ctx.base.id, by_base.get(ctx.base.family.name, "")) if by_base else ""
