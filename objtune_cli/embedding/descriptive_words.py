"""Words that describe how an object looks: a token in a text space without CLIP starts at those that suit the photo."""

WORDS = (
    # colours
    "red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink", "brown", "beige", "white", "grey", "black", "golden", "silver",
    # patterns
    "striped", "spotted", "checked", "dotted", "patchy", "plain", "colourful", "patterned", "speckled", "two-coloured", "flowery", "printed",
    # materials and surfaces
    "wooden", "metal", "plastic", "glass", "ceramic", "leather", "stone", "paper", "fabric", "knitted", "woollen", "rubber", "clay", "furry",
    "fluffy", "hairy", "smooth", "shiny", "matt", "rough", "rusty", "transparent", "soft", "curly", "wrinkled", "feathered", "scaly",
    # shapes and sizes
    "round", "square", "long", "short", "tall", "flat", "thin", "thick", "slender", "fat", "small", "big", "tiny", "pointed", "curved", "angular",
    "long-haired", "short-haired", "long-eared", "short-legged", "bulky", "hollow",
    # age and style
    "old", "new", "young", "antique", "modern", "vintage", "toy", "cartoon", "drawn", "hand-made", "worn", "dirty", "elegant", "simple",
    "decorated", "cute", "fierce", "funny", "rare", "exotic", "robotic", "stuffed",
)  # fmt: skip
"""Adjectives; ours."""
