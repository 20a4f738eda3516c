"""The evaluator: networks that read toybox images, trained on renderings and independent of all methods."""
