"""XML: entities, scripts, and depth."""

from __future__ import annotations


def xml_nested_entities() -> bytes:
    """A billion laughs: ten entities, each ten times the one before it."""
    levels = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    return f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY e0 "haha">{levels}]><a>&e9;</a>'.encode()


def svg_nested_entities() -> bytes:
    """The same in elements, of which each costs more memory than a word."""
    levels = "".join(f'<!ENTITY e{n} "<g>{f"&e{n - 1};" * 10}</g>">' for n in range(1, 9))
    return f"<!DOCTYPE svg [<!ENTITY e0 \"<path d='M0 0'/>\">{levels}]><svg>&e8;</svg>".encode()


def xml_quadratic() -> bytes:
    """One long entity, 100,000 times: no nesting, 10 GB all the same."""
    return f'<!DOCTYPE a [<!ENTITY e "{"x" * 100_000}">]><a>{"&e;" * 100_000}</a>'.encode()


def xml_scripts() -> bytes:
    """Scripts with text between them: each one that goes makes the text before it longer, and copies it."""
    return b"<page>" + b"<script/>text" * 400_000 + b"</page>"


def xml_deep() -> bytes:
    """200,000 elements, each inside the one before it."""
    return b"<a>" * 200_000 + b"</a>" * 200_000


def xml_entity_loop() -> bytes:
    return b'<!DOCTYPE a [<!ENTITY a "&b;"><!ENTITY b "&a;">]><a>&a;</a>'
