"""`objtune init-embedding`: a mask to the first vectors of the object's token."""
