"""Files of other tools and the hub: import, export, merge, model cards, downloads."""
