"""Tensors in, tensors out: no files, no models, no hidden randomness."""
