"""The scale of an imported LoRA's layers, from peft's `adapter_config.json` or diffusers' `lora_adapter_metadata`."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from objtune_cli.errors import IncompatibleError, InputError

HEADER = "lora_adapter_metadata"
"""Key of diffusers in a safetensors header, with the settings of each network."""
MAX_PATTERNS = 4096
MAX_LENGTH = 300
MAX_REPEATS = 4
"""Limit of repetitions in one pattern; more could make matching endless."""
CHANGED = {
    "use_dora": "is a DoRA",
    "use_qalora": "is a QALoRA",
    "use_bdlora": "is a BD-LoRA",
    "alora_invocation_tokens": "is an activated LoRA (aLoRA)",
    "arrow_config": "is a mixture of LoRAs (Arrow)",
    "kasa_config": "is a KaSA",
    "monteclora_config": "is a MonteCLoRA",
    "layer_replication": "repeats layers of its base (layer_replication)",
    "target_parameters": "trains parameters outside layers (target_parameters)",
}
"""Settings of peft with which a layer is more than the product B A."""
SHIFTED = re.compile(r"pissa|olora|corda|loftq|lora_ga", re.I)
"""Initialisations that change the base's weights, so that the LoRA alone is incomplete."""


@dataclass(frozen=True, slots=True)
class Strength:
    """The scale settings of one network: $s = \\alpha / r$, or $\\alpha / \\sqrt{r}$ if rank-stabilised (arXiv:2312.03732)."""

    rank: int = 8
    alpha: float = 8.0
    stabilised: bool = False
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)

    def of(self, names: tuple[str, ...], rank: int, what: str) -> float:
        """Return the factor of B A in a layer.

        Args:
            names: The layer's names for the patterns. rank: Of its tensors. what: The file, for messages.

        Raises:
            InputError: The settings have another rank.
        """
        expected = _matched(self.ranks, names, self.rank)
        if expected != rank:
            raise InputError(
                f"{what} has rank {rank} in {names[0]}, but its settings have {expected}",
                "the weights and their settings are of different files; get both again",
            )
        return float(_matched(self.alphas, names, self.alpha)) / (math.sqrt(rank) if self.stabilised else rank)


def _matched(patterns: Mapping[str, Any], names: tuple[str, ...], default: Any) -> Any:
    """Return the value of the first pattern that matches a name, or its end after a dot, as in peft."""
    return next((v for p, v in patterns.items() if any(re.match(rf"(.*\.)?({p})$", name) for name in names)), default)


def read_config(raw: Mapping[str, Any], what: str) -> Strength:
    """Read the settings of one `LoraConfig`.

    Raises:
        IncompatibleError: It is another adapter type. InputError: A setting has the wrong type.
    """
    kind = str(raw.get("peft_type") or "LORA").rsplit(".", 1)[-1]
    if kind.upper() != "LORA":
        raise IncompatibleError(f"{what} is a {kind} adapter, which is not supported", "only LoRA adapters are")
    for key, reason in CHANGED.items():
        if raw.get(key):
            raise IncompatibleError(
                f"{what} {reason}, which is not supported", "merge it into its base model, and give that as `--base`"
            )
    start = raw.get("init_lora_weights")
    if isinstance(start, str) and SHIFTED.match(start):
        raise IncompatibleError(
            f"{what} names changed base weights ({start}), which the LoRA does not contain",
            "save it with peft's `path_initial_model_for_weight_conversion`, which makes a plain LoRA of it",
        )
    return Strength(
        _number(raw, "r", 8, what, whole=True),
        _number(raw, "lora_alpha", 8, what),
        bool(raw.get("use_rslora")),
        _patterns(raw, "rank_pattern", what, whole=True),
        _patterns(raw, "alpha_pattern", what),
    )


def _number(raw: Mapping[str, Any], key: str, default: Any, what: str, *, whole: bool = False) -> Any:
    value = raw.get(key)
    if value is None:
        return default
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or (whole and (value != int(value) or value < 1)):
        raise InputError(
            f"{key} of {what} is {str(value)[:40]!r}", f"it is a {'whole number above 0' if whole else 'finite number'}"
        )
    return int(value) if whole else float(value)


def _patterns(raw: Mapping[str, Any], key: str, what: str, *, whole: bool = False) -> dict[str, Any]:
    table = raw.get(key) or {}
    if not isinstance(table, dict) or len(table) > MAX_PATTERNS:
        raise InputError(f"{key} of {what} is not a table of layers", "get the file again")
    for pattern in table:
        repeats = len(re.findall(r"[*+{]", pattern))
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError):
            repeats = MAX_REPEATS + 1
        if len(pattern) > MAX_LENGTH or repeats > MAX_REPEATS or re.search(r"\)[*+{]", pattern):
            raise InputError(
                f"{key} of {what} has the pattern {pattern[:60]!r}, which is not read",
                "a pattern is the name of a layer, or a simple expression",
            )
    return {
        pattern: _number(table, pattern, None, f"{key} of {what}", whole=whole)
        for pattern in table
        if table[pattern] is not None
    }


def read_header(metadata: Mapping[str, str], what: str) -> dict[str, Strength]:
    """Read the settings in a file's header, by network ("unet", "text_encoder", …; "" for the whole file); {} without any.

    Raises:
        IncompatibleError, InputError: As `read_config`.
    """
    if HEADER not in metadata:
        return {}
    table = parse(metadata[HEADER], f"{HEADER} in the header of {what}")
    settings: dict[str, dict[str, Any]] = {}
    for key, value in table.items():
        network, dot, name = key.partition(".")
        settings.setdefault(network if dot else "", {})[name if dot else key] = value
    return {network: read_config(raw, what) for network, raw in settings.items()}


def parse(text: str | bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object of settings.

    Raises:
        InputError: It is no JSON object.
    """
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise InputError(
            f"{what} cannot be read", "get the file again; without its settings the strength of a LoRA is not known"
        )
    return table
