"""The verdict: the table, what holds over every combination, and that breaking a rule is noticed."""

from __future__ import annotations

import ast
import copy
import inspect
import types
from collections.abc import Callable, Iterator

import pytest
from verdict_table import ROWS, Row, check_row, everything_that_can_occur, needs_words

from gwsandbox import Outcome
from gwsandbox.model import verdict
from gwsandbox.model.text import format_size
from gwsandbox.model.verdict import Delivery, Evidence, Reason


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_table(row: Row) -> None:
    check_row(verdict, row)


def test_every_outcome_reason_and_delivery_is_in_the_table() -> None:
    assert {row.outcome for row in ROWS} == set(Outcome.__members__)
    assert {row.evidence.get("reason") for row in ROWS} == {None, *Reason.__members__}
    assert {row.evidence.get("delivery", "NOTHING") for row in ROWS} == set(Delivery.__members__)


# What must hold whenever an outcome is given, said without looking at how judge comes to it.
_NEEDS: dict[Outcome, Callable[[Evidence], bool]] = {
    Outcome.SUCCEEDED: lambda e: (
        (e.delivery is Delivery.VALUE if not e.is_command else e.exit_code == 0)
        and e.reason is not Reason.OUTPUT
        and (e.exit_code < 0 or not own_oom(e))
    ),
    Outcome.FAILED: lambda e: e.exit_code >= 0 or says_so(e),
    Outcome.TIMED_OUT: lambda e: e.reason is Reason.DEADLINE and e.exit_code < 0 and not says_so(e),
    Outcome.CPU_TIME_EXCEEDED: lambda e: (
        e.exit_code < 0 and not says_so(e) and (e.reason is Reason.CPU_TIME or (e.exit_code == -24 and e.cpu_limited))
    ),
    Outcome.OUT_OF_MEMORY: lambda e: (
        (e.reason is Reason.MEMORY and e.exit_code < 0 and not says_so(e))
        or own_oom(e)
        or (e.delivery is Delivery.NO_MEMORY and e.memory_refused)
    ),
    Outcome.OUTPUT_EXCEEDED: lambda e: e.reason is Reason.OUTPUT,
    Outcome.CRASHED: lambda e: e.exit_code < 0 and e.reason is None and not says_so(e),
    Outcome.KILLED: lambda e: e.exit_code < 0 and e.reason in {None, Reason.PIDS} and not says_so(e),
    Outcome.CANCELLED: lambda e: e.reason is Reason.CANCELLED and e.exit_code < 0 and not says_so(e),
    Outcome.SANDBOX_ERROR: lambda e: e.delivery in {Delivery.STEP_FAILED, Delivery.NO_ROOM},
}


def says_so(evidence: Evidence) -> bool:
    """Whether a call left a whole record."""
    return evidence.delivery is not Delivery.NOTHING and not evidence.is_command


def own_oom(evidence: Evidence) -> bool:
    return bool(evidence.oom_events and evidence.oom_kills_local)


def test_a_call_that_returned_has_succeeded_however_it_was_ended() -> None:
    for evidence in everything_that_can_occur(verdict):
        if evidence.delivery is Delivery.VALUE and not evidence.is_command and evidence.exit_code < 0:
            expected = Outcome.OUTPUT_EXCEEDED if evidence.reason is Reason.OUTPUT else Outcome.SUCCEEDED
            assert verdict.judge(evidence) is expected, evidence


def test_what_every_outcome_needs_holds_over_every_combination() -> None:
    for evidence in everything_that_can_occur(verdict):
        outcome = verdict.judge(evidence)
        assert _NEEDS[outcome](evidence), (outcome, evidence)
        ours = {Delivery.STEP_FAILED, Delivery.NO_ROOM}
        assert (outcome is Outcome.SANDBOX_ERROR) == (evidence.delivery in ours)


def test_every_verdict_that_needs_words_is_explained_in_one_sentence() -> None:
    asked = {"wall_seconds": 1.0}
    for evidence in everything_that_can_occur(verdict):
        outcome = verdict.judge(evidence)
        text = verdict.explain(evidence, outcome, asked)
        assert bool(text) == needs_words(evidence, outcome.name)
        assert "\n" not in text
        assert not text.endswith(".")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (200 * 1024**2, "200 MiB"),
        (1.5 * 1024**3, "1.5 GiB"),
        (2**50, "1024 TiB"),
    ],
)
def test_sizes_for_people(size: float, text: str) -> None:
    assert format_size(size) == text


# --- a mutation per rule ---------------------------------------------------------------------------------

_RULES = {"judge", "_has_record", "_judge_record", "_judge_exit", "_judge_signal", "explain", "_explain_memory", "_explain_crash", "_explain_kill", "_explain_failure", "_explain_end", "_refusal"}  # fmt: skip
_FLIPPED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.Eq: ast.NotEq,
    ast.GtE: ast.Gt,
    ast.In: ast.NotIn,
}

Mutation = tuple[str, ast.Module]


def _mutants() -> Iterator[Mutation]:
    """Copies of verdict.py, each with one rule broken, and words for what was broken."""
    tree = ast.parse(inspect.getsource(verdict))
    for number, node in enumerate(ast.walk(tree)):
        for words, edit in _edits(tree, node):
            broken = copy.deepcopy(tree)
            edit(next(n for i, n in enumerate(ast.walk(broken)) if i == number))
            yield f"line {getattr(node, 'lineno', 0)}: {words}", broken


def _edits(tree: ast.Module, node: ast.AST) -> Iterator[tuple[str, Callable[[ast.AST], None]]]:
    if not _is_in_a_rule(tree, node):
        if isinstance(node, ast.Set):
            for index, element in enumerate(node.elts):
                yield f"without {ast.unparse(element)}", lambda n, i=index: n.elts.pop(i)  # type: ignore[misc]
        return
    if isinstance(node, ast.If):
        for value in (True, False):
            yield f"if {value}", lambda n, v=value: setattr(n, "test", ast.Constant(v))  # type: ignore[misc]
    if isinstance(node, ast.BoolOp):
        other = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield f"{other.__name__} for {type(node.op).__name__}", lambda n: setattr(n, "op", other())
        for index in range(len(node.values)):
            neutral = ast.Constant(isinstance(node.op, ast.And))
            yield (
                f"without part {index + 1} of the condition",
                lambda n, i=index, v=neutral: n.values.__setitem__(i, v),  # type: ignore[misc]
            )
    if isinstance(node, ast.Compare) and (flipped := _FLIPPED.get(type(node.ops[0]))):
        yield f"{flipped.__name__}", lambda n: setattr(n, "ops", [flipped()])
    if isinstance(node, ast.match_case) and not isinstance(node.pattern, ast.MatchAs):
        yield "a case that never matches", lambda n: setattr(n, "guard", ast.Constant(False))
    if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("Outcome."):
        other_name = "FAILED" if node.attr != "FAILED" else "SUCCEEDED"
        yield f"{other_name} for {node.attr}", lambda n: setattr(n, "attr", other_name)


def _is_in_a_rule(tree: ast.Module, node: ast.AST) -> bool:
    rules = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in _RULES)
    return any(node is below for rule in rules for below in ast.walk(rule))


def _is_noticed(broken: ast.Module) -> bool:
    module = types.ModuleType("broken_judge")
    module.__dict__["__name__"] = verdict.__name__  # dataclasses look their module up
    exec(compile(ast.fix_missing_locations(broken), "judge.py", "exec"), module.__dict__)
    try:
        for row in ROWS:
            check_row(module, row)
    except Exception:  # an error is noticed as an assertion is
        return True
    return False


def test_breaking_any_rule_is_noticed_by_the_table() -> None:
    mutants = list(_mutants())
    assert len(mutants) > 90
    unnoticed = [words for words, broken in mutants if not _is_noticed(broken)]
    assert not unnoticed


def test_the_unbroken_copy_passes() -> None:
    assert not _is_noticed(ast.parse(inspect.getsource(verdict)))
