"""Scenes to readings, and prompts to pictures: what the bench looks at."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from objtune_cli.config.sections import GUIDANCES
from objtune_cli.errors import GateError
from objtune_cli.evaluation import truth_scores
from objtune_cli.evaluation.benchmark_objects import PLACE, Case
from objtune_cli.evaluation.statistics import similarity
from objtune_cli.evaluation.truth_scores import Scale, vectors
from objtune_cli.images.png import is_single_color
from objtune_cli.models.registry import Base
from objtune_cli.store.kinds.adapter import AdapterArtifact
from objtune_cli.toybox import renderer, world
from objtune_cli.toybox.captions import article, describe
from objtune_cli.toybox.evaluator import inference
from objtune_cli.toybox.evaluator.inference import Reading
from objtune_cli.toybox.evaluator.network import Evaluator
from objtune_cli.toybox.world import Dial, Scene
from objtune_cli.workflow.context import StageContext

if TYPE_CHECKING:
    from objtune_cli.models.base_model import BaseModel

REFERENCES, OTHERS = 32, 32
"""Drawings of the object that pictures are compared with, and of other instances of its class."""
CLASS_PICTURES = 8
"""Pictures of "a photo of a <class>" for the drift."""
SIDE = 128
"""Side of true pictures, px; the evaluator was trained at this size."""
BATCH = 8


def drawn(scenes: list[Scene]) -> np.ndarray:
    """True pictures (N, S, S, 3) uint8."""
    return np.stack([renderer.render(scene, SIDE)[0] for scene in scenes])


def scale(network: Evaluator, case: Case, dial: Dial, seed: int) -> Scale:
    """Calibrate the measures for one object from true drawings."""
    rng = case.generator(seed, 1)
    again = [world.sample_scene(rng, dial, instances=(case.instance,)) for _ in range(REFERENCES)]
    fresh = [world.sample_scene(rng, dial, instances=(case.instance,)) for _ in range(REFERENCES)]
    others = [
        world.sample_scene(
            rng, dial, instances=(world.sample_instance(rng, dial, kind=case.instance.kind, held_out=None),)
        )
        for _ in range(OTHERS)
    ]
    itself, once_more, strangers = (
        [r.main for r in inference.read(network, drawn(side))] for side in (again, fresh, others)
    )
    references = vectors(itself)
    zero, one = (float(similarity(vectors(side), references).mean()) for side in (strangers, once_more))
    return Scale(references, zero, one, truth_scores.scatter(itself))


def worded(case: Case) -> str:
    """The object in the words of a caption: what a prompt alone can say."""
    return article(describe(case.instance, 3))


def loaded(ctx: StageContext, name: str, weights: Mapping[str, Any] | None, kind: str = "") -> tuple["BaseModel", Any]:
    """A fresh base with an adapter's LoRA and words, or the bare base; `kind`: the object's class word, which guidance asks with."""
    from objtune_cli.lora import layers
    from objtune_cli.models.placeholders import Placeholders, from_encoders

    model = ctx.load_base_model()
    words = Placeholders(model)
    if weights is not None:
        words.add(name, from_encoders(AdapterArtifact.from_tensors(weights).vectors[name]), kind)
        layers.load(model, weights)
    return model, words


def plainly(base: Base) -> dict[str, float]:
    """How a base is drawn from, but for what is drawn of learned objects alone."""
    return {name: value for name, value in base.sampling.items() if name not in GUIDANCES}


def pictures(
    ctx: StageContext, model: "BaseModel", prompts: list[str], seeds: list[int], label: str, **guidances: Any
) -> np.ndarray:
    """Pictures of expanded prompts, (N, S, S, 3) uint8, drawn with the base's own sampling; `guidances`: of objects, as `sample` takes them.

    Raises:
        GateError: One shows nothing, and measures would be of nothing. NonFiniteError: as `sample`.
    """
    import torch

    from objtune_cli.generation.sampling import sample, to_uint8

    step, done = ctx.progress(label), []
    for start in range(0, len(prompts), BATCH):
        part = slice(start, start + BATCH)
        latents = sample(model, prompts[part], "", seeds[part], **ctx.base.drawn(), **guidances)
        done.append(to_uint8(model.to_picture(latents)))
        step(min(start + BATCH, len(prompts)), len(prompts))
    shown = torch.cat(done).numpy()
    flat = [seeds[i] for i, picture in enumerate(shown) if is_single_color(picture)]
    if flat and not ctx.force:
        raise GateError(
            f"{len(flat)} of {len(shown)} pictures of {label} are of one colour (seed {flat[0]}): not measured",
            "`--force` measures them",
        )
    return shown


def asked(ctx: StageContext, model: "BaseModel", words: Any, case: Case, subject: str, **guidances: Any) -> np.ndarray:
    """Pictures of a case's prompts with `subject` in the object's place; `guidances`: as in `pictures`."""
    texts = [words.expand(p.text.replace(PLACE, subject)) for p in case.prompts]
    return pictures(ctx, model, texts, [p.seed for p in case.prompts], case.name, **guidances)


def of_class(ctx: StageContext, model: "BaseModel", kind: str) -> np.ndarray:
    """Pictures of "a photo of a <class>", always from the same noise."""
    return pictures(
        ctx,
        model,
        [f"a photo of {article(kind)}"] * CLASS_PICTURES,
        list(range(500, 500 + CLASS_PICTURES)),
        f"a {kind}",
    )


def readings(network: Evaluator, seen: np.ndarray) -> list[Reading]:
    """What is in the pictures."""
    return inference.read(network, fitted(seen))


def fitted(shown: np.ndarray) -> np.ndarray:
    """Square pictures at the size that the evaluator knows."""
    import cv2

    if shown.shape[1] == SIDE:
        return shown
    way = cv2.INTER_AREA if shown.shape[1] > SIDE else cv2.INTER_CUBIC
    return np.stack([cv2.resize(p, (SIDE, SIDE), interpolation=way) for p in shown])
