"""Measures of trained objects: subject fidelity, prompt fidelity and others, with confidence intervals."""
