"""Projects, refs and immutable artifacts on disk. Imports no torch."""

KINDS = ("mask", "embedding", "adapter", "prior", "scene")
"""Kinds of artifacts. They stand here because `--help` needs nothing else of the store."""
