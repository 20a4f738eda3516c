"""The only place that loads weights. Knows nothing about projects, artifacts or the command line."""

from objtune_cli.models.torchvision_ops import complete

complete()
