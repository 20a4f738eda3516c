"""`objtune segment`: a photo and a class word to a mask."""
