"""Commands on a random base in SD 3's layout, as far as they do more there than on the other families."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from objtune_cli.store import refs
from objtune_cli.store.store import Store
from tests.e2e.test_cli_families import SETTINGS
from tests.support import tiny_families

pytestmark = [pytest.mark.usefixtures("fast_sampling", "cached_segmentation"), pytest.mark.commands]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.sd3(tmp_path_factory.mktemp("flow") / "three")


@pytest.fixture(autouse=True)
def settings(project: Path, base: Path) -> None:
    Path("objtune.toml").write_text(SETTINGS.format(base=base))


ONE = ("--class", "dog", "--no-preview", "--set", "train.self_evaluation=false")


def test_two_objects_of_one_photo_look_where_they_are(cli: Any, dog_photo: Path) -> None:
    """The term on attention is in use, and moves what is learned."""
    for name, (left, right) in {"dog": (110, 300), "cup": (320, 530)}.items():
        mask = Image.new("L", (640, 640))
        mask.paste(255, (left, 240, right, 535))
        mask.save(f"{name}.png")
    command = ("train", dog_photo, *ONE, "--class", "cup", "--mask", "dog=dog.png", "--mask", "cup=cup.png", "--json")
    done = cli(*command)
    assert done.code == 0, done.err
    record, tensors = Store.at(Path()).read(refs.Ref("adapter", "dog-cup", 1))
    assert record.metrics["attention"] > 0
    assert cli(*command, "--set", "train.multi_object_attention_loss_weight=0").code == 0
    record, other = Store.at(Path()).read(refs.Ref("adapter", "dog-cup", 2))
    assert "attention" not in record.metrics
    key = "unet.transformer_blocks.0.attn.add_k_proj.lora_B.weight"
    assert tensors.keys() == other.keys() and not (tensors[key] == other[key]).all()


@pytest.mark.parametrize(("modules", "blocks"), [("none", "decoder"), ("cross-kv", "decoder"), ("all", "all")])
def test_which_layers_learn(cli: Any, dog_photo: Path, modules: str, blocks: str) -> None:
    done = cli(
        "train",
        dog_photo,
        *ONE,
        "--set",
        f"train.target_modules={modules}",
        "--set",
        f"train.target_blocks={blocks}",
        "--set",
        "train.prior_loss_weight=0",
    )
    assert done.code == 0, done.err
    _, tensors = Store.at(Path()).read(refs.Ref("adapter", "dog", 1))
    ends = {key.split(".", 3)[3].removesuffix(".lora_B.weight") for key in tensors if key.endswith("lora_B.weight")}
    wanted = {"none": set(), "cross-kv": {"attn.add_k_proj", "attn.add_v_proj"}}
    assert (
        ends == wanted[modules]
        if modules in wanted
        else ends >= {"attn.to_q", "attn.to_add_out", "ff.net.2", "ff_context.net.2"}
    )
    numbers = {key.split(".")[2] for key in tensors if key.startswith("unet.")}
    assert numbers == (set() if modules == "none" else {"1", "2"} if blocks == "decoder" else {"0", "1", "2"})
    moved = [
        float(abs(v).max()) for k, v in tensors.items() if k.endswith("lora_B.weight") and ".2.attn.add_q" not in k
    ]
    assert all(value > 0 for value in moved)


def test_a_dry_run_measures(cli: Any) -> None:
    done = cli("train", "--dry-run", "--set", "train.gradient_checkpointing=on", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)["dry_run"]
    assert found["step_mb"] > 0 and found["learned"] > 0 and found["step_seconds"] > 0


def test_what_was_exported_is_imported_again(cli: Any, dog_photo: Path) -> None:
    """diffusers' file, kohya's (three layers in one taken apart again), and the embedding: the same tensors.

    Of kohya's, without the last block's queries of words, which nothing asks: they have not learned.
    """
    assert cli("train", dog_photo, *ONE, "--name", "rex").code == 0
    for form in ("diffusers", "kohya", "embedding"):
        assert cli("export", "rex", "--format", form, "--out", form).code == 0
    _, own = Store.at(Path()).read(refs.Ref("adapter", "rex", 1))
    for name, file in (("tom", "diffusers/pytorch_lora_weights.safetensors"), ("pat", "kohya/rex.safetensors")):
        done = cli("import", file, "embedding/rex-objtune.safetensors", "--class", "dog", "--name", name)
        assert done.code == 0, done.err
        _, found = Store.at(Path()).read(refs.Ref("adapter", name, 1))
        again = {k.replace(f".{name}", ".rex"): v for k, v in found.items()}
        left = [k for k in own if ".2.attn.add_q_proj." in k] if file.startswith("kohya") else []
        assert again.keys() == own.keys() - {*left} and all((own[k] == again[k]).all() for k in again)
        assert not any(own[k].any() for k in left if "lora_B" in k)
    header = Path("kohya/rex.safetensors").read_bytes().replace(b"x_block_attn_qkv", b"x_block_attn_qqq")
    Path("odd.safetensors").write_bytes(header)
    done = cli("import", "odd.safetensors", "--class", "dog", "--name", "odd")
    assert done.code == 6 and "no layer lora_unet_joint_blocks_" in done.err and "Traceback" not in done.err


def test_the_picture_says_its_sampler(cli: Any) -> None:
    from PIL import Image

    done = cli("generate", "a photo of a dog")
    assert done.code == 0, done.err
    said = Image.open(done.out.split()[0]).text["parameters"]
    assert "Steps: 2, Sampler: Euler, CFG scale: 7," in said
    refused = cli("generate", "a photo of a dog", "--set", "generate.scheduler=ddim")
    assert refused.code == 6 and "Stable Diffusion 3 does not support the sampler ddim" in refused.err
