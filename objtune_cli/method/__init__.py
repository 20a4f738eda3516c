"""The method: prototype, prior, training, sampling, composition. Knows no files and prints nothing."""
