"""`objtune compose`: several trained objects in one image, each in its region."""
