"""The hooks of skips.py fail unexpected skips, tried in separate pytest processes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

def test_passes():
    pass

@pytest.mark.skipif(True, reason="needs a browser")
def test_marked():
    pass

def test_finds_out():
    pytest.importorskip("a_package_that_nobody_has")

@pytest.mark.xfail(reason="known", strict=True)
def test_known_to_fail():
    assert False
"""
MODULE = "import pytest\npytest.importorskip('another_package_that_nobody_has')\n"


def run(folder, *options, **variables):
    """Run pytest in a folder and return its exit code, the counts of its last line, and its output."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    ours = ("CI", "PYTEST_", "MSCTR_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment |= {"PYTHONPATH": str(Path(__file__).parent)} | variables
    command = [sys.executable, "-m", "pytest", "-p", "skips", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    closing = done.stdout.strip().splitlines()[-1]
    return done.returncode, {what: int(count) for count, what in re.findall(r"(\d+) (\w+)", closing)}, done.stdout


@pytest.mark.parametrize("options", [[], ["-n", "2"]], ids=["one process", "two workers"])
def test_a_skip_that_is_not_expected_fails_in_ci(tmp_path, options):
    (tmp_path / "test_some.py").write_text(TESTS)
    code, counts, output = run(tmp_path, *options, CI="true", MSCTR_EXPECTED_SKIPS="something else\n")
    assert code == 1
    # pytest counts a failure before the test begins, as of a skip by a mark, as an error
    assert (counts["passed"], counts["xfailed"], counts["failed"], counts["error"]) == (1, 1, 1, 1)
    assert "skipped" not in counts
    assert "test_marked: Skipped: needs a browser" in output


@pytest.mark.parametrize("expected", ["needs a browser\na_package_that_nobody_has", "test_some.py::"])
def test_a_skip_whose_reason_or_name_is_expected_passes(tmp_path, expected):
    (tmp_path / "test_some.py").write_text(TESTS)
    code, counts, _ = run(tmp_path, CI="true", MSCTR_EXPECTED_SKIPS=expected)
    assert (code, counts["passed"], counts["skipped"]) == (0, 1, 2)


@pytest.mark.parametrize("options", [[], ["-n", "2"]], ids=["one process", "two workers"])
def test_a_whole_file_that_is_skipped_fails_in_ci(tmp_path, options):
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_whole.py").write_text(MODULE)
    code, _, output = run(tmp_path, *options, CI="true", MSCTR_EXPECTED_SKIPS="test_some.py")
    assert code != 0
    assert "another_package_that_nobody_has" in output


def test_outside_ci_tests_may_be_skipped(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_whole.py").write_text(MODULE)
    code, counts, _ = run(tmp_path)
    assert (code, counts["skipped"]) == (0, 3)
