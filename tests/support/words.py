"""Messages are matched by the words that matter: flags, names and numbers. How they are put may change."""

from __future__ import annotations

import re


def lacking(text: str, *words: object) -> list[str]:
    """Returns the words and numbers that a message of one line does not hold; `["more than one line"]` for several."""
    lines = text.strip().splitlines()
    if len(lines) > 1:
        return ["more than one line"]
    # A number is a whole one: 8 is not found in 18.
    return [str(word) for word in words if not re.search(rf"(?<![\w.]){re.escape(str(word))}(?!\w)", text)]
