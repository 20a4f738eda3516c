"""A random Stable Diffusion of about 60 k parameters in the layout of SD 1.5's folder; needs no download.

Pictures of 32 px, latents of 4 x 8 x 8, prompts of 77 tokens (one a letter), epsilon prediction.
"""

from dataclasses import replace
from pathlib import Path

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before the libraries below ask for it)

# isort: split
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.placeholders import class_token_embeddings
from objtune_cli.training.subjects import Subject, SubjectPhoto

WIDTH = 16
TOKENS = 77
CLIP_SIDE = 32


def tokenizer() -> CLIPTokenizer:
    """Every byte is a token, alone and at the end of a word; the end of a text has the largest id, as in CLIP."""
    alphabet = sorted(ByteLevel.alphabet())
    pieces = [*alphabet, *(c + "</w>" for c in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=TOKENS)


def clip_model(words: CLIPTokenizer) -> CLIPModel:
    """Both towers, the text tower with the token ids that SD 1.5's config names (0, 2, 1: not the tokenizer's)."""
    shape = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "projection_dim": WIDTH,
    }
    text = {
        "vocab_size": len(words),
        "max_position_embeddings": TOKENS,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }
    vision = {"image_size": CLIP_SIDE, "patch_size": 8}
    clip = CLIPModel(CLIPConfig(text_config=shape | text, vision_config=shape | vision, projection_dim=WIDTH))
    with torch.no_grad():  # as wide as a trained table, so that prompts differ
        clip.text_model.get_input_embeddings().weight.normal_(0, 0.3)
    return clip


def unet() -> UNet2DConditionModel:
    """Two levels, the first one attending to the text."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    )


def vae() -> AutoencoderKL:
    """Pictures 4 times the latents' side."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 4, 8),
        latent_channels=4,
        norm_num_groups=2,
        sample_size=32,
        mid_block_add_attention=False,
    )


def build(folder: Path, clip: bool) -> Path:
    """Write the base into `folder`, the same bytes every time; `clip`: with both towers in `clip/`.

    Returns:
        `folder`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        words = tokenizer()
        towers, denoiser, autoencoder = clip_model(words), unet(), vae()
    text_encoder = CLIPTextModel(towers.config.text_config)
    text_encoder.load_state_dict(towers.text_model.state_dict())
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
        prediction_type="epsilon",
    )
    scheduler.register_to_config(clip_sample=False)  # stands in SD 1.5's file for the samplers that read it
    pipe = StableDiffusionPipeline(
        vae=autoencoder, text_encoder=text_encoder, tokenizer=words, unet=denoiser, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    if clip:
        towers.save_pretrained(folder / "clip")
    return folder


def subject(model: BaseModel) -> Subject:
    """A red block on grey, <rex> the dog, for training on a tiny base."""
    mask = torch.zeros(32, 32)
    mask[8:24, 10:20] = 1
    ground = torch.tensor([-0.5, 0.0, 0.5]).view(3, 1, 1).expand(3, 32, 32)
    picture = ground * (1 - mask) + torch.tensor([0.8, -0.6, -0.4]).view(3, 1, 1) * mask
    photo = SubjectPhoto(picture, ground.clone(), mask)
    return Subject("rex", "dog", class_token_embeddings(model, "dog"), 1, (photo,))


def subjects(model: BaseModel, count: int = 1) -> list[Subject]:
    """The block, and where two are asked for the grey to the right of it, <cup> the cat."""
    rex = subject(model)
    mask = torch.zeros(32, 32)
    mask[16:24, 22:30] = 1
    photo = replace(rex.photos[0], mask=mask)
    return [rex, Subject("cup", "cat", class_token_embeddings(model, "cat"), 1, (photo,))][:count]
