"""Fail skipped tests in CI unless the skip is expected, so that a missing program does not hide untested code.

`CI=true` turns this on. A skip is expected if a line of `MSCTR_EXPECTED_SKIPS` is part of its "node id: reason".
"""

import os

import pytest


# outermost, since pytest marks expected failures, which look like skips, in an inner hook
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport():
    return fail_if_skipped_unexpectedly((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report():
    return fail_if_skipped_unexpectedly((yield))


def fail_if_skipped_unexpectedly(report):
    if os.environ.get("CI") != "true" or not report.skipped or hasattr(report, "wasxfail"):
        return report
    skip = f"{report.nodeid}: {report.longrepr[2]}"
    expected = os.environ.get("MSCTR_EXPECTED_SKIPS", "").splitlines()
    if not any(text in skip for text in filter(None, expected)):
        report.outcome = "failed"
        report.longrepr = f"{skip}\nIn CI a skip that is not named in MSCTR_EXPECTED_SKIPS (.ci/run) is a failure."
    return report
