"""`place`: a trained object drawn into an existing picture."""
