"""Bytes on disk: projects, refs, immutable artifacts, photos. Knows no maths and imports no torch."""
