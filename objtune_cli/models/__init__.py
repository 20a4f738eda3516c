"""The only place that loads weights. Knows nothing about projects, artifacts or the command line."""
