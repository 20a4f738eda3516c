"""`objtune train`: an embedding to an adapter."""
