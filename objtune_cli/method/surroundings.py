"""What the frozen base says of the words around an object, added to what is drawn (ours).

An adapter that learned one photo hears its own object in every word: a hat is put on, in the object's colours. The base,
told the same prompt in class words, knows hats. How its prediction differs from that for the class alone is what those
words mean to it; that difference is added, as composable diffusion adds concepts (arXiv:2206.01714):

    eps + w (eps_0(z_t, "a photo of a dog with a red hat") - eps_0(z_t, "a photo of a dog"))

What stands before the first object (a photo of, my) is in both and adds nothing.

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
def spoken(stack: Stack, texts: Sequence[str], weight: float, height: int, width: int) -> Iterator[None]:
    """Inside, the denoiser's predictions for one batch of pictures hold what the frozen base says of the words around the objects.

    Args:
        texts: Prompt of each picture, the added words written as tokens; where one names no object, or nothing else, its
            picture stays as it is. weight: w; 0: nothing is added. height, width: of the pictures, px.
    """
    said = [stack.in_class_words(text) for text in texts]
    alone = [alone_in_class_words(named(text), stack.classes) or told for text, told in zip(texts, said, strict=True)]
    rows = [i for i, pair in enumerate(zip(said, alone, strict=True)) if pair[0].rstrip(" .,!") != pair[1]] if weight else []
    if not rows:
        yield
        return
    with asleep(stack):
        encoded = {text: stack.encode([text]) for i in rows for text in (said[i], alone[i])}
    both = torch.cat([encoded[said[i]] for i in rows] + [encoded[alone[i]] for i in rows])
    handle = stack.unet.register_forward_hook(_Addition(stack, rows, len(texts), weight, stack.family.told(stack, both, height, width)), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class _Addition:
    """A forward hook of the denoiser; asking the frozen base calls the denoiser once more, without it."""

    def __init__(self, stack: Stack, rows: list[int], pictures: int, weight: float, told: dict[str, Any]) -> None:
        self.stack, self.rows, self.pictures, self.weight, self.told, self.asking = stack, rows, pictures, weight, told, False

    def __call__(self, module: nn.Module, args: tuple[Any, ...], given: dict[str, Any], out: Any) -> Any:
        if self.asking:
            return out
        added = self._difference(module, args, given)
        sample = out[0] if isinstance(out, tuple) else out.sample
        more = torch.zeros_like(sample[: self.pictures])
        more[self.rows] = self.weight * added
        sample = sample + more.repeat(len(sample) // self.pictures, 1, 1, 1)
        return (sample, *out[1:]) if isinstance(out, tuple) else type(out)(sample=sample)

    def _difference(self, module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> Tensor:
        """eps_0 of the prompt in class words less that of the class alone, (rows, C, h, w)."""
        if args:
            latents, t = args[:2]
        else:
            latents, t = given["hidden_states"], given["timestep"]
        z = latents[self.rows].repeat(2, 1, 1, 1)
        t = t if t.ndim == 0 else t[:1].expand(len(z))
        call = ((z, t), {}) if args else ((), {"hidden_states": z, "timestep": t})
        self.asking = True
        try:
            with asleep(self.stack):
                out = module(*call[0], **(call[1] | self.told), return_dict=False)[0]
        finally:
            self.asking = False
        with_words, without = out.chunk(2)
        return with_words - without
