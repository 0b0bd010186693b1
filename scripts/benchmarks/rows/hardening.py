"""P12: what hardening costs."""

from benchmarks.plan import Plan
from benchmarks.row import Entry, Row


def p12(_: Plan) -> Row:
    """A place for it; nothing is measured."""
    entry = Entry("gwsandbox", reach="adds ≤ 0.5 x floor", note="not built")
    return Row("P12", "hardening fully on, per task", "fork floor", [entry])
