"""Messages of libraries that a user can do nothing about stay out of the output; all others remain."""

import logging
import os
import sys
import warnings

import datasets
import pytest

from msctr_hf.commands.quiet import quiet_libraries
from msctr_hf.errors import warn_caller


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    http = logging.getLogger("huggingface_hub.utils._http")
    filters = list(http.filters)
    with warnings.catch_warnings():
        yield
    http.filters[:] = filters
    datasets.enable_progress_bars()


@pytest.mark.parametrize("in_terminal", [False, True])
def test_bars_of_datasets_are_shown_in_a_terminal_only(monkeypatch, in_terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: in_terminal)
    datasets.enable_progress_bars()
    quiet_libraries()
    assert datasets.are_progress_bars_disabled() is not in_terminal


def test_an_unreachable_hub_is_reported_once_and_other_messages_remain():
    quiet_libraries()
    http, messages = logging.getLogger("huggingface_hub.utils._http"), []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    http.addHandler(handler)
    for attempt in (1, 2):
        http.warning("'[Errno -2] Name or service not known' thrown while requesting HEAD https://hub/x")
        http.warning("Retrying in %ss [Retry %d/5].", 2, attempt)
    http.warning("HTTP Error 503 thrown while requesting GET https://hub/x")
    http.removeHandler(handler)
    assert messages == [
        "The Hub does not answer; retrying.",
        "HTTP Error 503 thrown while requesting GET https://hub/x",
    ]


def test_only_the_named_warning_of_the_named_module_is_hidden():
    quiet_libraries()
    text = "`treespec.children_specs` is deprecated. Use `treespec.child(index)`"

    def shown(message, category, module):
        with warnings.catch_warnings(record=True) as caught:
            warnings.warn_explicit(message, category, "file.py", 1, module=module)
        return bool(caught)

    assert not shown(text, FutureWarning, "transformers.exporters.runners.runner_dynamo")
    assert shown(text, FutureWarning, "a.module.of.the.user")
    assert shown("another name is deprecated", FutureWarning, "transformers.exporters.runners.runner_dynamo")


@pytest.mark.parametrize(("rank", "expected"), [("0", ["warning: 1 file is not used.\n"]), ("1", [])])
def test_a_warning_about_the_input_is_one_line_of_one_process(monkeypatch, rank, expected):
    monkeypatch.setitem(os.environ, "RANK", rank)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_libraries()
        warn_caller("1 file is not used.")
    lines = [warnings.formatwarning(each.message, each.category, each.filename, each.lineno) for each in caught]
    assert lines == expected
