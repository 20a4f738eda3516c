"""`segment`: a photo and a class word to a mask artifact that carries the photo's pixels."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from objtune_cli.config import Segment
from objtune_cli.errors import GateError, InputError, UsageError
from objtune_cli.stages.context import Context, Done, keep_picture
from objtune_cli.store import artifact, photo, pictures
from objtune_cli.store.artifact import Record

if TYPE_CHECKING:
    import numpy as np

MIN_AREA, MAX_AREA = 0.004, 0.92
MAX_BORDER = 0.55
MAX_PIECES = 12


@dataclass(frozen=True, slots=True)
class Target:
    """One object to find: its class and name, and what the user said about where it is (photo px)."""

    class_word: str
    name: str
    box_xyxy: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float], ...] = ()
    mask: Path | None = None

    def hints(self) -> dict:
        return {"box": list(self.box_xyxy or ()), "points": [list(p) for p in self.points]}


def run(ctx: Context, path: Path, targets: list[Target], config: Segment) -> list[Done]:
    """Find each target in the photo.

    Raises:
        InputError: Unusable photo, mask, box or point. GateError: a mask nobody should train on.
    """
    digest = photo.digest(path)
    blind = [t for t in targets if not (t.box_xyxy or t.points or t.mask)]
    if blind and len(targets) > 1:
        raise UsageError(f"with several objects each needs a hint; {blind[0].name} has none", f"for example `--box {blind[0].name}=x0,y0,x1,y1`")
    records = [_record(target, digest, config) for target in targets]
    done = [ctx.reuse(record) for record in records]
    if all(done):
        return [d for d in done if d]
    picture = photo.read(path)
    for note in picture.notes:
        ctx.report.note(f"{path.name}: {note}")
    # Every mask has to pass the gate before the first one is published.
    found = [old or _find(ctx, picture, target, record, config) for old, target, record in zip(done, targets, records, strict=True)]
    return [item if isinstance(item, Done) else _publish(ctx, item) for item in found]


def _record(target: Target, digest: str, config: Segment) -> Record:
    inputs = {"photo": {"ref": "", "sha256": digest}}
    if target.mask:
        inputs["mask"] = {"ref": "", "sha256": photo.digest(target.mask)}
    if config.sam_checkpoint:
        try:
            inputs["checkpoint"] = {"ref": "", "sha256": artifact.sha256(Path(config.sam_checkpoint))}
        except OSError:
            raise InputError(f"there is no file {config.sam_checkpoint}", "give a segment-anything checkpoint, or none for GrabCut") from None
    settings = asdict(replace(config, sam_checkpoint="")) | target.hints()
    return Record("mask", target.name, {target.name: target.class_word}, inputs, settings, base={})


@dataclass(frozen=True, slots=True)
class Found:
    """A mask that passed the gate, ready to be published."""

    record: Record
    rgb: "np.ndarray"
    mask: "np.ndarray"
    overlay: bytes


def _find(ctx: Context, picture: photo.Photo, target: Target, record: Record, config: Segment) -> Found:
    import cv2

    height, width = picture.rgb.shape[:2]
    scale = min(1.0, config.max_side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    rgb = cv2.resize(picture.rgb, size, interpolation=cv2.INTER_AREA) if scale < 1 else picture.rgb
    cover, how = _cover(picture, target, config, rgb, scale)
    mask = cv2.resize(cover, size, interpolation=cv2.INTER_AREA) if cover.shape != rgb.shape[:2] else cover
    if how not in ("mask", "alpha"):
        mask = _soften(mask, config.edge * max(size))
    metrics = measure(mask)
    problem = judge(metrics)
    shown = pictures.png(pictures.overlay(rgb, mask))
    if problem and (not ctx.force or not metrics["area"]):
        rejected = ctx.project.folder / ".objtune" / "rejected" / f"{target.name}.png"
        artifact.write_file(rejected, shown, ctx.root)
        raise GateError(
            f"no usable mask of the {target.class_word}: {problem} (see {rejected})", "give `--box x0,y0,x1,y1`, `--point x,y` or `--mask M.png`"
        )
    if problem:
        ctx.report.note(f"kept although {problem}")
        record = replace(record, config={**record.config, "kept": problem})
    return Found(replace(record, metrics={**metrics, "found_by": how}), rgb, mask, shown)


def _publish(ctx: Context, found: Found) -> Done:
    import numpy as np

    ref = artifact.publish(ctx.root, found.record, {"rgb": found.rgb, "mask": np.ascontiguousarray(found.mask)})
    overlay = keep_picture(ctx.root, ref, "overlay.png", found.overlay)
    return Done(ref, False, [overlay], found.record.metrics)


def _cover(picture: photo.Photo, target: Target, config: Segment, rgb: "np.ndarray", scale: float) -> tuple["np.ndarray", str]:
    """Coverage uint8 (of the photo's or of `rgb`'s size) and where it comes from."""
    import numpy as np

    height, width = picture.rgb.shape[:2]
    if target.mask:
        return photo.read_mask(target.mask, (width, height)), "mask"
    if picture.alpha is not None and not target.box_xyxy and not target.points:
        return picture.alpha, "alpha"
    from objtune_cli.models.segmenter import GrabCut, Hints, Sam

    _check_hints(target, width, height)
    segmenter = Sam(Path(config.sam_checkpoint)) if config.sam_checkpoint else GrabCut()
    box = tuple(v * scale for v in target.box_xyxy) if target.box_xyxy else None
    found = segmenter(rgb, Hints(box, tuple((x * scale, y * scale) for x, y in target.points)))  # type: ignore[arg-type]
    return found.astype(np.uint8) * 255, segmenter.name


def _check_hints(target: Target, width: int, height: int) -> None:
    if target.box_xyxy:
        x0, y0, x1, y1 = target.box_xyxy
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise InputError(
                f"the box {x0:g},{y0:g},{x1:g},{y1:g} is not inside the photo ({width}x{height})", "x0,y0 is its upper left, x1,y1 its lower right corner"
            )
    for x, y in target.points:
        if not (0 <= x < width and 0 <= y < height):
            raise InputError(f"the point {x:g},{y:g} is not inside the photo ({width}x{height})", "give pixels of the photo as it is shown")


def _soften(mask: "np.ndarray", sigma: float) -> "np.ndarray":
    """The outline blurred over about `sigma` px."""
    import cv2

    return cv2.GaussianBlur(mask, (0, 0), max(sigma, 0.5)) if sigma > 0 else mask


def measure(mask: "np.ndarray") -> dict[str, float]:
    """What the gate looks at: area share, pieces above 1 % of it, share of the border touched."""
    import cv2
    import numpy as np

    hard = (mask > 127).astype(np.uint8)
    area = int(hard.sum())
    count, _, stats, _ = cv2.connectedComponentsWithStats(hard)
    pieces = sum(int(stats[i, cv2.CC_STAT_AREA]) > 0.01 * area for i in range(1, count))
    border = np.concatenate([hard[0], hard[-1], hard[:, 0], hard[:, -1]])
    return {"area": round(area / hard.size, 6), "pieces": pieces, "border": round(float(border.mean()), 6)}


def judge(metrics: dict[str, float]) -> str:
    """Why a mask cannot be trained on, or an empty string."""
    if metrics["area"] < MIN_AREA:
        return f"it covers {metrics['area']:.1%} of the photo" if metrics["area"] else "nothing was found"
    if metrics["area"] > MAX_AREA:
        return f"it covers {metrics['area']:.0%} of the photo"
    if metrics["border"] > MAX_BORDER:
        return f"it touches {metrics['border']:.0%} of the photo's border"
    if metrics["pieces"] > MAX_PIECES:
        return f"it falls into {metrics['pieces']:.0f} pieces"
    return ""
