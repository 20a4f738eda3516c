"""One module per command: parse, resolve, delegate, report."""
