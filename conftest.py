"""For the whole suite: under CI a skip is a failure; a failed test shows what was on the wire."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Generator

import pytest
from hypothesis import settings

from lab import journal

# A deadline would tell how busy the machine is, and nothing about the code.
settings.register_profile("autoip", deadline=None)
settings.load_profile("autoip")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line how many tests were skipped, and why; -rs shows which."""
    skipped: list[pytest.TestReport] = terminalreporter.stats.get("skipped", [])
    reasons = Counter(_reason(report.longrepr).removeprefix("Skipped: ") for report in skipped)
    root = sum(count for reason, count in reasons.items() if "root" in reason)
    counted = [f"{root} need root"] if root else []
    counted += [f"{n} {reason}" for reason, n in reasons.most_common() if "root" not in reason]
    if counted:
        terminalreporter.write_line(f"skipped {len(skipped)} tests: " + ", ".join(counted))


def pytest_configure() -> None:
    """Let no test inherit that a signal is ignored.

    A shell ignores SIGINT for what it starts in the background, nohup(1) ignores SIGHUP, and so would each program
    that a test starts.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that wait for minutes begin first: the others run beside them, and not before."""

    def seconds(item: pytest.Item) -> int:
        mark = item.get_closest_marker("long")
        return 0 if mark is None else int(mark.args[0])

    items.sort(key=seconds, reverse=True)


def _under_ci() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false", "no")


def _reason(longrepr: object) -> str:
    return str(longrepr[2]) if isinstance(longrepr, tuple) else str(longrepr)


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    # An expected failure is reported as skipped as well, and is none.
    if _under_ci() and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"a skip is a failure under CI: {_reason(report.longrepr)}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _forbid_skip(report)
    if report.when == "call" and report.failed:
        report.sections.append(("timeline", journal.timeline()))
    return report


@pytest.fixture(autouse=True)
def _new_timeline() -> None:
    journal.forget()
