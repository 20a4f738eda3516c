"""The suites of `objtune bench`, one module each."""
