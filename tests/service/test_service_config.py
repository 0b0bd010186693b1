"""The service's configuration: where keys stand, every mistake named at once, and what is taken from a good one."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwsandbox import Hardening, Limits, Outcome
from gwsandbox.service.config import config, reader
from gwsandbox.service.config.lines import find_lines, line_of
from gwsandbox.service.config.reader import ConfigError, read_config

GOOD = """
spool = "/var/spool/x"
[worker]
command = ["cp", "{input}", "{output}"]
"""


def read(tmp_path: Path, text: str) -> config.ServiceConfig:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return read_config(str(path))


def mistakes(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    prefix = f"{tmp_path}/config.toml:"
    assert all(mistake.startswith(prefix) for mistake in caught.value.mistakes)
    return [mistake.removeprefix(prefix) for mistake in caught.value.mistakes]


# --- lines -----------------------------------------------------------------------------------------------


def test_lines_of_all_ways_to_write_a_key() -> None:
    text = '''# a = 1
a = """
b = 2
[c]
"""
b.c."d e" = [ # [f]
  1,
  { x = "]" },
]
[ t . u ]
  v = '#'
[["w"]]
'x' = 2026-01-01
y = "a \\" [z]"
'''
    tomllib.loads(text)
    assert find_lines(text) == {
        ("a",): 2,
        ("b",): 6,
        ("b", "c"): 6,
        ("b", "c", "d e"): 6,
        ("t",): 10,
        ("t", "u"): 10,
        ("t", "u", "v"): 11,
        ("w",): 12,
        ("w", "x"): 13,
        ("w", "y"): 14,
    }
    assert line_of(find_lines(text), ("b", "c", "nothing", "here")) == 6
    assert line_of({}, ("a",)) == 1


_KEYS = st.from_regex(r"[A-Za-z0-9_-]{1,8}", fullmatch=True)
_VALUES = st.sampled_from(['"x"', '"""\nq = 1\n[z]\n"""', "'''\n#\n'''", "[\n1,\n# ]\n2]", "{ a = 1 }", "1 # c", "'='"])


@given(st.lists(st.tuples(_KEYS, _VALUES), unique_by=lambda pair: pair[0], max_size=8), st.booleans())
def test_lines_of_any_keys(pairs: list[tuple[str, str]], in_table: bool) -> None:
    text = "[table]\n" if in_table else ""
    expected = {}
    for key, value in pairs:
        expected[("table", key) if in_table else (key,)] = text.count("\n") + 1
        text += f"{key} = {value}\n"
    tomllib.loads(text)
    found = find_lines(text)
    assert {path: line for path, line in found.items() if path != ("table",)} == expected


# --- mistakes --------------------------------------------------------------------------------------------


def test_every_mistake_is_named_with_its_line(tmp_path: Path) -> None:
    found = mistakes(
        tmp_path,
        """spol = "/x"
workers = -1
retry = ["OOM", "KILLED"]
backend = "docker"
settle_seconds = "soon"
metrics = 3
attempts = true
limits.memory = "lots"
limits.memmory = 1
[worker]
function = "x.y"
command = "cp {input}"
path = ["relative"]
[folders]
done = 7
""",
    )
    expected = [
        "1: spol is not known; is it spool?",
        '1: spool is missing; write for example spool = "/var/spool/gwsandbox/NAME"',
        "2: workers: must be a whole number, 0 or more, not -1",
        "3: retry: OOM is not among",
        "4: backend: must be one of auto, cgroup, rlimit, not 'docker'",
        "5: settle_seconds: 'soon' is not a duration",
        "6: metrics must be a table",
        "7: attempts: must be a whole number, 1 or more, not True",
        "8: limits.memory: 'lots' is not a size",
        "9: limits.memmory is not known; is it memory?",
        '11: worker.function: must be "MODULE:FUNCTION"',
        "12: worker.command and worker.function are both there",
        "12: worker.command: must have {output} among its arguments",
        "13: worker.path: must be an absolute path",
        "15: folders.done: must be a text in quotes, not 7",
    ]
    assert len(found) == len(expected)
    for text, start in zip(sorted(found), sorted(expected), strict=True):
        assert text.startswith(start)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1: spool is missing"),
        ("", "1: worker.command or worker.function is missing"),
        ('spool = "spool"', "1: spool: must be an absolute path"),
        ('spool = ""', "1: spool: must not be empty"),
        ('spool = "/x"\n[worker]\ncommand = "none-such {input} {output}"', "3: worker.command: there is no program"),
        ('spool = "/x"\n[worker]\ncommand = []', "3: worker.command: must name a program"),
        ('spool = "/x"\n[worker]\ncommand = 3', "3: worker.command: must be a list"),
        ('spool = "/x"\n[worker]\nfunction = "none_such:f"', "3: worker.function: there is no module 'none_such' "),
        ('spool = "/x"\n[worker]\nfunction = "os:none_such"', "3: worker.function: 'os:none_such': os ("),
        (
            'spool = "/x"\n[worker]\nfunction = "os:name"',
            "3: worker.function: 'os:name' cannot be called: it is of type str",
        ),
        (
            'spool = "/x"\n[worker]\nfunction = "os:getpid"',
            "3: worker.function: 'os:getpid' cannot be called as function(input, output): too",
        ),
        ('spool = "/x"\nworker = 1', "2: worker must be a table"),
        (f"{GOOD}path = ['/none-such']", "5: worker.path: there is no folder /none-such"),
        (f"{GOOD}output_suffix = 'pdf'", "5: worker.output_suffix: must be a point and"),
        (f"{GOOD}environment = ['A=1']", "5: worker.environment: must be names without their values, not 'A=1'"),
        (f"{GOOD}environment = 'A'", "5: worker.environment: must be a list"),
        (f"{GOOD}output_suffix = './x'", "5: worker.output_suffix: must be a point and"),
        (f"{GOOD}[folders]\nincoming = 'work'", "6: folders.incoming lies in folders.work"),
        (f"{GOOD}[folders]\nincoming = 'done/new'", "6: folders.incoming lies in folders.done"),
        (f"{GOOD}[limits]\nwall_seconds = -1", "6: limits.wall_seconds: must be 0 (no limit) or a positive number"),
        (f"{GOOD}[hardening]\nlevel = 'high'", "6: hardening.level: must be one of standard, off, strict, not 'high'"),
        (
            GOOD.replace("command = [", "function = 'a:b' # [") + "[hardening]\nlevel = 'strict'",
            "3: worker: a function is a fork of the service, which strict does not allow; write command",
        ),
        (f"{GOOD}[hardening]\nnetwork = 'no'", "6: hardening.network: network must be one of host, loopback, none"),
        (f"{GOOD}[hardening]\nrequire = 'x'", "6: hardening.require: require must be several mechanisms"),
        (f"{GOOD}[limits]\nmemory = true", "6: limits.memory: must be a number"),
        (f"{GOOD}[metrics]\nport = 0", "6: metrics.port: must be a number from 1 to 65535"),
        (f"{GOOD}[metrics]\ntextfile = '/tmp/x.txt'", "6: metrics.textfile: must end in .prom"),
        (f"{GOOD}[metrics]\ntextfile = '/none-such/x.prom'", "6: metrics.textfile: there is no folder /none-such"),
    ],
)
def test_mistake(tmp_path: Path, text: str, expected: str) -> None:
    assert any(mistake.startswith(expected) for mistake in mistakes(tmp_path, text)), mistakes(tmp_path, text)


def test_no_toml_no_file_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not TOML: .*line 1, column 5"):
        read(tmp_path, "a = = 1")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_config(str(tmp_path / "none"))
    (tmp_path / "config.toml").write_bytes(b'a = "\xff"')
    with pytest.raises(ConfigError, match="is not TOML"):
        read_config(str(tmp_path / "config.toml"))
    with pytest.raises(ConfigError, match="is not TOML: maximum recursion depth"):
        read(tmp_path, "a = " + "[" * 5000 + "]" * 5000)


def test_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "find_spec", lambda _name: None)
    text = f"{GOOD}[metrics]\nport = 9000"
    assert mistakes(tmp_path, text)[0].startswith("5: metrics: the package prometheus-client is missing; pip install")


def test_module_that_raises_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "broken_module.py").write_text("raise SystemExit('no licence')")
    text = f'spool = "/x"\n[worker]\npath = ["{tmp_path}"]\nfunction = "broken_module:f"'
    where = f"{tmp_path}/broken_module.py, line 1"
    assert (
        f"4: worker.function: module 'broken_module' cannot be imported: {where}: SystemExit: no licence"
        in mistakes(tmp_path, text)
    )


# --- a good one ------------------------------------------------------------------------------------------


def test_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    found = read(tmp_path, GOOD)
    assert found.folders == config.FolderConfig(
        incoming="/var/spool/x/incoming",
        work="/var/spool/x/work",
        done="/var/spool/x/done",
        quarantine="/var/spool/x/quarantine",
    )
    assert found.database == "/var/spool/x/ledger.sqlite3"
    assert found.worker.command == ("cp", "{input}", "{output}")
    assert found.limits == config.DEFAULT_LIMITS
    assert found.hardening == Hardening.standard(results="plain")
    assert (found.attempts, found.retry) == (3, config.RETRIED)


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        ('level = "off"', Hardening.off(results="plain")),
        ('level = "off"\nnetwork = "none"', Hardening.off(results="plain", network="none")),
        ('require = ["signals"]', Hardening.standard(results="plain", require={"signals"})),
        ('syscalls = "all"', Hardening.standard(results="plain", syscalls="all")),
    ],
)
def test_hardening(tmp_path: Path, lines: str, wanted: Hardening) -> None:
    assert read(tmp_path, f"{GOOD}[hardening]\n{lines}\n").hardening == wanted


def test_strict_hardening_gives_the_folder_work(tmp_path: Path) -> None:
    found = read(tmp_path, f'{GOOD}[hardening]\nlevel = "strict"\nreadable = ["/opt/converter"]\n')
    assert found.hardening == Hardening.strict(readable=("/opt/converter",), writable=(found.folders.work,))


def test_everything_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/x:/var/lib/y")
    found = read(
        tmp_path,
        f"""
spool = "/var/spool/x/"
ledger = "books.sqlite3"
workers = 4
backend = "rlimit"
attempts = 5
retry = ["OUT_OF_MEMORY"]
retry_delay_seconds = "1m"
interruptions = 2
settle_seconds = 0.5
drain_seconds = "90s"
memory_reserve = "1GiB"
worker = {{ function = "shutil:copyfile", output_suffix = ".tar.gz" }}
limits = {{ memory = "64MiB", wall_seconds = 0, pids = 8 }}
[folders]
incoming = "/srv/in"
[metrics]
textfile = "{tmp_path}/x.prom"
textfile_seconds = 3
""",
    )
    assert found.database == "/var/lib/x/books.sqlite3"
    assert (found.folders.incoming, found.folders.done) == ("/srv/in", "/var/spool/x/done")
    assert found.retry == {Outcome.OUT_OF_MEMORY}
    assert (found.retry_delay_seconds, found.drain_seconds, found.memory_reserve) == (60.0, 90.0, 1024**3)
    assert found.limits == Limits(memory=64 * 1024**2, wall_seconds=0, pids=8, output=1024**2)
    assert (found.worker.function, found.worker.output_suffix) == ("shutil:copyfile", ".tar.gz")
    assert found.metrics == config.MetricsConfig(textfile=f"{tmp_path}/x.prom", textfile_seconds=3)


def test_command_in_one_text(tmp_path: Path) -> None:
    found = read(tmp_path, "spool = '/x'\nworker.command = \"sh -c 'cp $0 $1' {input} {output}\"")
    assert found.worker.command == ("sh", "-c", "cp $0 $1", "{input}", "{output}")


def test_what_cannot_change_while_the_service_runs(tmp_path: Path) -> None:
    running = read(tmp_path, GOOD)
    path = tmp_path / "config.toml"
    path.write_text(GOOD.replace("spool/x", "spool/y") + "[metrics]\nport = 9000\n[limits]\npids = 3\n")
    with pytest.raises(ConfigError) as caught:
        read_config(str(path), running=running.fixed)
    assert [mistake.split(":")[1] for mistake in caught.value.mistakes] == ["2", "2", "5"]
    path.write_text(f"{GOOD}[limits]\npids = 3\n")
    assert read_config(str(path), running=running.fixed).limits.pids == 3


def test_example_of_the_units_is_good(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "systemd" / "example.toml"
    text = example.read_text().replace("/var/lib/gwsandbox/example/", f"{tmp_path}/")
    assert read(tmp_path, text).folders.incoming == "/var/spool/gwsandbox/example/incoming"
    lines = [line[1:] if line.startswith("#") and " = " in line else line for line in text.splitlines()]
    assert read(tmp_path, "\n".join(lines)).metrics.port == 9464
