"""The toybox: rendered scenes with known ground truth, and the small base model trained on them.

Knows nothing about projects, artifacts or the command line.
"""
