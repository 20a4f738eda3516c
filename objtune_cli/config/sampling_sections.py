"""The settings of `generate`, `compose` and `place`."""

from dataclasses import dataclass
from typing import Literal

from objtune_cli.config import file_patterns
from objtune_cli.config.sampler_names import SAMPLERS, read_scheduler
from objtune_cli.config.setting_fields import MAX_SEED, SEEDS, setting, text_setting


@dataclass(frozen=True, repr=False)
class Generate:
    """Generating images."""

    num_images: int = setting(4, "Images per prompt.", 1, 1024)
    seed: int = setting(0, f"Seed of the first image, {SEEDS}.", 0, MAX_SEED)
    width: int = setting(
        0, "Width of the images, px, a multiple of the base's size unit. auto: the base's resolution.", 0, 8192, auto="auto", absent=0
    )  # fmt: skip
    height: int = setting(0, "Height of the images, as `width`.", 0, 8192, auto="auto", absent=0)
    init_image: str = setting(
        "", "Picture file to start from in place of noise. none: noise.", auto="none", path="file", identifies=False
    )
    change: float = setting(
        0.6,
        "Fraction of the noise schedule that `init_image` is sampled again from; 1 ignores the picture.",
        0.02,
        1,
        identifies=False,
    )
    reference: str = setting(
        "",
        "Objects that the base sees beside the prompt, cut out of their photos: names of masks, with commas. Only on bases that take pictures (FLUX.2).",
        auto="none",
        identifies=False,
    )
    num_inference_steps: int = setting(0, "Sampling steps.", 0, 1000, auto="auto")
    guidance_scale: float = setting(-1.0, "Classifier-free guidance scale.", auto="auto")
    guidance_interval_high: float = setting(
        -1.0, "Noise level below which guidance acts, fraction of the schedule (limited-interval guidance, arXiv:2404.07724); lower: more varied poses.",
        None, 1, auto="auto", absent=1.0,
    )  # fmt: skip
    prompt_guidance_scale: float = setting(
        -1.0, "Scale of the frozen base's own direction for the prompt's other words (composable diffusion); costs one more call of the base per step.",
        None, 20, auto="auto", absent=0.0,
    )  # fmt: skip
    subject_conditioning_start: float = setting(
        -1.0, "Noise level below which trained objects act, fraction of the schedule (arXiv:2305.10431); above it, where pose and layout form, the base sees their class words.",
        None, 1, auto="auto", absent=1.0,
    )  # fmt: skip
    autoguidance_scale: float = setting(
        0.0,
        "Scale of the difference between the adapter and the frozen base with the class word (autoguidance, arXiv:2406.02507); costs one more sample per step.",
        0,
        20,
        absent=0.0,
    )
    strength: float = setting(
        1.0,
        "Factor on the objects' LoRA weights where the prompt sets none, as `<dog:0.8>` does. 0: their classes are generated.",
        0,
        2,
        absent=1.0,
    )
    lora: str = setting(
        "",
        "LoRA files or adapters that act in addition to the objects' own, each with its strength: `style.safetensors:0.7`; several with commas.",
        auto="none",
        identifies=False,
        path="loras",
    )
    negative_prompt: str = setting(
        "auto", "What the images should not show. auto: that of the base in the table `negative_prompts`, else nothing."
    )
    style: str = setting(
        "",
        "Names of styles from the tables `styles.NAME` of objtune.toml, with commas between them.",
        auto="none",
        identifies=False,
    )
    wildcards: str = setting(
        "",
        "Folder of wildcards: `__animal__` in a prompt is one line of animal.txt, which the seed chooses.",
        auto="none",
        identifies=False,
        path="file",
    )
    prompt_syntax: Literal["a1111", "comfyui", "plain"] = setting(
        "a1111",
        "How weights and breaks in prompts are read: as in A1111 or ComfyUI, in prompts of any length; plain: as text, up to the base's token limit.",
        absent="plain",
    )
    scheduler: str = text_setting(
        "auto",
        f"Sampler: {', '.join(SAMPLERS)}; optionally followed by _karras, _exponential, _beta or _trailing. "
        "Names of A1111, ComfyUI and diffusers are accepted. auto: the base model's own.",
        read_scheduler,
        auto="auto",
    )
    image_format: Literal["png", "jpg", "webp", "avif"] = setting(
        "png", "Format of the images that `--out` copies; the project keeps PNG files.", identifies=False
    )
    image_quality: int = setting(
        0, "Quality of JPEG, WebP and AVIF. auto: 95, 90 and 80.", 0, 100, auto="auto", identifies=False
    )
    metadata: bool = setting(
        True, "Write the generation parameters into the images that `--out` copies.", identifies=False
    )
    name_pattern: str = text_setting(
        file_patterns.DEFAULT,
        f"Names of the images that `--out` copies; fields: {', '.join(file_patterns.FIELDS)}.",
        file_patterns.read_pattern,
        identifies=False,
    )


@dataclass(frozen=True, repr=False)
class Compose:
    """Composing several objects in one image."""

    max_retries: int = setting(
        4,
        "How many times an image with a missing or mixed object is generated again, each time from another seed.",
        0,
        100,
        absent=0,
    )
    context_words: Literal["class", "placeholder"] = setting(
        "class",
        "What the prompt's other words see in an object's place: its class word, or its placeholder token.",
        absent="placeholder",
    )
    region_softness: float = setting(
        0.06, "Width of the soft edge of the regions, fraction of the image.", 0, 0.5, absent=0.06
    )
    bounded_self_attention: bool = setting(False, "Keep self-attention within each object's region.", absent=False)
    refine_strength: float = setting(
        0.55,
        "Strength of the refinement pass, in which each object's box is enlarged and resampled with its adapter alone. 0: no pass.",
        0,
        1,
        absent=0.0,
    )
    refine_autoguidance_scale: float = setting(
        -1.0,
        "Autoguidance scale of the refinement pass.",
        None,
        20,
        auto="auto",
        absent=0.0,
    )
    paste: Literal["mask", "box"] = setting(
        "mask",
        "Region of a refined object that replaces the image's: the object's mask, or its whole box.",
        absent="box",
    )
    presence_check: bool = setting(True, "Check that each object is in its box.", identifies=False)
    strict: bool = setting(
        False, "Refuse a scene in which an object is missing or mixed for every seed.", identifies=False
    )


@dataclass(frozen=True, repr=False)
class Place:
    """Placing an object in a picture."""

    max_retries: int = setting(
        4, "How many times an image without the object is generated again, each time from another seed.", 0, 100
    )
    change: float = setting(
        1.0,
        "Fraction of the noise schedule that the object is drafted from; lower values keep more of the photo.",
        0.05,
        1,
    )
    paste: Literal["auto", "object", "region"] = setting(
        "auto",
        "What replaces the picture's pixels. object: the object with a thin border, in the picture's own background; region: the whole region as the base draws it. "
        "auto: the object; with an inpainting or editing model as base the region.",
    )
    harmonize: float = setting(
        0.35,
        "Fraction of the noise schedule that the placed object is sampled again from, in its new background. 0: skip this.",
        0,
        1,
    )
    context: float = setting(
        1.5,
        "Side of the square that the base sees, over the region's longer side; larger: more surroundings, a smaller object.",
        1,
        8,
    )
    softness: float = setting(
        0.03, "Width of the soft border inside the region, fraction of the region's shorter side.", 0, 0.5
    )
    presence_check: bool = setting(True, "Check that the object is in its region.", identifies=False)
    strict: bool = setting(False, "Refuse a picture that lacks the object for every seed.", identifies=False)
