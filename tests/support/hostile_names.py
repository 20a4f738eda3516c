"""Names and prompts that terminals, pages and reports must not act on."""

import unicodedata

HOSTILE = ["\x1b[31mred.png", "bell\x07.png", "a\nb\rc.png", "\u202egnp.exe", "\x9b31m.png", "[x].png", "[bold][red]x.png", "\udcff\udcfe.png",
           "{0}%s.png", "-rf.png", "\u2066x.png", " .png"]  # fmt: skip
"""File names of the tests of terminals."""
MARKUP = [
    "</script><img src=x onerror=alert(1)>.png",
    "{{7*7}}${alert(1)}`&\"'.png",
    "<!--<script>.png",
    "]]><svg onload=alert(1)>.png",
    "javascript:alert(1).png",
]
"""File names that a browser would act on."""


def unsafe(text: str) -> list[str]:
    """Characters that a terminal would act on, or that change the order of what a reader sees."""
    return [
        c
        for c in text
        if c != "\n"
        and (
            unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")
            or c in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
        )
    ]


ACTIVE = ("<img src=x", "<svg onload", "<!--<script>", "</script><img")
"""What `MARKUP` would be as elements."""
UNSEEN = ("\\u202e", "\\u2066", "\\u001b", "\\u009b", "\\udcff")
"""Characters that a reader does not see, as JSON writes them."""


def find_active(text: str) -> list[str]:
    """What a page of the server holds of hostile names besides plain text."""
    hidden = [ascii(each) for each in unsafe(text) if each not in "\t\r"]
    return [each for each in (*ACTIVE, *UNSEEN) if each in text.lower()] + hidden
