"""``Hardening``: its three kinds, how they are changed, and what it refuses."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwsandbox.model.hardening import MECHANISMS, Hardening, check_hardening

KINDS = [Hardening.off(), Hardening.standard(), Hardening.strict()]


def test_standard_is_what_no_arguments_give() -> None:
    assert Hardening() == Hardening.standard() == check_hardening(None)


def test_off_asks_for_nothing() -> None:
    assert Hardening.off().mechanisms() == frozenset()


def test_standard_asks_for_all_that_a_working_program_does_not_need() -> None:
    given = {"files", "network", "environment", "user", "temporary", "clean_interpreter", "results"}
    given |= {"processes", "host_name"}
    assert Hardening.standard().mechanisms() == set(MECHANISMS) - given
    assert Hardening.standard().require == frozenset()


def test_strict_requires_all_that_it_asks_for() -> None:
    assert Hardening.strict().require == Hardening.strict().mechanisms() == set(MECHANISMS) - {"user"}


def test_what_strict_no_longer_asks_for_is_not_required() -> None:
    strict = Hardening.strict(network="host", temporary=None)
    assert strict.require == set(MECHANISMS) - {"user", "network", "temporary"}


def test_strict_is_relaxed_by_require() -> None:
    assert Hardening.strict(require={"network"}).require == {"network"}
    assert replace(Hardening.strict(), require=frozenset()).require == frozenset()


def test_every_system_call_can_be_given_back_without_the_rest() -> None:
    asked = replace(Hardening.standard(), syscalls="all").mechanisms()
    assert asked == Hardening.standard().mechanisms() - {"system_calls", "user_namespaces"}


def test_only_a_guest_that_may_not_read_everything_needs_a_clean_interpreter() -> None:
    assert Hardening.strict().needs_clean_interpreter
    assert not Hardening.standard(writable=()).needs_clean_interpreter


def test_paths_become_plain_texts() -> None:
    hardening = Hardening.standard(readable=[Path("/usr/lib/"), b"/a//b"], writable=("/x/../y",))
    assert (hardening.readable, hardening.writable) == (("/usr/lib", "/a/b"), ("/y",))


def test_a_size_may_be_a_text_and_none_is_the_hosts() -> None:
    assert Hardening.standard(temporary="1MiB").temporary == 1 << 20
    assert Hardening.standard(temporary=0).temporary is None


@pytest.mark.parametrize("hardening", KINDS)
def test_it_is_a_value(hardening: Hardening) -> None:
    assert pickle.loads(pickle.dumps(hardening)) == copy.deepcopy(hardening) == hardening
    assert hash(replace(hardening)) == hash(hardening)
    with pytest.raises(FrozenInstanceError):
        hardening.user = "x"  # type: ignore[misc]


WRONG: list[tuple[str, Any, type[Exception]]] = [
    ("privileges", "none", ValueError),
    ("network", "internet", ValueError),
    ("network", None, TypeError),
    ("syscalls", "some", ValueError),
    ("syscalls", ("all",), TypeError),
    ("results", "json", ValueError),
    ("readable", "/usr", TypeError),
    ("readable", Path("/usr"), TypeError),
    ("readable", ("usr",), ValueError),
    ("readable", ("/a\0b",), ValueError),
    ("writable", (1,), TypeError),
    ("writable", 1, TypeError),
    ("environment", "PATH", TypeError),
    ("environment", ("A=B",), ValueError),
    ("environment", ("",), ValueError),
    ("environment", (b"PATH",), TypeError),
    ("user", 1000, TypeError),
    ("user", "", ValueError),
    ("user", "a b", ValueError),
    ("temporary", -1, ValueError),
    ("temporary", "a lot", ValueError),
    ("temporary", 1 << 70, ValueError),
    ("temporary", 1.5, ValueError),
    ("temporary", (), TypeError),
    ("require", "network", TypeError),
    ("require", {"firewall"}, ValueError),
    ("require", None, TypeError),
]


@pytest.mark.parametrize(("name", "value", "kind"), WRONG, ids=str)
def test_what_it_does_not_know_is_refused_by_name(name: str, value: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=rf"^{name}\b"):
        Hardening(**{name: value})


def test_no_other_thing_is_hardening() -> None:
    with pytest.raises(TypeError, match="hardening must be"):
        check_hardening("strict")  # type: ignore[arg-type]


@given(
    st.sampled_from(KINDS),
    st.fixed_dictionaries(
        {},
        optional={
            field.name: st.none() | st.integers() | st.text() | st.lists(st.text()) for field in fields(Hardening)
        },
    ),
)
def test_any_value_is_taken_or_refused(kind: Hardening, changes: dict[str, Any]) -> None:
    try:
        changed = replace(kind, **changes)
    except (TypeError, ValueError) as error:
        assert any(name in str(error) for name in changes)
    else:
        assert changed.mechanisms() <= set(MECHANISMS)
