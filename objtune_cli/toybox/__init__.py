"""The toybox: a drawn world with known truth, and the small base model trained on it.

Knows nothing about projects, artifacts or the command line.
"""
