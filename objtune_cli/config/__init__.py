"""Every setting with its default, unit, range and help, and the layers that values come from."""
