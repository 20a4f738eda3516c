"""The class prior: samples and predictions of the frozen base for a class, computed once and stored.

Training compares with these predictions (L_CC) instead of running the frozen base again.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from objtune_cli.config.sections import Prior
from objtune_cli.models import finite_checks
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.conditioning import Conditioning
from objtune_cli.models.prompts import PROMPT, with_article
from objtune_cli.numerics.ddpm import step_generator
from objtune_cli.store.kinds.prior import PriorArtifact

SAMPLING_STEPS = 15
FOCUS, SHARE = (0.4, 0.98), 0.6
"""Focus of the timesteps: higher noise than where the object is learned, because there a class word becomes a shape."""


def prompts(class_word: str, others: Sequence[str], *, mixed: bool) -> list[str]:
    """The prompts of the prior: the class; with `mixed` also the empty prompt, which guidance extrapolates from, and other classes.

    Source:
        Preserving more than the class prompt: Drift Correction, arXiv:2410.14159; these prompts are ours.
    """
    things = [PROMPT.format(with_article(word)) for word in (class_word, *(w for w in others if w != class_word))]
    return [things[0], "", *things[1:]] if mixed else things[:1]


def compute(
    model: BaseModel,
    class_word: str,
    config: Prior,
    guidance: float,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    others: Sequence[str] = (),
) -> PriorArtifact:
    """Class samples and the frozen base's predictions for fixed (z_t, t, prompt).

    Args:
        others: Other classes to preserve.

    Raises:
        NonFiniteError: The base gives NaN or infinite values.
    """
    texts = prompts(class_word, others, mixed=config.mixed_prompts)
    latents = _sample_latents(model, texts[0], config, guidance, on_step)
    g = step_generator(config.seed, 0)
    rows = torch.arange(config.num_predictions) % len(latents)
    t = model.family.timesteps(config.num_predictions, model.num_train_timesteps, g, FOCUS, SHARE)
    noise = torch.randn((config.num_predictions, *latents.shape[1:]), generator=g)
    z_t, _ = model.add_noise_and_target(latents[rows], noise, t)
    with torch.no_grad():
        conditions = Conditioning.concat([model.encode_prompt([text]) for text in texts])
        prompt_index = _prompt_indices(config.num_predictions, len(latents), len(texts), g)
        preds = [
            model.predict(z.to(model.device), s, conditions[which.to(model.device)]).float().cpu()
            for z, s, which in zip(z_t.split(8), t.split(8), prompt_index.split(8), strict=True)
        ]
    pred = finite_checks.checked("denoiser", model.dtype, torch.cat(preds))
    return PriorArtifact(latents, z_t, t, pred, prompt_index, conditions.pack().float().cpu())


def _prompt_indices(entries: int, samples: int, count: int, g: torch.Generator) -> Tensor:
    """The prompt of each prediction: alternately the first and a random one of the rest; each sample gets both in turn."""
    i = torch.arange(entries)
    rest = torch.randint(1, max(count, 2), (entries,), generator=g)
    return torch.where(((i + i // samples * (1 - samples % 2)) % 2 == 0) | torch.tensor(count == 1), 0, rest)


def _sample_latents(
    model: BaseModel, prompt: str, config: Prior, guidance: float, on_step: Callable[[int, int], None]
) -> Tensor:
    from objtune_cli.generation.sampling import sample
    from objtune_cli.generation.settings import SamplingSettings

    done = []
    for start in range(0, config.num_class_images, 4):
        seeds = list(range(config.seed + start, config.seed + min(start + 4, config.num_class_images)))
        done.append(sample(model, prompt, seeds, SamplingSettings(SAMPLING_STEPS, guidance)))
        on_step(start + len(seeds), config.num_class_images)
    return torch.cat(done)
