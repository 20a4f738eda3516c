"""Former names of measures and reference methods: results of earlier versions are read under the present names."""

from collections.abc import Mapping

MEASURES = {
    "found": "detection_rate",
    "twice": "duplicate_rate",
    "leak": "background_leakage",
    "presence": "all_present",
    "class": "class_accuracy",
}
"""Measures of single objects."""
SCENE_MEASURES = {
    "presence": "all_present",
    "each": "object_present",
    "leak": "identity_leakage",
    "order": "layout_accuracy",
    "agreed": "check_agreement",
    "blamed": "false_alarm_rate",
    "missed": "miss_rate",
}
"""Measures of scenes with several objects."""
METHODS = {"stranger": "other-instance", "decoded": "vae-reconstruction", "described": "prompt-only"}
"""Reference methods on single objects."""
FORMER_METHODS = {name: former for former, name in METHODS.items()}


def current_measures(values: Mapping[str, float], names: Mapping[str, str] = MEASURES) -> dict[str, float]:
    """Return measures under their present names."""
    return {names.get(name, name): value for name, value in values.items()}
