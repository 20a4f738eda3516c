"""The porch: parse, resolve, delegate, report. Nothing is computed here and nothing heavy imported."""
