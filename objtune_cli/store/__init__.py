"""Bytes on disk: projects, refs, immutable artifacts, photos. Knows no maths and imports no torch."""

KINDS = ("mask", "embedding", "adapter", "prior", "scene")
"""Families of artifacts; here, since `--help` needs nothing else of the store."""
