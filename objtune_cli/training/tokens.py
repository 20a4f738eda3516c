"""The placeholder tokens of a run: their trainable vectors, and prompts encoded with them."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from objtune_cli.config.sections import Train
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.placeholders import Placeholders
from objtune_cli.numerics.embeddings import keep_norm, lengths
from objtune_cli.training.subjects import Subject

if TYPE_CHECKING:
    from objtune_cli.models.attention import Recorder
    from objtune_cli.training.batches import StepBatch


class TokenEmbeddings:
    """The vectors of the objects' tokens.

    Attributes:
        trainable: By object (k, d). frozen: by object (n, d), those of the class word behind them. norms: initial norms of
            `trainable`, for each text encoder.
    """

    def __init__(self, model: BaseModel, subjects: list[Subject], config: Train) -> None:
        self.model, self.config = model, config
        self.placeholders = Placeholders(model)
        for s in subjects:
            self.placeholders.add(s.name, s.token_embeddings, s.class_word)
        self.class_words = {s.name: s.class_word for s in subjects}
        self.frozen = {s.name: s.token_embeddings[s.num_trainable :].to(model.device) for s in subjects}
        initial = {s.name: s.token_embeddings[: s.num_trainable] for s in subjects}
        self.norms = {name: lengths(vectors, model.widths).to(model.device) for name, vectors in initial.items()}
        self.trainable = {
            name: vectors.to(model.device).clone().requires_grad_(config.train_embedding)
            for name, vectors in initial.items()
        }

    def sync(self) -> Placeholders:
        """Write the current vectors into the text encoders; returns the placeholders of prompts."""
        for name, vectors in self.trainable.items():
            self.placeholders.replace(name, torch.cat([vectors, self.frozen[name]]))
        return self.placeholders

    @torch.no_grad()
    def restore_norms(self) -> None:
        """Scale each vector to its initial norm, unless the settings leave it free; a mean of vectors is shorter than they are."""
        if self.config.fix_embedding_norm and self.config.train_embedding:
            for name, vectors in self.trainable.items():
                if vectors.requires_grad:  # a frozen vector does not change by a rounding error either
                    vectors.copy_(keep_norm(vectors, self.norms[name], self.model.widths))

    def attention_maps(self, recorder: "Recorder", batch: "StepBatch") -> list[Tensor]:
        """For each object of a batch, where its token's attention goes: (B, s, s), largest value 1."""
        text = self.placeholders.expand(batch.prompt)
        return [recorder.token_map(self.placeholders.token_mask(text, s.name)) for s in batch.views.members]

    def as_tensors(self) -> dict[str, Tensor]:
        """The current vectors of each object, (k + n, d), on the CPU."""
        return {name: torch.cat([v.detach(), self.frozen[name]]).cpu() for name, v in self.trainable.items()}
