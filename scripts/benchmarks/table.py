"""The table, as text."""

from collections.abc import Sequence

from benchmarks.row import Entry, Row, Spread

_HEADINGS = ("", "who", "median", "±", "ratio", "±", "n", "reach", "met", "note")
_NUMBERS = {2, 3, 4, 5, 6}
_NOTE = 90  # characters; a peer's error can be long


def render(rows: Sequence[Row]) -> str:
    """All rows in one table; a line above each row's entries says what is measured, against what."""
    lines: list[tuple[str, ...] | str] = [_HEADINGS]
    for row in rows:
        against = f"; ratio: to {row.against}" if row.against else ""
        lines.append(f"{row.name}  {row.work}{against}")
        lines += [_cells(entry) for entry in row.entries]
        lines += [f"    ({remark})" for remark in row.remarks]
    widths = [max(len(line[i]) for line in lines if isinstance(line, tuple)) for i in range(len(_HEADINGS))]
    return "\n".join(line if isinstance(line, str) else _join(line, widths) for line in lines)


def _join(cells: tuple[str, ...], widths: list[int]) -> str:
    padded = [
        cell.rjust(width) if i in _NUMBERS else cell.ljust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def _cells(entry: Entry) -> tuple[str, ...]:
    unit = f" {entry.unit}" if entry.unit else ""
    met = {None: "", True: "yes", False: "NO"}[entry.met]
    note = entry.note if len(entry.note) <= _NOTE else entry.note[: _NOTE - 1] + "…"
    return (
        "",
        entry.who,
        _number(entry.figure) + unit if entry.figure else "-",
        _deviation(entry.figure),
        _number(entry.ratio) if entry.ratio else "",
        _deviation(entry.ratio),
        str(entry.figure.count) if entry.figure else "",
        entry.reach,
        met,
        " ".join(note.split()),
    )


def _number(spread: Spread) -> str:
    return text_of(spread.median)


def _deviation(spread: Spread | None) -> str:
    """Half of what lies between the quartiles."""
    if spread is None or spread.count == 1:
        return ""
    return text_of((spread.high - spread.low) / 2)


def text_of(number: float) -> str:
    """A number in about three digits, without an exponent."""
    size = abs(number)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 or size == 0 else 4
    return f"{number:.{digits}f}"
