"""Every arm is run once with every seed, and runs of one seed differ in the flags of their arm only."""

import json

import pytest
from conftest import ROOT

from experiments.sweep import DEFAULT_ARMS, Arm, plan_runs

FLAGS = ["--config", str(ROOT / "configs/quickstart.yaml"), "--max_steps", "7"]


def plan(folder, arms=("ce", "ms"), seeds=(3, 5), flags=FLAGS):
    return plan_runs([Arm.parse(arm) for arm in arms], seeds, folder, flags)


def finish(run, **changes):
    run.folder.mkdir(parents=True)
    settings = {**run.settings, **changes}
    (run.folder / "run.json").write_text(json.dumps({"settings": settings}))
    (run.folder / "results.json").write_text(json.dumps({"step": settings["max_steps"]}))


@pytest.mark.parametrize("text, name, mode, further", [
    ("ms", "ms", "ms", []),
    ("cold: ms_cs --contrastive_temperature 0.05", "cold", "ms_cs", ["--contrastive_temperature", "0.05"]),
    ("wide: ce --class_weights '[1, 2]'", "wide", "ce", ["--class_weights", "[1, 2]"]),
])  # fmt: skip
def test_an_arm_is_parsed_into_a_mode_and_flags(text, name, mode, further):
    arm = Arm.parse(text)
    assert arm.name == name
    assert list(arm.flags) == ["--contrastive_mode", mode, *further]


@pytest.mark.parametrize(
    "text", ["", "cs", "ms_cs --contrastive_temperature 0.05", "a/b: ms", "..: ms", ": ms", "--seed 3"]
)
def test_an_arm_without_a_mode_or_a_valid_name_is_refused(text):
    with pytest.raises(ValueError, match="--arms: .* must be a mode"):
        Arm.parse(text)


def test_runs_of_one_seed_differ_in_the_flags_of_their_arm_only(tmp_path):
    runs = plan(tmp_path, DEFAULT_ARMS)
    may_differ = {"output_dir", "contrastive_mode", "contrastive_sampling", "contrastive_max_anchors"}
    for seed in (3, 5):
        settings = [run.settings for run in runs if run.seed == seed]
        assert len({each["contrastive_mode"] for each in settings}) == 3
        same = [{name: value for name, value in each.items() if name not in may_differ} for each in settings]
        assert all(each == same[0] for each in same)
        assert same[0]["seed"] == seed


def test_runs_are_ordered_by_seed_and_validated_after_the_last_step_only(tmp_path):
    runs = plan(tmp_path)
    assert [(run.seed, run.arm) for run in runs] == [(3, "ce"), (3, "ms"), (5, "ce"), (5, "ms")]
    assert {run.settings["validation_steps"] for run in runs} == {7}
    assert len({run.folder for run in runs}) == 4


def test_runs_given_in_epochs_are_finished_after_the_recorded_number_of_steps(tmp_path):
    flags = [*FLAGS[:2], "--num_train_epochs", "2"]
    run = plan(tmp_path, flags=flags)[0]
    assert run.settings["max_steps"] is None
    assert run.settings["validation_steps"] > 10**6
    finish(run, max_steps=31)
    description = {"settings": run.settings, "duration": {"max_steps": 31}}
    (run.folder / "run.json").write_text(json.dumps(description))
    assert plan(tmp_path, flags=flags)[0].finished
    assert not plan(tmp_path, flags=flags)[1].finished


def test_a_run_is_finished_when_its_last_step_was_validated(tmp_path):
    first, second, third, _ = plan(tmp_path)
    finish(first)
    finish(second, data_dir="elsewhere", num_workers=9)
    third.folder.mkdir(parents=True)
    (third.folder / "results.json").write_text('{"step": 4}')
    assert [run.finished for run in plan(tmp_path)] == [True, True, False, False]


def test_runs_of_another_recipe_are_refused(tmp_path):
    finish(plan(tmp_path)[0], learning_rate=0.5)
    with pytest.raises(
        ValueError, match=r"seed_3 holds a run with other settings: learning_rate was 0.5 and is 0.001"
    ):
        plan(tmp_path)


def test_all_arms_of_a_seed_train_on_the_same_images_and_runs_on_others_are_refused(tmp_path):
    runs = plan(tmp_path, flags=[*FLAGS, "--train_images", "46"])
    assert {(run.settings["train_images"], run.settings["subset_seed"]) for run in runs} == {(46, None)}
    finish(runs[0])
    with pytest.raises(ValueError, match="train_images was 46 and is None"):
        plan(tmp_path)


def test_runs_that_started_from_another_model_are_refused(tmp_path):
    finish(plan(tmp_path)[0], model_name_or_path="someone/else")
    with pytest.raises(ValueError, match="model_name_or_path was 'someone/else' and is None"):
        plan(tmp_path)


@pytest.mark.parametrize("arms, seeds, message", [
    (["ce", "ce"], [0], "--arms: every entry must be given once"),
    (["ce", "ms"], [1, 1], "--seeds: every entry must be given once"),
])  # fmt: skip
def test_repeated_arms_and_seeds_are_refused(tmp_path, arms, seeds, message):
    with pytest.raises(ValueError, match=message):
        plan(tmp_path, arms, seeds)


def test_faulty_flags_are_refused_before_the_first_run(tmp_path, capsys):
    with pytest.raises(SystemExit):
        plan(tmp_path, flags=[*FLAGS, "--learning_rat", "1"])
    assert "Did you mean --learning_rate?" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
