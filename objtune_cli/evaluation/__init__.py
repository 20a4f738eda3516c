"""Measures: subject fidelity, prompt fidelity and the like, with intervals."""
