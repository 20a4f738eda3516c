"""Spans of time as people write them: `45m`, `1h30m`, `14d`, or plain seconds."""

import re

from objtune_cli.errors import UsageError

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_SPAN = re.compile(
    r"(?:(\d{1,6}(?:\.\d{1,6})?)d)?(?:(\d{1,6}(?:\.\d{1,6})?)h)?(?:(\d{1,6}(?:\.\d{1,6})?)m)?(?:(\d{1,9}(?:\.\d{1,6})?)s?)?",
    re.A,
)


def parse_duration(text: str, option: str) -> float:
    """The seconds of a span.

    Raises:
        UsageError: Not a span; names the option.
    """
    match = _SPAN.fullmatch(text.strip()) if text.strip() else None
    if match is None:
        raise UsageError(
            f"{option} {text} is not a duration", f"for example `{option} 45m`, `{option} 1h30m` or `{option} 14d`"
        )
    return sum(float(part or 0) * unit for part, unit in zip(match.groups(), _UNITS.values(), strict=True))
