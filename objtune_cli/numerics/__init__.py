"""Pure functions of tensors: no files, no models, no global random state."""
