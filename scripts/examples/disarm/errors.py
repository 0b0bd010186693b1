"""Why a document could not be disarmed."""

from __future__ import annotations


class DisarmError(ValueError):
    """The document could not be disarmed, and nothing was written."""

    __module__ = "disarm"  # reports name these errors as callers import them


class UnsupportedDocument(DisarmError):
    """The content is of no known kind, or it is locked."""

    __module__ = "disarm"


class BrokenDocument(DisarmError):
    """The content breaks the rules of its kind."""

    __module__ = "disarm"
