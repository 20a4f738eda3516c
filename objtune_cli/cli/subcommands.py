"""A command of several, such as `bench`: the first subcommand is the default."""

from typing import Any

from typer.core import TyperGroup

from objtune_cli.cli.former_options import NOTES, translate, translate_to_subcommand
from objtune_cli.cli.option_groups import options_with_value


class DefaultGroup(TyperGroup):
    """Runs the first of its commands where a command line names none. Options may stand before the subcommand."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        completes_first_word = ctx.resilient_parsing and not args
        if not completes_first_word and args[:1] != ["--help"]:
            args = self._with_command_first(ctx, args)
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Subcommands, and the options of the default one."""
        offered = super().shell_complete(ctx, incomplete)
        if not incomplete.startswith("-"):
            return offered
        default = self._default()
        with default.make_context(default.name, [], parent=ctx, resilient_parsing=True) as inner:
            return [*offered, *default.shell_complete(inner, incomplete)]

    def _default(self) -> Any:
        return next(iter(self.commands.values()))

    def _with_command_first(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] in self.commands:
            return args
        for replace in (translate_to_subcommand, translate):
            args, notes = replace(self.name or "", args)
            ctx.meta.setdefault(NOTES, []).extend(notes)
        if args and args[0] in self.commands:
            return args
        valued = {name for command in self.commands.values() for name in options_with_value(command, ctx)}
        at = _first_argument(args, valued)
        if at is None:
            return [self._default().name, *args]
        return [args[at], *args[:at], *args[at + 1 :]]


def _first_argument(words: list[str], valued: set[str]) -> int | None:
    """Position of the first word that is neither an option nor an option's value; None where there is none."""
    skip = False
    for i, word in enumerate(words):
        if not skip and not word.startswith("-"):
            return i
        skip = not skip and word in valued
    return None
