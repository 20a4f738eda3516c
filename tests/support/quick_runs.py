"""Settings for whole commands on the tiny base: few steps, few samples, and no mask gate, since a random CLIP knows nothing."""

from pathlib import Path


def set_options(*settings: str) -> tuple[str, ...]:
    """`--set` options of settings."""
    return tuple(word for setting in settings for word in ("--set", setting))


FAST_SETTINGS = (
    "init-embedding.steps=3",
    "train.num_augmentations=4",
    "prior.num_class_images=2",
    "prior.num_predictions=4",
    "train.num_teacher_samples=2",
)
NO_GATE_SETTINGS = ("segment.min_class_probability=0", "segment.min_score_margin=-99", "segment.min_score=-99")
FAST = set_options(*FAST_SETTINGS)
"""A run of every stage in seconds."""
UNSCORED = (*FAST, *set_options("train.self_evaluation=false"), "--no-preview")
"""The same without the images at the end."""
NO_GATE = set_options(*NO_GATE_SETTINGS)
"""No mask is refused."""


def write_settings(base: Path, max_steps: int) -> None:
    """Make the tiny base, a short training and no mask gate the settings of the project in the working folder."""
    Path("objtune.toml").write_text(
        f'base = "{base}"\n[train]\nmax_steps = {max_steps}\nrank = 2\n'
        "[segment]\nmin_class_probability = 0.0\nmin_score_margin = -99.0\nmin_score = -99.0\n"
    )
