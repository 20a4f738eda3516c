"""Where the objects of a scene were placed, and the command line that draws a scene again."""

import re
import shlex
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from objtune_cli.composition.layout import COLOURS
from objtune_cli.store.artifacts import Record
from objtune_cli.store.store import Store

REPEATED_SETTINGS = ("guidance_scale", "num_inference_steps", "scheduler", "negative_prompt", "width", "height")
"""Settings of a scene that its command line repeats."""
DEFAULTS = (None, "", "auto", 0)
"""Values of these settings that leave them to the base."""
PNG_SIZE_AT = 16
"""Offset of width and height in a PNG file, two big-endian 32-bit numbers (ISO/IEC 15948, 11.2.2)."""


@dataclass(frozen=True, slots=True)
class LabelledBox:
    """The place of an object: x0, y0, x1, y1 in fractions of the image."""

    name: str
    colour: str
    box: tuple[float, float, float, float]


def read_boxes(store: Store, record: Record, pictures: Sequence[str]) -> tuple[LabelledBox, ...]:
    """The places of a scene of `compose`, or the region of `place`; empty for other scenes.

    Args:
        pictures: Keys of its images.
    """
    names = _list_mentions(record)
    if names:
        places = record.config["places"]
        return tuple(
            LabelledBox(name, COLOURS[list(names).index(name) % len(COLOURS)], tuple(places[name]))
            for name in record.config.get("order", names)
        )
    region = record.config.get("region")
    if not region or not pictures:
        return ()
    head = store.backend.read(pictures[0], PNG_SIZE_AT, 8)
    width, height = struct.unpack(">II", head) if len(head) == 8 else (0, 0)
    if not width or not height:
        return ()
    x0, y0, x1, y1 = region
    return (LabelledBox(record.name, COLOURS[0], (x0 / width, y0 / height, x1 / width, y1 / height)),)


def describe_command(record: Record) -> str:
    """The command line that draws a scene again; empty if it needs a file from outside the project."""
    config, prompt = record.config, str(record.config.get("prompt", ""))
    if not prompt or any(not source["ref"] for source in record.inputs.values()):
        return ""
    words = ["objtune", "compose" if "places" in config else "generate", prompt]
    for name, own_name in _list_mentions(record).items():
        words += ["--place", f"{own_name}={','.join(f'{value:g}' for value in config['places'][name])}"]
    words += ["--seed", str(config.get("seed", 0)), "-n", str(config.get("num_images", 1))]
    for name in REPEATED_SETTINGS:
        if config.get(name) not in DEFAULTS:
            words += ["--set", f"generate.{name}={config[name]}"]
    return shlex.join(words)


def _list_mentions(record: Record) -> dict[str, str]:
    """The names in a composed scene, and those of their objects, in the order of the prompt: `dog-2` is another <dog>."""
    places, prompt = record.config.get("places", {}), str(record.config.get("prompt", ""))
    own_names = {name: name if name in record.objects else re.sub(r"-\d+$", "", name) for name in places}
    position = {name: prompt.find(f"<{own_name}") for name, own_name in own_names.items()}
    return {name: own_names[name] for name in sorted(places, key=lambda name: (position[name], len(name), name))}
