"""Wrong input is reported in one sentence with exit code 2; no file is left behind, changed or lost."""

import os
import pickle
import shutil
import struct
import zlib

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from layouts import write_folder, write_labels
from PIL import Image
from small_run import flags

FLAGS = [
    ({"batch_size": 0}, "--batch_size must be at least 1, got 0."),
    ({"batch_size": 1}, "a normalization layer sees a single value per channel; use --batch_size 2 or more."),
    ({"batch_size": 100}, "6 training images do not fill one batch of 100 on 1 process(es); lower --batch_size."),
    ({"max_steps": 0}, "--max_steps must be at least 1, got 0."),
    (
        {"num_train_epochs": 2},  # in addition to --max_steps 4
        "--max_steps and --num_train_epochs both say how long to train, got 4 and 2.0; give one of them.",
    ),
    (
        {"metric_for_best_model": "accuracy"},
        "--metric_for_best_model must be one of 'mean_iou', 'mean_accuracy' (folder has no groups of classes), got",
    ),
    ({"max_steps": "many"}, "invalid int value: 'many'"),
    ({"learning_rate": -1}, "--learning_rate must be at least 0, got -1.0."),
    ({"learning_rate": "nan"}, "--learning_rate must be at least 0 and finite, got nan."),
    ({"optimizer": "lion"}, "invalid choice: 'lion' (choose from 'sgd', 'adam', 'adamw')"),
    ({"adam_betas": "0.9"}, "--adam_betas needs 2 values, each in [0, 1), got [0.9]."),
    ({"schedule": "cosine"}, "invalid choice: 'cosine' (choose from 'poly', 'exponential', 'constant')"),
    ({"poly_power": -1}, "--poly_power must be at least 0, got -1.0."),
    ({"max_grad_norm": 0}, "--max_grad_norm must be above 0, got 0.0."),
    ({"ema_decay": 1.5}, "--ema_decay must be in [0, 1), got 1.5."),
    ({"mixed_precision": "fp8"}, "invalid choice: 'fp8' (choose from 'no', 'fp16', 'bf16', 'auto')"),
    ({"seed": -1}, "--seed must be in [0, 4294967296), got -1."),
    ({"checkpoints_kept": 0}, "--checkpoints_kept must be at least 1, got 0."),
    (
        {"report_to": "paper"},
        "--report_to: paper is unknown; choose from none, tensorboard, trackio, wandb.",
    ),
    ({"crop_size": "32"}, "--crop_size needs 2 values, each above 0, got [32]."),
    ({"scale_range": "2 0.5"}, "--scale_range must be in ascending order, got [2.0, 0.5]."),
    ({"flip_probability": 2}, "--flip_probability must be in [0, 1], got 2.0."),
    ({"num_workers": -1}, "--num_workers must be at least 0, got -1."),
    ({"size_divisor": 0}, "--size_divisor must be at least 1, got 0."),
    ({"repeat_factor_threshold": 2}, "--repeat_factor_threshold must be in (0, 1], got 2.0."),
    ({"num_steps": 3}, "unknown argument --num_steps. Did you mean --max_steps?"),
    ({"contrastive_temprature": 0.1}, "Did you mean --contrastive_temperature?"),
    ({"config": "/no/config.yaml"}, "the file /no/config.yaml does not exist."),
    ({"id_map": "seven"}, "--id_map must look like '{7: 0, 8: 1}', got 'seven'."),
]
NETWORKS = [
    ({"backbone": "resnet1"}, "timm has no backbone 'resnet1'; similar names:"),
    ({"backbone": "microsoft/none"}, "The configuration of microsoft/none cannot be loaded from the Hub"),
    ({"backbone_config": "{"}, "--backbone_config is not valid JSON"),
    (
        {"output_stride": 8, "backbone": "hrnet_w18"},
        "--output_stride 8: hrnet_w18 cannot be dilated to this stride; leave it out,",
    ),
    ({"backbone_weights": "/no/file.pth"}, "--backbone_weights: the file /no/file.pth does not exist"),
    ({"backbone_weights": "hub"}, "use --backbone_weights FILE"),
    ({"model_name_or_path": "/no/model"}, "--model_name_or_path: /no/model cannot be loaded"),
    (
        {"decode_head": "segformer"},
        "--decode_head expected one of ('fcn', 'deeplabv3', 'ocr', 'upernet'), got",
    ),
    ({"contrastive_mode": "all"}, "--contrastive_mode expected one of ('ce', 'ms', 'ms_cs'), got all"),
    ({"contrastive_temperature": 0}, "--contrastive_temperature must be at least 0.01, got 0."),
    ({"contrastive_scale_weights": "[1]"}, "must have one entry per stage [1, 2, 3, 4], got [1]."),
    ({"contrastive_cross_scale_pairs": "[[0,9]]"}, "must pair two different positions below 4, got [0, 9]."),
    ({"projection_stages": "[7]"}, "--projection_stages must be in 1 to 4, the stages of the backbone, got [7]."),
    ({"class_weights": "[1,1]"}, "--class_weights must have one entry per class: 3, got 2."),
    ({"hidden_size": "wide"}, "--hidden_size with value 'wide' doesn't match any type"),
    ({"dropout": 2}, "--dropout must be in [0, 1), got 2."),
]
PLACES = [
    ({"data_dir": "/no/such/folder"}, "The file /no/such/folder/dataset.yaml does not exist"),
    ({"dataset": "cityscape"}, "The data set 'cityscape' is unknown; choose from"),
    ({"train_split": "training"}, "folder has the splits ['train', 'validation'], not 'training'."),
    ({"streaming": True}, "--streaming reads parquet files or a Hub id"),
    ({"dataset_name": "/no/copy"}, "--dataset_name: /no/copy cannot be read"),
    ({"corrections": "/no/corrections.csv"}, "--corrections: /no/corrections.csv cannot be read"),
    ({"resume": "/no/checkpoint"}, "--resume: /no/checkpoint is not a complete checkpoint"),
    ({"output_dir": "/proc/run"}, "--output_dir: /proc/run could not be written"),
]


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data", num_train=6, num_validation=3)


@pytest.fixture
def refused(run_script, folder, tmp_path):
    """Start a run, check that it left no files, and return its error message."""

    def run(**changes):
        output = changes.pop("output_dir", tmp_path / "run")
        code, _, error = run_script("train.py", *flags(folder, output, **changes))
        assert code == 2, error
        assert "Traceback" not in error
        sentence = error.strip().splitlines()[-1]
        assert "error: " in sentence
        assert not (tmp_path / "run").exists()
        return sentence

    return run


@pytest.mark.parametrize(("changes", "sentence"), [*FLAGS, *NETWORKS, *PLACES], ids=str)
def test_a_wrong_setting_is_reported_in_one_sentence(refused, changes, sentence):
    assert sentence in refused(**changes)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("max_stepz: 3", "unknown key `max_stepz`. Did you mean `max_steps`?"),
        ("max_steps: [1, 2]", "max_steps"),
        ("- a", "must contain `key: value` lines."),
        ("a: [", "is not valid YAML"),
        ("max_steps: !!python/object/apply:os.system ['true']", "is not valid YAML"),
    ],
)
def test_a_wrong_configuration_file_is_reported_in_one_sentence(refused, tmp_path, content, sentence):
    (tmp_path / "config.yaml").write_text(content)
    assert sentence in refused(config=tmp_path / "config.yaml")


def png_header_of(path, width, height):
    """Write a small PNG whose header claims a huge size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(1000))
    chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (header, data)]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def for_all(pattern, change):
    def damage(folder):
        for path in folder.glob(pattern):
            change(path)

    return damage


def describe(**changes):
    def damage(folder):
        path = folder / "dataset.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))

    return damage


def labels(values, shape=(40, 56), dtype=np.uint8):
    return lambda path: write_labels(path, np.full(shape, values, dtype))


OUTSIDE = {"train": {"images": "../elsewhere", "labels": "train/labels"}}
FILES = {
    "label missing": (lambda folder: (folder / "train/labels/0.png").unlink(), "1 of 6 images of train"),
    "label of other size": (for_all("train/labels/*", labels(0, (20, 56))), "they must have the same size."),
    "unknown label value": (for_all("train/labels/*", labels(9)), "label values [9]"),
    "label as colors": (
        for_all("train/labels/*", lambda path: Image.new("RGB", (56, 40)).save(path)), "but the file has the mode RGB."
    ),
    "broken image": (for_all("train/images/*", lambda path: path.write_bytes(b"none")), "its format is unknown."),
    "cut image": (
        for_all("train/images/*", lambda path: path.write_bytes(path.read_bytes()[:400])), "cannot be read"
    ),
    "empty image": (for_all("train/images/*", lambda path: path.write_bytes(b"")), "cannot be read as an image"),
    "huge label": (
        for_all("train/labels/*", lambda path: png_header_of(path, 100_000, 100_000)), "raise --max_image_pixels"
    ),
    "huge image": (
        for_all("train/images/*", lambda path: png_header_of(path, 100_000, 100_000)), "exceeds limit of"
    ),
    "no images": (for_all("train/images/*", lambda path: path.unlink()), "No image in"),
    "folder missing": (lambda folder: shutil.rmtree(folder / "val"), "does not exist"),
    "description missing": (lambda folder: (folder / "dataset.yaml").unlink(), "does not exist"),
    "description is not YAML": (lambda folder: (folder / "dataset.yaml").write_text("a: ["), "is not valid YAML"),
    "unknown key": (describe(klasses=["a", "b"]), "unknown keys ['klasses']"),
    "one class": (describe(classes=["a"]), "must list the names of two classes or more"),
    "values of no class": (describe(label_values={0: "sky", 1: "sea"}), "names the class 'sea'"),
    "path leaves the folder": (describe(splits=OUTSIDE), "inside the folder of the data set, got '../elsewhere'."),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_wrong_file_of_the_data_set_is_reported_in_one_sentence(refused, folder, case):
    damage, sentence = FILES[case]
    damage(folder)
    assert sentence in refused()


def test_a_wrong_file_read_by_a_worker_is_reported_in_one_sentence(refused, folder):
    FILES["broken image"][0](folder)
    sentence = refused(num_workers=1)
    assert sentence.endswith(
        f"its format is unknown. `msctr prepare --dataset folder --data_dir {folder}` checks all files."
    )


def test_corrections_outside_the_folder_are_refused(refused, tmp_path):
    (tmp_path / "corrections.csv").write_text("image_id,label\n0,../../etc/passwd\n")
    assert "../../etc/passwd must be a path below" in refused(corrections=tmp_path / "corrections.csv")


def test_file_paths_inside_a_parquet_copy_are_not_followed(refused, folder, tmp_path):
    rows = {"image": [], "label": [], "image_id": []}
    for number in range(6):
        rows["image"].append({"bytes": None, "path": str(folder / f"train/images/{number}.jpg")})
        rows["label"].append({"bytes": (folder / f"train/labels/{number}.png").read_bytes(), "path": None})
        rows["image_id"].append(str(number))
    copy = tmp_path / "copy"
    copy.mkdir()
    for split in ("train", "validation"):
        pyarrow.parquet.write_table(pyarrow.table(rows), copy / f"{split}-00000.parquet")
    assert "which is not followed" in refused(dataset_name=copy)


class Foreign:
    """A pickle that runs code when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda path: path.write_bytes(b"junk"), "is not a readable state dict"),
        (lambda path: torch.save({"conv1.weight": torch.zeros(1)}, path), "does not fit"),
        (
            lambda path: torch.save({"a": Foreign()}, path),
            "contains more than tensors, or is corrupt; none of its code was run",
        ),
        (lambda path: path.write_bytes(pickle.dumps(Foreign())), "contains more than tensors, or is corrupt"),
        (lambda path: path.mkdir(), "does not exist"),
    ],
    ids=["junk", "other network", "foreign code", "plain pickle", "folder"],
)
def test_wrong_weights_are_reported_in_one_sentence_and_run_no_code(refused, tmp_path, monkeypatch, write, sentence):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "weights.pth")
    assert sentence in refused(backbone_weights=tmp_path / "weights.pth")
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a run of four steps, which the first test makes, and that of its data."""
    root = tmp_path_factory.mktemp("trained")
    return root / "run", write_folder(root / "data", num_train=6, num_validation=3)


@pytest.fixture
def run_of_four_steps(trained, run_script, tmp_path):
    original, data = trained
    if not original.exists():
        assert run_script("train.py", *flags(data, original))[0] == 0
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run", data


CHECKPOINTS = [
    (
        {"resume": "checkpoints/step_4"},
        ["step_4/model.safetensors"],
        "model.safetensors has changed since it was written",
    ),
    ({"resume": "checkpoints/step_4"}, ["step_4/COMPLETE"], "COMPLETE cannot be read"),
    ({"resume": "auto"}, ["step_4/optimizer.bin", "step_2/optimizer.bin"], "and no older one exists"),
    (
        {"resume": "auto", "learning_rate": 1},
        [],
        "belongs to a run with other settings: learning_rate was 0.001 and is 1.0.",
    ),
    ({"resume": "auto", "seed": 1, "hidden_size": 16}, [], "hidden_size was 8 and is 16; seed was 0 and is 1."),
    ({"resume": "auto", "batch_size": 3}, [], "their number must not change. Use --batch_size 2."),
    ({}, [], "holds another run; choose another folder, resume it with --resume auto, or replace it"),
    ({"resume": "last"}, [], "is not a complete checkpoint"),
]


@pytest.mark.parametrize(("changes", "damaged", "sentence"), CHECKPOINTS, ids=str)
def test_a_wrong_checkpoint_is_reported_in_one_sentence_and_not_changed(
    run_script, run_of_four_steps, changes, damaged, sentence
):
    run, data = run_of_four_steps
    for name in damaged:
        path = run / "checkpoints" / name
        path.write_bytes(path.read_bytes()[:-9])
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    if changes.get("resume") not in (None, "auto"):
        changes = {**changes, "resume": run / changes["resume"]}
    code, _, error = run_script("train.py", *flags(data, run, **{"max_steps": 6, **changes}))
    assert code == 2, error
    assert sentence in error.strip().splitlines()[-1]
    assert "Traceback" not in error
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
