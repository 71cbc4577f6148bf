"""Rows of the table contain no local paths, and their command repeats the run."""

import json
import shlex

import pytest

from experiments.model_zoo import describe, read_rows, zoo_commands, zoo_table


def write_run(folder, command, **settings):
    folder.mkdir()
    about = {
        "command": command,
        "settings": {"dataset": "camvid", "decode_head": "fcn", "backbone": "resnet18", "seed": 3, **settings},
        "device": "a processor",
        "mixed_precision": "no",
        "versions": {},
        "git_commit": "0" * 40,
    }
    results = {
        "step": 9,
        "mean_iou": 0.5,
        "mean_accuracy": 0.6,
        "overall_accuracy": 0.7,
        "per_category_iou": {"a": 0.5},
    }
    log = [{"step": step, "images_per_second": speed, "used_mb": 100 + step} for step, speed in enumerate((1, 5, 6))]
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*log, {"step": 9}]))
    return folder


def test_a_row_has_scores_costs_and_a_command_without_local_paths(tmp_path):
    words = (
        f"/somewhere/scripts/train.py --config c.yaml --data_dir {tmp_path} --backbone_weights none --crop_size 3 4"
    )
    flags_of_this_start = f"--output_dir {tmp_path}/run --resume auto --overwrite_output_dir"
    row = describe(write_run(tmp_path / "run", f"{words} {flags_of_this_start} --seed 3"), "an arm")
    assert row["command"] == (
        "python scripts/train.py --config c.yaml --data_dir DATA_DIR --backbone_weights none --crop_size 3 4 --seed 3"
    )
    assert (row["arm"], row["dataset"], row["split"], row["seed"]) == ("an arm", "camvid", "validation", 3)
    assert row["network"] == "fcn, resnet18"
    assert (row["images_per_second"], row["used_mb"], row["mean_iou"]) == (5, 102, 0.5)
    assert (row["contrastive_mode"], row["contrastive_sampling"]) == ("ms_cs", "rarest")  # the defaults
    assert str(tmp_path) not in json.dumps(row)


def test_the_speed_of_a_run_counts_its_steps_without_and_with_a_teacher(tmp_path):
    folder = write_run(tmp_path / "run", "scripts/train.py")
    lines = [{"step": step, "images_per_second": 8, "used_mb": 1} for step in range(30)]
    lines += [{**line, "images_per_second": 2, "pseudo_cross_entropy": 0.5} for line in lines[:10]]
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert describe(folder)["images_per_second"] == pytest.approx(40 / (30 / 8 + 10 / 2))


def test_the_data_set_keeps_its_name_where_a_folder_has_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "camvid").mkdir()
    row = describe(write_run(tmp_path / "run", "scripts/train.py --dataset camvid --data_dir camvid"))
    assert row["command"] == "python scripts/train.py --dataset camvid --data_dir DATA_DIR"


@pytest.mark.parametrize("start, network", [("nvidia/mit-b0", "nvidia/mit-b0"), ("/home/me/runs/mine", "mine")])
def test_a_network_that_started_from_a_saved_model_is_named_after_that_model(tmp_path, start, network):
    row = describe(write_run(tmp_path / "run", "scripts/train.py", model_name_or_path=start))
    assert row["network"] == network


def test_the_table_averages_over_seeds_but_not_over_modes_and_schedules():
    row = {
        "network": "fcn", "dataset": "camvid", "split": "validation", "arm": "ce",
        "max_steps": 7, "seed": 0, "mean_iou": 0.5, "device": "AMD", "command": "python scripts/train.py",
        "git_commit": "f" * 40,
    }  # fmt: skip
    rows = [row, row | {"seed": 1, "mean_iou": 0.52, "git_commit": None}, row | {"arm": "ms"}, row | {"max_steps": 8}]
    rows += [row | {"train_images": 46, "mean_iou": 0.3}]
    lines = zoo_table(rows).splitlines()[2:]
    assert lines[0] == "| fcn | camvid validation | ce | 7 | 51.00 ± 1.41 | 0, 1 | AMD | fffffff, unknown |"
    assert lines[3] == "| fcn | camvid (46 training images) validation | ce | 7 | 30.00 | 0 | AMD | fffffff |"
    assert len(lines) == 4


def test_commands_are_listed_once_for_every_line_of_the_table_and_survive_their_line_breaks():
    command = "python scripts/train.py --config configs/camvid/hrnet_w48.yaml --seed 0 " + "--report_to none " * 8
    row = {
        "network": "fcn, resnet18", "dataset": "camvid", "split": "validation", "arm": "ce",
        "max_steps": 7, "seed": 0, "mean_iou": 0.5, "device": "a CPU", "command": command.strip(),
    }  # fmt: skip
    block = zoo_commands([row, row | {"seed": 1, "command": "another"}])
    assert block.startswith("# fcn, resnet18: camvid, ce, 7 steps\n")
    assert max(map(len, block.splitlines())) < 120
    assert shlex.split(block.replace("\\\n", ""), comments=True) == shlex.split(command)


def test_rows_are_read_from_folders_of_runs_and_from_json_files(tmp_path):
    folder = write_run(tmp_path / "run", "scripts/train.py --seed 3", contrastive_mode="ms")
    (tmp_path / "rows.json").write_text(json.dumps([{"arm": "ce"}]))
    rows = read_rows([tmp_path / "rows.json", folder])
    assert [row["arm"] for row in rows] == ["ce", "ms"]


@pytest.mark.parametrize("content", [None, "{}", "no JSON", "folder"])
def test_paths_without_runs_are_reported_in_one_sentence(tmp_path, content, run_script):
    path = tmp_path / "given"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    code, _, error = run_script("model_zoo.py", path, "--output", tmp_path / "rows.json")
    assert code == 2
    assert str(path) in error
    assert not (tmp_path / "rows.json").exists()
