"""ORIGINS.md: where each document comes from."""

import re
from collections.abc import Sequence
from pathlib import Path

from corpus.recipe import Recipe
from corpus.workshop import BUILD, OUT, run


def origins(recipes: Sequence[Recipe]) -> str:
    """The text of ORIGINS.md, after the documents are made."""
    system = re.search(r'PRETTY_NAME="(.*)"', Path("/etc/os-release").read_text(encoding="utf-8"))
    made = sorted(recipes, key=lambda recipe: recipe.name)
    sizes = {recipe.name: (OUT / recipe.name).stat().st_size for recipe in made}
    rows = [
        f"| `{recipe.name}` | {sizes[recipe.name]:,} | {recipe.program} "
        f"| {recipe.package} {version_of(recipe.package)} | {recipe.licence} | {recipe.holds} |\n"
        for recipe in made
    ]
    return (
        "# Where the documents come from\n\n"
        f"Written by `scripts/make-corpus` on {system[1] if system else 'Debian'}: {len(made)} documents, "
        f"{sum(sizes.values()) / 1e6:.1f} MB. What a content-disarm worker is to take out stands in bold; "
        "all of it is benign. *As shipped* means that the file comes unchanged out of the Debian package. "
        "The text in the documents that are ours is that of the Apache License 2.0.\n\n"
        "| file | bytes | made by | Debian package | licence | holds |\n|---|---|---|---|---|---|\n"
        f"{''.join(rows)}"
    )


def version_of(package: str) -> str:
    """The version of a Debian package that is unpacked or installed."""
    for source in BUILD.glob(f"{package}_*.deb"):
        return run("dpkg-deb", "-f", source, "Version").strip()
    return run("dpkg-query", "-W", "-f", "${Version}", package).strip()
