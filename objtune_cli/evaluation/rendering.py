"""Images for measures: the renderer's ground truth, and samples of the base and of adapters."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from objtune_cli.config.sections import GUIDANCES
from objtune_cli.errors import GateError
from objtune_cli.evaluation import truth_scores
from objtune_cli.evaluation.benchmark_objects import OBJECT_SLOT, Case
from objtune_cli.evaluation.statistics import mean_cosine
from objtune_cli.evaluation.truth_scores import Calibration, identity_vectors
from objtune_cli.images.png import is_single_color
from objtune_cli.models.base_spec import BaseSpec
from objtune_cli.store.kinds.adapter import AdapterArtifact
from objtune_cli.toybox import renderer, world
from objtune_cli.toybox.captions import article, describe
from objtune_cli.toybox.evaluator import inference
from objtune_cli.toybox.evaluator.inference import SceneReading
from objtune_cli.toybox.evaluator.network import Evaluator
from objtune_cli.toybox.world import Dial, Scene
from objtune_cli.workflow.context import StageContext

if TYPE_CHECKING:
    from objtune_cli.models.base_model import BaseModel

REFERENCES, OTHER_INSTANCES = 32, 32
"""Numbers of renderings of the object, as references, and of other instances of its class."""
CLASS_IMAGES = 8
"""Images of "a photo of a <class>" for the class drift."""
SIDE = 128
"""Side of rendered images, px; the evaluator was trained at this size."""
BATCH = 8


def render_scenes(scenes: list[Scene]) -> np.ndarray:
    """Render scenes: (N, S, S, 3) uint8."""
    return np.stack([renderer.render(scene, SIDE)[0] for scene in scenes])


def calibrate(network: Evaluator, case: Case, dial: Dial, seed: int) -> Calibration:
    """Calibrate the measures of one object from renderings."""
    rng = case.generator(seed, 1)
    again = [world.sample_scene(rng, dial, instances=(case.instance,)) for _ in range(REFERENCES)]
    fresh = [world.sample_scene(rng, dial, instances=(case.instance,)) for _ in range(REFERENCES)]
    others = [
        world.sample_scene(
            rng, dial, instances=(world.sample_instance(rng, dial, kind=case.instance.kind, held_out=None),)
        )
        for _ in range(OTHER_INSTANCES)
    ]
    itself, once_more, strangers = (
        [r.main for r in inference.read_images(network, render_scenes(side))] for side in (again, fresh, others)
    )
    references = identity_vectors(itself)
    zero, one = (float(mean_cosine(identity_vectors(side), references).mean()) for side in (strangers, once_more))
    return Calibration(references, zero, one, truth_scores.pose_spread(itself))


def describe_object(case: Case) -> str:
    """The object in the words of a caption."""
    return article(describe(case.instance, 3))


def load_adapter(
    ctx: StageContext, name: str, weights: Mapping[str, Any] | None, kind: str = ""
) -> tuple["BaseModel", Any]:
    """Load the base with an adapter's LoRA and placeholder, or the base alone if `weights` is None.

    Args:
        kind: The object's class word, which guidance uses.
    """
    from objtune_cli.lora import layers
    from objtune_cli.models.placeholders import Placeholders, from_encoders

    model = ctx.load_base_model()
    words = Placeholders(model)
    if weights is not None:
        words.add(name, from_encoders(AdapterArtifact.from_tensors(weights).vectors[name]), kind)
        layers.load(model, weights)
    return model, words


def base_sampling(base: BaseSpec) -> dict[str, float]:
    """The base's sampling settings without those of trained objects."""
    return {name: value for name, value in base.sampling.items() if name not in GUIDANCES}


def sample_images(
    ctx: StageContext, model: "BaseModel", prompts: list[str], seeds: list[int], label: str, **sampling: Any
) -> np.ndarray:
    """Sample images with the base's own settings, (N, S, S, 3) uint8.

    Args:
        prompts: With placeholders written as tokens.
        label: Name in the progress bar.
        sampling: Further fields of `SamplingSettings`.

    Raises:
        GateError: An image is of one colour, and `--force` is not given.
        NonFiniteError: As `sample`.
    """
    import torch

    from objtune_cli.generation.sampling import sample, to_uint8
    from objtune_cli.generation.settings import SamplingSettings

    settings = SamplingSettings(**ctx.base.sampling_kwargs(), **sampling)
    step, batches = ctx.progress(label), []
    for start in range(0, len(prompts), BATCH):
        part = slice(start, start + BATCH)
        latents = sample(model, prompts[part], seeds[part], settings)
        batches.append(to_uint8(model.decode_latents(latents)))
        step(min(start + BATCH, len(prompts)), len(prompts))
    images = torch.cat(batches).numpy()
    flat = [seeds[i] for i, picture in enumerate(images) if is_single_color(picture)]
    if flat and not ctx.force:
        raise GateError(
            f"{len(flat)} of {len(images)} images of {label} have one colour (seed {flat[0]}) and are not measured",
            "use `--force` to measure them",
        )
    return images


def sample_case(
    ctx: StageContext, model: "BaseModel", words: Any, case: Case, subject: str, **sampling: Any
) -> np.ndarray:
    """Sample images of a case's prompts with `subject` for the object."""
    texts = [words.expand(p.text.replace(OBJECT_SLOT, subject)) for p in case.prompts]
    return sample_images(ctx, model, texts, [p.seed for p in case.prompts], case.name, **sampling)


def sample_class(ctx: StageContext, model: "BaseModel", kind: str) -> np.ndarray:
    """Sample images of "a photo of a <class>", always from the same noise."""
    return sample_images(
        ctx,
        model,
        [f"a photo of {article(kind)}"] * CLASS_IMAGES,
        list(range(500, 500 + CLASS_IMAGES)),
        f"a {kind}",
    )


def read_images(network: Evaluator, images: np.ndarray) -> list[SceneReading]:
    """The evaluator's readings of images of any size."""
    return inference.read_images(network, resize_images(images))


def resize_images(images: np.ndarray, side: int | None = None) -> np.ndarray:
    """Resize square images to `side`, px, by default the evaluator's size."""
    import cv2

    side = side or SIDE
    if images.shape[1] == side:
        return images
    interpolation = cv2.INTER_AREA if images.shape[1] > side else cv2.INTER_CUBIC
    return np.stack([cv2.resize(p, (side, side), interpolation=interpolation) for p in images])
