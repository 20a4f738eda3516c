"""An autoencoder in place of a base's own: found as a folder, a file, or in the hub's cache, and compared with what the base's latents are."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from objtune_cli.errors import IncompatibleError, MissingError, ResourceError
from objtune_cli.models.families import pipeline_folder as folders

HOW = "`--set vae=FILE.safetensors`, a folder, or a hub id that `objtune fetch --model` brings, for example stabilityai/sd-vae-ft-mse"
FILES = ("config.json", "diffusion_pytorch_model.safetensors")
"""What of a hub repository is a VAE."""
FACTOR = 0.18215
"""What AutoencoderKL scales latents by where its config says nothing."""


def find_vae(name: str) -> Path:
    """The folder or file of an autoencoder.

    Raises:
        MissingError: No such folder, or none in it. ResourceError: a hub id that is not on this machine. IncompatibleError: a file of another kind.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        inner = next((each for each in (path, path / "vae") if (each / "config.json").is_file()), None)
        if inner is None:
            raise MissingError(f"the folder {path} holds no VAE: it has no config.json", f"give one: {HOW}")
        return inner.resolve()
    if path.is_file():
        if path.suffix.lower() != ".safetensors" and not folders.is_safetensors(path):
            raise IncompatibleError(
                f"the VAE {path} is no .safetensors file", "pickles are not opened; get it as .safetensors"
            )
        keys = folders.read_header(path)
        if not any(key.startswith(("decoder.", "first_stage_model.decoder.")) for key in keys):
            raise IncompatibleError(f"{path} holds no VAE", f"give one: {HOW}")
        return path
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise MissingError(f"there is no VAE {name}", f"give one: {HOW}")
    found = cached(name)
    if found is None:
        raise ResourceError(
            f"the VAE {name} is not on this machine", f"`objtune fetch --model {name}` brings it, if that is its hub id"
        )
    return found


def cached(repository: str) -> Path | None:
    """Where a VAE's repository lies on this machine."""
    from huggingface_hub import snapshot_download

    with contextlib.suppress(ValueError, OSError, RuntimeError):
        found = Path(snapshot_download(repository, local_files_only=True, allow_patterns=list(FILES)))
        return found if all((found / name).exists() for name in FILES) else None
    return None


def read_config(vae: Path) -> dict[str, Any] | None:
    """A VAE's own config; None of a file, which has none."""
    return folders.read_json(vae, "config.json") if vae.is_dir() else None


def check_vae(vae: Path, own: Mapping[str, Any]) -> None:
    """Refuse an autoencoder whose latents are not those of the base.

    Args:
        own: Config of the base's autoencoder.

    Raises:
        IncompatibleError: Names what differs.
    """
    config = read_config(vae)
    if config is None:
        return
    if config.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        raise IncompatibleError(f"the VAE in {vae} is an {config['_class_name']}", "only AutoencoderKL is opened")
    for key, usual in (("latent_channels", 4), ("scaling_factor", FACTOR), ("shift_factor", None)):
        ours, theirs = own.get(key, usual), config.get(key, usual)
        if (ours or 0) != (theirs or 0):
            raise IncompatibleError(
                f"the VAE in {vae} is another family's: its {key} is {theirs}, the base's is {ours}",
                "give one of the base's family",
            )
    for path in folders.find_weights(vae.parent, vae.name).files:
        folders.read_header(path)
