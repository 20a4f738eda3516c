"""The lock of whatever makes a model's layers; knows no model."""

import threading

LOAD_LOCK = threading.RLock()
"""Held while models are opened and layers are made: the libraries change torch's defaults, how it starts layers and where it puts them meanwhile, for all threads together."""
