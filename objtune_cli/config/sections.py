"""Every default, unit and range, once."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from objtune_cli.errors import UsageError

MAX_SEED = 2**64 - 1
"""The largest seed: what other tools call a seed is a non-negative number of up to 64 bits."""
SEEDS = "0 to 18446744073709551615"
"""What help says of every seed."""
MAX_RATE = 1e30
"""The largest learning rate: beyond it an optimizer's step sizes are no float32."""
MAX_WEIGHT = 1_000_000
"""The largest weight of a loss term, or of a part of the prototype: beyond it others vanish, and sums overflow."""


def seed_after(seed: int, count: int) -> int:
    """The seed that comes `count` after another; 0 follows the largest."""
    return (seed + count) % (MAX_SEED + 1)


def _setting(
    default: Any,
    text: str,
    low: float | None = None,
    high: float | None = None,
    *,
    before: Any = None,
    identifies: bool = True,
    path: str = "",
) -> Any:
    """A setting.

    Args:
        before: For one added later, the value at which work is what it was without it.
        identifies: Whether another value makes another work.
        path: Its kind where it is a path or may be one, of `paths.CONVERTERS`: "file", "model" (a hub id, too) or "models".
    """
    return field(
        default=default,
        metadata={"help": text, "low": low, "high": high, "before": before, "identifies": identifies, "path": path},
    )


def identifying(section: Any) -> dict[str, Any]:
    """The settings that say which work it is: one added later counts only where it changes something."""
    values = {f.name: getattr(section, f.name) for f in fields(section) if f.metadata["identifies"]}
    before = {f.name: f.metadata["before"] for f in fields(section)}
    return {name: value for name, value in values.items() if before[name] is None or value != before[name]}


@dataclass(frozen=True, repr=False)
class Common:
    """What every command that runs a model takes."""

    base: str = _setting(
        "toybox",
        "Base model: toybox, sd15, sd21, sdxl, sd3, sd35, a diffusers folder, a .safetensors checkpoint, or a hub id.",
        path="model",
    )
    device: str = _setting("auto", "auto, cpu, cuda, cuda:N or mps.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _setting(
        "auto",
        "Number format of the frozen base; auto: bf16 on GPUs that have it, and for training on processors that have it.",
    )
    tower: str = _setting(
        "", "CLIP with an image tower for the base's text encoder: hub id, folder or safetensors file; two with a comma for SDXL and SD 3. Empty: "
        "clip/ in the base's folder, else the base's own from the hub if it is on this machine.", path="models",
    )  # fmt: skip
    vae: str = _setting(
        "",
        "VAE in place of the base's own: a folder, a .safetensors file, or a hub id; it makes another base.",
        path="model",
    )
    prediction: Literal["", "epsilon", "v_prediction", "v", "sample"] = _setting(
        "",
        "What the base's denoiser predicts, where the base does not say it or says it wrongly; empty: as the base says.",
    )
    strict_base: int = _setting(
        0,
        "1: objects are drawn on exactly the base that they were learned on; 0: also on another of its family, with a note.",
        0,
        1,
        identifies=False,
    )


@dataclass(frozen=True, repr=False)
class Segment:
    """Finding the object."""

    segmenter: Literal["sam", "grabcut"] = _setting(
        "sam", "What finds outlines: segment-anything (the embedded one, or a checkpoint), or GrabCut."
    )
    which: Literal["best", "largest", "smallest", "left", "right", "top", "bottom"] = _setting(
        "best",
        "Which of several objects of the class is meant; best: the one that is most like the class, and clearly so.",
    )
    min_likeness: float = _setting(0.55, "Least probability that what a class word chose is of that class.", 0, 1)
    min_margin: float = _setting(0.2, "Least score of what a class word chose above the next thing's, in logits.")
    min_score: float = _setting(
        0.0, "Least score of what a class word chose: its likeness, quality and outline together."
    )
    edge: float = _setting(0.01, "Half width of the soft outline, fraction of the object's longer side.", 0, 0.1)
    max_side: int = _setting(1024, "Photos are kept at most this large, px.", 128, 4096)
    detector: str = _setting(
        "",
        "Zero-shot detector whose boxes are proposed: folder or hub id of OWLv2 or Grounding DINO; without one, the segmenter proposes.",
        path="model",
    )
    sam_checkpoint: str = _setting("", "segment-anything checkpoint; without one, the embedded model.", path="file")


@dataclass(frozen=True, repr=False)
class Embed:
    """The prototypical embedding."""

    init: Literal["auto", "prototype", "class", "random", "rare"] = _setting(
        "auto",
        "Where the token starts; auto: prototype where the base has an image tower, else class. rare: as DreamBooth's word.",
    )
    picture: float = _setting(1.0, "Weight of the whole photo in the prototype.", 0, MAX_WEIGHT, before=1.0)
    object: float = _setting(1.0, "Weight of the object alone in the prototype.", 0, MAX_WEIGHT, before=1.0)
    word: float = _setting(1.0, "Weight of the class word in the prototype.", 0, MAX_WEIGHT, before=1.0)
    rare: str = _setting(
        "sks",
        "The word whose vectors a rare start takes (DreamBooth, arXiv:2208.12242); of several objects each needs its own.",
        before="sks",
    )
    noun: Literal["kept", "none"] = _setting("kept", "Whether the class word stands behind the learned vectors.")
    vectors: int = _setting(2, "Learned vectors of the token, before the class word's own.", 1, 16)
    steps: int = _setting(80, "Adam steps through the text tower.", 0, 10_000)
    lr: float = _setting(0.02, "Step size, fraction of the class token's norm.", 0, MAX_RATE)
    seed: int = _setting(0, f"Random seed, {SEEDS}.", 0, MAX_SEED)

    @property
    def weights(self) -> tuple[float, float, float]:
        """Of photo, object and class word."""
        return self.picture, self.object, self.word


@dataclass(frozen=True, repr=False)
class Train:
    """Learning the object."""

    steps: int = _setting(0, "Optimizer steps; 0: what suits the base; fewer where it stops by itself.", 0, 1_000_000)
    rank: int = _setting(16, "LoRA rank.", 1, 512)
    lr: float = _setting(0.0, "Learning rate of the LoRA weights; 0: what suits the base.", 0)
    token_lr: float = _setting(0.0, "Learning rate of the token, fraction of its norm; 0: what suits the base.", 0)
    batch: int = _setting(0, "Views of the object per step; 0: what suits the base.", 0, 256)
    background_weight: float = _setting(1.0, "w_bg: outside the mask, the frozen base is the target.", 0, MAX_WEIGHT)
    class_weight: float = _setting(3.0, "w_cc: the class stays what the base draws.", 0, MAX_WEIGHT)
    modules: Literal["auto", "none", "cross-kv", "attention", "attention+ff", "all"] = _setting(
        "auto", "Which layers get LoRA; auto: what suits the base; none: the token alone learns."
    )
    blocks: Literal["auto", "all", "decoder"] = _setting(
        "auto",
        "Which half of the denoiser learns; decoder: what comes after the middle, and no gradient goes further back.",
        before="all",
    )
    class_every: int = _setting(
        0, "The class term is taken at every n-th step, n times as heavy; 0: what suits the base.", 0, 1000, before=1
    )
    passes: Literal["auto", "apart", "together"] = _setting(
        "auto",
        "Whether photo and class go through the denoiser one after the other (less memory) or together.",
        before="together",
    )
    views: int = _setting(8, "Placements of the object drawn before training; 1: the photo as it is.", 1, 4096)
    known: int = _setting(
        24,
        "Noised views, for each sentence and all combinations of a photo's objects, on which the frozen base is asked before the first step.",
        1,
        4096,
        before=24,
    )
    as_taken: float = _setting(
        0.3, "Share of the rows that show the photo's own placement, on top of its turn.", 0, 1, before=0.0
    )
    seed: int = _setting(0, f"Random seed, {SEEDS}.", 0, MAX_SEED)
    photo_loss: Literal["object", "masked", "frame"] = _setting(
        "object", "Where the photo is learned: by the object's area, masked by the frame's area, or the whole frame."
    )
    class_term: Literal["prediction", "noise"] = _setting(
        "prediction", "What class samples are held to: the frozen base's prediction, or their noise as in DreamBooth."
    )
    singles: float = _setting(
        0.95,
        "Share of the steps, on top of their turn, that show one object alone where several of one photo are learned together.",
        0,
        1,
        before=0.0,
    )
    joint_attention: float = _setting(
        0.05,
        "Weight of that term where several objects of one photo are learned together, if it has none of its own.",
        0,
        MAX_WEIGHT,
        before=0.0,
    )
    attention_weight: float = _setting(
        0.0, "Each token's cross-attention is held to its object (Break-A-Scene).", 0, MAX_WEIGHT
    )
    timesteps: Literal["focused", "uniform"] = _setting(
        "focused", "Which noise levels: more of those where an object's identity is lost, or any."
    )
    highest: float = _setting(
        1.0,
        "Noise level up to which pictures are learned, fraction of the whole: above it poses and places are decided.",
        0.01,
        1,
        before=1.0,
    )
    schedule: Literal["cosine", "constant"] = _setting("cosine", "Learning rates after the warm-up.")
    token: Literal["learned", "fixed"] = _setting("learned", "Whether the token goes on learning.")
    latents: Literal["mean", "sample"] = _setting(
        "sample", "What the autoencoder makes of a placement: its mean, or drawn anew at each step.", before="mean"
    )
    beta2: float = _setting(
        0.99, "AdamW's memory of squared gradients; PyTorch's own default is 0.999.", 0, 0.999999, before=0.99
    )
    average: float = _setting(
        0.0,
        "Decay of the running mean of the weights, which is what is kept; 0: the last step's.",
        0,
        0.9999,
        before=0.0,
    )
    stop: Literal["auto", "end", "good"] = _setting(
        "auto", "end: after all steps; good: when its loss under fixed noise has stopped falling, after which the rate falls to its end; "
        "auto: end where steps are given, else good.", before="end",
    )  # fmt: skip
    idle: Literal["leaves", "stays"] = _setting(
        "leaves", "Whether the autoencoder leaves memory while nothing is encoded or drawn.", identifies=False
    )
    checkpointing: Literal["auto", "off", "on"] = _setting(
        "auto", "Whether activations are computed again in the backward pass: far less memory, a third more time; auto: from where a GPU's memory ends.",
        identifies=False,
    )  # fmt: skip
    optimizer: Literal["adamw", "adamw8bit"] = _setting(
        "adamw", "AdamW, or with 8-bit moments (needs bitsandbytes).", before="adamw"
    )
    quantised: Literal["none", "8bit", "4bit"] = _setting(
        "none",
        "Number format of the frozen denoiser's linear layers while it is trained on (needs bitsandbytes).",
        before="none",
    )
    scores: Literal["shown", "none"] = _setting(
        "shown", "Whether identity, prompt, copy and drift are measured at the end.", identifies=False
    )
    token_norm: Literal["kept", "free"] = _setting("kept", "Whether the token's vectors keep the class word's length.")
    token_first: int = _setting(
        0, "Steps in which the token alone learns; after them it rests and the layers learn.", 0, 1_000_000
    )
    context: Literal["class", "own"] = _setting(
        "class",
        "What the other words of the sentence hear in the object's place while it is learned: its class word, or its own token.",
        before="own",
    )
    templates: Literal["several", "one"] = _setting("several", "Sentences that the photo is learned under.")


@dataclass(frozen=True, repr=False)
class Prior:
    """The class as the frozen base draws it."""

    samples: int = _setting(12, "Pictures of the class.", 1, 1024)
    entries: int = _setting(96, "Kept predictions of the frozen base.", 1, 65_536)
    around: Literal["wide", "class"] = _setting(
        "wide",
        "What the base is asked: the class in half of the entries and no prompt or other things in half; or the class alone.",
    )
    seed: int = _setting(0, f"Random seed, {SEEDS}.", 0, MAX_SEED)


@dataclass(frozen=True, repr=False)
class Generate:
    """Sampling."""

    n: int = _setting(4, "Pictures per prompt.", 1, 1024)
    seed: int = _setting(0, f"Seed of the first picture, {SEEDS}.", 0, MAX_SEED)
    width: int = _setting(
        0, "Width of the pictures, px, a multiple of what the base divides it by; 0: the base's own.", 0, 8192, before=0
    )
    height: int = _setting(0, "Height of the pictures, as `width`.", 0, 8192, before=0)
    steps: int = _setting(0, "Sampling steps; 0: what suits the base.", 0, 1000)
    guidance: float = _setting(-1.0, "Guidance scale; negative: what suits the base.")
    guidance_below: float = _setting(
        -1.0, "Guidance acts below this noise level, fraction of the whole: the lower, the more various the poses; negative: what suits the base.",
        None, 1, before=1.0,
    )  # fmt: skip
    scene_guidance: float = _setting(
        -1.0, "How much is added of what the frozen base says of the words around the objects, one more call of it a step; negative: what suits the base.",
        None, 20, before=0.0,
    )  # fmt: skip
    object_below: float = _setting(
        -1.0, "Objects are themselves below this noise level, fraction of the whole; above it, where poses and places are decided, the frozen base draws their classes; negative: what suits the base.",
        None, 1, before=1.0,
    )  # fmt: skip
    object_guidance: float = _setting(
        0.0,
        "How much is added of what the object's adapter says over the frozen base told the class word, one row more of it a step.",
        0,
        20,
        before=0.0,
    )
    strength: float = _setting(
        1.0,
        "What objects' LoRAs are multiplied by where the prompt does not say it, as `<dog:0.8>` does; 0: their classes are drawn.",
        0,
        2,
        before=1.0,
    )
    negative: str = _setting("", "What should not be in the picture.")
    scheduler: Literal["base", "ddim", "euler", "dpm++"] = _setting(
        "base", "Sampler; base: the one that the base's folder names."
    )


@dataclass(frozen=True, repr=False)
class Compose:
    """Several objects in one picture."""

    retries: int = _setting(
        4,
        "How often a picture in which an object is missing or mixed is drawn again, each time from another seed.",
        0,
        100,
        before=0,
    )
    context: Literal["class", "own"] = _setting(
        "class",
        "What the other words of the sentence hear in an object's place: its class word, or its own token.",
        before="own",
    )
    edge: float = _setting(0.06, "Softness of the regions, fraction of the picture.", 0, 0.5, before=0.06)
    attention: Literal["open", "bounded"] = _setting(
        "open", "Whether the regions of different objects see each other in self-attention.", before="open"
    )
    detail: float = _setting(
        0.55,
        "Share of the steps in which each object, its place enlarged, is drawn again by its own adapter alone; 0: it is not.",
        0,
        1,
        before=0.0,
    )
    object_guidance: float = _setting(
        -1.0,
        "How much is added there of what the adapter says over the frozen base told the class word; negative: what suits the base.",
        None,
        20,
        before=0.0,
    )
    laid: Literal["object", "place"] = _setting(
        "object",
        "What of that closer look is laid back: the object in its outline, or all of its place.",
        before="place",
    )
    check: Literal["shown", "none"] = _setting(
        "shown", "Whether every object is looked for in its place.", identifies=False
    )
    strict: int = _setting(
        0, "1: a scene in which an object is missing or mixed for every seed is refused.", 0, 1, identifies=False
    )


@dataclass(frozen=True, repr=False)
class Merge:
    """Several adapters as one."""

    method: Literal["sum", "ties", "dare", "dare-ties"] = _setting(
        "sum", "Weighted sum, TIES, DARE, or DARE with TIES' signs."
    )
    rank: int = _setting(
        0,
        "Rank of the result, by SVD; 0: a sum is exact at the sum of the ranks, the others get the largest rank.",
        0,
        4096,
    )
    density: float = _setting(0.5, "Share of each adapter's weights that TIES and DARE keep.", 0.01, 1)
    seed: int = _setting(0, f"Seed of what DARE drops, {SEEDS}.", 0, MAX_SEED)


@dataclass(frozen=True, repr=False)
class Bench:
    """Measuring."""

    objects: int = _setting(40, "Held-out objects, classes in turn.", 1, 10_000)
    shard: str = _setting(
        "1/1",
        "Which of the objects, or groups of `--scenes`: k/n is every n-th from the k-th on, so that n processes or machines measure them all; `cat` joins their results.jsonl for `--from`, processes of `--scenes` may share `--out`.",
    )
    repeats: int = _setting(2, "Rounds of prompts for each object.", 1, 100)
    prompts: str = _setting("scene,wearing,pair", "Kinds of prompts, with commas: scene, wearing, pair.")
    together: str = _setting(
        "two,three,same",
        "Kinds of scenes of `--scenes`, with commas: two or three objects of as many classes, or two of the same.",
    )
    samples: int = _setting(1024, "Samples of `--base-only`.", 16, 100_000)
    scenes: int = _setting(300, "Scenes of `--masks`.", 1, 100_000)
    segmenters: str = _setting("sam,grabcut", "Segmenters of `--masks`, with commas.")
    pictures: Literal["drawn", "photographs"] = _setting(
        "drawn", "What `--masks` looks at: drawn scenes, or five objects in photographs that scikit-image carries."
    )
    rounds: int = _setting(3, "Rounds of `--speed`.", 1, 100)
    script: str = _setting(
        "", "diffusers' train_dreambooth_lora.py, which `--speed` then times too; empty: it does not.", path="file"
    )
    layouts: str = _setting(
        "sd15,sdxl",
        "Layouts of `--memory`, with commas: sd15, sd21, sdxl, sd3 with random weights, or base: the one at hand.",
    )
    side: int = _setting(
        0,
        "Side of the pictures of `--memory` and of `--speed` at Stable Diffusion's size, px; 0: the layout's own, and 256 for the speed of a processor.",
        0,
        4096,
    )
    products: Literal["zeros", "multiplied"] = _setting(
        "zeros",
        "What products give in `--memory` on a processor: zeros of their shape, which take as much memory, or what they are.",
    )
    photo: str = _setting(
        "",
        "Photo of each subject that `--photos` learns, its name with or without ending: 01; empty: the first by name.",
    )
    live: str = _setting("cat,dog", "Classes of `--photos` that get the prompts of live subjects, with commas.")
    seeds: int = _setting(4, "Pictures of each prompt of `--photos`.", 1, 1000)
    clip: str = _setting(
        "", "CLIP that measures photographs: hub id or folder; empty: the base's own image tower.", path="model"
    )
    dino: str = _setting(
        "facebook/dino-vits16",
        "DINO that measures photographs: hub id, folder or safetensors file; `--photos` goes without where the default is not here.",
        path="model",
    )
    seed: int = _setting(0, f"Random seed of objects and prompts, {SEEDS}.", 0, MAX_SEED)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of `prompts`, one by one."""
        return tuple(part.strip() for part in self.prompts.split(","))

    @property
    def part(self) -> slice:
        """Which of a list `shard` takes.

        Raises:
            UsageError: It is not k/n with k from 1 to n.
        """
        first, _, every = self.shard.partition("/")
        if not (first.isdecimal() and every.isdecimal() and 1 <= int(first) <= int(every)):
            raise UsageError(f"bench.shard is {self.shard}", "k/n, k from 1 to n: 2/4 is the second of four")
        return slice(int(first) - 1, None, int(every))


SECTIONS: dict[str, type] = {
    "segment": Segment,
    "init-embedding": Embed,
    "train": Train,
    "prior": Prior,
    "generate": Generate,
    "compose": Compose,
    "merge": Merge,
    "bench": Bench,
}

GUIDANCES = ("scene_guidance", "object_guidance", "object_below")
"""Settings of `generate` that act on trained objects alone."""
