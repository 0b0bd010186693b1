"""Recipes: how one document is made, and what ORIGINS.md says of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

OURS = "Apache-2.0 (ours)"
PHOTO = {
    "astronaut": "photograph by NASA, public domain",
    "camera": "photograph by L. Varshney, CC0",
    "chelsea": "photograph by S. van der Walt, CC0",
    "coffee": "photograph by R. Michetti, CC0",
    "hubble": "picture by NASA and ESA, public domain",
    "china": "photograph by danielbuechele, CC BY 2.0",
    "flower": "photograph by vultilion, CC BY 2.0",
}
"""The licence of each photograph, by the name that its file has in its package."""

Make = Callable[[Path], None]
"""Writes a document to the path that it gets."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one document is made, and what ORIGINS.md says of it.

    Args:
        name: Its path in the corpus.
        program: What writes it.
        package: The Debian package whose version goes into the table.
        licence: Of the document.
        holds: What is in it; what a content-disarm worker takes out stands in bold.
        make: Writes it.
    """

    name: str
    program: str
    package: str
    licence: str
    holds: str
    make: Make


class Recipes:
    """The recipes of one kind of document, in the order in which the documents are made."""

    def __init__(self) -> None:
        self._recipes: list[Recipe] = []

    def __iter__(self) -> Iterator[Recipe]:
        return iter(self._recipes)

    def add(self, name: str, package: str, made: str, licence: str, make: Make) -> None:
        """Add a recipe; ``made`` is "By PROGRAM: what the document holds."."""
        program, _, holds = " ".join(made.split()).removeprefix("By ").rstrip(".").partition(": ")
        recipe = Recipe(name=name, program=program, package=package, licence=licence, holds=holds, make=make)
        self._recipes.append(recipe)

    def document(self, name: str, package: str, *, licence: str = OURS) -> Callable[[Make], Make]:
        """Add the function below, whose docstring says by what program, and what the document holds."""

        def add(make: Make) -> Make:
            self.add(name, package, make.__doc__ or "", licence, make)
            return make

        return add
