"""The settings of `bench`."""

from dataclasses import dataclass
from typing import Literal

from objtune_cli.config.setting_fields import MAX_SEED, SEEDS, setting
from objtune_cli.errors import UsageError


@dataclass(frozen=True, repr=False)
class Bench:
    """Benchmarks."""

    num_objects: int = setting(40, "Held-out objects, classes in turn.", 1, 10_000)
    shard: str = setting(
        "1/1",
        "Part of the objects, or of the groups of `bench scenes`. k/n takes every n-th from the k-th on, so that n processes or machines share them; `cat` joins their results.jsonl for `--reuse`, and processes of `bench scenes` may share `--out`.",
    )
    prompt_rounds: int = setting(2, "Rounds of prompts for each object.", 1, 100)
    prompt_kinds: str = setting("scene,wearing,pair", "Kinds of prompts, with commas: scene, wearing, pair.")
    scene_kinds: str = setting(
        "two,three,same",
        "Kinds of scenes of `bench scenes`, with commas: two or three objects of as many classes, or two of the same class.",
    )
    num_base_samples: int = setting(1024, "Samples of `bench base`.", 16, 100_000)
    evaluator: str = setting(
        "",
        "File of the toybox's evaluator for `bench base`. package: the embedded one.",
        auto="package",
        path="file",
    )
    num_mask_scenes: int = setting(300, "Scenes of `bench masks`.", 1, 100_000)
    segmenters: str = setting("sam,grabcut", "Segmenters of `bench masks`, with commas.")
    mask_dataset: Literal["drawn", "photos"] = setting(
        "drawn", "Images of `bench masks`: drawn scenes, or nine objects in photographs that come with scikit-image."
    )
    timing_rounds: int = setting(3, "Rounds of `bench speed`.", 1, 100)
    diffusers_script: str = setting(
        "", "diffusers' train_dreambooth_lora.py, which `bench speed` then times, too.", auto="none", path="file"
    )
    memory_models: str = setting(
        "sd15,sdxl",
        "Models of `bench memory`, with commas: sd15, sd21, sdxl, sd3 with random weights, or base for `--base`.",
    )
    resolution: int = setting(
        0,
        "Image size of `bench memory`, and of `bench speed` with a model of Stable Diffusion's size, px. auto: the model's own; 256 for `bench speed` on a CPU.",
        0,
        4096,
        auto="auto",
    )
    skip_matmuls: bool = setting(
        True,
        "Use zeros of the same shape in place of matrix products in `bench memory` on a CPU: as much memory, and much faster.",
    )
    dreambooth_photo: str = setting(
        "",
        "Photo of each subject of `bench dreambooth` to train on, by its name with or without ending, such as 01. first: the first by name.",
        auto="first",
    )
    live_classes: str = setting(
        "cat,dog", "Classes of `bench dreambooth` that get the prompts of live subjects, with commas."
    )
    images_per_prompt: int = setting(4, "Images for each prompt of `bench dreambooth`.", 1, 1000)
    clip_model: str = setting(
        "",
        "CLIP model for measures on photographs: hub id or folder. auto: the base's own vision encoder.",
        auto="auto",
        path="model",
    )
    dino_model: str = setting(
        "facebook/dino-vits16",
        "DINO model for measures on photographs: hub id, folder or safetensors file; `bench dreambooth` leaves DINO out where the default is not on this machine.",
        path="model",
    )
    seed: int = setting(0, f"Random seed of objects and prompts, {SEEDS}.", 0, MAX_SEED)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of prompts, one by one."""
        return tuple(part.strip() for part in self.prompt_kinds.split(","))

    @property
    def part(self) -> slice:
        """The slice of a list that `shard` takes.

        Raises:
            UsageError: It is not k/n with k from 1 to n.
        """
        first, _, every = self.shard.partition("/")
        if not (first.isdecimal() and every.isdecimal() and 1 <= int(first) <= int(every)):
            raise UsageError(f"bench.shard is {self.shard}", "k/n, k from 1 to n: 2/4 is the second of four")
        return slice(int(first) - 1, None, int(every))
