"""`objtune bench --photos`: one photo of each subject of DreamBooth's data set is learned, all its photos judge what is drawn.

Source: the protocol of arXiv:2208.12242, section 4.1 (30 subjects, 25 prompts, 4 pictures of each), with one photo as in arXiv:2401.15708.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from objtune_cli.bench import dreambooth_dataset, single_training
from objtune_cli.bench import result_cache as kept
from objtune_cli.bench.dreambooth_dataset import Subject
from objtune_cli.bench.methods import PLAINLY, Method
from objtune_cli.bench.result_cache import Kept, Measured, Row
from objtune_cli.config.sections import Bench, Prior, Segment
from objtune_cli.errors import GateError
from objtune_cli.evaluation import clip_dino, features, rendering, statistics
from objtune_cli.evaluation.clip_dino import Judges
from objtune_cli.images import grids, photo, png
from objtune_cli.segmentation import stage as segment
from objtune_cli.segmentation.from_hints import Target
from objtune_cli.store import artifacts
from objtune_cli.store.kinds.mask import MaskArtifact
from objtune_cli.store.safetensors_format import canonical
from objtune_cli.training import class_prior_stage
from objtune_cli.workflow.context import StageContext

FORMAT = 2
PHOTOS, UNTRAINED = "photos", "untrained"
ALWAYS = {
    PHOTOS: Method("the subject's photos among themselves", "the data set", draw=PLAINLY),
    UNTRAINED: Method("the base told the class word", "no training", draw=PLAINLY),
}
"""Rows that need no training: the papers' "real images", and what the class word alone gives."""
FIRST = 1000
"""Seed of the first picture; picture i of a subject has the same noise for every method and subject."""


def run(ctx: StageContext, out: Path, asked: list[Subject], methods: Mapping[str, Method], config: Bench) -> list[Row]:
    """Rows of the methods over the subjects, with the photos that were learned and the model that measured.

    Writes `table.csv`, `sheet.png`, `results.jsonl` and every picture (`pictures/METHOD/SUBJECT/`) into `out`; what `out` holds is not made again.

    Raises:
        ResourceError: The judges are not on this machine. Stopped: a signal came; finished subjects are kept.
    """
    judges = clip_dino.opened(ctx, config)
    plan = {**ALWAYS, **methods}
    seen = [features.digest(model) for model in judges.models.values()]
    bench = Running(ctx, out, config, judges, Kept(out, ctx.report, len(asked) * len(plan)), seen)
    found = kept.filled(ctx, out, asked, plan, bench.result)
    grids.save_sheet(out, {subject.name: functools.partial(_rgb, subject.learned) for subject in asked}, list(plan))
    rows = tabled(found, judges)
    kept.table(out / "table.csv", rows)
    return rows


def tabled(found: Mapping[str, list[Row]], judges: Judges) -> list[Row]:
    """Rows of all methods, each with what was learned from and what measured."""
    rows = []
    for name, results in found.items():
        learned = " ".join(dict.fromkeys(r["photo"] for r in results if r["photo"]))
        for row in statistics.rows(name, [r["measures"] for r in results if r["measures"]]):
            rows.append({**row, "photo": learned, "judge": judges.name(row["measure"])})
    return rows


def _rgb(path: Path) -> np.ndarray:
    return photo.read(path).rgb


@dataclass(slots=True)
class Running:
    """One run: what it measures with, and the subject at hand.

    Attributes:
        seen: What tells its judges from others. handed: What the trainings of the subject are given, or why there is no mask of it.
    """

    ctx: StageContext
    out: Path
    config: Bench
    judges: Judges
    kept: Kept
    seen: list[str]
    handed: dict[str, single_training.Handed | GateError] = field(default_factory=dict)

    def result(self, subject: Subject, name: str, method: Method) -> Row:
        """The kept result of a method on a subject, or a new one."""
        key = self._key(subject, name, method)
        measured = functools.partial(self._measured, subject, name, method, key)
        seen = canonical({"made": key, "judges": self.seen})
        learned = "" if name in ALWAYS else subject.learned.name
        return self.kept.result(
            name, subject.name, hashlib.sha256(seen.encode()).hexdigest(), measured, lambda: {"photo": learned}
        )

    def _key(self, subject: Subject, name: str, method: Method) -> str:
        """What the pictures of a method depend on; judges are no part of it."""
        about = single_training.settings(self.ctx, name, method) | {
            "format": FORMAT, "subject": subject.name, "class": subject.kind, "photos": [digest for _, digest in subject.photos],
            "prompts": subject.prompts, "seeds": self.config.seeds, "seed": self.config.seed,
        }  # fmt: skip
        if name not in ALWAYS:
            about |= {
                "learned": subject.learned.name,
                "mask": photo.hash_file(subject.mask) if subject.mask else asdict(self._segment()),
            }
        return hashlib.sha256(canonical(about).encode()).hexdigest()

    def _segment(self) -> Segment:
        return self.ctx.settings.resolve(Segment)

    def _measured(self, subject: Subject, name: str, method: Method, key: str) -> Measured:
        photos = [_rgb(path) for path, _ in subject.photos]
        if name == PHOTOS:
            return self._among(photos), np.stack(
                [np.asarray(grids.crop_to_cell(rgb)) for rgb in photos[: single_training.SHOWN]]
            )
        shown, cost = self._drawn(subject, name, method, key)
        each = self.config.seeds
        told = [text for text in subject.asked(subject.kind) for _ in range(each)]
        return clip_dino.score(self.judges, shown, told, {"": photos}, each) | cost, shown[::each][
            : single_training.SHOWN
        ]

    def _among(self, photos: list[np.ndarray]) -> dict[str, float]:
        """Mean cosine of two photos of the subject; nothing where it has one."""
        if len(photos) < 2:
            return {}
        return {
            name: 1 - clip_dino.variety(clip_dino.seen(model, photos)) for name, model in self.judges.models.items()
        }

    def _drawn(self, subject: Subject, name: str, method: Method, key: str) -> tuple[np.ndarray, dict[str, float]]:
        """All pictures of a method, each prompt's in a row, kept or new; and what learning took."""
        folder = self.out / "pictures" / name / subject.name
        files = [
            folder / f"{p + 1:02d}-{s + 1}.png" for p in range(len(subject.prompts)) for s in range(self.config.seeds)
        ]
        cost = _cost(folder / "made.json", key)
        if cost is not None and all(file.is_file() for file in files):
            return np.stack([_rgb_of(file) for file in files]), cost
        cost, shown = self._made(subject, name, method)
        for file, picture in zip(files, shown, strict=True):
            artifacts.write_file(file, png.encode_png(picture))
        artifacts.write_file(folder / "made.json", (json.dumps({"key": key, "cost": cost}) + "\n").encode())
        return shown, cost

    def _made(self, subject: Subject, name: str, method: Method) -> tuple[dict[str, float], np.ndarray]:
        """Learn the photo, then draw every prompt."""
        weights: Mapping[str, Any] | None = None
        cost, thing = {}, subject.kind
        if name != UNTRAINED:
            handed = self._handed(subject)
            class_prior_stage.run(
                self.ctx, subject.kind, replace(Prior(), **method.prior)
            )  # shared by all subjects of a class: not in a method's seconds
            trained = single_training.learned(self.ctx, handed, name, method)
            weights, thing = trained.weights, f"<{subject.name}>"
            cost = {"seconds": trained.seconds} | ({"memory_mb": trained.memory_mb} if trained.memory_mb else {})
        base_model, words = rendering.loaded(self.ctx, subject.name, weights, subject.kind)
        texts = [words.expand(text) for text in subject.asked(thing) for _ in range(self.config.seeds)]
        first = FIRST + self.config.seed * 10 * FIRST
        seeds = list(range(first, first + len(texts)))
        return cost, rendering.pictures(
            self.ctx, base_model, texts, seeds, f"{name} on {subject.name}", **method.guidances(self.ctx.base)
        )

    def _handed(self, subject: Subject) -> single_training.Handed:
        """The photo with its mask: the one beside it, or what `segment` finds by the class word, once for all methods.

        Raises:
            GateError: No usable mask.
        """
        if subject.name not in self.handed:
            target = Target(subject.kind, subject.name, mask=subject.mask)
            try:
                found = segment.run(self.ctx, subject.learned, [target], self._segment())[0]
                source = MaskArtifact.from_tensors(artifacts.load(self.ctx.root, found.ref)[1])
                self.handed = {
                    subject.name: single_training.Handed(subject.name, subject.kind, source.rgb, source.mask)
                }
            except GateError as refused:
                hint = f"put a mask beside the photo, {subject.learned.stem}{dreambooth_dataset.MASK}, or try `--set segment.sam_checkpoint=FILE`"
                self.handed = {subject.name: GateError(refused.message, hint)}
        given = self.handed[subject.name]
        if isinstance(given, GateError):
            raise given
        return given


def _cost(file: Path, key: str) -> dict[str, float] | None:
    """What the kept pictures took; None where they are of another key."""
    try:
        held = json.loads(file.read_bytes())
        return dict(held["cost"]) if held["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _rgb_of(file: Path) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(file).convert("RGB"))
