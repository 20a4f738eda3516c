"""A VAE in place of a base's own: a folder, a file, or a repository in the hub's cache; its latents must match the base."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from objtune_cli.errors import IncompatibleError, MissingError, ResourceError
from objtune_cli.models.families import pipeline_folder as folders

HOW = "`--set vae=FILE.safetensors`, a folder, or a hub id that `objtune fetch --model` downloads, for example stabilityai/sd-vae-ft-mse"
FILES = ("config.json", "diffusion_pytorch_model.safetensors")
"""The files of a VAE in a hub repository."""
FACTOR = 0.18215
"""Default of `scaling_factor` in AutoencoderKL."""


def find_vae(name: str) -> Path:
    """Find the folder or file of a VAE.

    Raises:
        MissingError: The folder is missing or has no VAE. ResourceError: The hub id is not on this machine.
        IncompatibleError: The file has another format, or no VAE.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        inner = next((each for each in (path, path / "vae") if (each / "config.json").is_file()), None)
        if inner is None:
            raise MissingError(f"the folder {path} has no VAE: config.json is missing", f"use {HOW}")
        return inner.resolve()
    if path.is_file():
        if path.suffix.lower() != ".safetensors" and not folders.is_safetensors(path):
            raise IncompatibleError(
                f"the VAE {path} is not a .safetensors file", "download it as .safetensors; pickles are not loaded"
            )
        keys = folders.read_header(path)
        if not any(key.startswith(("decoder.", "first_stage_model.decoder.")) for key in keys):
            raise IncompatibleError(f"{path} has no VAE", f"use {HOW}")
        return path
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise MissingError(f"there is no VAE {name}", f"use {HOW}")
    snapshot = cached(name)
    if snapshot is None:
        raise ResourceError(
            f"the VAE {name} is not on this machine",
            f"`objtune fetch --model {name}` downloads it, if that is its hub id",
        )
    return snapshot


def cached(repository: str) -> Path | None:
    """The folder of a VAE's repository in the hub's cache; None if it is not complete."""
    from huggingface_hub import snapshot_download

    with contextlib.suppress(ValueError, OSError, RuntimeError):
        folder = Path(snapshot_download(repository, local_files_only=True, allow_patterns=list(FILES)))
        return folder if all((folder / name).exists() for name in FILES) else None
    return None


def read_config(vae: Path) -> dict[str, Any] | None:
    """Read a VAE's config; None for a single file."""
    return folders.read_json(vae, "config.json") if vae.is_dir() else None


def check_vae(vae: Path, own: Mapping[str, Any]) -> None:
    """Refuse a VAE whose latents differ from those of the base.

    Args:
        own: Config of the base's VAE.

    Raises:
        IncompatibleError: Names what differs.
    """
    config = read_config(vae)
    if config is None:
        return
    if config.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        raise IncompatibleError(f"the VAE in {vae} is an {config['_class_name']}", "only AutoencoderKL is supported")
    for key, usual in (("latent_channels", 4), ("scaling_factor", FACTOR), ("shift_factor", None)):
        ours, theirs = own.get(key, usual), config.get(key, usual)
        if (ours or 0) != (theirs or 0):
            raise IncompatibleError(
                f"the VAE in {vae} is another family's: its {key} is {theirs}, the base's is {ours}",
                "use one of the base's family",
            )
    for path in folders.find_weights(vae.parent, vae.name).files:
        folders.read_header(path)
