"""A configuration, an object and a training loop without a store, for tests of the trainer."""

from collections.abc import Callable

import torch

from objtune_cli.config.sections import Train
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.placeholders import class_token_embeddings
from objtune_cli.numerics.ddpm import step_generator
from objtune_cli.training import step as training_step
from objtune_cli.training.subjects import Subject, SubjectPhoto
from objtune_cli.training.trainer import Trainer

CONFIG = Train(
    max_steps=6,
    rank=2,
    batch_size=4,
    num_augmentations=4,
    learning_rate=5e-3,
    embedding_lr=1e-2,
    target_modules="all",
    prior_loss_weight=1.0,
    target_blocks="all",
    prior_loss_interval=1,
    single_forward=True,
    sample_vae_latents=False,
    original_view_prob=0.0,
)


def red_square(
    model: BaseModel, name: str = "rex", word: str = "dog", left: int = 10, width: int = 14, side: int = 48
) -> Subject:
    """A red square on blue in an image of `side` px. Its token starts as the article's, so that `<rex>` reads "a dog"."""
    mask = torch.zeros(side, side)
    mask[side // 4 : -(side // 4), left : left + width] = 1
    ground = torch.tensor([-0.5, 0.0, 0.5]).view(3, 1, 1).expand(3, side, side)
    picture = ground * (1 - mask) + torch.tensor([0.8, -0.6, -0.4]).view(3, 1, 1) * mask
    embeddings = torch.cat([class_token_embeddings(model, "a"), class_token_embeddings(model, word)])
    return Subject(name, word, embeddings, 1, (SubjectPhoto(picture, ground.clone(), mask),))


def train_to_end(trainer: Trainer, on_step: Callable[[int], None] = lambda number: None) -> None:
    """Take the remaining steps."""
    while not trainer.finished:
        trainer.train_step()
        on_step(trainer.step)
    trainer.keep_ema()


def step_losses(trainer: Trainer, step: int = 0) -> dict[str, float]:
    """The loss terms of one step, without taking it."""
    with torch.no_grad():
        parts = training_step.compute_losses([trainer], [step_generator(trainer.config.seed, step)])
        return {name: float(value) for (terms,) in parts for name, value in terms.items()}
