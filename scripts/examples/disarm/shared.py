"""What the modules for all kinds of documents share."""

from __future__ import annotations

from collections import Counter

Removed = Counter[str]
"""What was taken out, and how often."""


def words(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())
