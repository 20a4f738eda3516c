"""`doctor`: checks of this machine and project, and a self-test that trains and exports on a base model."""
