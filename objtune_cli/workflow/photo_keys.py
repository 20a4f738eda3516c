"""The options that describe the objects of a photo, on the command line and as keys of a jobs file."""

PHOTO_OPTIONS = {
    "class": "--class",
    "name": "--name",
    "mask": "--mask",
    "box": "--box",
    "point": "--point",
    "negative_point": "--negative-point",
    "refine_mask": "--refine-mask",
    "select": "--select",
}
"""Keys of a jobs file, and the options that they stand for."""
HINTS = ("mask", "box", "point", "negative_point", "refine_mask")
"""Keys that describe one photo alone. In a jobs file, a value may be a table from an object's name to its own value; with several photos, a list of one value for each photo."""
