"""Give every mention of an object in a prompt a name of its own."""

import itertools
import re
from collections.abc import Sequence, Set
from dataclasses import replace

from objtune_cli.models.prompts import PLACEHOLDER
from objtune_cli.workflow import trained_objects
from objtune_cli.workflow.context import StageContext


def name_mentions(
    prompt: str, named: Sequence[trained_objects.PromptObject], used_names: Set[str] = frozenset()
) -> tuple[str, list[trained_objects.PromptObject]]:
    """Give every mention of an object a name of its own: `<dog> and <dog>` becomes `<dog> and <dog-2>`.

    Args:
        used_names: Names of other objects, which no mention gets.

    Returns:
        The prompt with the names, without versions; and an object for every mention.
    """
    by_name, mentions = {o.name: o for o in named}, dict[str, trained_objects.PromptObject]()

    def rename(match: re.Match[str]) -> str:
        item = by_name[match[1]]
        candidates = (item.name if i == 1 else f"{item.name}-{i}" for i in itertools.count(1))
        name = next(
            n for n in candidates if n not in mentions and (n == item.name or n not in used_names | by_name.keys())
        )
        mentions[name] = item if name == item.name else replace(item, name=name, trained_name=item.own_name)
        return f"<{name}>"

    return PLACEHOLDER.sub(rename, prompt), list(mentions.values())


def note_repeated(
    ctx: StageContext, named: Sequence[trained_objects.PromptObject], mentions: Sequence[trained_objects.PromptObject]
) -> None:
    """Tell the user which objects the prompt mentions more than once."""
    for item in named:
        names = [o.name for o in mentions if o.key == item.key]
        if len(names) > 1:
            ctx.report.note(
                f"the prompt names <{item.name}> {len(names)} times, so the scene has {len(names)}: {', '.join(names)}; name it once to draw one"
            )
