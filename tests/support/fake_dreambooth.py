"""Drawn objects of the toybox's world in the layout of DreamBooth's data set.

`python -m tests.support.fake_dreambooth DIR` writes two held-out subjects of five photos, with twenty-five prompts in the words that the toybox knows.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from objtune_cli.toybox import renderer, world
from objtune_cli.toybox.captions import PLACES
from objtune_cli.toybox.world import DIALS
from tests.support import tiny_sd1

HEAD = "Classes\n\nsubject_name,class\n{classes}\n\nPrompts\n\nObject Prompts\n\nprompt_list = [\n{objects}\n]\n\nLive Subject Prompts\n\nprompt_list = [\n{live}\n]\n"
"""The listing as the data set has it, blank lines and Python's own brackets included."""
SUBJECTS = {"dog": "dog", "mug": "mug"}
PLACED = [place for background in DIALS["medium"].backgrounds for place in PLACES[background]]


def small_base(folder: Path) -> Path:
    """A tiny base with a CLIP, drawn in one step."""
    tiny_sd1.build(folder, clip=True)
    (folder / "toybox.json").write_text(json.dumps({"sampling": {"num_inference_steps": 1, "guidance_scale": 1.0}}))
    return folder


def listed(texts: list[str]) -> str:
    """Prompts as the data set writes them."""
    return ",\n".join(f"'{text}'.format(unique_token, class_token)" for text in texts)


def listing(classes: dict[str, str], objects: list[str], live: list[str]) -> str:
    """`prompts_and_classes.txt`."""
    return HEAD.format(
        classes="\n".join(f"{n},{k}" for n, k in classes.items()), objects=listed(objects), live=listed(live)
    )


def prompts(count: int = 25) -> tuple[list[str], list[str]]:
    """Prompts of objects and of live subjects: places, colours, and for the latter a hat."""
    places = [f"a {{0}} {{1}} {place}" for place in PLACED]
    colours = [f"a {colour} {{0}} {{1}}" for colour in ("red", "purple")]
    hats = [f"a {{0}} {{1}} with a {colour} hat {place}" for colour in ("red", "blue", "yellow") for place in PLACED]
    photos = [f"a photo of a {{0}} {{1}} {place}" for place in PLACED]
    return [*places, *colours, *photos][:count], [*places, *colours, *hats][:count]


def write(
    folder: Path,
    classes: dict[str, str] | None = None,
    photos: int = 5,
    count: int = 25,
    side: int = 320,
    mask: bool = False,
) -> Path:
    """Held-out objects of the classes, each drawn `photos` times; `mask`: the first photo's mask beside it."""
    classes = SUBJECTS if classes is None else classes
    dial = DIALS["medium"]
    for number, (name, kind) in enumerate(classes.items()):
        rng = np.random.default_rng((7, number))
        instance = world.sample_instance(rng, dial, kind=kind, held_out=True)
        (folder / name).mkdir(parents=True)
        for i in range(photos):
            rgb, covers = renderer.render(world.sample_scene(rng, dial, instances=(instance,)), side)
            Image.fromarray(rgb).save(folder / name / f"{i:02d}.jpg", quality=95)
            if mask and not i:
                Image.fromarray(covers[0]).save(folder / name / "00.mask.png")
    (folder / "prompts_and_classes.txt").write_text(listing(classes, *prompts(count)))
    return folder


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
