"""LoRA adapters on a base model: layers, merging, batches, and the keys of other tools."""
