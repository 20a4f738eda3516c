"""Checks that numbers are finite; a failed check finds the component of the base or the adapter that is at fault.

A check costs one sum on the tensor's device and one synchronisation; costlier steps follow only after a failure.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from objtune_cli.errors import DamagedError, NonFiniteError
from objtune_cli.models.prompts import find_names

if TYPE_CHECKING:
    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.models.conditioning import Conditioning

HALF = {torch.float16: "fp16", torch.bfloat16: "bf16"}
"""Number formats with less range or precision than float32."""
REMEDIES = {
    "VAE": "its weights are at fault: use another VAE (`--set vae=FOLDER`), or another `--base`",
    "CLIP": "its weights are at fault: `--set clip_model=FOLDER` names another CLIP",
    "adapter": "use less `--strength`, train it again with a lower learning rate, or import another file",
}
"""Hints for failures in float32, by the start of the component's name."""
ANOTHER_BASE = "its weights are at fault: download the base again, or use another `--base`"


def is_finite(values: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    if not values.is_floating_point():
        return True
    total = values.detach().sum(dtype=torch.float32 if values.dtype in HALF else None)
    return bool(torch.isfinite(total)) or bool(torch.isfinite(values).all())  # a sum of finite terms may overflow


LARGEST = 1e4
"""Largest valid latent. Latents of images lie within -10 and 10, and the VAE overflows far above."""


def are_latents(values: Tensor) -> bool:
    """Whether values can be latents or a prediction of them: finite, and at most `LARGEST`."""
    return float(values.abs().max()) <= LARGEST  # comparisons with NaN are false


def find_bad_weight(module: nn.Module) -> str:
    """The name of the first parameter with NaN or infinity, or ""; one synchronisation for all parameters."""
    named = [(name, p.detach()) for name, p in module.named_parameters() if p.is_floating_point() and not p.is_meta]
    sums = [p.sum(dtype=torch.float32 if p.dtype in HALF else None).float() for _, p in named]
    if not sums or bool(torch.isfinite(torch.stack([s.to(sums[0].device) for s in sums])).all()):
        return ""
    return next(
        (name for (name, p), total in zip(named, sums, strict=True) if not torch.isfinite(total) and not is_finite(p)),
        "",
    )


def check_weights(part: str, module: nn.Module | None, where: str = "") -> None:
    """Refuse a network with weights that are not finite, because its results would not be finite either.

    Args:
        where: The source of the weights.

    Raises:
        DamagedError: Names the component, the source, and the first such weight.
    """
    name = find_bad_weight(module) if module is not None else ""
    if name:
        hint = (
            "use another VAE (`--set vae=FOLDER`), or another `--base`"
            if part.startswith("VAE")
            else "download it again, or use another `--base`"
        )
        raise DamagedError(
            f"the {part}{where and f' of {where}'} contains NaN or infinite values, first in {name}", hint
        )


def describe_failure(
    part: str, dtype: torch.dtype, detail: str = "", what: str = "NaN or infinite values"
) -> NonFiniteError:
    """Build the error for a component that gave values that are not finite, with number format and hint.

    Args:
        part: "text encoder", "denoiser", "VAE encoder", "VAE decoder", or "adapter of <name>".
        detail: Appended to the message. what: Description of the values.
    """
    message = f"the {part} gives {what} in {HALF.get(dtype, 'fp32')}{detail}"
    remedy = next((text for start, text in REMEDIES.items() if part.startswith(start)), ANOTHER_BASE)
    hint = "use `--precision fp32`, which has a wider range" if dtype in HALF else remedy
    return NonFiniteError(message, hint, of_base=not part.startswith("adapter"))


def checked(part: str, dtype: torch.dtype, values: Tensor) -> Tensor:
    """Return values that the base computed without adapters, if they are finite.

    Raises:
        NonFiniteError: They are not.
    """
    if not is_finite(values):
        raise describe_failure(part, dtype)
    return values


def name_part(
    model: "BaseModel",
    part: str,
    names: Sequence[str],
    compute_alone: Callable[[], Tensor],
    is_sound: Callable[[Tensor], bool] = is_finite,
) -> str:
    """Decide whether the base or an adapter is at fault.

    Args:
        names: The objects whose adapters and tokens were active.
        compute_alone: Computes the same without adapters, with class words in the prompt.
        is_sound: The check that failed.

    Returns:
        `part`, or "adapter of <name>" if the base alone passes the check.
    """
    from objtune_cli.models.adapter_state import disabled

    if not names:
        return part
    with torch.no_grad(), disabled(model):
        if not is_sound(compute_alone()):
            return part
    return f"adapter of <{names[0]}>" if len(names) == 1 else f"adapters of {', '.join(f'<{name}>' for name in names)}"


def check_base(model: "BaseModel", where: object, open_float: Callable[[], Any]) -> None:
    """Refuse a base whose text encoders or denoiser contain NaN or infinity; `through_vae` checks the VAE.

    Args:
        where: Its folder or file. open_float: Loads it in float32.

    Raises:
        DamagedError: The file contains such values. NonFiniteError: They occur only in this number format.
    """
    try:
        _check_networks(model, where)
    except DamagedError:
        if model.dtype not in HALF:
            raise
        _check_networks(open_float(), where)
        raise NonFiniteError(
            f"weights of {where} are too large for {HALF[model.dtype]}",
            "use `--precision fp32`, which has a wider range",
        ) from None


def _check_networks(model: "BaseModel", where: object) -> None:
    encoders = {
        "text encoder": model.text_encoder,
        "second text encoder": model.text_encoder_2,
        "third text encoder": model.text_encoder_3,
    }
    for part, module in (encoders | {"denoiser": model.denoiser}).items():
        check_weights(part, module, f"the base in {where}")


def check_condition(model: "BaseModel", texts: Sequence[str], condition: "Conditioning") -> None:
    """Refuse a conditioning that is not finite.

    Raises:
        NonFiniteError: Names the text encoder, or the objects in the texts whose tokens or adapters are at fault.
    """
    if all(is_finite(tensor) for tensor in condition.tensors()):
        return
    in_class_words = [model.with_class_words(text) for text in texts]

    def encode_alone() -> Tensor:
        return torch.cat([tensor.flatten() for tensor in model.family.encode_prompt(model, in_class_words).tensors()])

    part = name_part(model, "text encoder", find_names(texts), encode_alone)
    raise describe_failure(part, condition.dtype)


def through_vae(model: "BaseModel", part: str, inputs: Tensor, compute: Callable[[], Tensor]) -> Tensor:
    """Run the VAE; if it overflows in half precision, load it in float32 and run it again.

    Args:
        part: "VAE encoder" or "VAE decoder". inputs: Its inputs, for the check. compute: Runs it.

    Raises:
        NonFiniteError: The inputs are not finite, or the result is not finite in float32 either.
        DamagedError: Weights of the VAE are not finite.
    """
    outputs = compute()
    if is_finite(outputs):
        return outputs
    if not is_finite(inputs):
        raise NonFiniteError(
            f"the {part} got NaN or infinite values", "use `--precision fp32`, which has a wider range"
        )
    if model.vae.dtype in HALF and model.reload_vae_fp32 is not None:
        model.note(f"the {part} overflows in {HALF[model.vae.dtype]}: the VAE now computes in fp32")
        model.loaded_vae, model.reload_vae = None, model.reload_vae_fp32
        outputs = compute()
        if is_finite(outputs):
            return outputs
    check_weights(part, getattr(model.vae, part.removeprefix("VAE ")))
    for name in ("quant_conv", "post_quant_conv"):
        check_weights(f"VAE ({name})", getattr(model.vae, name, None))
    raise describe_failure(part, model.vae.dtype)
