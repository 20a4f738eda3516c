"""The frozen text-to-image model (the base): the only place that loads its weights. Knows no projects, artifacts or command line."""
