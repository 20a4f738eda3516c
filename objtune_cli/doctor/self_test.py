"""`doctor --run`: train a few steps, draw, export, load the files in diffusers alone, and compare both images.

All work happens in a temporary project, which is deleted at the end.
"""

import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objtune_cli.config.sections import Embed, Generate, Prior, Segment, Train
from objtune_cli.doctor.self_test_report import (
    ImageDifferences,
    SelfTestReport,
    SelfTestStep,
    describe_machine,
    hide_private,
    private_folders,
)
from objtune_cli.errors import ObjtuneError, ResourceError, Stopped
from objtune_cli.models.prompts import with_article
from objtune_cli.runtime import devices, memory
from objtune_cli.segmentation.from_hints import Target
from objtune_cli.store.project import find_project
from objtune_cli.workflow.context import StageContext, StageResult

if TYPE_CHECKING:
    import torch

PHOTO = Path(__file__).parent / "photo" / "mug.jpg"
"""Part of the photograph `coffee` of scikit-image: CC0, by Rachel Michetti. Its mask beside it is ours."""
MASK = PHOTO.with_name("mug-mask.png")
STEPS = 20
DRAWING_STEPS, SEED = 10, 0
NUM_CLASS_IMAGES, NUM_PREDICTIONS = 2, 16
"""A small class prior: the self-test shows that its computation works, not that it preserves the class."""
LARGEST_MEAN = {"float32": 1.0}
LARGEST_MEAN_HALF = 6.0
"""Largest accepted mean difference of pixel values, of 255; in bf16 and fp16 our text encoders compute in float32, and those of diffusers do not."""


@dataclass(frozen=True, slots=True)
class SelfTestPhoto:
    """A photo with one object.

    Attributes:
        title: Its name in the report. mask: Its mask, or None: the segmenter finds the object.
    """

    title: str
    path: Path
    class_word: str
    mask: Path | None = None


@dataclass(slots=True)
class SelfTest:
    """The state of a self-test, which its steps fill in turn."""

    ctx: StageContext
    photo: SelfTestPhoto
    max_steps: int
    report: SelfTestReport
    device: "torch.device | None" = None
    dtype: Any = None
    sampler: Any = None
    mask: StageResult | None = None
    adapter: StageResult | None = None
    scene: StageResult | None = None
    drawing: Any = None
    exported: list[Path] = field(default_factory=list)
    images: list[Any] = field(default_factory=list)
    latents: list[Any] = field(default_factory=list)

    @property
    def steps(self) -> dict[str, Callable[[], str]]:
        """Name and function of each step; a function returns the step's message."""
        return {
            "load the base": self._load_base,
            "segment": self._segment,
            "initial token": self._embed,
            "class prior": self._compute_prior,
            "train": self._train,
            "draw": self._draw,
            "export": self._export,
            "load in diffusers": self._reload,
            "compare": self._compare,
        }

    def _load_base(self) -> str:
        model = self.ctx.load_base_model()
        self.device, self.dtype, self.sampler = model.device, model.dtype, model.pipeline().scheduler
        parts = {
            model.family.denoiser: model.denoiser, "vae": model.vae, "text_encoder": model.text_encoder,
            "text_encoder_2": model.text_encoder_2, "text_encoder_3": model.text_encoder_3,
        }  # fmt: skip
        sizes = {
            name: round(sum(p.numel() for p in network.parameters()) / 1e6, 3)
            for name, network in parts.items()
            if network is not None
        }
        number_format = str(model.dtype).removeprefix("torch.")
        self.report.base |= {
            "dtype": number_format, "million_parameters": sizes, "resolution": model.resolution,
            "prediction": model.prediction, "sampler": type(self.sampler).__name__,
        }  # fmt: skip
        self.report.machine = describe_machine(str(model.device))
        return f"{sum(sizes.values()):.1f} million parameters in {number_format}"

    def _segment(self) -> str:
        from objtune_cli.segmentation import segment as stage

        photo = self.photo
        target = Target(photo.class_word, "it", mask=photo.mask)
        (self.mask,) = stage.run(self.ctx, photo.path, [target], self.ctx.settings.resolve(Segment))
        return f"the object covers {self.mask.metrics['area']:.0%} of the photo"

    def _embed(self) -> str:
        from objtune_cli.embedding import init_embedding as stage

        assert self.mask is not None
        stage.run(self.ctx, [self.mask.ref], self.ctx.settings.resolve(Embed))
        return ""

    def _compute_prior(self) -> str:
        from objtune_cli.training import class_prior_stage

        class_prior_stage.run(self.ctx, self.photo.class_word, self._prior())
        return ""

    def _prior(self) -> Prior:
        return replace(
            self.ctx.settings.resolve(Prior), num_class_images=NUM_CLASS_IMAGES, num_predictions=NUM_PREDICTIONS
        )

    def _train(self) -> str:
        from objtune_cli.training import train as stage

        assert self.mask is not None
        config = self.ctx.settings.resolve(Train, max_steps=self.max_steps)
        embed = self.ctx.settings.resolve(Embed)
        self.adapter = stage.run(self.ctx, [self.mask.ref], config, embed, self._prior(), preview=False)
        return f"{self.max_steps} steps, photo loss {self.adapter.metrics['object']:.4g}"

    def _draw(self) -> str:
        from objtune_cli.doctor.plain_diffusers import DrawingSettings
        from objtune_cli.generation import generate as stage

        base = self.ctx.base
        steps = min(DRAWING_STEPS, int(base.sampling["num_inference_steps"]))
        own = self.ctx.settings.resolve(Generate)
        config = stage.fill_defaults(
            self.ctx,
            replace(
                Generate(), num_images=1, seed=SEED, num_inference_steps=steps, guidance_scale=own.guidance_scale, guidance_interval_high=1.0,
                prompt_guidance_scale=0.0, subject_conditioning_start=1.0, width=base.resolution, height=base.resolution,
            ),
        )  # fmt: skip
        prompt = "a photo of {} on the beach"
        (self.scene,) = stage.run(self.ctx, [prompt.format("<it>")], config)
        self.drawing = DrawingSettings(
            prompt.format("<it>"), prompt.format(with_article(self.photo.class_word)), self.sampler, steps,
            config.guidance_scale, base.resolution, SEED,
        )  # fmt: skip
        return f"{steps} steps, {base.resolution} px"

    def _export(self) -> str:
        from objtune_cli.interchange import export

        assert self.adapter is not None
        ctx, out = self.ctx, self.ctx.project.folder / "export"
        self.exported = [
            *export.run(ctx.store, self.adapter.ref, "diffusers", out, note=ctx.report.note),
            *export.run(ctx.store, self.adapter.ref, "embedding", out / "embeddings", note=ctx.report.note),
        ]
        return ", ".join(file.name for file in self.exported)

    def _reload(self) -> str:
        from objtune_cli.doctor import plain_diffusers
        from objtune_cli.models.loading import silence_library_logging

        assert self.device is not None
        memory.empty_cache(self.device.type)
        silence_library_logging()
        lora, embedding = self.exported
        pipe = plain_diffusers.open_pipeline(self.ctx.base, self.device, self.dtype)
        without = replace(self.drawing, prompt=self.drawing.class_prompt)
        pairs = [plain_diffusers.draw(pipe, self.ctx.base, without)]
        plain_diffusers.load_object(pipe, self.ctx.base, lora.parent, "it", embedding)
        pairs.append(plain_diffusers.draw(pipe, self.ctx.base, self.drawing))
        self.latents, self.images = [latents for latents, _ in pairs], [image for _, image in pairs]
        return self.ctx.base.family.pipeline

    def _compare(self) -> str:
        import numpy as np
        import torch

        from objtune_cli.images import png

        assert self.scene is not None
        ours = png.read(self.scene.images[0]).astype(np.float32)
        latents = torch.from_numpy(self.ctx.store.read(self.scene.ref)[1]["latents"].copy()).float()
        without, theirs = (image.astype(np.float32) for image in self.images)
        spread = float(latents.square().mean().sqrt())
        off = float((self.latents[1] - latents).square().mean().sqrt())
        number_format = str(self.dtype).removeprefix("torch.")
        self.report.differences = differences = ImageDifferences(
            mean=float(np.abs(ours - theirs).mean()),
            largest=float(np.abs(ours - theirs).max()),
            latents=off / max(spread, 1e-12),
            without_object=float(np.abs(ours - without).mean()),
            bound=LARGEST_MEAN.get(number_format, LARGEST_MEAN_HALF),
        )
        differences.require_equal()
        weak = (
            ""
            if differences.without_object > differences.bound
            else "; after so few steps the object changes less than that"
        )
        return f"mean difference {differences.mean:.2f} of 255, at most {differences.bound:g} is accepted{weak}"


def run(ctx: StageContext, photo: SelfTestPhoto | None, max_steps: int) -> SelfTestReport:
    """Run the self-test on a base model; a step that fails is in the report, and the steps behind it are skipped.

    Args:
        ctx: Has the settings. photo: None for the photo of the package, or for a drawing on a base that knows drawings.

    Raises:
        Stopped: A signal came.
    """
    with tempfile.TemporaryDirectory(prefix="objtune-self-test-") as place:
        folder = Path(place)
        work = replace(ctx, project=find_project(folder / "project", create=True), force=False)
        report, kind = SelfTestReport(photo.title if photo else "", {}), _device_kind(ctx)
        report.steps = [SelfTestStep("find the base")]
        with _record_step(report.steps[0], kind, partial(hide_private, private=private_folders(folder))):
            devices.pick_device(ctx.common.device)
            base = work.base
            report.base |= {"base": base.id, "family": base.family.name, "fingerprint": base.fingerprint}
            test_photo = photo or _own_photo(work, folder)
            report.photo = test_photo.title
        if report.code:
            return report
        hide = partial(hide_private, private=private_folders(folder, base.folder), photo=test_photo.path)
        test = SelfTest(work, test_photo, max_steps, report)
        report.steps += [SelfTestStep(name) for name in test.steps]
        for step, action in zip(report.steps[1:], test.steps.values(), strict=True):
            ctx.report.note(f"self-test: {step.name}")
            with _record_step(step, kind, hide):
                step.message = action()
            if step.code:
                break
        return report


def _own_photo(ctx: StageContext, folder: Path) -> SelfTestPhoto:
    """The photo of the package, or a drawing for a base that knows drawings."""
    if not ctx.base.toybox_dial:
        return SelfTestPhoto("the mug of the package", PHOTO, "mug", MASK)
    import numpy as np

    from objtune_cli.images import png
    from objtune_cli.toybox import renderer, world

    rng, dial = np.random.default_rng(SEED), world.DIALS[ctx.base.toybox_dial]
    thing = world.sample_instance(rng, dial, kind=dial.classes[0], held_out=True)
    rgb, masks = renderer.render(world.sample_scene(rng, dial, instances=(thing,)), 320)
    photo, mask = folder / "drawing.png", folder / "mask.png"
    photo.write_bytes(png.encode_png(rgb))
    mask.write_bytes(png.encode_png(masks[0]))
    return SelfTestPhoto(f"a drawing of a {thing.kind}", photo, thing.kind, mask)


@contextmanager
def _record_step(step: SelfTestStep, kind: str, hide: Callable[[str], str]) -> Iterator[None]:
    """Time a step, and write its failure into it.

    Args:
        kind: Kind of the device, for its memory. hide: Removes what is private from a message.

    Raises:
        Stopped: A signal came.
    """
    memory.reset_peak(kind)
    start_time = time.monotonic()
    try:
        yield
        step.state = "ok"
    except Stopped as stopped:
        raise Stopped(stopped.code - 128, "stopped during the self-test", "the same command starts it again") from None
    except ObjtuneError as error:
        step.state, step.code = "failed", error.code
        step.message, step.hint = (hide(text) for text in (error.message, error.hint))
    except Exception as error:  # a library fails in many ways, and the report should say where
        out_of_memory = isinstance(error, MemoryError) or "out of memory" in str(error).lower()
        where = traceback.extract_tb(error.__traceback__)[-1]
        step.state, step.code = "failed", ResourceError.code if out_of_memory else 1
        message = f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
        step.message = hide(message)
    finally:
        step.seconds, step.peak_mb = time.monotonic() - start_time, memory.peak_mb(kind)


def _device_kind(ctx: StageContext) -> str:
    try:
        return devices.pick_device(ctx.common.device).type
    except ObjtuneError:  # the first step reports it
        return "cpu"
