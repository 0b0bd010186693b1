"""``Task``, ``Command`` and how values are shown."""

from __future__ import annotations

import enum
import functools
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwsandbox import Command, CommandOutput, Limits, Task
from gwsandbox.model.text import shorten


def work(*args: Any, **kwargs: Any) -> None: ...


class Callable:
    def __call__(self) -> None: ...

    def __repr__(self) -> str:
        return "<a callable>"


def test_repr_is_as_existing_scripts_print_it() -> None:
    task = Task(func=work, args=(1, "a"), kwargs={"input_file": "C:\\x.doc", "n": None})
    assert repr(task) == r"Task(func=work, args=(1, 'a'), kwargs=(input_file='C:\\x.doc', n=None))"


def test_repr_cuts_each_value_at_100_characters() -> None:
    task = Task(work, ("x" * 300,), {"k": list(range(1000))})
    long_list = repr(list(range(1000)))[:100]
    assert repr(task) == f"Task(func=work, args=('{'x' * 99}...), kwargs=(k={long_list}...))"


@pytest.mark.parametrize(
    ("func", "name"),
    [
        (functools.partial(work, 1), "functools.partial"),
        (Callable(), "<a callable>"),
        (len, "len"),
        (lambda: 1, "<lambda>"),
    ],
)
def test_repr_of_what_has_no_name(func: Any, name: str) -> None:
    assert f"func={name}" in repr(Task(func))


@given(st.text() | st.binary() | st.lists(st.integers()))
def test_shortening_keeps_at_most_100_characters_and_says_so(value: object) -> None:
    text = shorten(value)
    assert len(text) <= 103
    if len(repr(value)) <= 100:
        assert text == repr(value)
    else:
        assert text.endswith("...")


def test_shortening_a_huge_result_does_not_make_a_text_of_it() -> None:
    assert shorten(bytes(2**30)) == repr(bytes(100))[:100] + "..."


def test_equality_and_hash() -> None:
    one = Task(work, [1, 2], {"a": 3}, limits=Limits(memory=5))
    assert one == Task(work, (1, 2), {"a": 3}, limits=Limits(memory=5))
    assert one != Task(work, (1, 2), {"a": 4}, limits=Limits(memory=5))
    assert one != Task(work, (1,), {"a": 3}, limits=Limits(memory=5))
    assert one != Task(len, (1, 2), {"a": 3}, limits=Limits(memory=5))
    assert one != Task(work, (1, 2), {"a": 3})
    assert one != "another type"
    assert len({one, Task(work, (1, 2), {"a": 3}, limits=Limits(memory=5)), Task(work)}) == 2


def test_the_order_of_keyword_arguments_does_not_count() -> None:
    one, other = Task(work, kwargs={"a": 1, "b": 2}), Task(work, kwargs={"b": 2, "a": 1})
    assert one == other
    assert hash(one) == hash(other)


def test_unhashable_arguments_make_it_unhashable_and_still_equal() -> None:
    assert Task(work, ([],)) == Task(work, ([],))
    with pytest.raises(TypeError, match="unhashable"):
        hash(Task(work, ([],)))


def test_what_existing_scripts_pass() -> None:
    assert Task(work, None, None).args == ()
    assert Task(work, [1]).args == (1,)
    kwargs: dict[str, Any] = {}
    assert Task(work, kwargs=kwargs).kwargs is kwargs


@pytest.mark.parametrize("func", [None, 1, "work"])
def test_func_must_be_callable(func: Any) -> None:
    with pytest.raises(TypeError, match="func must be callable"):
        Task(func)


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="not iterable"):
        Task(work, 5)  # type: ignore[arg-type]
    for text in ("abc", b"abc", bytearray(b"abc"), ""):
        with pytest.raises(TypeError, match=f"args must be the arguments, not one {type(text).__name__}; write args="):
            Task(work, text)
    with pytest.raises(TypeError, match=r"write kwargs=\{'a': 1\}"):
        Task(work, {"a": 1})
    with pytest.raises(TypeError, match="kwargs must be a mapping, not list"):
        Task(work, (), [1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="limits must be gwsandbox.Limits or None, not dict"):
        Task(work, limits={"memory": 1})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="keyword names must be text, not int"):
        Task(work, kwargs={1: 2})  # type: ignore[dict-item]


def test_pickles() -> None:
    task = Task(work, (1,), {"a": 2}, limits=Limits(pids=3))
    assert pickle.loads(pickle.dumps(task)) == task


# --- Command ---------------------------------------------------------------------------------------------


def test_a_commands_repr() -> None:
    assert repr(Command(["convert", "a b", "x" * 300])) == f"Command(argv=('convert', 'a b', '{'x' * 99}...))"


def test_a_commands_arguments_may_be_paths_and_bytes() -> None:
    assert Command([Path("/bin/true"), b"x\xff", "y"]).argv == ("/bin/true", os.fsdecode(b"x\xff"), "y")
    assert Command(["x"], cwd=Path("/tmp")).cwd == "/tmp"


class Shade(enum.StrEnum):
    DARK = "dark"


def test_a_commands_texts_of_another_class_become_plain() -> None:
    command = Command(["x", Shade.DARK], cwd=Shade.DARK, env={Shade.DARK: Shade.DARK})
    assert command.env is not None
    texts = [*command.argv[1:], command.cwd, *command.env, *command.env.values()]
    assert [(type(text), text) for text in texts] == [(str, "dark")] * 4


def test_a_commands_equality_and_hash() -> None:
    one = Command(["a", "b"], stdin=b"x", cwd="/", env={"A": "1", "B": "2"}, limits=Limits(pids=1))
    same = Command(("a", "b"), stdin=bytearray(b"x"), cwd=Path("/"), env={"B": "2", "A": "1"}, limits=Limits(pids=1))
    assert one == same
    assert len({one, same, Command(["a", "b"]), Command(["a", "b"], env={})}) == 3
    assert one != Command(["a", "b"], stdin=b"x", cwd="/", env={"A": "1", "B": "2"})
    assert one != ("a", "b")


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Command("ls -l"), TypeError, "argv must be a sequence of arguments, not one text"),
        (lambda: Command(b"ls"), TypeError, "argv must be a sequence of arguments, not one text"),
        (lambda: Command([]), ValueError, "argv must name a program"),
        (lambda: Command([""]), ValueError, "argv must name a program"),
        (lambda: Command([1]), TypeError, "int"),
        (lambda: Command(None), TypeError, "argv must be a sequence of arguments, not NoneType"),
        (lambda: Command(["a\0b"]), ValueError, "NUL byte"),
        (lambda: Command(["a"], env={"A": "\0"}), ValueError, "NUL byte"),
        (lambda: Command(["a"], env={"A=B": "x"}), ValueError, "name of an environment variable"),
        (lambda: Command(["a"], env={"": "x"}), ValueError, "name of an environment variable"),
        (lambda: Command(["a"], env={"A": 1}), TypeError, "env must map names to texts"),
        (lambda: Command(["a"], env=["A=1"]), TypeError, "env must be a mapping, not list"),
        (lambda: Command(["a"], cwd="x\0y"), ValueError, "NUL byte"),
        (lambda: Command(["a"], cwd=1), TypeError, "int"),
        (lambda: Command(["a"], stdin="text"), TypeError, "stdin must be bytes or an iterable of them, not str"),
        (lambda: Command(["a"], limits=5), TypeError, "limits must be gwsandbox.Limits or None, not int"),
    ],
)
def test_a_commands_bad_arguments(make: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()


def test_a_command_pickles() -> None:
    command = Command(["a"], stdin=b"x", cwd="/", env={"A": "1"}, limits=Limits(pids=3))
    assert pickle.loads(pickle.dumps(command)) == command


def test_command_output_is_a_value() -> None:
    assert CommandOutput(b"a", b"b") == CommandOutput(stdout=b"a", stderr=b"b")
    assert len({CommandOutput(b"", b""), CommandOutput(b"", b"")}) == 1
