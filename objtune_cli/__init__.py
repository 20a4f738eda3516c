"""Teach a text-to-image diffusion model one object from one photo. Importing this costs nothing."""

__version__ = "0.1.0"
