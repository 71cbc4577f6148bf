"""An experiment runs what is missing, tells nothing before its end, and is judged from the records of its runs."""

import json
import os
from contextlib import suppress

import numpy as np
import pytest
import yaml
from conftest import ROOT
from layouts import write_image, write_labels
from simulated import confirmation

from experiments.evidence import bench, provenance
from experiments.evidence.bench import Options, plan_experiment, print_step_cost, run_experiment
from experiments.evidence.plan import read_experiment
from experiments.evidence.step_cost import StepCost
from msctr_hf import load_segmentation_dataset
from msctr_hf.errors import UsageError
from msctr_hf.training.interruption import Interrupted
from msctr_hf.training.run_folder import read_json, write_json

TINY = "--config quickstart --max_steps 4 --mixed_precision no"
CLASSES = ("road", "pole", "lamp")
MACHINE = {"processor": "a CPU", "torch": "2", "onednn": "3", "threads": 1}


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Pretend to be on one machine with committed code, which tests may change."""
    now = {"machine": MACHINE, "code": "0123456789abcdef"}
    monkeypatch.setattr(provenance, "describe_machine", lambda threads: now["machine"])
    monkeypatch.setattr(provenance, "hash_of_code", lambda: now["code"])
    monkeypatch.setattr(provenance, "refuse_uncommitted", lambda path: None)
    return now


def mean_iou(arm, seed):
    return 0.5 + 0.001 * seed + {"chosen": 0.02 + 0.001 * (seed % 3), "placebo": 0.01}.get(arm, 0)


class FakeRuns:
    """Runs that end at once, with files as those of real ones; after `until` runs, the sweep is interrupted."""

    def __init__(self, until=None, commit="f" * 40):
        self.until, self.commit, self.started = until, commit, []

    def __call__(self, runs, parallel, report, *, threads=None, may_start=None):
        for run in runs:
            if len(self.started) == self.until:
                raise Interrupted("stopped")
            if may_start is not None and not may_start(run, []):
                raise Interrupted("--time_left")
            self.started.append((run.arm, run.seed, run.fold))
            self.write(run)
            assert run.finished
            report(run, 0.5)

    def write(self, run):
        score = mean_iou(run.arm, run.seed)
        scores = {
            "mean_iou": score, "mean_accuracy": 0.6, "overall_accuracy": 0.7, "images": 3,
            "per_category_iou": {"road": score, "pole": score - 0.1, "lamp": None},
        }  # fmt: skip
        write_json(run.folder / "results.json", {"step": run.settings["max_steps"], **scores})
        outlines = {"mean_boundary_iou": 0.3, "per_category_boundary_iou": {"road": 0.3, "pole": 0.2, "lamp": None}}
        videos = {"day": {**scores, "images": 2}, "night": {**scores, "images": 1}}
        if run.scoring is not None:
            write_json(run.scores, {"split": "test", **scores, **outlines, "videos": videos})
        started = " ".join(["scripts/train.py" if run.control is None else "scripts/control.py placebo", *run.flags])
        about = {"device": "a CPU, 1 thread(s)", "mixed_precision": "no", "versions": {}, "git_commit": self.commit}
        write_json(run.folder / "run.json", {"command": started, "settings": run.settings, **about})
        (run.folder / "log.jsonl").write_text('{"step": 4, "images_per_second": 16, "used_mb": 100}\n')


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Write a confirmation of three arms with six seeds, and return what runs it and its folders."""
    arms = {
        "chosen": {"run": "ms"}, "ce_time": {"run": "ce", "equal_time": True},
        "placebo": {"like": "chosen", "control": "placebo", "seeds": 2},
    }  # fmt: skip
    confirmation(tmp_path, flags=TINY, arms=arms, secondary=[["chosen", "placebo"]], groups={"thin": ["pole", "lamp"]})
    results = tmp_path / "results"

    def start(runs=None, **changes):
        fake = runs or FakeRuns()
        monkeypatch.setattr(bench, "run_all", fake)
        options = Options(tmp_path / "runs", ("--report_to", "none"), results=results)
        with suppress(Interrupted):
            run_experiment(tmp_path / "simulated.yaml", options._replace(**changes))
        return fake.started

    start.folder = results / "simulated"
    return start


def test_every_run_leaves_a_record_and_the_verdict_comes_from_the_records(small, capsys):
    started = small()
    assert len(started) == 14
    record = read_json(small.folder / "runs/chosen_seed_3.json")
    assert (record["arm"], record["seed"], record["split"], record["control"]) == ("chosen", 3, "test", None)
    assert record["mean_iou"] == mean_iou("chosen", 3)
    assert record["step_cost"] == 8 / 16  # seconds: 8 images a step, 16 a second
    assert (record["commit"], record["code"], record["machine"]) == ("f" * 40, "0123456789abcdef", MACHINE)
    assert record["groups"] == {"thin": pytest.approx(mean_iou("chosen", 3) - 0.1)}
    assert record["videos"]["night"]["images"] == 1
    assert record["command"].startswith("python scripts/train.py --config quickstart")
    assert str(small.folder.parent.parent) not in json.dumps(record)
    assert "--max_steps 6" in read_json(small.folder / "runs/ce_time_seed_0.json")["command"]  # 4 times 1.5
    assert read_json(small.folder / "runs/placebo_seed_1.json")["command"].startswith(
        "python scripts/control.py placebo --config quickstart"
    )
    verdict = read_json(small.folder / "verdict.json")
    differences = [100 * (mean_iou("chosen", seed) - mean_iou("ce_time", seed)) for seed in range(6)]
    primary = verdict["primary"]
    assert (primary["arm"], primary["baseline"], primary["n"], primary["shown"]) == ("chosen", "ce_time", 6, True)
    assert primary["mean"] == pytest.approx(np.mean(differences))
    assert primary["low"] < primary["mean"] < primary["high"]
    assert primary["p_sign_flip"] == 2 / 2**6
    assert verdict["secondary"][0]["p_sign_flip"] is None
    report = (small.folder / "report.md").read_text()
    assert "| chosen - ce_time | 6 | +2.10 (" in report
    assert "| chosen | 4 | 6 | 52.35 ± " in report
    assert "| lamp | absent |" in report
    assert (small.folder / "differences.png").stat().st_size > 0
    assert "**chosen - ce_time: +2.10" in capsys.readouterr().out
    assert small() == []  # nothing is left
    (entry,) = json.loads((small.folder.parent / "ledger.json").read_text())
    assert (entry["experiment"], entry["networks"]) == ("simulated", 14)


def test_nothing_is_compared_before_the_end_and_another_machine_goes_on_from_the_records(small, capsys, tmp_path):
    first = small(FakeRuns(until=5))  # seed 0 whole, two of the three runs of seed 1
    told = capsys.readouterr().out
    assert "chosen, seed 0: 0.5 minutes" in told
    figures = [f"{100 * mean_iou(arm, seed):.2f}" for arm, seed, _ in first]
    assert not any(figure in told for figure in figures)
    assert "mIoU" not in told
    assert sorted(path.name for path in small.folder.iterdir()) == ["runs"]
    for path in (tmp_path / "runs").iterdir():
        path.rename(tmp_path / f"gone_{path.name}")  # only what is committed reaches another clone
    second = small()
    assert len(second) == 9
    assert not set(first) & set(second)
    assert read_json(small.folder / "verdict.json")["primary"]["n"] == 6


@pytest.mark.parametrize("change", [{"code": "fedcba9876543210"}, {"machine": {**MACHINE, "threads": 2}}])
def test_a_seed_that_was_begun_elsewhere_is_run_again_whole_in_another_folder(small, here, capsys, tmp_path, change):
    first = small(FakeRuns(until=5))
    here.update(change)
    second = small()
    assert "seed 1: 2 of 3 runs are of another machine or code" in capsys.readouterr().out
    assert [key for key in first if key in second] == [("chosen", 1, ""), ("ce_time", 1, "")]
    assert len(list((tmp_path / "runs").iterdir())) == 2
    of_seed = [read_json(path) for path in small.folder.glob("runs/*_seed_1.json")]
    assert len({record["code"] + str(record["machine"]) for record in of_seed}) == 1
    assert "on a CPU" in (small.folder / "report.md").read_text()


def test_the_records_of_a_seed_that_was_begun_elsewhere_stay_until_it_starts_here(small, here):
    small(FakeRuns(until=5))
    here["machine"] = {**MACHINE, "threads": 2}
    names = sorted(path.name for path in small.folder.glob("runs/*_seed_1.json"))
    assert len(names) == 2
    assert small(time_left=0.01) == []
    assert sorted(path.name for path in small.folder.glob("runs/*_seed_1.json")) == names
    small()
    assert len(list(small.folder.glob("runs/*_seed_1.json"))) == 3


def test_a_run_that_was_scored_before_the_sweep_was_killed_is_not_repeated(small, tmp_path):
    small(FakeRuns(until=2))
    record = small.folder / "runs/ce_time_seed_0.json"
    record.unlink()
    assert ("ce_time", 0, "") not in small()
    assert read_json(record)["minutes"] is None  # nobody measured them
    assert "| ce_time | 6 | 6 | " in (small.folder / "report.md").read_text()


def test_whoever_peeks_gets_a_figure_and_can_never_show_anything(small, capsys):
    small(FakeRuns(until=6))
    small(peek=True)
    assert "exploratory, after 6 of 14 runs" in capsys.readouterr().out
    small()
    verdict = read_json(small.folder / "verdict.json")
    assert verdict["exploratory"]
    assert not verdict["primary"]["shown"]
    assert "nothing is shown" in (small.folder / "report.md").read_text()


def test_looking_after_the_end_takes_nothing_away(small):
    small()
    small(peek=True)
    assert not (small.folder / "peeked.json").exists()
    assert read_json(small.folder / "verdict.json")["primary"]["shown"]


def test_an_arm_that_is_cut_for_time_keeps_its_records_and_the_report_says_so(small, tmp_path):
    small(FakeRuns(until=3))  # seed 0 whole
    path = tmp_path / "simulated.yaml"
    content = yaml.safe_load(path.read_text())
    content["arms"]["placebo"]["cut_to"] = 1
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    assert not any(arm == "placebo" for arm, _, _ in small())
    verdict = read_json(small.folder / "verdict.json")
    assert (verdict["primary"]["n"], verdict["secondary"][0]["n"]) == (6, 1)
    report = (small.folder / "report.md").read_text()
    assert "placebo, which was planned with 2 seeds, was run with 1." in report


def test_runs_that_were_made_cannot_be_cut(small, tmp_path):
    small(FakeRuns(until=6))  # seeds 0 and 1 whole
    path = tmp_path / "simulated.yaml"
    content = yaml.safe_load(path.read_text())
    content["arms"]["placebo"]["cut_to"] = 1
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(UsageError, match="placebo_seed_1.json is there, though placebo is cut to 1 seeds"):
        small()


def test_an_arm_that_is_clearly_worse_is_called_so(small, monkeypatch):
    monkeypatch.setitem(globals(), "mean_iou", lambda arm, seed: 0.5 + 0.001 * seed - 0.01 * (arm == "chosen"))
    small()
    primary = read_json(small.folder / "verdict.json")["primary"]
    assert (primary["worse"], primary["shown"]) == (True, False)
    report = (small.folder / "report.md").read_text()
    assert "**chosen - ce_time: -1.00 (-1.00 to -1.00), p = 0.0312, 6 seeds: no gain: chosen is worse.**" in report
    assert "| chosen - ce_time | 6 | -1.00 (-1.00 to -1.00) | 0.00 | 0.0312 | primary | no: worse |" in report


def test_groups_and_videos_are_compared_seed_by_seed_and_the_commits_of_all_seeds_are_named(small, here):
    small(FakeRuns(until=3))  # seed 0 whole
    here["code"] = "fedcba9876543210"
    small(FakeRuns(commit="e" * 40))
    report = (small.folder / "report.md").read_text()
    # means of all arms differ by 1.3 points: `placebo` has two of six seeds, in which `chosen` is 1.0 and 1.1 ahead
    for name in ("pole", "thin", "night"):
        (row,) = (line for line in report.splitlines() if line.startswith(f"| {name} | ") and line.count("|") == 5)
        assert row.endswith(("| +2.1 | +1.0 |", "| +2.1 | +1.1 |"))  # 1.05, rounded either way
    assert "one code: fffffff (seeds 0); eeeeeee (seeds 1, 2, 3, 4, 5)." in report


def test_a_group_or_a_video_with_the_name_of_another_score_has_a_row_and_a_column_of_its_own(small, tmp_path):
    arms = {name: {"run": "ce"} for name in ("chosen", "ce_time")}
    confirmation(tmp_path, flags=TINY, arms=arms, groups={"pole": ["road"], "night": ["pole"], "mIoU": ["pole"]})
    small()
    scores, classes = (small.folder / "report.md").read_text().split("| IoU |")
    columns = ["mIoU", "pole", "night", "mIoU", "boundary IoU", "day", "night"]
    assert f"| seeds | {' | '.join(columns)} | s / step |" in scores
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in classes.splitlines()[2:11]]
    assert rows == [
        ["road", "50.2"], ["pole", "40.2"], ["lamp", "absent"],
        ["pole", "50.2"], ["night", "40.2"], ["mIoU", "40.2"],
        ["boundary IoU", "30.0"], ["day", "50.2"], ["night", "50.2"],
    ]  # fmt: skip


def test_an_experiment_is_judged_where_git_does_not_read_the_clone(small):
    small(FakeRuns(commit=None))
    assert "one code: a commit unknown to git (seeds 0, 1, 2, 3, 4, 5)." in (small.folder / "report.md").read_text()


def test_a_change_of_the_code_ends_an_experiment_that_is_running(small, here):
    class Changing(FakeRuns):
        def write(self, run):
            super().write(run)
            here["code"] = "fedcba9876543210"

    with pytest.raises(UsageError, match="the code changed since this start"):
        small(Changing())
    assert len(list(small.folder.glob("runs/*.json"))) == 1


@pytest.mark.parametrize(
    "changes",
    [{"seeds": list(range(8))}, {"step_cost": 2.0}, {"flags": f"{TINY} --crop_size 64 64"}],
)
def test_runs_of_another_version_of_the_file_are_not_pooled(small, tmp_path, changes):
    small()
    path = tmp_path / "simulated.yaml"
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(content | changes, sort_keys=False))
    with pytest.raises(UsageError, match=r"seed_0.json was made when .* fixed other seeds, flags or steps"):
        small()
    # what was cut for time leaves the other arms as they are
    fewer = {name: arm for name, arm in content["arms"].items() if name != "placebo"}
    path.write_text(yaml.safe_dump(content | {"arms": fewer, "secondary": []}, sort_keys=False))
    assert small() == []


def test_below_six_seeds_no_p_value_is_printed(small, tmp_path, capsys):
    path = tmp_path / "simulated.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"seeds": [0, 1, 2]}, sort_keys=False))
    small()
    told = capsys.readouterr().out
    assert "p =" not in told
    assert "), 3 seeds: not shown.**" in told


def test_peeking_without_two_pairs_is_refused_and_marks_nothing(small):
    small(FakeRuns(until=2))
    with pytest.raises(UsageError, match="needs two seeds"):
        small(peek=True)
    assert not (small.folder / "peeked.json").exists()


def test_a_seed_starts_only_if_its_runs_fit_into_the_time_left(small):
    # a run of 4 steps takes at most 1 minute and one of 6 steps 1.5: seed 0 needs 3.5 minutes, one run at a time
    assert small(time_left=3.4) == []
    assert [seed for _, seed, _ in small(time_left=3.6)][:3] == [0, 0, 0]


@pytest.mark.parametrize("flags, message", [
    (("--learning_rate", "1"), "--learning_rate is not accepted, since the file of an experiment fixes it"),
    (("--seed=3",), "--seed=3 is not accepted"),
])  # fmt: skip
def test_only_flags_about_the_machine_are_accepted(small, flags, message):
    with pytest.raises(UsageError, match=message):
        small(flags=flags)


def test_bf16_is_refused_where_it_is_emulated(small, tmp_path, monkeypatch):
    confirmation(tmp_path, flags=TINY.replace("no", "bf16"))
    monkeypatch.setattr(bench, "has_bf16", lambda device: False)
    with pytest.raises(UsageError, match="fixed to bf16, which this machine only emulates"):
        small()


def test_the_cost_of_a_step_is_printed_as_a_line_of_the_file(tmp_path, monkeypatch, capsys):
    arms = {"chosen": {"run": "ms_cs"}, "ce_time": {"run": "ce", "equal_time": True}}
    confirmation(tmp_path, flags=TINY, arms=arms, step_cost=None)
    asked = []
    monkeypatch.setattr(bench, "measure_step_cost", lambda *given: asked.append(given) or StepCost(0.3, 0.2, 1.5))
    print_step_cost(tmp_path / "simulated.yaml", Options(tmp_path, ()))
    assert yaml.safe_load(capsys.readouterr().out) == {"step_cost": 1.5}
    (arm, baseline, threads) = asked[0]
    assert (arm[-1], baseline[-1], threads) == ("ms_cs", "ce", 1)


def test_the_steps_of_arms_in_the_time_of_the_first_are_printed_as_lines_of_the_file(tmp_path, monkeypatch, capsys):
    arms = {
        "ce_time": {"run": "ce"}, "chosen": {"run": "ms --unlabeled rest", "steps": None},
        "late": {"run": "ms --unlabeled rest --unlabeled_start_step 40", "steps": None},
    }  # fmt: skip
    same = {"step_cost": None, "secondary": [["late", "ce_time"]]}
    confirmation(tmp_path, arms=arms, flags=f"{TINY} --train_images 9".replace("4", "100"), **same)
    asked = []

    def measured(arm, baseline, threads):
        asked.append((arm, baseline))
        return StepCost(0.3, 0.1, 3.0 if arm[-2:] == ["--unlabeled_start_step", "0"] else 1.2)

    monkeypatch.setattr(bench, "measure_step_cost", measured)
    with pytest.raises(UsageError, match="needs --model_name_or_path, .*: the teacher of chosen would be sure"):
        print_step_cost(tmp_path / "simulated.yaml", Options(tmp_path, ()))
    trained = ("--model_name_or_path", "trained")
    print_step_cost(tmp_path / "simulated.yaml", Options(tmp_path, trained))
    assert yaml.safe_load(capsys.readouterr().out) == {
        "chosen": {"steps": 33}, "late": {"steps": 40 + (100 - 48) // 3},
    }  # fmt: skip
    assert all(baseline[-2:] == ["--contrastive_mode", "ce"] for _, baseline in asked)
    assert all("trained" in flags for both in asked for flags in both)
    confirmation(tmp_path, flags=TINY, arms={**arms, "late": {"run": None}}, **same)
    with pytest.raises(UsageError, match="the arm late has no `run:` yet"):
        print_step_cost(tmp_path / "simulated.yaml", Options(tmp_path, ()))
    confirmation(tmp_path, flags=TINY, arms=dict(reversed(arms.items())), **same)
    with pytest.raises(UsageError, match="the first arm, late, must have the steps of `flags:`"):
        print_step_cost(tmp_path / "simulated.yaml", Options(tmp_path, ()))


@pytest.fixture
def selection(tmp_path):
    """Write a data set like CamVid with a test split, lists of two folds, and a selection."""
    data = tmp_path / "camvid"
    for split, video in (("train", "a"), ("train", "b"), ("val", "b"), ("test", "c")):
        for number in range(2):
            name = f"{video}_{split}_{number}"
            write_image(data / split / "images" / f"{name}.png", (12, 16), seed=number)
            write_labels(data / split / "labels" / f"{name}.png", np.resize(np.arange(12, dtype=np.uint8), (12, 16)))
    names = {"a": "a_train_0\na_train_1\n", "b": "b_train_0\nb_train_1\nb_val_0\nb_val_1\n"}
    for video, of in names.items():
        (tmp_path / f"{video}.txt").write_text(of)
    content = {
        "purpose": "selection", "flags": f"{TINY} --dataset camvid --class_weights null", "seeds": [0, 1],
        "minutes": 1, "threads": 1, "arms": {"chosen": {"run": "ms"}, "ce": {"run": "ce"}},
        "families": {"contrast": ["chosen"], "ce": ["ce"]},
        "folds": {"without_b": {"train": "a.txt", "validation": "b.txt"},
                  "without_a": {"train": "b.txt", "validation": "a.txt"}},
    }  # fmt: skip
    path = tmp_path / "selection.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path, data


def test_a_selection_cannot_see_the_test_split(selection, tmp_path):
    path, data = selection
    runs = plan_experiment(read_experiment(path), tmp_path / "runs", ("--data_dir", str(data)))
    assert len(runs) == 8
    folders = {run.settings["data_dir"] for run in runs}
    assert {run.settings["dataset"] for run in runs} == {"folder"}
    assert all(run.scoring is None for run in runs)
    assert not any(str(data) in run.flags for run in runs)
    for folder in folders:
        reached = {os.path.realpath(os.path.join(top, name)) for top, _, files in os.walk(folder) for name in files}
        assert len([name for name in reached if name.endswith(".png")]) == 12  # of training and validation
        assert not any(name.startswith(str(data / "test")) for name in reached)
        with pytest.raises(UsageError, match="not 'test'"):
            load_segmentation_dataset("folder", "test", folder)
    of_fold = {run.fold: run.settings["data_dir"] for run in runs}
    left_out = load_segmentation_dataset("folder", "validation", of_fold["without_b"])
    assert {row["image_id"] for row in left_out} == {"b_train_0", "b_train_1", "b_val_0", "b_val_1"}
    original = load_segmentation_dataset("camvid", "validation", data)
    linked = next(row for row in left_out if row["image_id"] == original[0]["image_id"])
    assert np.array_equal(linked["label"], original[0]["label"])


def test_folds_follow_a_data_set_that_was_moved(selection, tmp_path):
    path, data = selection
    plan_experiment(read_experiment(path), tmp_path / "runs", ("--data_dir", str(data)))
    moved = data.rename(tmp_path / "moved")
    runs = plan_experiment(read_experiment(path), tmp_path / "runs", ("--data_dir", str(moved)))
    assert len(load_segmentation_dataset("folder", "train", runs[0].settings["data_dir"])[0]) == 3


def test_a_selection_chooses_the_arm_with_the_highest_mean_of_each_family(selection, tmp_path, monkeypatch, capsys):
    path, data = selection
    monkeypatch.setattr(bench, "run_all", FakeRuns())
    run_experiment(path, Options(tmp_path / "runs", ("--data_dir", str(data)), results=tmp_path / "results"))
    choice = read_json(tmp_path / "results/selection/choice.json")
    assert choice["chosen"] == {"contrast": "chosen", "ce": "ce"}
    assert choice["mean_iou"]["chosen"] == pytest.approx(np.mean([mean_iou("chosen", seed) for seed in (0, 1)]))
    assert not (tmp_path / "results/ledger.json").exists()
    assert "chosen, without_b, seed 0: mIoU 52.00 %" in capsys.readouterr().out
    assert read_json(tmp_path / "results/selection/runs/ce_without_a_seed_1.json")["split"] == "validation"


def test_a_selection_may_choose_the_first_arm_at_rest(selection, tmp_path, monkeypatch, capsys):
    path, data = selection
    content = yaml.safe_load(path.read_text())
    names = ["one", "two", "four", "eight", "sixteen"]
    arms = {name: {"run": "ce", "steps": number} for number, name in enumerate(names, 1)}
    families = {"ce": names, "shorter": names[:3], "rising": names[:4]}
    content |= {"arms": arms, "families": families, "at_rest": 0.5}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    scores = {"one": 0.5, "two": 0.51, "four": 0.514, "eight": 0.53, "sixteen": 0.532}
    monkeypatch.setitem(globals(), "mean_iou", lambda arm, seed: scores[arm] + 0.01 * seed)
    monkeypatch.setattr(bench, "run_all", FakeRuns())
    run_experiment(path, Options(tmp_path / "runs", ("--data_dir", str(data)), results=tmp_path / "results"))
    choice = read_json(tmp_path / "results/selection/choice.json")
    assert choice["chosen"] == {"ce": "sixteen", "shorter": "four", "rising": None}
    assert "from which on none is more than 0.5 points above the one before it" in capsys.readouterr().out
    assert read_json(tmp_path / "results/selection/runs/four_without_a_seed_1.json")["max_steps"] == 3


def test_a_name_in_a_list_that_is_not_an_image_is_refused(selection, tmp_path):
    path, data = selection
    (tmp_path / "a.txt").write_text("c_test_0\n")
    with pytest.raises(UsageError, match="names c_test_0, which is not an image of camvid train.validation"):
        plan_experiment(read_experiment(path), tmp_path / "runs", ("--data_dir", str(data)))


def test_a_confirmation_whose_file_is_not_committed_does_not_start(small, tmp_path, monkeypatch):
    monkeypatch.undo()
    answers = {"status": "", "ls-files": "simulated.yaml"}
    monkeypatch.setattr(provenance, "_git", lambda command, *arguments: answers[command])
    with pytest.raises(UsageError, match="simulated.yaml is not committed in"):  # elsewhere
        small()
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    provenance.refuse_uncommitted(tmp_path / "simulated.yaml")
    for answer in ({"ls-files": ""}, {"status": " M simulated.yaml"}):
        answers.update({"status": "", "ls-files": "simulated.yaml", **answer})
        with pytest.raises(UsageError, match="commit it before the first run"):
            small()
    assert not small.folder.exists()


def test_the_code_of_a_run_is_a_hash_of_what_is_committed(monkeypatch):
    monkeypatch.undo()
    answers = {"status": "", "rev-parse": "a\nb\nc\nd"}
    monkeypatch.setattr(provenance, "_git", lambda command, *arguments: answers[command])
    monkeypatch.setattr(provenance.msctr_hf, "__file__", str(ROOT / "msctr_hf/__init__.py"))
    first = provenance.hash_of_code()
    answers["rev-parse"] = "a\nb\nc\ne"
    assert provenance.hash_of_code() != first
    answers["status"] = "M experiments/sweep.py"
    with pytest.raises(UsageError, match="experiments/sweep.py has local changes"):
        provenance.hash_of_code()
    monkeypatch.setattr(provenance.msctr_hf, "__file__", "/elsewhere/msctr_hf/__init__.py")
    with pytest.raises(UsageError, match="imported from /elsewhere/msctr_hf, not from this clone"):
        provenance.hash_of_code()


def test_the_machine_of_a_run_names_what_rounding_depends_on(monkeypatch):
    monkeypatch.undo()
    machine = provenance.describe_machine(2)
    assert set(machine) == {"processor", "torch", "onednn", "threads"}
    assert machine["threads"] == 2
    assert provenance.folder_name(machine, "0" * 16) != provenance.folder_name({**machine, "threads": 1}, "0" * 16)


def test_the_ledger_begins_with_the_pilots():
    ledger = json.loads((ROOT / "results/ledger.json").read_text())
    assert [entry["experiment"] for entry in ledger[:2]] == ["pilot", "pilot_unlabeled"]
