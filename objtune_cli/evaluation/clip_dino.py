"""The measures of the papers on photographs: CLIP-I, CLIP-T, DINO and diversity (DreamBooth, arXiv:2208.12242, section 4.1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from objtune_cli.config.sections import Bench
from objtune_cli.errors import ResourceError
from objtune_cli.evaluation import features, statistics
from objtune_cli.evaluation.features import Pictures, Texts
from objtune_cli.workflow.context import StageContext


@dataclass(frozen=True, slots=True)
class Judges:
    """What pictures are measured with.

    Attributes:
        look, say: CLIP on pictures and on texts. dino: None where it is not on this machine.
        clip_name, dino_name: As they are called in tables.
    """

    look: Pictures
    say: Texts
    dino: Pictures | None
    clip_name: str = ""
    dino_name: str = ""

    @property
    def models(self) -> dict[str, Pictures]:
        """Measure of likeness to the model that gives it."""
        return {"clip_i": self.look} | ({"dino": self.dino} if self.dino else {})

    def name(self, measure: str) -> str:
        """Which model gave a measure; nothing where none did."""
        diversity = self.dino_name if self.dino else self.clip_name
        return {"clip_i": self.clip_name, "clip_t": self.clip_name, "dino": self.dino_name, "diversity": diversity}.get(
            measure, ""
        )


def opened(ctx: StageContext, config: Bench) -> Judges:
    """The models that the settings name; DINO is left out, with a note, where it is the default and not on this machine.

    Raises:
        ResourceError: One that was asked for is not here, or the base has no image tower. UsageError: a model of another kind.
    """
    look, say = features.clip(config.clip) if config.clip else features.own(ctx)
    try:
        dino = features.dino(config.dino)
    except ResourceError:
        if config.dino != features.DINO:
            raise
        ctx.report.note(
            f"{features.DINO} is not on this machine: no DINO, and diversity by CLIP; `objtune fetch --model {features.DINO}` brings it"
        )
        dino = None
    return Judges(look, say, dino, _called(config.clip) or f"{ctx.base.id}'s own", _called(config.dino) if dino else "")


def _called(name: str) -> str:
    """A hub id as it is; of a folder or file on this machine its own name."""
    return Path(name).name if name and Path(name).exists() else name


def score(
    judges: Judges, shown: np.ndarray, told: list[str], references: Mapping[str, Sequence[np.ndarray]], each: int
) -> dict[str, float]:
    """Measures of pictures (N, H, W, 3) uint8 of an object, `each` of every prompt in a row.

    Args:
        told: The prompt of each picture with the class word in the object's place.
        references: What the pictures are compared with, of any sizes, by what is put behind the measure's name.

    Returns:
        clip_t: mean cosine of pictures and prompts. clip_i, dino: mean cosine of pictures and references. diversity: 1 - mean
        cosine of two pictures of a prompt, by DINO or, without it, by CLIP; left out where a prompt has one picture.
    """
    found: dict[str, float] = {}
    vectors = judges.look(shown)
    found["clip_t"] = float((vectors * judges.say(told)).sum(1).mean())
    for name, model in judges.models.items():
        vectors = vectors if model is judges.look else model(shown)
        for suffix, photos in references.items():
            found[name + suffix] = float(statistics.similarity(vectors, seen(model, photos)).mean())
    if each > 1:
        found["diversity"] = float(np.mean([variety(part) for part in np.split(vectors, len(shown) // each)]))
    return found


def seen(model: Pictures, photos: Sequence[np.ndarray]) -> np.ndarray:
    """Unit vectors (N, d) of photos of any sizes."""
    return np.concatenate([model(photo[None]) for photo in photos])


def variety(vectors: np.ndarray) -> float:
    """1 - mean cosine of two of the unit vectors (N, d), N > 1."""
    count = len(vectors)
    return float(1 - ((vectors @ vectors.T).sum() - count) / (count * (count - 1)))
