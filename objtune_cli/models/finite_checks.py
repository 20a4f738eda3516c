"""Whether numbers are finite, and which part of a base, or whose adapter, is at fault where they are not.

A check is one sum on the tensor's own device and one synchronisation; everything dearer happens only after a check has failed.
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
"""Formats that overflow, or round away, where float32 does not."""
REMEDIES = {
    "VAE": "its weights are at fault: use another VAE (`--set vae=FOLDER`), or another `--base`",
    "CLIP": "its weights are at fault: `--set clip_model=FOLDER` names another CLIP",
    "adapter": "draw it with less `--strength`, train it again at a lower rate, or import a sound file",
}
"""What helps in float32, by the start of the part's name."""
ANOTHER_BASE = "its weights are at fault: download the base again, or use another `--base`"


def is_finite(values: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    if not values.is_floating_point():
        return True
    total = values.detach().sum(dtype=torch.float32 if values.dtype in HALF else None)
    return bool(torch.isfinite(total)) or bool(
        torch.isfinite(values).all()
    )  # a sum may overflow where its terms do not


LARGEST = 1e4
"""Latents of pictures lie within -10 and 10; no picture has such ones, and the VAE overflows."""


def are_latents(values: Tensor) -> bool:
    """Whether values may be latents, or a prediction of them: finite, and within any range."""
    return float(values.abs().max()) <= LARGEST  # no comparison with NaN holds


def find_bad_weight(module: nn.Module) -> str:
    """The name of the first parameter that holds NaN or infinity; empty where none does. One synchronisation for all of them."""
    named = [(name, p.detach()) for name, p in module.named_parameters() if p.is_floating_point() and not p.is_meta]
    sums = [p.sum(dtype=torch.float32 if p.dtype in HALF else None).float() for _, p in named]
    if not sums or bool(torch.isfinite(torch.stack([s.to(sums[0].device) for s in sums])).all()):
        return ""
    return next(
        (name for (name, p), total in zip(named, sums, strict=True) if not torch.isfinite(total) and not is_finite(p)),
        "",
    )


def check_weights(part: str, module: nn.Module | None, where: str = "") -> None:
    """Refuse a network whose own weights are not finite: nothing that it computes would be.

    Args:
        where: What it was read from.

    Raises:
        DamagedError: Names the part, where it was read from, and the first such weight.
    """
    name = find_bad_weight(module) if module is not None else ""
    if name:
        hint = (
            "use another VAE (`--set vae=FOLDER`), or another `--base`"
            if part.startswith("VAE")
            else "download it again, or use another `--base`"
        )
        raise DamagedError(f"the {part}{where and f' of {where}'} holds NaN or infinite values, first in {name}", hint)


def describe_failure(
    part: str, dtype: torch.dtype, detail: str = "", what: str = "NaN or infinite values"
) -> NonFiniteError:
    """The error that says which part gave NaN or infinite values, in which format, and what helps.

    Args:
        part: "text encoder", "denoiser", "VAE encoder", "VAE decoder", or "adapter of <name>". detail: where it was noticed, put behind.
        what: what it gives.
    """
    message = f"the {part} gives {what} in {HALF.get(dtype, 'fp32')}{detail}"
    remedy = next((text for start, text in REMEDIES.items() if part.startswith(start)), ANOTHER_BASE)
    hint = "`--precision fp32` computes with a wider range" if dtype in HALF else remedy
    return NonFiniteError(message, hint, of_base=not part.startswith("adapter"))


def checked(part: str, dtype: torch.dtype, values: Tensor) -> Tensor:
    """Values that the base alone computed, if they are finite.

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
    """Whether the base itself is at fault, or what was added to it.

    Args:
        names: The objects whose adapters and tokens took part. compute_alone: the same computed without adapters, told class words.
        is_sound: what is asked of it.

    Returns:
        `part`, or "adapter of <name>" where the base alone gives sound values.
    """
    from objtune_cli.models.adapter_state import disabled

    if not names:
        return part
    with torch.no_grad(), disabled(model):
        if not is_sound(compute_alone()):
            return part
    return f"adapter of <{names[0]}>" if len(names) == 1 else f"adapters of {', '.join(f'<{name}>' for name in names)}"


def check_base(model: "BaseModel", where: object, open_float: Callable[[], Any]) -> None:
    """Refuse a base whose text encoders or denoiser hold NaN or infinity; its VAE is looked at when what it computes is not finite.

    Args:
        where: The folder or file that it was read from. open_float: opens it in float32.

    Raises:
        DamagedError: It holds them as it was written. NonFiniteError: it does so only in the format that it was opened in.
    """
    try:
        _check_networks(model, where)
    except DamagedError:
        if model.dtype not in HALF:
            raise
        _check_networks(open_float(), where)
        raise NonFiniteError(
            f"weights of {where} are too large for {HALF[model.dtype]}",
            "`--precision fp32` computes with a wider range",
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
    """Refuse the conditioning of prompts if it is not finite.

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


def through_vae(model: "BaseModel", part: str, given: Tensor, compute: Callable[[], Tensor]) -> Tensor:
    """What the VAE computes of what it is given; where it overflows in half precision, it is opened in float32 and computes it again.

    Raises:
        NonFiniteError: It is not finite in float32 either, or what it is given is not. DamagedError: because weights of the VAE are not.
    """
    found = compute()
    if is_finite(found):
        return found
    if not is_finite(given):
        raise NonFiniteError(
            f"the {part} was given NaN or infinite values", "`--precision fp32` computes with a wider range"
        )
    if model.vae.dtype in HALF and model.reload_vae_fp32 is not None:
        model.note(f"the {part} overflows in {HALF[model.vae.dtype]}: from here on the VAE computes in fp32")
        model.loaded_vae, model.reload_vae = None, model.reload_vae_fp32
        found = compute()
        if is_finite(found):
            return found
    check_weights(part, getattr(model.vae, part.removeprefix("VAE ")))
    for name in ("quant_conv", "post_quant_conv"):
        check_weights(f"VAE ({name})", getattr(model.vae, name, None))
    raise describe_failure(part, model.vae.dtype)
