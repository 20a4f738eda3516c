"""`objtune bench place`: objects drawn into pictures of the toybox, whose truth is known, scored by its evaluator."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from objtune_cli.bench.result_cache import Row, write_table
from objtune_cli.bench.scene_methods import train_or_wait
from objtune_cli.bench.suites.objects import find_dial
from objtune_cli.config.sections import Bench, Generate, Place
from objtune_cli.evaluation import benchmark_objects, rendering, statistics
from objtune_cli.evaluation.benchmark_objects import Case
from objtune_cli.evaluation.truth_scores import MIN_IDENTITY, Calibration
from objtune_cli.images import png
from objtune_cli.placement import place
from objtune_cli.placement.crops import Crop, CroppedRegion, resize
from objtune_cli.placement.regions import Region, from_box
from objtune_cli.store import atomic_files
from objtune_cli.store.project import find_project
from objtune_cli.toybox import renderer
from objtune_cli.toybox.captions import PLACES
from objtune_cli.toybox.evaluator import inference
from objtune_cli.toybox.evaluator.network import Evaluator
from objtune_cli.toybox.world import Pose, Scene
from objtune_cli.workflow.context import StageContext

DEFAULT_OBJECTS = 6
SCENES = 4
"""Pictures that each object is placed in."""
SIDE = 256
"""Side of those pictures, px."""
SIZES = (0.4, 0.55)
"""Side of the square region, fraction of the picture."""
FILL = 0.85
"""Longer side of the true object over the region's side."""
BAND = 3
"""Half width of the band at the region's border in which the seam is measured, px."""
RING = 0.08
"""Width of the inner ring of the region that the true object leaves free, fraction of its side."""
PLAIN = Place(paste="region", context=8.0, softness=0.0, harmonize=0.0)
"""Inpainting of the whole picture at the base's size with a hard mask."""
MEASURES = ("identity", "present", "background", "ring", "seam")


@dataclass(frozen=True, slots=True)
class PlacedScene:
    """An object, a picture without it, and where it goes.

    Attributes:
        empty, truth: The picture without and with the object, (S, S, 3) uint8.
        prompt: Of the object in this place.
    """

    case: Case
    background: str
    region: Region
    box: tuple[float, float, float, float]
    empty: np.ndarray
    truth: np.ndarray
    prompt: str
    seed: int


def make_scenes(case: Case, backgrounds: tuple[str, ...], seed: int) -> list[PlacedScene]:
    """The pictures that an object is placed in; equal for equal seeds."""
    rng = case.generator(seed, 11)
    scenes = []
    for i in range(SCENES):
        background = str(rng.choice([b for b in backgrounds if b != case.photo_background]))
        side = float(rng.uniform(*SIZES))
        x0, y0 = rng.uniform(0.02, 0.98 - side), rng.uniform(0.3, 0.98 - side)
        box = (float(x0), float(y0), float(x0 + side), float(y0 + side))
        pose = Pose((box[0] + box[2]) / 2, (box[1] + box[3]) / 2, FILL * side)
        background_seed = int(rng.integers(1 << 30))
        empty, _ = renderer.render(Scene((), background, background_seed), SIDE)
        truth, _ = renderer.render(Scene(((case.instance, pose),), background, background_seed), SIDE)
        prompt = f"a photo of <{case.name}> {PLACES[background][0]}"
        scenes.append(PlacedScene(case, background, from_box(box, (SIDE, SIDE)), box, empty, truth, prompt, 1000 + i))
    return scenes


def run(ctx: StageContext, out: Path, methods: list[str], config: Bench) -> list[Row]:
    """Rows of the methods, over the objects of `config`; pictures of finished scenes are used again. The rows are in `table.csv` of `out`, too.

    Raises:
        IncompatibleError: The base is not of the toybox. Stopped: A signal came; finished scenes are kept.
    """
    dial, network = find_dial(ctx), inference.load()
    ctx = replace(ctx, project=find_project(out / "placed", create=True))
    results: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
    cases = benchmark_objects.make_cases(dial, config.num_objects, config.seed, kinds=("scene",))
    for case in [case for i, case in enumerate(cases) if i in range(config.num_objects)[config.part]]:
        train_or_wait(ctx, case)
        scale = rendering.calibrate(network, case, dial, config.seed)
        for scene in make_scenes(case, dial.backgrounds, config.seed):
            for method in methods:
                ctx.check_stopped()
                picture = METHODS[method](ctx, scene, out)
                results[method].append(score(network, scale, scene, picture))
        latest = {m: "  ".join(f"{k} {v:.2f}" for k, v in results[m][-1].items()) for m in methods}
        ctx.report.note(f"{case.name}: " + "; ".join(f"{m}: {text}" for m, text in latest.items()))
    rows = [row for method, values in results.items() for row in statistics.table_rows(method, values)]
    write_table(out / "table.csv", rows)
    return rows


def score(network: Evaluator, scale: Calibration, scene: PlacedScene, picture: np.ndarray) -> dict[str, float]:
    """Measures of one picture.

    Returns:
        identity: Of the best detection in the region, 0 for none. present: Whether that is at least half.
        background: Largest difference to the empty picture outside the region, of 255.
        ring: Mean difference to it in the region's inner ring, of 255.
        seam: Mean difference of the brightness gradient to the true picture's at the region's border, of 255 per px.
    """
    crop = Crop.around(scene.region.box, (SIDE, SIDE), 1.5).take(picture)
    things = inference.read_images(network, resize(crop, rendering.SIDE)[None], most=2)[0].detections
    identity = max((float(v) for v in scale.identity(things)), default=0.0) if things else 0.0
    x0, y0, x1, y1 = scene.region.box
    inside = np.zeros((SIDE, SIDE), np.uint8)
    inside[y0:y1, x0:x1] = 1
    width = max(2, round(RING * (x1 - x0)))
    inner = cv2.erode(inside, np.ones((2 * width + 1, 2 * width + 1), np.uint8))
    brush = np.ones((2 * BAND + 1, 2 * BAND + 1), np.uint8)
    band = (cv2.dilate(inside, brush) - cv2.erode(inside, brush)) > 0
    change = np.abs(picture.astype(np.float32) - scene.empty).mean(-1)
    seam = np.abs(_gradient(picture) - _gradient(scene.truth))
    return {
        "identity": identity,
        "present": float(identity >= MIN_IDENTITY),
        "background": float(change[inside == 0].max()),
        "ring": float(change[(inside - inner) > 0].mean()),
        "seam": float(seam[band].mean()),
    }


def _gradient(picture: np.ndarray) -> np.ndarray:
    """Magnitude of the brightness gradient, (H, W)."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0, scale=1 / 8), cv2.Sobel(grey, cv2.CV_32F, 0, 1, scale=1 / 8))


def _place(ctx: StageContext, scene: PlacedScene, out: Path, options: Place) -> np.ndarray:
    """The picture of `objtune place`."""
    file = out / "pictures" / f"{scene.case.name}-{scene.seed}.png"
    if not file.exists():
        atomic_files.write_file(file, png.encode_png(scene.empty))
    config = Generate(num_images=1, seed=scene.seed)
    (result,) = place.run(ctx, scene.prompt, file, place.Location(box=scene.box), config, options)
    return png.read(result.images[0])


def _paste(ctx: StageContext, scene: PlacedScene, out: Path) -> np.ndarray:
    """The photo's cut-out, resized and pasted; its colours are moved to the region's by a tenth, as a simple harmonisation."""
    rgb, mask = scene.case.picture()
    side = rendering.SIDE
    crop = Crop.around(scene.region.box, (SIDE, SIDE), 1.5)
    cropped = CroppedRegion(scene.empty, scene.region, crop, side, 0.0)
    image, cover = cropped.insert(resize(rgb, side), resize(mask, side) > 127)
    mean = cropped.background.reshape(-1, 3).mean(0)
    toned = np.rint(image + 0.1 * (mean - image[cover > 0.5].mean(0)) * cover[..., None]).clip(0, 255).astype(np.uint8)
    return cropped.blend(toned, cv2.GaussianBlur(cover, (0, 0), 0.7))


METHODS: dict[str, Callable[[StageContext, PlacedScene, Path], np.ndarray]] = {
    "truth": lambda ctx, scene, out: scene.truth,
    "objtune": lambda ctx, scene, out: _place(ctx, scene, out, Place()),
    "once": lambda ctx, scene, out: _place(ctx, scene, out, Place(max_retries=0)),
    "region": lambda ctx, scene, out: _place(ctx, scene, out, Place(paste="region")),
    "inpainting": lambda ctx, scene, out: _place(ctx, scene, out, PLAIN),
    "paste": _paste,
}
"""Method to the function that makes its picture: the renderer; `objtune place`; without retries; whole region replaced; plain inpainting with the same
adapter; the photo's cut-out pasted."""
