"""A file fixes an experiment before its first run, or is refused in one sentence."""

import math
from itertools import pairwise

import pytest
import yaml
from conftest import ROOT
from simulated import FLAGS, confirmation

from experiments.evidence.plan import read_experiment
from msctr_hf.commands.train import command_line
from msctr_hf.training.settings import refuse_without_images

PLANS = sorted((ROOT / "experiments/plans").glob("*.yaml"))
SELECTION = {
    "purpose": "selection", "flags": FLAGS, "seeds": [0, 1], "minutes": 1, "threads": 1,
    "arms": {"a": {"run": "ms"}, "b": {"run": "ce"}}, "families": {"contrast": ["a"], "ce": ["b"]},
    "folds": {"first": {"train": "one.txt", "validation": "two.txt"}},
}  # fmt: skip


def test_arms_have_their_own_steps_seeds_and_controls(tmp_path):
    arms = {
        "chosen": {"run": "ms_cs --contrastive_loss_weight 0.03"},
        "ce_time": {"run": "ce", "equal_time": True},
        "placebo": {"like": "chosen", "control": "placebo", "seeds": 2},
    }
    experiment = confirmation(tmp_path, seeds=[5, 4, 9], secondary=[["chosen", "placebo"]], arms=arms, step_cost=1.1)
    assert {name: arm.steps for name, arm in experiment.arms.items()} == {
        "chosen": 4, "ce_time": math.ceil(4 * 1.1), "placebo": 4,
    }  # fmt: skip
    placebo = experiment.arms["placebo"]
    assert placebo.flags == experiment.arms["chosen"].flags
    assert (placebo.control, placebo.seeds) == ("placebo", (5, 4))
    assert experiment.runs()[:4] == [("chosen", 5, ""), ("ce_time", 5, ""), ("placebo", 5, ""), ("chosen", 4, "")]
    assert experiment.runs()[-1] == ("ce_time", 9, "")


def test_an_arm_that_was_cut_keeps_the_records_it_has_and_is_run_with_fewer_seeds(tmp_path):
    arms = {"chosen": {"run": "ms"}, "ce_time": {"run": "ce"}, "same": {"like": "ce_time", "seeds": 4}}
    given = {"seeds": [5, 4, 9, 1, 2], "calibration": [["same", "ce_time"]]}
    whole = confirmation(tmp_path, arms=arms, **given)
    arms["same"] = {**arms["same"], "cut_to": 2}
    cut = confirmation(tmp_path, arms=arms, **given)
    assert [seed for arm, seed, _ in cut.runs() if arm == "same"] == [5, 4]
    assert set(whole.runs()) - set(cut.runs()) == {("same", 9, ""), ("same", 1, "")}
    assert [cut.fingerprint(arm) for arm in arms] == [whole.fingerprint(arm) for arm in arms]
    arms["same"] = {"like": "ce_time", "seeds": 2}
    assert confirmation(tmp_path, arms=arms, **given).fingerprint("same") != whole.fingerprint("same")


def test_what_is_not_chosen_or_measured_yet_is_named(tmp_path):
    arms = {"chosen": {"run": None}, "ce_time": {"run": "ce", "equal_time": True}}
    with pytest.raises(ValueError, match="the arm chosen has no `run:` yet"):
        confirmation(tmp_path, arms=arms).check_is_complete()
    arms["chosen"] = {"run": "ms"}
    with pytest.raises(ValueError, match="the steps of the arm ce_time are not measured yet"):
        confirmation(tmp_path, arms=arms, step_cost=None).check_is_complete()
    arms = {"chosen": {"run": "ms", "steps": None}, "ce_time": {"run": "ce"}}
    with pytest.raises(ValueError, match="the steps of the arm chosen are not measured yet"):
        confirmation(tmp_path, arms=arms, step_cost=None).check_is_complete()


def test_arms_may_have_steps_of_their_own_and_be_compared_with_nothing(tmp_path):
    arms = {"ce_time": {"run": "ce"}, "chosen": {"run": "ms", "steps": 3}, "other": {"run": "ms_cs", "steps": 2}}
    experiment = confirmation(tmp_path, arms=arms, reported=["other"])
    assert {name: arm.steps for name, arm in experiment.arms.items()} == {"ce_time": 4, "chosen": 3, "other": 2}
    assert experiment.comparisons == [("chosen", "ce_time")]
    with pytest.raises(ValueError, match=r"the arms \['other'\] are compared with nothing"):
        confirmation(tmp_path, arms=arms)


@pytest.mark.parametrize("changes, message", [
    ({"purpose": "proof"}, "`purpose:` must be one of confirmation, selection, got 'proof'"),
    ({"families": {}}, r"a confirmation has no \['families'\]"),
    ({"minutes": None, "speed": 3}, r"a confirmation has no \['speed'\]"),
    ({"seeds": [1, 1]}, "`seeds:` must list 1 to 24 different numbers"),
    ({"seeds": list(range(25))}, "`seeds:` must list 1 to 24"),
    ({"flags": "--max_steps 4"}, "must give --mixed_precision"),
    ({"flags": "--mixed_precision no"}, "must give --max_steps"),
    ({"flags": "--max_steps 4 --mixed_precision auto"}, "bf16 or no"),
    ({"primary": ["chosen"]}, r"a comparison must be \[arm, baseline\], got \['chosen'\]"),
    ({"secondary": ["chosen"]}, r"a comparison must be \[arm, baseline\], got 'chosen'"),
    ({"step_cost": "1.1 times"}, "`step_cost:` must be a number or null"),
    ({"minutes": None}, "`minutes:` must be a number, got None"),
    ({"flags": ["--max_steps"]}, r"`flags:` must be text, got \['--max_steps'\]"),
    ({"arms": {"chosen": {"like": "ce_time"}, "ce_time": {"like": "chosen"}}}, "which is not an arm with `run:`"),
    ({"primary": ["chosen", "nobody"]}, "are compared, but are not among the arms"),
    ({"primary": ["chosen", "chosen"]}, "are compared with nothing"),
    ({"arms": {"chosen": {"run": "ms"}, "ce_time": {"run": "ce", "seeds": 9}}}, "with 9 seeds, but there are 6"),
    ({"arms": {"chosen": {"run": "ms"}, "ce_time": {}}}, "must have either `run:` or `like:`"),
    ({"arms": {"chosen": {"run": "ms"}, "ce_time": {"run": "ce", "control": "x"}}}, "`control:` is one of"),
    ({"arms": {"chosen": {"run": "contrast"}, "ce_time": {"run": "ce"}}}, "must be a mode"),
    ({"arms": {"chosen": {"run": "ms", "steps": 2.5}, "ce_time": {"run": "ce"}}}, "whole number or null.* got 2.5"),
    ({"arms": {"chosen": {"run": "ms", "steps": 2, "equal_time": True}, "ce_time": {}}}, "excludes `equal_time:`"),
    ({"reported": ["nobody"]}, "are compared, but are not among the arms"),
    ({"arms": {"chosen": {"run": "ms"}, "ce_time": {"run": "ce", "seeds": 3, "cut_to": 4}}}, "was planned with 3"),
    ({"arms": {"chosen": {"run": "ms", "cut_to": 2}, "ce_time": {"run": "ce"}}}, r"\['chosen'\] decide the result"),
])  # fmt: skip
def test_faulty_files_are_refused_in_one_sentence(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        confirmation(tmp_path, **changes)


@pytest.mark.parametrize("changes, message", [
    ({"split": "test"}, r"a selection has no \['split'\]"),
    ({"flags": f"{FLAGS} --train_split train+test"}, "a selection never loads the test split"),
    ({"flags": f"{FLAGS} --train_split test"}, "a selection never loads the test split"),
    ({"flags": f"{FLAGS} --train_split=test"}, "remove '--train_split=test' from the flags"),
    ({"arms": {"a": {"run": "ms"}, "b": {"run": "ce --train_split train+test"}}}, "never loads the test split"),
    ({"folds": {}}, "a selection leaves videos out, so `folds:` must name at least one"),
])  # fmt: skip
def test_a_selection_cannot_name_the_test_split_or_judge_on_the_validation_split(tmp_path, changes, message):
    path = tmp_path / "selection.yaml"
    path.write_text(yaml.safe_dump(SELECTION | changes))
    with pytest.raises(ValueError, match=message):
        read_experiment(path)


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_the_settings_of_arms_do_not_contradict_each_other(path):
    experiment = read_experiment(path)
    for arm in experiment.arms.values():
        _, data, training, _, network = command_line().parse(
            [*experiment.flags, *(arm.flags or ()), "--data_dir", "d"]
        )
        if data.unlabeled is None:
            refuse_without_images(data, training, network)
        else:
            assert data.train_images is not None  # of which the rest is unlabeled
            assert training.unlabeled_start_step < experiment.steps


def test_the_teachers_of_the_experiment_with_unlabeled_images_have_what_was_announced():
    selection = read_experiment(ROOT / "experiments/plans/camvid_46_unlabeled_selection.yaml")
    parsed = {name: command_line().parse([*selection.flags, *arm.flags]) for name, arm in selection.arms.items()}
    assert all(training.ema for _, _, training, _, _ in parsed.values())  # the average of every arm is scored
    teachers = {name: (data, training) for name, (_, data, training, _, _) in parsed.items() if data.unlabeled}
    assert list(teachers) == selection.families["teacher"]
    assert len(teachers) == 4
    assert all(training.unlabeled_start_step > 0 for _, training in teachers.values())
    assert any(training.pseudo_label_class_share for _, training in teachers.values())
    assert any(data.unlabeled_strength < 1 for data, _ in teachers.values())
    budget = read_experiment(ROOT / "experiments/plans/camvid_46_unlabeled_budget.yaml")
    steps = [budget.arms[name].steps for name in budget.families["ce"]]
    assert all(after == 2 * before for before, after in pairwise(steps))


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_the_files_of_this_repository_can_be_read_and_their_flags_exist(path):
    experiment = read_experiment(path)
    known = set(command_line()._option_string_actions)
    for arm in experiment.arms.values():
        flags = {word for word in (*experiment.flags, *(arm.flags or ())) if word.startswith("--")}
        assert flags <= known
    for fold in experiment.folds.values():
        names = [set(file.read_text().split()) for file in fold]
        assert not names[0] & names[1]
