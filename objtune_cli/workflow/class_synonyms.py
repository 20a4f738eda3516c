"""Other words for the classes of the toybox, to name the nearest class that a base knows."""

from collections.abc import Sequence

SYNONYMS = {
    "dog": ("puppy", "pup", "doggy", "doggie", "hound", "mutt", "canine", "retriever", "labrador", "terrier", "poodle", "beagle", "dachshund",
            "corgi", "spaniel", "shepherd", "husky", "pug", "chihuahua", "bulldog", "dalmatian", "collie"),
    "cat": ("kitten", "kitty", "pussycat", "tomcat", "tabby", "feline", "siamese", "calico"),
    "car": ("automobile", "auto", "motorcar", "vehicle", "sedan", "hatchback", "convertible", "taxi", "cab", "suv", "beetle"),
    "mug": ("cup", "teacup", "beaker", "tankard", "stein"),
    "house": ("home", "cottage", "bungalow", "villa", "cabin", "hut", "building", "barn"),
    "fish": ("goldfish", "carp", "trout", "salmon", "guppy", "koi"),
    "tree": ("oak", "fir", "pine", "spruce", "birch", "maple", "palm"),
    "boat": ("ship", "sailboat", "yacht", "dinghy", "sailing boat", "vessel", "canoe"),
}  # fmt: skip
"""Class to words that mean it or a kind of it; a short list of ours, in English."""
_CLASS_OF = {word: known for known, words in SYNONYMS.items() for word in words}


def find_class(forms: Sequence[str], words: Sequence[str]) -> str | None:
    """The word of `words` that one of the forms of a word means; None if there is none."""
    meant = {_CLASS_OF[form] for form in forms if form in _CLASS_OF}
    return next((word for word in words if word.casefold() in meant), None)
