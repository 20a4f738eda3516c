"""What the frozen base, asked beside the adapter, adds to what is drawn: two guidances (ours), each a difference of predictions.

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

from objtune_cli.models.adapter import asleep
from objtune_cli.models.stack import Stack
from objtune_cli.models.wording import alone_in_class_words, named


@contextlib.contextmanager
def guided(stack: Stack, texts: Sequence[str], scene: float, own: float, height: int, width: int) -> Iterator[None]:
    """Inside, the denoiser's predictions for one batch of pictures hold what the frozen base says of the objects' scenes, and what it does not say of the objects.

    Args:
        texts: Prompt of each picture, the added words written as tokens; where one names no object, its picture stays as it is, and
            where it names nothing else, its scene adds nothing. scene, own: w and s; 0: nothing is added. height, width: of the pictures, px.
    """
    said = [stack.in_class_words(text) for text in texts]
    alone = [alone_in_class_words(named(text), stack.classes) for text in texts]
    objects = [i for i, text in enumerate(alone) if text] if own else []
    scenes = [i for i, text in enumerate(alone) if text and said[i].rstrip(" .,!") != text] if scene else []
    if not objects and not scenes:
        yield
        return
    asked = [(i, said[i]) for i in sorted({*objects, *scenes})] + [(i, alone[i]) for i in scenes]
    with asleep(stack):
        encoded = {text: stack.encode([text]) for text in dict.fromkeys(text for _, text in asked)}
    told = stack.family.told(stack, torch.cat([encoded[text] for _, text in asked]), height, width)
    addition = _Addition(stack, [i for i, _ in asked], objects, scenes, own, scene, len(texts), told)
    handle = stack.unet.register_forward_hook(addition, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class _Addition:
    """A forward hook of the denoiser; asking the frozen base calls the denoiser once more, without it.

    `rows`: pictures that the base is asked of, first in class words, then, for `scenes`, the class alone. own, scene: weights.
    """

    def __init__(
        self, stack: Stack, rows: list[int], objects: list[int], scenes: list[int], own: float, scene: float, pictures: int, told: dict[str, Any]
    ) -> None:
        self.stack, self.rows, self.objects, self.scenes, self.own, self.scene = stack, rows, objects, scenes, own, scene
        self.pictures, self.told, self.asking = pictures, told, False

    def __call__(self, module: nn.Module, args: tuple[Any, ...], given: dict[str, Any], out: Any) -> Any:
        if self.asking:
            return out
        sample = out[0] if isinstance(out, tuple) else out.sample
        more = self._more(self._asked(module, args, given), sample[-self.pictures :])
        sample = sample + more.repeat(len(sample) // self.pictures, 1, 1, 1)
        return (sample, *out[1:]) if isinstance(out, tuple) else type(out)(sample=sample)

    def _more(self, answers: Tensor, told: Tensor) -> Tensor:
        """What is added to each picture, (N, C, h, w), where the half with prompts says `told`."""
        more, first = torch.zeros_like(told), len(self.rows) - len(self.scenes)
        whole = dict(zip(self.rows[:first], answers[:first], strict=True))
        for i in self.objects:
            more[i] += self.own * (told[i] - whole[i])
        for i, without in zip(self.scenes, answers[first:], strict=True):
            more[i] += self.scene * (whole[i] - without)
        return more

    def _asked(self, module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> Tensor:
        """eps_0 of `rows`, (R, C, h, w)."""
        latents, t = args[:2] if args else (given["hidden_states"], given["timestep"])
        z = latents[self.rows]  # the half without prompts holds the same latents
        t = t if t.ndim == 0 else t[:1].expand(len(z))
        call = ((z, t), {}) if args else ((), {"hidden_states": z, "timestep": t})
        self.asking = True
        try:
            with asleep(self.stack):
                return module(*call[0], **(call[1] | self.told), return_dict=False)[0]
        finally:
            self.asking = False
