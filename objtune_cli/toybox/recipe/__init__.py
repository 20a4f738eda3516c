"""The training recipe of the toybox base: rendered data, VAE, CLIP, denoiser, and the published folder.

`python -m objtune_cli.toybox.recipe all --preset cpu --work DIR`; every part saves, resumes and logs.
"""
