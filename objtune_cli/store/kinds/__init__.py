"""The kinds of artifacts: for each one the names of its tensors and the roles of its inputs, which stand nowhere else.

A module a kind. Each has a frozen dataclass with `to_tensors`, which gives what is published, and `from_tensors`, which
reads it back. Values are numpy arrays or torch tensors and are passed through as they are; nothing here imports either.
"""
