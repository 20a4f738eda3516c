"""How the toybox base is made: drawn data, autoencoder, CLIP, denoiser, then the published folder.

`python -m objtune_cli.toybox.recipe all --preset cpu --work DIR`; every part saves, resumes and logs.
"""
