"""Keeps which options follow which argument: with several photos, an option belongs to the photo before it."""

from typing import Any

from typer.core import TyperCommand

from objtune_cli.cli.former_options import NOTES, translate

KEY = "objtune.groups"
"""Key of a parser context's `meta`: the arguments with the options behind them."""


class GroupedCommand(TyperCommand):
    """A command that keeps each argument with the options behind it in `ctx.meta[KEY]`; those before the first belong to ""."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for name in (ctx.parent.info_name if ctx.parent else "", self.name):
            args, notes = translate(name or "", args)
            ctx.meta.setdefault(NOTES, []).extend(notes)
        words = list(args)
        rest = super().parse_args(ctx, args)  # refuses what does not parse
        parser, valued = self.make_parser(ctx), options_with_value(self, ctx)
        ctx.meta[KEY] = [
            (argument, parser.parse_args(options)[0]) for argument, options in split_at_arguments(words, valued)
        ]
        return rest


def options_with_value(command: Any, ctx: Any) -> set[str]:
    """The options of a command that take the next word as their value."""
    own = [p for p in command.get_params(ctx) if p.param_type_name == "option" and not (p.is_flag or p.count)]
    return {name for p in own for name in (*p.opts, *p.secondary_opts)}


def split_at_arguments(words: list[str], valued: set[str]) -> list[tuple[str, list[str]]]:
    """Words as (argument, the options behind it), the first argument "" for those before any."""
    groups: list[tuple[str, list[str]]] = [("", [])]
    rest = iter(words)
    for word in rest:
        if word == "--":
            groups += [(argument, []) for argument in rest]
        elif word == "-" or not word.startswith("-"):
            groups.append((word, []))
        else:
            groups[-1][1].append(word)
            if word in valued:
                groups[-1][1].append(next(rest, ""))
    return groups
