"""Which options follow which argument: parsers of options forget that, and with several photos it is what says whose they are."""

from typing import Any

from typer.core import TyperCommand

from objtune_cli.cli.former_options import NOTES, translate

KEY = "objtune.parts"


class InParts(TyperCommand):
    """A command that keeps each argument with the options behind it in `ctx.meta[KEY]`; those before the first belong to ""."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        args, ctx.meta[NOTES] = translate(self.name or "", args)
        given = list(args)
        rest = super().parse_args(ctx, args)  # refuses what does not parse
        parser = self.make_parser(ctx)
        ctx.meta[KEY] = [
            (argument, parser.parse_args(options)[0]) for argument, options in split(given, self._valued(ctx))
        ]
        return rest

    def _valued(self, ctx: Any) -> set[str]:
        """The options that take the next word as their value."""
        known: list[Any] = self.get_params(ctx)
        own = [p for p in known if p.param_type_name == "option" and not (p.is_flag or p.count)]
        return {name for p in own for name in (*p.opts, *p.secondary_opts)}


def split(words: list[str], valued: set[str]) -> list[tuple[str, list[str]]]:
    """Words as (argument, the options behind it), the first argument "" for those before any."""
    found: list[tuple[str, list[str]]] = [("", [])]
    rest = iter(words)
    for word in rest:
        if word == "--":
            found += [(argument, []) for argument in rest]
        elif word == "-" or not word.startswith("-"):
            found.append((word, []))
        else:
            found[-1][1].append(word)
            if word in valued:
                found[-1][1].append(next(rest, ""))
    return found
