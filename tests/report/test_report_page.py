"""The page with pictures: in a browser, with names of files and details that want to be its script."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Page

from gwsandbox import Command, Limits, ProcessManager, SandboxError
from gwsandbox.report import page as page_module
from gwsandbox.report.make import report_results
from gwsandbox.report.page import make_page
from gwsandbox.report.rows import ReportRow, make_row

EVIL = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">@@DATA@@<b>"


def task(number: int, **changes: Any) -> ReportRow:
    return make_row(
        {
            "input": f"in/{number}.pdf",
            "outcome": "SUCCEEDED",
            "start_time": 1e9 + number,
            "end_time": 1e9 + number + 1.5,
            "elapsed_time": 1.5,
            "usage": {"memory_peak_bytes": (number + 1) << 20, "cpu_user_seconds": 1.0, "cpu_system_seconds": 0.1},
            "limits": {"memory": 64 << 20},
            **changes,
        }
    )


def write_page(path: Path, rows: list[ReportRow]) -> str:
    path.write_text(make_page(rows, f"convert {EVIL}"))
    return path.as_uri()


ROWS = [task(number) for number in range(300)]
ROWS[7] = task(7, input=f"in/{EVIL}", outcome="FAILED", detail=EVIL)
ROWS[8] = task(8, input="in/late.pdf", outcome="TIMED_OUT", detail="late", elapsed_time=99.0)
ROWS[9] = task(9, usage={}, start_time=None, elapsed_time=None, outcome="CANCELLED")
ROWS[10] = task(10, outcome=EVIL)


@pytest.fixture(scope="module", params=[1280, 390], ids=["desktop", "phone"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    url = write_page(tmp_path_factory.mktemp("page") / "report.html", ROWS)
    with Page(url, request.param) as opened:
        yield opened


def names(page: Page) -> list[str]:
    found: list[str] = page.evaluate("[...document.querySelectorAll('#tasks tbody td.name')].map(n => n.textContent)")
    return found


@pytest.mark.chromium
def test_the_page_in_a_browser(page: Page) -> None:
    assert page.evaluate("document.querySelectorAll('.plot .main-svg').length") >= 3  # the pictures are drawn
    assert page.evaluate("document.querySelectorAll('#timeline .point').length") == 299
    assert len(names(page)) == 200
    page.evaluate("document.getElementById('more').click()")
    assert len(names(page)) == 300
    # Nothing is wider than the window.
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.errors == []


@pytest.mark.chromium
def test_the_table_filters_and_sorts(page: Page) -> None:
    filter_by = "(text) => { const i = document.getElementById('filter'); i.value = text; i.dispatchEvent(new Event('input')); }"
    page.evaluate(f"({filter_by})('LATE')")
    assert names(page) == ["in/late.pdf"]
    assert page.evaluate("document.getElementById('count').textContent") == "1 of 300"
    page.evaluate(f"({filter_by})('')")
    press = "(text) => [...document.querySelectorAll('button')].find(b => b.textContent.startsWith(text)).click()"
    page.evaluate(f"({press})('TIMED_OUT')")
    assert names(page) == ["in/late.pdf"]
    page.evaluate(f"({press})('TIMED_OUT')")
    page.evaluate(f"({press})('Time')")
    assert names(page)[0] == "in/late.pdf"
    page.evaluate(f"({press})('Peak')")
    assert names(page)[0] == "in/299.pdf"
    page.evaluate(f"({press})('Peak')")
    assert names(page)[0] == "in/0.pdf"
    assert page.errors == []


@pytest.mark.chromium
def test_what_came_from_guests_is_no_script(page: Page) -> None:
    assert page.evaluate("document.title") == f"convert {EVIL} - gwsandbox"
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    assert page.evaluate("document.querySelectorAll('#tasks b').length") == 0
    assert f"in/{EVIL}" in names(page)
    # And if it were, the policy of the page would not let it run.
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=1\">')")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.evaluate("document.title") != "1"
    page.errors.clear()  # that the policy was asked


def test_no_markup_of_guests_is_in_the_source() -> None:
    text = make_page(ROWS, "title")
    assert EVIL not in text
    data = text.partition('id="data">')[2].partition("</script>")[0]
    assert json.loads(data)["tasks"][7]["name"] == f"in/{EVIL}"


def test_each_page_has_a_secret_of_its_own() -> None:
    one, other = (make_page([], "t").partition("nonce-")[2][:16] for _ in range(2))
    assert one != other


def test_an_empty_report_is_a_page() -> None:
    assert "gwsandbox" in make_page([], "nothing")


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SandboxError, match=r"a page needs the package plotly; pip install 'gwsandbox\[report\]'"):
        page_module.check_plotting()


@pytest.mark.chromium
def test_the_report_of_a_manager(tmp_path: Path) -> None:
    with ProcessManager(2, backend="rlimit", limits=Limits(wall_seconds=60, memory="1GiB")) as manager:
        manager.queue_tasks(Command(["sh", "-c", f"exit {number}"]) for number in (0, 0, 3))
    for name in ("r.html", "r.md", "r.csv"):
        manager.report(tmp_path / name)
    assert "| FAILED | 1 |" in (tmp_path / "r.md").read_text()
    assert (tmp_path / "r.csv").read_text().count("\n") == 4
    with Page((tmp_path / "r.html").as_uri()) as page:
        assert sorted(names(page)) == ["sh -c exit 0", "sh -c exit 0", "sh -c exit 3"]
        assert page.errors == []
    with pytest.raises(SandboxError, match="no format has this suffix"):
        report_results(manager.task_results, manager.limits, str(tmp_path / "r.txt"))
