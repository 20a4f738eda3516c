"""Z-Image against diffusers: prompts, latents, the flow, images; placeholder tokens, attention of one stream, the distilled sibling."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from objtune_cli.errors import IncompatibleError
from objtune_cli.generation.sampling import sample
from objtune_cli.generation.settings import SamplingSettings
from objtune_cli.lora import layers as adapter
from objtune_cli.models import attention, loading, memory_savings, precision, registry
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.conditioning import Conditioning
from objtune_cli.models.placeholders import Placeholders, class_token_embeddings
from tests.support import full_size_configs, tiny_families

CPU = torch.device("cpu")
PROMPT = "a photo of a dog"
LONG = "a photo of a dog " + "x" * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.z_image(tmp_path_factory.mktemp("z") / "base")


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Any:
    from diffusers import ZImagePipeline

    pipe = ZImagePipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def model(folder: Path) -> BaseModel:
    return loading.load(folder, CPU, torch.float32)


def test_a_folder_says_its_family(folder: Path, tmp_path: Path) -> None:
    """Z-Image-Turbo has another shift in its scheduler's config; it draws in eight steps, and names its base."""
    base = registry.resolve(str(folder))
    assert (base.family.name, base.record()["prediction"], base.distilled_from) == ("z-image", "flow", "")
    assert (base.resolution, base.size_multiple, base.num_latent_cells, base.clip_path) == (32, 4, 256, None)
    assert base.sampling == {"num_inference_steps": 50, "guidance_scale": 5.0}
    turbo = registry.resolve(str(tiny_families.z_image(tmp_path / "turbo", distilled=True)))
    assert (turbo.distilled_from, turbo.sampling) == ("z-image", {"num_inference_steps": 8, "guidance_scale": 1.0})


@torch.no_grad()
def test_prompts_are_encoded_as_diffusers_does(model: BaseModel, pipe: Any) -> None:
    """Difference 0; padding is zeros, and the last layer, which nobody reads, is not there."""
    for text in (PROMPT, "", "x" * 700):
        theirs, ours = pipe.encode_prompt([text])[0][0], model.encode_prompt([text]).sequence[0]
        assert torch.equal(ours[: len(theirs)], theirs) and not ours[len(theirs) :].any()
        first = model.encode_prompt([text], 12).sequence[0]
        torch.testing.assert_close(first, theirs[:12], rtol=1e-5, atol=1e-5)
    assert len(model.text_encoder.layers) == 3 < tiny_families.QWEN_LAYERS


@torch.no_grad()
def test_latents_are_those_of_diffusers(model: BaseModel, pipe: Any) -> None:
    picture = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents, config = model.encode_image(picture), pipe.vae.config
    mode = pipe.vae.encode(picture).latent_dist.mode()
    torch.testing.assert_close(latents, (mode - config.shift_factor) * config.scaling_factor, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        model.decode_latents(latents), pipe.vae.decode(mode).sample.clamp(-1, 1), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_images_are_those_of_diffusers_own_pipeline(folder: Path, tmp_path: Path, kind: str) -> None:
    """Prompts of different lengths in one batch, sizes whose tokens are no multiple of 32, guidance and none of it."""
    from diffusers import ZImagePipeline

    if kind == "dynamic":
        folder = Path(shutil.copytree(folder, tmp_path / "dynamic"))
        config = folder / "scheduler/scheduler_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dynamic_shifting": True}))
    model = loading.load(folder, CPU, torch.float32)
    pipe = ZImagePipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    for height, width, guidance, negative in ((32, 32, 5.0, LONG), (24, 48, 3.0, ""), (20, 20, 1.0, "")):
        settings = SamplingSettings(
            num_inference_steps=4, guidance_scale=guidance, height=height, width=width, negative_prompt=negative
        )
        ours = model.decode_latents(sample(model, PROMPT, [7], settings))
        noise = torch.randn(1, 4, height // 2, width // 2, generator=torch.Generator().manual_seed(7))
        theirs = pipe(
            prompt=PROMPT, negative_prompt=negative, latents=noise, num_inference_steps=4, guidance_scale=guidance - 1, height=height,
            width=width, output_type="pt",
        ).images  # fmt: skip
        torch.testing.assert_close((ours + 1) / 2, theirs, rtol=1e-4, atol=1e-4)


def test_prediction_noise_and_target_are_the_flows(model: BaseModel, pipe: Any) -> None:
    """As diffusers' training script: time (1000 - t) / 1000, and the negated output; levels are the scheduler's without its shift."""
    g = torch.Generator().manual_seed(0)
    z, eps = torch.randn(2, 4, 16, 16, generator=g), torch.randn(2, 4, 16, 16, generator=g)
    t = torch.tensor([3, 999])
    plain = type(pipe.scheduler).from_config(pipe.scheduler.config, shift=1.0)
    sigma = plain.sigmas.flip(0)[t]
    z_t, target = model.add_noise_and_target(z, eps, t)
    theirs = plain.scale_noise(z, plain.timesteps.flip(0)[t], eps)
    torch.testing.assert_close(z_t, theirs)
    assert torch.equal(target, eps - z)
    texts = [PROMPT, LONG]
    with torch.no_grad():
        ours = model.predict(z_t, t, model.encode_prompt(texts))
        steps = plain.timesteps.flip(0)[t]
        raw = pipe.transformer(list(z_t.unsqueeze(2)), (1000 - steps) / 1000, pipe.encode_prompt(list(texts))[0]).sample
    torch.testing.assert_close(ours, -torch.stack(raw).squeeze(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(model.family.training_levels(model, 256)[t], sigma)


def test_the_real_size_fits_together(model: BaseModel) -> None:
    """The denoiser as its repository's config says, without weights; and its layers that learn."""
    from diffusers import ZImageTransformer2DModel

    with torch.device("meta"):
        model.denoiser = ZImageTransformer2DModel(**full_size_configs.Z_IMAGE).eval()
    assert sum(p.numel() for p in model.denoiser.parameters()) == 6_154_908_736
    model._vae_config = {"block_out_channels": (1,) * 4, "sample_size": 1024}
    assert (model.resolution, model.size_multiple, model.latent_channels) == (1024, 16, 16)
    for modules, count in (("attention", 34 * 4), ("attention+ff", 34 * 7), ("cross-kv", 4)):
        ends = model.family.modules[modules]
        names = [name for name, layer in model.denoiser.named_modules() if isinstance(layer, torch.nn.Linear)]
        assert sum(name.endswith(tuple(f".{end}" for end in ends)) or name in ends for name in names) == count


def test_a_placeholder_stands_for_a_word(model: BaseModel) -> None:
    """The class word's own vectors at the same place say the same, and gradients reach rows of another length."""
    rows = class_token_embeddings(model, "dog")
    words = Placeholders(model)
    words.add("rex", rows, "dog")
    plain = model.encode_prompt([PROMPT]).sequence
    torch.testing.assert_close(
        model.encode_prompt([words.expand("a photo of a <rex>")]).sequence, plain, rtol=1e-5, atol=1e-5
    )
    learned = torch.cat([rows, rows]).requires_grad_(True)
    words.add("tom", learned, "dog")
    condition = words.encode_with_class_context("my <tom> on the beach", {"tom": "dog"})
    length = int(condition.sequence.detach().abs().amax(-1).gt(0).sum())
    assert length == int(model.encode_prompt(["my dog on the beach"]).sequence.abs().amax(-1).gt(0).sum()) + 1
    model.predict(torch.randn(1, 4, 16, 16), torch.tensor([500]), condition).square().sum().backward()
    assert float(learned.grad.abs().min(0).values.max()) > 0


@torch.no_grad()
def test_our_attention_is_diffusers_own(model: BaseModel) -> None:
    """Queries, keys and values with complex rotary positions, and the mask of a shorter prompt."""
    batch = (
        torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)),
        torch.tensor([20, 700]),
        model.encode_prompt([PROMPT, LONG]),
    )
    plain = model.predict(*batch)
    with attention.record_cross_attention(model, 1) as seen:
        torch.testing.assert_close(model.predict(*batch), plain, rtol=1e-5, atol=1e-5)
    assert [len(maps) for maps in seen.maps.values()] == [2]
    (maps,) = seen.maps.values()
    length = int(batch[2].sequence[0].abs().amax(-1).gt(0).sum())
    there = length + -length % 32
    assert maps[0].shape[:2] == (1, 64) and not maps[0][..., there:].any()
    torch.testing.assert_close(maps[0].sum(-1), torch.ones(1, 64))
    tokens = torch.zeros(512, dtype=torch.bool)
    tokens[3:5] = True
    assert seen.token_map(tokens).shape == (1, 8, 8)
    precision.run_norms_in_float32(model.denoiser)
    torch.testing.assert_close(model.predict(*batch), plain, rtol=1e-5, atol=1e-5)


def test_checkpoints_give_the_same_gradients(model: BaseModel) -> None:
    adapter.add(model, 2, "attention+ff", seed=0)
    trained = [p for p in model.denoiser.parameters() if p.requires_grad]
    for p in trained:
        torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(1))
    condition = model.encode_prompt([PROMPT]).detach()
    grads = []
    for on in (False, True):
        if on:
            model.denoiser.enable_gradient_checkpointing()
        model.denoiser.train()
        z = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        loss = model.predict(z, torch.tensor([500]), condition).square().mean()
        grads.append(torch.autograd.grad(loss, trained))
    for first, second in zip(*grads, strict=True):
        torch.testing.assert_close(first, second)
    assert all(float(g.abs().max()) > 0 for g in grads[0])


def test_a_quantised_base_passes_gradients_to_the_rows(folder: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model = loading.load(folder, CPU, torch.bfloat16)
    before = sum(p.nbytes for p in model.denoiser.parameters())
    memory_savings.quantise(model, 4)
    assert sum(p.nbytes for p in model.denoiser.parameters()) < 0.9 * before
    words, rows = Placeholders(model), class_token_embeddings(model, "dog").requires_grad_(True)
    words.add("rex", rows, "dog")
    condition = model.encode_prompt([words.expand("a <rex>")])
    model.predict(torch.randn(1, 4, 16, 16), torch.tensor([500]), condition).float().square().mean().backward()
    assert float(rows.grad.abs().max()) > 0


def test_an_encoder_of_another_model_is_one_line(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "base")
    config = tmp_path / "base/text_encoder/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_size": 24}))
    with pytest.raises(IncompatibleError, match="takes text features of width 16, its text encoder gives 24"):
        loading.load(tmp_path / "base", CPU, torch.float32)


def test_conditionings_of_different_lengths_join(model: BaseModel) -> None:
    """A batch gives each prompt what it gets alone."""
    z = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    alone = [model.encode_prompt([text]).detach() for text in (PROMPT, LONG)]
    t = torch.tensor([500])
    with torch.no_grad():
        both = model.predict(z.expand(2, -1, -1, -1), t.expand(2), Conditioning.concat(alone))
        for i in range(2):
            torch.testing.assert_close(both[i : i + 1], model.predict(z, t, alone[i]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_denoiser_alone_has_the_folders_weights(folder: Path, tmp_path: Path, prefix: str) -> None:
    """As ComfyUI keeps it, under the original names; one of another size, or with scales, is refused."""
    names = {".to_out.0.": ".out.", ".norm_q.": ".q_norm.", ".norm_k.": ".k_norm.", "all_final_layer.2-1.": "final_layer.", "all_x_embedder.2-1.": "x_embedder."}  # fmt: skip
    tensors = load_file(folder / "transformer/diffusion_pytorch_model.safetensors")
    for key in [key for key in tensors if ".to_q." in key]:
        parts = [tensors.pop(key.replace(".to_q.", f".to_{part}.")) for part in "qkv"]
        tensors[key.replace(".to_q.", ".qkv.")] = torch.cat(parts)
    original = {}
    for key, value in tensors.items():
        name = key
        for own, other in names.items():
            name = name.replace(own, other)
        original[prefix + name] = value
    path = tmp_path / "z_image_bf16.safetensors"
    save_file(original, path)
    base = registry.resolve(str(path), parts=str(folder))
    assert (base.family.name, base.weights) == ("z-image", path) and "is distilled" in base.notes[0]
    weights = loading.load(folder, CPU, torch.float32).denoiser.state_dict()
    ours = loading.load(base.folder, CPU, torch.float32, base.weights).denoiser.state_dict()
    assert ours.keys() == weights.keys() and all(torch.equal(ours[key], weights[key]) for key in weights)
    save_file({key: value for key, value in original.items() if "layers.1." not in key}, path)
    with pytest.raises(IncompatibleError, match="its denoiser is 1 blocks, 32 wide, that one's 2 blocks"):
        registry.resolve(str(path), parts=str(folder))
    save_file(original | {f"{prefix}layers.0.attention.qkv.scale_weight": torch.ones(1)}, path)
    with pytest.raises(IncompatibleError, match="quantised weights with separate scales"):
        registry.resolve(str(path), parts=str(folder))
