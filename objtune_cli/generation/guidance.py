"""What the frozen base, asked beside the adapter, adds to what is drawn: two guidances (ours), each a difference of predictions.

Where no LoRA acts yet (`sampling.sample`, `object_below`) the prediction is the frozen base's own: the second is nothing, the first asks for the class alone.

*Of the scene.* An adapter that learned one photo hears its own object in every word: a hat is put on, in the object's colours. The base,
told the same prompt in class words, knows hats. How its prediction differs from that for the class alone is what those
words mean to it; that difference is added, as composable diffusion adds concepts (arXiv:2206.01714):

    eps + w (eps_0(z_t, "a photo of a dog with a red hat") - eps_0(z_t, "a photo of a dog"))

*Of the object.* Told the same prompt, the adapter with its token says this dog, and the frozen base a dog; a model is guided well away from a
worse version of itself (autoguidance, arXiv:2406.02507), and for this one object the frozen base is that version:

    eps + s (eps(z_t, "a photo of <rex> with a red hat") - eps_0(z_t, "a photo of a dog with a red hat"))

What stands before the first object (a photo of, my) is in both and adds nothing to the scene.

Knows nothing about samplers: it acts on every call of the denoiser, in each half of guidance's batch alike.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from objtune_cli.models.adapter_state import disabled
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.prompts import objects_only_prompt, restore_placeholders


@contextlib.contextmanager
def guided(model: BaseModel, texts: Sequence[str], scene: float, own: float, height: int, width: int) -> Iterator[None]:
    """Inside, the denoiser's predictions for one batch of pictures hold what the frozen base says of the objects' scenes, and what it does not say of the objects.

    Args:
        texts: Prompt of each picture, the added words written as tokens; where one names no object, its picture stays as it is, and
            where it names nothing else, its scene adds nothing. scene, own: w and s; 0: nothing is added. height, width: of the pictures, px.
    """
    said = [model.in_class_words(text) for text in texts]
    alone = [objects_only_prompt(restore_placeholders(text), model.classes) for text in texts]
    objects = [i for i, text in enumerate(alone) if text] if own else []
    scenes = [i for i, text in enumerate(alone) if text and said[i].rstrip(" .,!") != text] if scene else []
    if not objects and not scenes:
        yield
        return
    rows = sorted({*objects, *scenes})
    with disabled(model):
        encoded = {
            text: model.encode([text])
            for text in dict.fromkeys([*(said[i] for i in rows), *(alone[i] for i in scenes)])
        }
    apart = [encoded[alone[i]] for i in scenes]
    told, of_scenes = (
        model.family.told(model, torch.cat(words), height, width) if words else {}
        for words in ([encoded[said[i]] for i in rows] + apart, apart)
    )
    addition = _Addition(model, rows, objects, scenes, own, scene, len(texts), told, of_scenes)
    handle = model.denoiser.register_forward_hook(addition, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class _Addition:
    """A forward hook of the denoiser; asking the frozen base calls the denoiser once more, without it.

    `rows`: pictures that the base is asked of in class words; `scenes`: those that it is asked of for the class alone. own, scene: weights.
    `told`: of the rows, then of the scenes; `of_scenes`: of these alone.
    """

    def __init__(
        self, model: BaseModel, rows: list[int], objects: list[int], scenes: list[int], own: float, scene: float, pictures: int,
        told: dict[str, Any], of_scenes: dict[str, Any],
    ) -> None:  # fmt: skip
        self.model, self.rows, self.objects, self.scenes, self.own, self.scene = (
            model,
            rows,
            objects,
            scenes,
            own,
            scene,
        )
        self.pictures, self.told, self.of_scenes, self.asking = pictures, told, of_scenes, False

    def __call__(self, module: nn.Module, args: tuple[Any, ...], given: dict[str, Any], out: Any) -> Any:
        if self.asking or (self.model.asleep and not self.scenes):
            return out
        sample = out[0] if isinstance(out, tuple) else out.sample
        told = sample[-self.pictures :]
        if self.model.asleep:
            more = self._more(
                dict(enumerate(told)), self._asked(module, args, given, self.scenes, self.of_scenes), told
            )
        else:
            answers = self._asked(module, args, given, [*self.rows, *self.scenes], self.told)
            whole, alone = answers.split([len(self.rows), len(self.scenes)])
            more = self._more(dict(zip(self.rows, whole, strict=True)), alone, told)
        sample = sample + more.repeat(len(sample) // self.pictures, 1, 1, 1)
        return (sample, *out[1:]) if isinstance(out, tuple) else type(out)(sample=sample)

    def _more(self, whole: dict[int, Tensor], alone: Tensor, told: Tensor) -> Tensor:
        """What is added to each picture, (N, C, h, w), where the half with prompts says `told`, and the base `whole` in class words and `alone` of the class."""
        more = torch.zeros_like(told)
        for i in self.objects:
            more[i] += self.own * (told[i] - whole[i])
        for i, without in zip(self.scenes, alone, strict=True):
            more[i] += self.scene * (whole[i] - without)
        return more

    def _asked(
        self, module: nn.Module, args: tuple[Any, ...], given: dict[str, Any], rows: list[int], told: dict[str, Any]
    ) -> Tensor:
        """eps_0 of `rows`, each with what it is told, (R, C, h, w)."""
        latents, t = args[:2] if args else (given["hidden_states"], given["timestep"])
        z = latents[rows]  # the half without prompts holds the same latents
        t = t if t.ndim == 0 else t[:1].expand(len(z))
        call = ((z, t), {}) if args else ((), {"hidden_states": z, "timestep": t})
        self.asking = True
        try:
            with disabled(self.model):
                return module(*call[0], **(call[1] | told), return_dict=False)[0]
        finally:
            self.asking = False
