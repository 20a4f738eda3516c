"""The families against the pipelines of diffusers: the same condition, the same prediction, the same pictures."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from objtune_cli.errors import IncompatibleError
from objtune_cli.generation.sampling import sample
from objtune_cli.generation.settings import SamplingSettings
from objtune_cli.lora import layers
from objtune_cli.models import attention, families, hub_cache, loading, registry
from objtune_cli.models import clip as towers
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.placeholders import Placeholders, class_token_embeddings, split_encoders
from objtune_cli.numerics.embeddings import keep_norm, lengths
from tests.support import tiny_families, tiny_sd1

CPU = torch.device("cpu")
PROMPT = "a photo of a dog"
NAMES = ("sd1", "sd2", "sdxl", "sd3", "sd35")
UNETS = ("sd1", "sd2", "sdxl")
POOLED = ("sdxl", "sd3", "sd35")
GUIDANCE = {"sd1": 7.5, "sd2": 7.5, "sdxl": 5.0, "sd3": 7.0, "sd35": 4.5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("families")
    return {
        "sd1": tiny_sd1.build(top / "one", clip=True), "sd2": tiny_families.sd2(top / "two"), "sdxl": tiny_families.sdxl(top / "xl"),
        "sd3": tiny_families.sd3(top / "three"), "sd35": tiny_families.sd3(top / "three-five", newer=True),
    }  # fmt: skip


@pytest.fixture
def opened(folders: dict[str, Path]) -> Any:
    return lambda name: loading.load(folders[name], CPU, torch.float32)


def theirs(folder: Path, name: str) -> Any:
    import diffusers

    kind = getattr(diffusers, families.get_family(name).pipeline)
    pipe = kind.from_pretrained(folder, local_files_only=True, **tiny_families.LEFT_OUT[name])
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_says_its_family(folders: dict[str, Path], name: str) -> None:
    base = registry.resolve(str(folders[name]))
    assert base.family.name == name and base.clip_path == folders[name] / "clip"
    assert base.clip_2_path == (folders[name] / "clip_2" if name in POOLED else None)
    assert base.record().get("family") == (None if name == "sd1" else name)
    assert base.sampling["guidance_scale"] == GUIDANCE[name] and base.num_latent_cells == 64


def test_a_pipeline_of_no_family_is_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyPipeline"}))
    for opening in (lambda: registry.resolve(str(tmp_path)), lambda: loading.load(tmp_path, CPU, torch.float32)):
        with pytest.raises(IncompatibleError) as error:
            opening()
        assert error.value.code == 6


def test_every_alias_is_pinned_to_a_commit() -> None:
    assert hub_cache.HUB_REPOSITORIES.keys() == {
        "sd15",
        "sd21",
        "sdxl",
        "sd3",
        "sd35",
        "klein",
        "klein-turbo",
        "z-image",
        "z-image-turbo",
    }
    for repository in hub_cache.HUB_REPOSITORIES.values():
        assert len(hub_cache.REVISIONS[repository]) == 40 and int(hub_cache.REVISIONS[repository], 16)
    for family in families.FAMILIES:
        assert len(family.clip_models) == len(family.encoders) and families.get_family(family.name) is family


@pytest.mark.parametrize("text", [PROMPT, "", "x" * 300])
@pytest.mark.parametrize("name", UNETS)
def test_a_prompt_is_encoded_as_diffusers_does(folders: dict[str, Path], opened: Any, name: str, text: str) -> None:
    model: BaseModel = opened(name)
    ours = model.encode_prompt([text])
    pipe = theirs(folders[name], name)
    if name != "sdxl":
        assert torch.equal(ours.sequence, pipe.encode_prompt(text, CPU, 1, False)[0])
        return
    asked = text or None  # what a person who gives no negative prompt is given: zeros
    words, against, pooled, pooled_against = pipe.encode_prompt(
        PROMPT if asked is None else text, negative_prompt=asked, device=CPU
    )
    if asked is None:
        words, pooled = against, pooled_against
    call = model.family.denoiser_kwargs(model, ours, 32, 32)
    assert torch.equal(call["encoder_hidden_states"], words)
    assert torch.equal(call["added_cond_kwargs"]["text_embeds"], pooled)


@pytest.mark.parametrize("name", UNETS)
def test_pictures_are_those_of_diffusers_own_pipeline(folders: dict[str, Path], opened: Any, name: str) -> None:
    """Guidance, sizes, scheduler and prediction type as the pipeline has them: latents equal to the last bit or nearly."""
    model = opened(name)
    ours = sample(model, PROMPT, [7], SamplingSettings(num_inference_steps=4, guidance_scale=4.0))
    pipe = theirs(folders[name], name)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    shown = pipe(
        PROMPT, latents=noise, num_inference_steps=4, guidance_scale=4.0, height=32, width=32, output_type="latent"
    ).images
    torch.testing.assert_close(ours, shown, rtol=1e-4, atol=1e-4)
    assert model.prediction == ("v_prediction" if name == "sd2" else "epsilon")


@pytest.mark.parametrize("name", POOLED)
def test_guidance_that_begins_late_is_told_the_same(opened: Any, name: str) -> None:
    """Below every noise level is the same as from the start; the step before guidance is drawn without it."""
    model = opened(name)
    always = sample(model, PROMPT, [1], SamplingSettings(num_inference_steps=4, guidance_scale=4.0))
    late = sample(
        model, PROMPT, [1], SamplingSettings(num_inference_steps=4, guidance_scale=4.0, guidance_interval_high=0.5)
    )
    never = sample(model, PROMPT, [1], SamplingSettings(num_inference_steps=4, guidance_scale=1.0))
    assert not torch.equal(late, always) and not torch.equal(late, never)
    size = sample(
        model,
        PROMPT,
        [1],
        SamplingSettings(num_inference_steps=2, guidance_scale=4.0, guidance_interval_high=0.5, height=32, width=48),
    )
    assert size.shape == (1, model.denoiser.config.in_channels, 8, 12)


def test_sdxl_is_told_the_size_and_the_pooled_words(opened: Any) -> None:
    model = opened("sdxl")
    z, t = torch.randn(2, 4, 8, 8), torch.tensor([5, 900])
    condition = model.encode_prompt([PROMPT, "a cat"])
    with torch.no_grad():
        whole = model.predict(z, t, condition)
        told = {
            "text_embeds": condition.pooled,
            "time_ids": torch.tensor([[32.0, 32, 0, 0, 32, 32]] * 2),
        }
        direct = model.denoiser(z, t, encoder_hidden_states=condition.sequence, added_cond_kwargs=told).sample
        other = model.predict(z, t, replace(condition, pooled=torch.zeros(2, tiny_families.WIDTH_2)))
    assert torch.equal(whole, direct) and not torch.allclose(whole, other)


@pytest.mark.parametrize("name", NAMES)
def test_leading_tokens_hear_none_of_what_follows(opened: Any, name: str) -> None:
    """So that what a prompt says of its first words needs no more than these."""
    model = opened(name)
    whole, first = (
        model.encode_prompt([PROMPT, "a photo of a cat"]),
        model.encode_prompt([PROMPT, "a photo of a cat"], 5),
    )
    assert first.sequence.shape == (2, 5, whole.sequence.shape[-1]) and first.dtype == whole.dtype
    assert first.pooled is None
    torch.testing.assert_close(first.sequence, whole.sequence[:, :5], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_an_added_word_is_read_and_learned_in_every_tower(opened: Any, name: str) -> None:
    """Also where the pooled row is taken: at the end of the text, not at the largest id, which the word has."""
    model = opened(name)
    plain = model.encode_prompt([PROMPT]).detach().pack()
    rows = class_token_embeddings(model, "dog")
    assert rows.shape == (3, sum(model.widths)) and len(model.widths) == len(model.family.encoders)
    words = Placeholders(model)
    words.add("rex", rows, "dog")
    said = model.encode_prompt([words.expand("a photo of a <rex>")]).pack()
    torch.testing.assert_close(said, plain, rtol=1e-5, atol=1e-5)  # the same vectors at the same places say the same
    learned = rows.clone().requires_grad_(True)
    words.replace("rex", learned)
    model.encode_prompt([words.expand("a photo of a <rex>")]).pack().square().sum().backward()
    assert all(float(part.abs().max()) > 0 for part in split_encoders(learned.grad, model.widths))


def test_rows_of_another_family_are_one_line(opened: Any) -> None:
    with pytest.raises(IncompatibleError, match="16 numbers; those of this base have 40"):
        Placeholders(opened("sdxl")).add("rex", torch.zeros(2, 16))


@pytest.mark.parametrize("name", NAMES)
def test_attention_to_a_word_is_recorded(opened: Any, name: str) -> None:
    model = opened(name)
    condition = model.encode_prompt([PROMPT])
    with torch.no_grad(), attention.record_cross_attention(model, 1) as seen:
        model.predict(torch.randn(1, model.denoiser.config.in_channels, 8, 8), torch.tensor([100]), condition)
    tokens = torch.zeros(77, dtype=torch.bool)
    tokens[5] = True
    side = 4 if name in POOLED else 8  # SDXL's first level has no attention; SD 3's cells are patches
    assert seen.token_map(tokens).shape == (1, side, side)


@pytest.mark.parametrize("modules", ["cross-kv", "all"])
def test_layers_that_learn_are_found_in_every_family(opened: Any, modules: str) -> None:
    for name in NAMES:
        model = opened(name)
        layers.add(model, 2, modules, seed=0, blocks="decoder")
        found = layers.state_dict(model)
        later = ("unet.up_blocks.",) if name in UNETS else ("unet.transformer_blocks.1.", "unet.transformer_blocks.2.")
        assert found and all(key.startswith(later) for key in found)


def test_lengths_are_kept_tower_by_tower() -> None:
    rows = torch.tensor([[3.0, 4.0, 0.0, 12.0]])
    assert lengths(rows, (2, 2)).tolist() == [[5.0, 12.0]]
    kept = keep_norm(rows, torch.tensor([[1.0, 2.0]]), (2, 2))
    torch.testing.assert_close(kept, torch.tensor([[0.6, 0.8, 0.0, 2.0]]))


@pytest.mark.parametrize(("name", "index"), [("sd1", 0), ("sd2", 0), ("sdxl", 0), ("sdxl", 1), ("sd3", 0), ("sd3", 1)])
def test_towers_read_a_prompt_as_their_own_clip_does(
    folders: dict[str, Path], opened: Any, name: str, index: int
) -> None:
    """SD 2.x keeps all but the last layer of its CLIP: the towers add it."""
    from transformers import CLIPModel

    model = opened(name)
    folder = folders[name] / ("clip", "clip_2")[index]
    loaded = towers.load(folder, model, index)
    with torch.no_grad():
        ours = loaded.text_features(model, [PROMPT])
        clip = CLIPModel.from_pretrained(folder)
        ids = model.token_ids([PROMPT])
        state = clip.text_model(input_ids=ids).last_hidden_state[
            0, int((ids[0] == model.tokenizer.eos_token_id).int().argmax())
        ]
        wanted = torch.nn.functional.normalize(clip.text_projection(state), dim=-1)
    torch.testing.assert_close(ours[0], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "index"), [("sd2", 0), ("sdxl", 1)])
def test_towers_from_one_file_are_those_of_the_folder(
    folders: dict[str, Path], opened: Any, name: str, index: int
) -> None:
    model = opened(name)
    folder = folders[name] / ("clip", "clip_2")[index]
    whole, file = (towers.load(source, model, index) for source in (folder, folder / "model.safetensors"))
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(whole.image_features(pictures), file.image_features(pictures))
    with torch.no_grad():
        torch.testing.assert_close(whole.text_features(model, [PROMPT]), file.text_features(model, [PROMPT]))
