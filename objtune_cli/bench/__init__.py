"""Measuring: what a method makes of an object, beside the truth, with intervals."""
