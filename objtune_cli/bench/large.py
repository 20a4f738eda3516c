"""A base of Stable Diffusion 1.5's layout and size with random weights: what a step costs does not depend on what was learned."""

from functools import partial
from typing import TYPE_CHECKING, Any

from objtune_cli import bases

if TYPE_CHECKING:
    import torch

    from objtune_cli.models.stack import Stack

SIDE = 32
"""Latent cells along a side of the large model: 256 px."""


def stack(device_name: str, precision_name: str) -> "Stack":
    """Stable Diffusion 1.5's layout with random weights, the words of the toybox: nothing is downloaded, nothing written.

    Source: the configs of stable-diffusion-v1-5 (860 M parameters in the denoiser).
    """
    import torch

    diffusers = _diffusers()
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from objtune_cli.models import precision
    from objtune_cli.models import stack as stacks
    from objtune_cli.models.cpu import keep_memory

    stacks.quiet()
    device = stacks.pick_device(device_name)
    if device.type == "cpu":
        keep_memory()
    dtype = stacks.pick_dtype(precision_name, device)
    half = precision_name == "auto" and device.type == "cpu" and precision.processor_has_bf16()
    tokenizer = CLIPTokenizer.from_pretrained(bases.EMBEDDED / "tokenizer", local_files_only=True)
    tokenizer.model_max_length = 77
    with torch.device(device):
        text: Any = CLIPTextModel(CLIPTextConfig(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12))
        torch.set_default_dtype(torch.bfloat16 if half else dtype)  # never whole in float32: that alone would be the peak
        try:
            unet: Any = diffusers.UNet2DConditionModel(sample_size=SIDE, cross_attention_dim=768)
        finally:
            torch.set_default_dtype(torch.float32)
    for module in (text, unet):
        module.requires_grad_(False).eval()
    if device.type == "cpu":
        unet.to(memory_format=torch.channels_last)
    if half:
        precision.halve(unet)
    schedule = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False)
    reopen = partial(_autoencoder, device, dtype)
    return stacks.Stack(tokenizer, text, unet, reopen(), schedule, device, dtype, reopen)


def _diffusers() -> Any:
    """diffusers, once torchvision has what its loaders need: a process of its own has opened no base before."""
    from objtune_cli.models import torchvision_ops

    torchvision_ops.complete()
    import diffusers

    return diffusers


def _autoencoder(device: "torch.device", dtype: "torch.dtype") -> Any:
    import torch

    ends: dict[str, Any] = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device(device):
        vae: Any = _diffusers().AutoencoderKL(**ends, block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=8 * SIDE)
    return vae.requires_grad_(False).eval().to(dtype)
