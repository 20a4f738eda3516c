"""`objtune bench`: methods compared on the same objects, with ground truth and confidence intervals."""
