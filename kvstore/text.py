"""Text from others, shown to people or written line by line."""

from __future__ import annotations


def printable(text: object) -> str:
    """Escape what a terminal would act on: control characters, newlines, changes of direction.

    Args:
        text: a key, a name or a message, from whoever put it.

    Returns:
        The text in one line; unchanged where every character is printable. JSON output is exact.
    """
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(
        c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in plain
    )
