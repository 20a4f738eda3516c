"""What the features share: the context of a stage, jobs, prompts, class words, trained objects."""
