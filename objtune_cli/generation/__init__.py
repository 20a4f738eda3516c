"""`objtune generate`: prompts to images."""
