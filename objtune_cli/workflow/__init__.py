"""Shared parts of the features: the context of a stage, jobs, prompts, class words, trained objects."""
