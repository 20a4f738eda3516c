"""Tags and syntax of other tools in prompts: checked brackets, LoRA tags, and pieces that are drawn as text."""

import re
from collections.abc import Callable

from objtune_cli.errors import InputError
from objtune_cli.workflow import prompt_text
from objtune_cli.workflow.context import StageContext

LoraTags = tuple[tuple[str, float], ...]
"""Name and weight of each `<lora:name:0.7>` of a prompt."""
PLAIN, A1111 = "plain", "a1111"
MAX_SHOWN = 24
"""Number of characters of a prompt that a message about its brackets shows."""


def extract_loras(text: str, where: str, is_trained: Callable[[str], bool], syntax: str) -> tuple[str, LoraTags]:
    """Check a prompt's brackets, and read its LoRA tags.

    Args:
        where: Name of the prompt in messages.
        is_trained: Whether there is an object of a name; `<lora:dog:0.8>` of an object stays in the text.

    Returns:
        The prompt without tags, and the tags. In plain syntax nothing is read.

    Raises:
        InputError: A bracket has no partner, or a weight is out of range; the message has the position.
    """
    from objtune_cli.models import prompt_syntax

    if syntax == PLAIN:
        return text, ()
    position, fault = prompt_syntax.find_fault(text, syntax)
    if fault:
        excerpt = text[position : position + MAX_SHOWN] + ("…" if len(text) > position + MAX_SHOWN else "")
        raise InputError(
            f"{where} is wrong at character {position + 1}, `{excerpt}`: {fault}",
            "weights are `(word)` and `(word:1.3)`; `\\(` is a plain bracket, and `--set generate.prompt_syntax=plain` reads all brackets as text",
        )
    written, loras = prompt_syntax.extract_loras(text, lambda name: is_trained(prompt_text.make_object_name(name)))
    if written.strip() or not text.strip():
        return written.strip() if loras else written, loras
    raise InputError(f"{where} has no words besides its LoRA tags", prompt_text.EXAMPLE)


def note_negative_loras(ctx: StageContext, tags: LoraTags) -> None:
    """Note that LoRA tags do not act in a negative prompt."""
    if tags:
        names = ", ".join(f"<lora:{name}>" for name, _ in tags)
        ctx.note_once(f"not applied: {names} in the negative prompt; LoRA tags act in prompts only")


def find_unread(text: str, syntax: str, *, editing: bool = False) -> list[str]:
    """The pieces of a prompt that are plain text in its syntax, but weights, alternatives or options in other tools.

    Args:
        editing: Whether the prompt changes during sampling where it says so.
    """
    if editing:
        from objtune_cli.models.prompt_editing import all_prompts

        prompts = all_prompts(text, syntax)
        return list(dict.fromkeys(piece for each in prompts for piece in find_unread(each, syntax)))
    pieces = prompt_text.find_other_syntax(text)
    if syntax == PLAIN:
        return pieces
    from objtune_cli.models.prompt_syntax import plain_text

    rest = plain_text(text, syntax)
    unread = [piece for piece in prompt_text.find_other_syntax(rest) if not _is_escape(piece, text, syntax)]
    return [piece for piece in unread if not piece.startswith("\\")]


def _is_escape(piece: str, text: str, syntax: str) -> bool:
    r"""Whether a piece of the plain text has escaped brackets in the prompt, as in `\(dog\)`."""
    return piece not in text and re.search(r"[()\[\]]", piece) is not None


def escape_unread(text: str, syntax: str, *, editing: bool = False) -> str:
    """Write a prompt for A1111 such that it reads what was drawn; weights and breaks stay, and with `editing` what changes between steps."""
    if syntax == PLAIN:
        return prompt_text.escape_syntax(text)
    if syntax != A1111:
        return text
    for piece in find_unread(text, syntax, editing=editing):
        if piece.startswith("["):
            text = text.replace(piece, prompt_text.escape_syntax(piece))
        elif piece == "AND":
            text = re.sub(r"\bAND\b", "and", text)
    return text
