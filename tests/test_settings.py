"""Settings are checked when they are created, and their fields hold their descriptions."""

import math
import os
from dataclasses import dataclass
from typing import Literal

import pytest

from msctr_hf.data.settings import DataSettings, PreparationSettings
from msctr_hf.errors import UsageError
from msctr_hf.settings import Settings, as_mapping, changed, default_workers, defaults, setting, setting_infos
from msctr_hf.training.settings import TrainingSettings, purpose, purposes


@dataclass
class Example(Settings):
    count: int = setting(3, help="How many.", at_least=1)
    share: float | None = setting(None, at_least=0, below=1)
    pair: list[float] = setting([0.5, 2.0], length=2, above=0, ascending=True)
    kind: Literal["a", "b"] | None = setting(None)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"count": 0}, "`count` must be at least 1, got 0."),
        ({"share": 1.0}, r"`share` must be in \[0, 1\), got 1.0."),
        ({"share": math.nan}, r"`share` must be in \[0, 1\) and finite, got nan."),
        ({"pair": [1.0]}, r"`pair` needs 2 values, each above 0, got \[1.0\]."),
        ({"pair": [0.0, 1.0]}, r"`pair` needs 2 values, each above 0, got \[0.0, 1.0\]."),
        ({"pair": [2.0, 1.0]}, "`pair` must be in ascending order"),
        ({"kind": "c"}, "`kind` must be one of 'a', 'b', got 'c'."),
    ],
)
def test_a_value_out_of_range_is_named_with_its_range(values, sentence):
    with pytest.raises(UsageError, match=sentence):
        Example(**values)


def test_values_in_range_and_none_are_accepted():
    assert as_mapping(Example(share=0.0, kind="b")) == {"count": 3, "share": 0.0, "pair": [0.5, 2.0], "kind": "b"}
    Example().pair.append(1.0)
    assert Example().pair == [0.5, 2.0]  # instances do not share a default list


def test_a_field_carries_its_help_text():
    assert setting_infos(Example)["count"].help == "How many."


def test_changed_settings_are_listed_by_name():
    assert changed({"a": 1, "b": 2, "c": None}, {"b": 3, "a": 1, "d": 4}) == ["b", "d"]


def test_every_setting_of_a_run_has_a_help_text_and_a_purpose():
    assert all(about.help for about in purposes().values())
    started = {name for name, info in purposes().items() if info.launch_only}
    assert started == {"resume", "overwrite_output_dir", "dry_run"}
    assert purpose("contrastive_temperature").on_resume == "refused"
    assert {name for name, info in setting_infos(TrainingSettings).items() if info.on_resume == "batch"} == {
        "batch_size",
        "gradient_accumulation_steps",
        "unlabeled_batch_size",
    }


def test_there_are_no_more_workers_by_default_than_cores_that_this_process_may_use(monkeypatch):
    assert defaults(DataSettings)["num_workers"] == default_workers(4)
    assert defaults(PreparationSettings)["num_workers"] == default_workers(2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 5}, raising=False)
    assert [default_workers(most) for most in (1, 2, 4)] == [1, 2, 2]
