"""Plugin of pytest for continuous integration: no call of a test may take long.

On a busy machine any test may. So the first run only lists the long ones, and a second, of these
alone, fails those that are long again (`run`).
"""

from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("long calls")
    group.addoption("--long_call", type=float, default=30.0, help="seconds that are too long")
    group.addoption("--list_long_calls", type=Path, help="file for the ids of tests with such")
    group.addoption("--fail_long_calls", action="store_true", help="fail tests with such")


def pytest_configure(config: pytest.Config) -> None:
    # Workers of pytest-xdist send their reports to the process that started them.
    if config.option.list_long_calls and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_LongCalls(config.option))


class _LongCalls:
    """Writes the ids of tests whose call took long, one a line."""

    def __init__(self, option):
        self.option = option
        option.list_long_calls.write_text("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.duration > self.option.long_call:
            with self.option.list_long_calls.open("a") as file:
                file.write(f"{report.nodeid}\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    report = yield
    option = item.config.option
    is_long = report.when == "call" and report.passed and report.duration > option.long_call
    if is_long and option.fail_long_calls:
        report.outcome = "failed"
        report.longrepr = (
            f"{item.nodeid} took {report.duration:.1f} s with nothing beside it, and more than "
            f"{option.long_call:g} s before; make it smaller, or mark it slow where it repeats "
            "another test at a larger size"
        )
    return report
