"""`objtune bench dreambooth`: train on one photo of each subject of DreamBooth's data set and compare samples with all its photos.

Source: the protocol of arXiv:2208.12242, section 4.1 (30 subjects, 25 prompts, 4 images of each), with one photo as in arXiv:2401.15708.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from objtune_cli.bench import dreambooth_dataset, result_cache, single_training
from objtune_cli.bench.dreambooth_dataset import DreamBoothSubject
from objtune_cli.bench.methods import PLAIN_SAMPLING, Method
from objtune_cli.bench.result_cache import Measurement, ResultCache, Row
from objtune_cli.config.sections import Bench, Prior, Segment
from objtune_cli.errors import GateError
from objtune_cli.evaluation import clip_dino, features, rendering, statistics
from objtune_cli.evaluation.clip_dino import MetricModels
from objtune_cli.images import grids, photo, png
from objtune_cli.renamed_settings import former
from objtune_cli.segmentation import segment
from objtune_cli.segmentation.from_hints import Target
from objtune_cli.store import atomic_files
from objtune_cli.store.kinds.mask import MaskArtifact
from objtune_cli.store.safetensors_format import canonical_json
from objtune_cli.training import class_prior_stage
from objtune_cli.workflow.context import StageContext

FORMAT = 2
PHOTOS, UNTRAINED = "photos", "untrained"
REFERENCE_METHODS = {
    PHOTOS: Method("the subject's photos among themselves", "the data set", sampling=PLAIN_SAMPLING),
    UNTRAINED: Method("the base with the class word", "no training", sampling=PLAIN_SAMPLING),
}
"""Rows without training: the papers' "real images", and samples of the class word."""
FIRST_SEED = 1000
"""Seed of the first image; image i has the same noise for every method and subject."""


def run(
    ctx: StageContext, out: Path, subjects: list[DreamBoothSubject], methods: Mapping[str, Method], config: Bench
) -> list[Row]:
    """Rows of the methods over the subjects, with the training photos and the models that measured.

    Writes `table.csv`, `sheet.png`, `results.jsonl` and every image (`pictures/METHOD/SUBJECT/`) into `out`; results in `out` are not measured again.

    Raises:
        ResourceError: A model that measures is not on this machine.
        Stopped: A signal came; finished subjects are kept.
    """
    judges = clip_dino.load_models(ctx, config)
    plan = {**REFERENCE_METHODS, **methods}
    fingerprints = [features.fingerprint(model) for model in judges.models.values()]
    bench = DreamBoothSuite(
        ctx, out, config, judges, ResultCache(out, ctx.report, len(subjects) * len(plan)), fingerprints
    )
    results = result_cache.measure_all(ctx, out, subjects, plan, bench.get_or_measure)
    grids.save_sheet(
        out, {subject.name: functools.partial(_photo_image, subject.train_photo) for subject in subjects}, list(plan)
    )
    rows = build_table(results, judges)
    result_cache.write_table(out / "table.csv", rows)
    return rows


def build_table(results: Mapping[str, list[Row]], judges: MetricModels) -> list[Row]:
    """Rows of all methods, with the training photos and the model that measured."""
    rows = []
    for name, rows_of_method in results.items():
        learned = " ".join(dict.fromkeys(r["photo"] for r in rows_of_method if r["photo"]))
        for row in statistics.table_rows(name, [r["measures"] for r in rows_of_method if r["measures"]]):
            rows.append({**row, "photo": learned, "judge": judges.name(row["measure"])})
    return rows


def _photo_image(path: Path) -> np.ndarray:
    return photo.read(path).rgb


@dataclass(slots=True)
class DreamBoothSuite:
    """One run of the suite.

    Attributes:
        fingerprints: Of the models that measure.
        training_inputs: Training input of the current subject, or the error why there is no mask.
    """

    ctx: StageContext
    out: Path
    config: Bench
    judges: MetricModels
    cache: ResultCache
    fingerprints: list[str]
    training_inputs: dict[str, single_training.TrainingInput | GateError] = field(default_factory=dict)

    def get_or_measure(self, subject: DreamBoothSubject, name: str, method: Method) -> Row:
        """The cached result of a method on a subject, or a new one."""
        key = self._image_key(subject, name, method)
        measure = functools.partial(self._measure, subject, name, method, key)
        judged_key = canonical_json({"made": key, "judges": self.fingerprints})
        learned = "" if name in REFERENCE_METHODS else subject.train_photo.name
        return self.cache.get_or_measure(
            name, subject.name, hashlib.sha256(judged_key.encode()).hexdigest(), measure, lambda: {"photo": learned}
        )

    def _image_key(self, subject: DreamBoothSubject, name: str, method: Method) -> str:
        """Digest of everything that a method's images depend on, without the models that measure."""
        about = single_training.result_inputs(self.ctx, name, method) | {
            "format": FORMAT, "subject": subject.name, "class": subject.kind, "photos": [digest for _, digest in subject.photos],
            "prompts": subject.prompts, "seeds": self.config.images_per_prompt, "seed": self.config.seed,
        }  # fmt: skip
        if name not in REFERENCE_METHODS:
            about |= {
                "learned": subject.train_photo.name,
                "mask": photo.hash_file(subject.mask) if subject.mask else former("segment", asdict(self._segment())),
            }
        return hashlib.sha256(canonical_json(about).encode()).hexdigest()

    def _segment(self) -> Segment:
        return self.ctx.settings.resolve(Segment)

    def _measure(self, subject: DreamBoothSubject, name: str, method: Method, key: str) -> Measurement:
        photos = [_photo_image(path) for path, _ in subject.photos]
        if name == PHOTOS:
            return self._photo_similarity(photos), np.stack(
                [np.asarray(grids.crop_to_cell(rgb)) for rgb in photos[: single_training.SHEET_IMAGES]]
            )
        images, cost = self._load_or_sample(subject, name, method, key)
        each = self.config.images_per_prompt
        prompts = [text for text in subject.prompts_for(subject.kind) for _ in range(each)]
        return clip_dino.score(self.judges, images, prompts, {"": photos}, each) | cost, images[::each][
            : single_training.SHEET_IMAGES
        ]

    def _photo_similarity(self, photos: list[np.ndarray]) -> dict[str, float]:
        """Mean cosine of two photos of the subject; empty if it has one."""
        if len(photos) < 2:
            return {}
        return {
            name: 1 - clip_dino.diversity(clip_dino.embed_photos(model, photos))
            for name, model in self.judges.models.items()
        }

    def _load_or_sample(
        self, subject: DreamBoothSubject, name: str, method: Method, key: str
    ) -> tuple[np.ndarray, dict[str, float]]:
        """The images of a method, cached or new, those of one prompt consecutive; and the cost of training."""
        folder = self.out / "pictures" / name / subject.name
        files = [
            folder / f"{p + 1:02d}-{s + 1}.png"
            for p in range(len(subject.prompts))
            for s in range(self.config.images_per_prompt)
        ]
        cost = _read_cost(folder / "made.json", key)
        if cost is not None and all(file.is_file() for file in files):
            return np.stack([_read_image(file) for file in files]), cost
        cost, images = self._train_and_sample(subject, name, method)
        for file, picture in zip(files, images, strict=True):
            atomic_files.write_file(file, png.encode_png(picture))
        atomic_files.write_file(folder / "made.json", (json.dumps({"key": key, "cost": cost}) + "\n").encode())
        return images, cost

    def _train_and_sample(
        self, subject: DreamBoothSubject, name: str, method: Method
    ) -> tuple[dict[str, float], np.ndarray]:
        """Train on the photo, then sample every prompt."""
        weights: Mapping[str, Any] | None = None
        cost, thing = {}, subject.kind
        if name != UNTRAINED:
            handed = self._training_input(subject)
            class_prior_stage.run(
                self.ctx, subject.kind, replace(Prior(), **method.prior)
            )  # shared by all subjects of a class: not in a method's seconds
            trained = single_training.train_object(self.ctx, handed, name, method)
            weights, thing = trained.weights, f"<{subject.name}>"
            cost = {"seconds": trained.seconds} | ({"memory_mb": trained.memory_mb} if trained.memory_mb else {})
        base_model, words = rendering.load_adapter(self.ctx, subject.name, weights, subject.kind)
        texts = [
            words.expand(text) for text in subject.prompts_for(thing) for _ in range(self.config.images_per_prompt)
        ]
        first = FIRST_SEED + self.config.seed * 10 * FIRST_SEED
        seeds = list(range(first, first + len(texts)))
        return cost, rendering.sample_images(
            self.ctx, base_model, texts, seeds, f"{name} on {subject.name}", **method.sampling_kwargs(self.ctx.base)
        )

    def _training_input(self, subject: DreamBoothSubject) -> single_training.TrainingInput:
        """The photo and its mask file, or the mask that `segment` finds by the class word; once for all methods.

        Raises:
            GateError: There is no usable mask.
        """
        if subject.name not in self.training_inputs:
            target = Target(subject.kind, subject.name, mask=subject.mask)
            try:
                mask = segment.run(self.ctx, subject.train_photo, [target], self._segment())[0]
                source = MaskArtifact.from_tensors(self.ctx.store.read(mask.ref)[1])
                self.training_inputs = {
                    subject.name: single_training.TrainingInput(subject.name, subject.kind, source.rgb, source.mask)
                }
            except GateError as refused:
                hint = f"put a mask beside the photo, {subject.train_photo.stem}{dreambooth_dataset.MASK_SUFFIX}, or try `--set segment.sam_checkpoint=FILE`"
                self.training_inputs = {subject.name: GateError(refused.message, hint)}
        training_input = self.training_inputs[subject.name]
        if isinstance(training_input, GateError):
            raise training_input
        return training_input


def _read_cost(file: Path, key: str) -> dict[str, float] | None:
    """The cost of the cached images; None if they have another key."""
    try:
        record = json.loads(file.read_bytes())
        return dict(record["cost"]) if record["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_image(file: Path) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(file).convert("RGB"))
