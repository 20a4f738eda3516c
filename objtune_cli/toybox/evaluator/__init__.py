"""The evaluator: networks that read toybox images, trained on renderings; no method under test sees them."""
