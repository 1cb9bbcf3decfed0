"""Options, the `case` of each test, and the report of the run."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import leftover_folders, leftovers

from .case import Case
from .device import About, read_about
from .report import Facts, dump, merge
from .rows import ROWS
from .verdict import ERROR, HOLDS, NOT_APPLICABLE, SHORT, FallsShort, NotApplicable

_CASE = pytest.StashKey[Case]()
_ABOUT = pytest.StashKey[About]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption("--dut", help="the device under test: COMMAND with {netns} and {ifname}")
    group.addoption("--about", help="JSON file about it; default: COMMAND.json if that exists")
    group.addoption(
        "--report",
        help="write what was found into this file (JSON); with --row, its other rows stay",
    )
    group.addoption("--row", action="append", default=[], help="only this row; may be repeated")
    group.addoption(
        "--all-rows", action="store_true", help="fail if any row falls short, not a MUST"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "row(id, seconds, must): the requirement that a case proves")
    if config.option.dut is None:
        raise pytest.UsageError('--dut "COMMAND {netns} {ifname}" must name the program')
    try:
        config.stash[_ABOUT] = read_about(config.option.dut, config.option.about)
    except (ValueError, KeyError) as error:
        raise pytest.UsageError(str(error)) from None
    if unknown := set(config.option.row) - ROWS.keys():
        raise pytest.UsageError(f"no such row: {', '.join(sorted(unknown))}")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Recorder(config), "conformance-recorder")


def _mark(item: pytest.Item) -> pytest.Mark:
    mark = item.get_closest_marker("row")
    assert mark is not None, f"{item.nodeid} does not say its row"
    return mark


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if wanted := config.option.row:
        items[:] = [item for item in items if _mark(item).args[0] in wanted]
    # The longest first; then, since a worker gets two, as many of the shortest.
    items.sort(key=lambda item: -_mark(item).kwargs["seconds"])
    workers = int(getattr(config, "workerinput", {}).get("workercount", 1))
    if len(items) > 2 * workers:
        items[:] = items[:workers] + items[-workers:][::-1] + items[workers:-workers]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    from xdist.scheduler import LoadScopeScheduling

    # One case at a time to a free worker, in the order of collection.
    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = lambda nodeid: nodeid
    return scheduler


@pytest.fixture(scope="session", autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    left = leftovers() + leftover_folders()
    assert not left, "\n".join(["left behind:", *left])


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    config = request.config
    made = Case(config.option.dut, config.stash[_ABOUT], Path(config.invocation_params.dir))
    request.node.stash[_CASE] = made
    try:
        yield made
    finally:
        made.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when != "call" and report.passed:
        return report
    mark = _mark(item)
    row, must = mark.args[0], mark.kwargs.get("must", ROWS[mark.args[0]].must)
    case = item.stash.get(_CASE, None)
    error = None if call.excinfo is None else call.excinfo.value
    seen, evidence = "; ".join(case.seen) if case else "", list[str]()
    if error is None:
        result = HOLDS
    elif isinstance(error, NotApplicable):
        result, seen = NOT_APPLICABLE, str(error)
        report.outcome = "passed"
    elif isinstance(error, FallsShort) and case and report.when == "call":
        result, seen = SHORT, str(error)
        evidence = case.evidence()
        report.longrepr = "\n".join([f"{row}: {ROWS[row].text}", f"seen: {seen}", *evidence])
        if not must and not item.config.option.all_rows:
            report.outcome = "passed"
    else:
        result, seen = ERROR, f"{type(error).__name__}: {error}"
    facts: Facts = {
        "row": row,
        "case": item.name,
        "result": result,
        "seen": seen,
        "frames": evidence,
        "must": must,
        "seconds": round(call.duration, 1),
    }
    report.user_properties.append(("conformance", facts))
    return report


def _facts(report: pytest.TestReport | pytest.CollectReport) -> Facts | None:
    if isinstance(report, pytest.CollectReport):
        return None
    for name, value in report.user_properties:
        if name == "conformance":
            return value  # type: ignore[return-value]
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(
    report: pytest.TestReport | pytest.CollectReport,
) -> tuple[str, str, str] | None:
    facts = _facts(report)
    if facts is None or report.when != "call" or not report.passed:
        return None
    if facts["result"] == NOT_APPLICABLE:
        return "not applicable", "n", "NOT APPLICABLE"
    if facts["result"] == SHORT:
        return "short of what is no MUST", "s", "FALLS SHORT"
    return None


class _Recorder:
    """Gathers the workers' results, in the process that writes the report.

    Raises:
        pytest.UsageError: some rows shall replace those of a report of another program, or version.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._found: list[Facts] = []
        self._before: dict[str, Any] | None = None
        report, about = Path(config.option.report or ""), config.stash[_ABOUT]
        if config.option.row and report.is_file():
            self._before = before = json.loads(report.read_text(encoding="utf-8"))
            measured = before["program"]["name"], before["program"]["version"]
            if measured != (about.name, about.version):
                raise pytest.UsageError(f"{report} is of {' '.join(measured)}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        facts = _facts(report)
        if facts is not None:
            self._found.append(facts)

    def pytest_sessionfinish(self) -> None:
        path = self._config.option.report
        if path and self._found:
            text = dump(self._config.stash[_ABOUT], self._found, self._before)
            Path(path).write_text(text, encoding="utf-8")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        about = self._config.stash[_ABOUT]
        terminalreporter.section(f"{about.name} {about.version}")
        for row, facts in merge(self._found).items():
            terminalreporter.line(f"{row:20} {facts['result']:15} {facts['seen']}")
