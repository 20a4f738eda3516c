"""Two guidances from the frozen base model (ours); each adds a difference of predictions to what the denoiser predicts.

Prompt guidance. An adapter that learned one photo associates its object with every word: a hat is drawn in the object's colours. The frozen base
knows hats. Its prediction for the prompt in class words, less its prediction for the class alone, is the meaning of the other words; that difference
is added as composable diffusion adds concepts (arXiv:2206.01714):

    eps + w (eps_0(z_t, "a photo of a dog with a red hat") - eps_0(z_t, "a photo of a dog"))

Words before the first object (a photo of, my) are in both prompts and add nothing.

Autoguidance. A model is guided well away from a worse version of itself (arXiv:2406.02507). For one object, the worse version of an adapter is the
frozen base with the same prompt in class words:

    eps + s (eps(z_t, "a photo of <rex> with a red hat") - eps_0(z_t, "a photo of a dog with a red hat"))

While LoRAs are disabled (`SamplingSettings.subject_conditioning_start`) the prediction is the frozen base's own: autoguidance adds nothing, and prompt
guidance needs the prediction for the class alone only.

The module knows no samplers: its hook acts on every call of the denoiser, equally in both halves of the batch of classifier-free guidance.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from objtune_cli.models.adapter_state import disabled
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.conditioning import Conditioning
from objtune_cli.models.prompt_syntax import escape, plain_text
from objtune_cli.models.prompts import objects_only_prompt, restore_placeholders


@contextlib.contextmanager
def extra_guidance(
    model: BaseModel,
    phases: Sequence[Sequence[str]],
    prompt_scale: float,
    autoguidance_scale: float,
    height: int,
    width: int,
) -> Iterator[Callable[[int], None]]:
    """Add both guidances to the denoiser's predictions for one batch of images; yields the function that selects a phase.

    Args:
        phases: For each phase of sampling the prompt of each image, placeholders written as tokens. An image whose prompt names no object stays as it is; one whose prompt
            names nothing else gets no prompt guidance.
        prompt_scale, autoguidance_scale: w and s; 0: nothing is added.
        height, width: Size of the images, px.
    """
    hooks = [_build_hook(model, texts, prompt_scale, autoguidance_scale, height, width) for texts in phases]
    with contextlib.ExitStack() as registered:

        def select(phase: int) -> None:
            registered.close()
            if (hook := hooks[phase]) is not None:
                registered.callback(model.denoiser.register_forward_hook(hook, with_kwargs=True).remove)

        select(0)
        yield select


def _build_hook(
    model: BaseModel, texts: Sequence[str], prompt_scale: float, autoguidance_scale: float, height: int, width: int
) -> "_GuidanceHook | None":
    """Encode the prompts of the frozen base for `extra_guidance`; None if no image gets guidance."""
    in_class_words = [model.with_class_words(text) for text in texts]
    plain = [plain_text(text, model.prompt_syntax) for text in in_class_words]
    classes_only = [_objects_only(model, text) for text in texts]
    objects = [i for i, text in enumerate(classes_only) if text] if autoguidance_scale else []
    scenes = (
        [
            i
            for i, text in enumerate(classes_only)
            if text and plain[i].rstrip(" .,!") != plain_text(text, model.prompt_syntax)
        ]
        if prompt_scale
        else []
    )
    if not objects and not scenes:
        return None
    images = sorted({*objects, *scenes})
    with disabled(model):
        encoded = {
            text: model.encode_prompt([text])
            for text in dict.fromkeys([*(in_class_words[i] for i in images), *(classes_only[i] for i in scenes)])
        }
    of_classes = [encoded[classes_only[i]] for i in scenes]
    call_arguments, class_arguments = (
        model.family.denoiser_kwargs(model, Conditioning.concat(model.match_lengths(conditions)), height, width)
        if conditions
        else {}
        for conditions in ([encoded[in_class_words[i]] for i in images] + of_classes, of_classes)
    )
    return _GuidanceHook(
        model, images, objects, scenes, autoguidance_scale, prompt_scale, len(texts), call_arguments, class_arguments
    )


def _objects_only(model: BaseModel, text: str) -> str:
    """The objects of an expanded prompt in class words, without weights; "" without objects."""
    plain = plain_text(restore_placeholders(text), model.prompt_syntax)
    return escape(objects_only_prompt(plain, model.classes), model.prompt_syntax)


@dataclass(slots=True)
class _GuidanceHook:
    """A forward hook of the denoiser. It calls the denoiser once more, without LoRAs, for the frozen base's predictions.

    Attributes:
        images: Images for which the base predicts the prompt in class words.
        objects: Those of them that get autoguidance.
        scenes: Those of them that get prompt guidance; the base predicts their classes alone too.
        batch_size: Number of images.
        call_arguments: Arguments of the denoiser for `images`, then for the classes alone of `scenes`.
        class_arguments: The arguments for the classes alone of `scenes`.
        is_calling: Whether the hook itself calls the denoiser.
    """

    model: BaseModel
    images: list[int]
    objects: list[int]
    scenes: list[int]
    autoguidance_scale: float
    prompt_scale: float
    batch_size: int
    call_arguments: dict[str, Any]
    class_arguments: dict[str, Any]
    is_calling: bool = False

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        if self.is_calling or (self.model.adapters_disabled and not self.scenes):
            return out
        sample = out[0] if isinstance(out, tuple) else out.sample
        prompted = sample[-self.batch_size :]
        if self.model.adapters_disabled:
            of_classes = self._predict(module, args, kwargs, self.scenes, self.class_arguments)
            addition = self._add(dict(enumerate(prompted)), of_classes, prompted)
        else:
            predictions = self._predict(module, args, kwargs, [*self.images, *self.scenes], self.call_arguments)
            in_class_words, of_classes = predictions.split([len(self.images), len(self.scenes)])
            addition = self._add(dict(zip(self.images, in_class_words, strict=True)), of_classes, prompted)
        sample = sample + addition.repeat(len(sample) // self.batch_size, *[1] * (addition.ndim - 1))
        return (sample, *out[1:]) if isinstance(out, tuple) else type(out)(sample=sample)

    def _add(self, in_class_words: dict[int, Tensor], of_classes: Tensor, prompted: Tensor) -> Tensor:
        """The addition to each image's prediction, in the shape of the denoiser's output, (N, ...).

        Args:
            in_class_words: The base's prediction of the prompt in class words, by image.
            of_classes: The base's predictions of the classes alone, one for each of `scenes`.
            prompted: The denoiser's own predictions with the prompts, (N, C, h, w).
        """
        addition = torch.zeros_like(prompted)
        for i in self.objects:
            addition[i] += self.autoguidance_scale * (prompted[i] - in_class_words[i])
        for i, of_class in zip(self.scenes, of_classes, strict=True):
            addition[i] += self.prompt_scale * (in_class_words[i] - of_class)
        return addition

    def _predict(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        images: list[int],
        conditioning: dict[str, Any],
    ) -> Tensor:
        """The frozen base's predictions for these images with the given conditioning, (R, C, h, w)."""
        latents, t = args[:2] if args else (kwargs["hidden_states"], kwargs["timestep"])
        z = latents[images]  # the half without prompts holds the same latents
        t = t if t.ndim == 0 else t[:1].expand(len(z))
        call = ((z, t), {}) if args else ((), {"hidden_states": z, "timestep": t})
        self.is_calling = True
        try:
            with disabled(self.model):
                prediction: Tensor = module(*call[0], **(call[1] | conditioning), return_dict=False)[0]
                return prediction
        finally:
            self.is_calling = False
