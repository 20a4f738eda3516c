"""The kinds of artifacts: the names of their tensors and the roles of their inputs, which stand nowhere else.

There is one module per kind. Each has a frozen dataclass with `to_tensors` for publishing and `from_tensors` for reading.
 Values are numpy arrays or torch tensors and are passed through as they are; nothing here imports either.
"""
