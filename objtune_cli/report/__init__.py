"""`objtune report`: one HTML file of a project or of some objects, which opens from disk without a network."""
