import json

import pytest
from scipy.stats import ttest_1samp

from experiments.embeddings.planted_errors import KINDS
from experiments.embeddings.tables import RULES, clicks_table, planted_table, read


def planted(arm, seed, precision):
    rules = {rule: {"precision_at_50": precision, "recall": precision / 2} for rule in RULES}
    return {
        **{"arm": arm, "seed": seed, "rules": rules, "machine": "one", "code": "a"},
        **{"errors": dict.fromkeys(KINDS, 10), "found_by_kind": dict(zip(KINDS, (4, 1, 3), strict=True))},
    }


def write(folder, records):
    for record in records:
        (folder / f"{record['arm']}_seed_{record['seed']}.json").write_text(json.dumps(record))
    return folder


def test_planted_errors_are_shown_as_means_with_every_seed_and_by_kind(tmp_path):
    records = [planted("ce", 0, 0.2), planted("ce", 1, 0.4), planted("ms_cs", 0, 0.5), planted("ms_cs", 1, 0.6)]
    lines = planted_table(read(write(tmp_path, records))).splitlines()
    assert "| ce | `msctr check-labels` | 30.0 % (20.0, 40.0) | 15.0 % (10.0, 20.0) |" in lines
    assert "| ms_cs | 1 - probability of the label | 55.0 % (50.0, 60.0) | 27.5 % (25.0, 30.0) |" in lines
    assert lines[-1] == "| ms_cs | 8 of 20 | 2 of 20 | 6 of 20 |"


def clicked(arm, seed, first, second):
    """Clicks that choose the second of three thresholds."""
    features = {
        "tuning_mean_iou": [0.1, 0.3, 0.2] if seed else [0.2, 0.3, 0.39],
        "iou": {"sky": [0, first, 1], "road": [0, second, 1]},
        "background": {"sky": [1, 0.1, 0], "road": [1, 0.3, 0]},
    }
    names = ["decode_head", *(["projection"] if arm == "ms_cs" else [])]
    return {
        **{"arm": arm, "seed": seed, "thresholds": [0.5, 0.6, 0.7], "features": dict.fromkeys(names, features)},
        **{"machine": "one", "code": "a"},
    }


def test_clicks_are_scored_at_one_threshold_of_all_seeds_with_the_interval_of_the_difference(tmp_path):
    scores = {"ce": [(0.2, 0.4), (0.3, 0.3), (0.1, 0.5)], "ms_cs": [(0.4, 0.6), (0.4, 0.4), (0.1, 0.7)]}
    records = [clicked(arm, seed, *scores) for arm, by_seed in scores.items() for seed, scores in enumerate(by_seed)]
    lines = clicks_table(read(write(tmp_path, records))).splitlines()
    assert "| threshold | 0.60 | 0.60 | 0.60 |" in lines
    assert "| background reported | 20.0 % ± 0.0 | 20.0 % ± 0.0 | 20.0 % ± 0.0 |" in lines
    assert "| sky | 20.0 % | 30.0 % | 30.0 % |" in lines
    interval = ttest_1samp([20, 10, 10], 0).confidence_interval()
    assert lines[-1] == (
        "Mean IoU of ms_cs less that of ce, decode head, 3 seeds: +13.3 points, 95 % interval "
        f"{interval.low:+.1f} to {interval.high:+.1f} (by seed: +20.0, +10.0, +10.0)."
    )


@pytest.mark.parametrize("other, reason", [({"seed": 1}, "different seeds"), ({"code": "b"}, "different machines")])
def test_runs_that_are_not_paired_are_refused(tmp_path, other, reason):
    write(tmp_path, [planted("ce", 0, 0.2), {**planted("ms_cs", 0, 0.2), **other}])
    with pytest.raises(ValueError, match=reason):
        read(tmp_path)
