"""Photos in, PNG files out: formats, orientation, colors, transparency, masks drawn by users. Knows no model."""
