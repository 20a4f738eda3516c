"""The instrument: a network that reads toybox pictures, trained on the drawn world, never seen by the method."""
