"""The lock around the creation of model layers."""

import threading

LOAD_LOCK = threading.RLock()
"""Held while models are opened and layers are added: meanwhile the libraries change torch's default format, device and initialisation for all threads."""
