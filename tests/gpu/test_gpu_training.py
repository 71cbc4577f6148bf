"""Runs on a device: they learn in every precision, resume, and wait for the device only where they promise to."""

import collections
import contextlib
import shutil
import warnings

import pytest
import torch
from gpu_parts import PACKAGE, part, place_of, tf32, waiting_place
from layouts import write_folder

import msctr_hf
from msctr_hf.models.stage_anchors import StageSampler
from msctr_hf.training.loop import TrainingLoop
from msctr_hf.training.run_folder import read_log

WATCHED = range(4, 14)  # ten steps without a log; before them libraries start, and fp16 finds its scale
PROMISED = place_of(StageSampler._count)  # the transfer of the counts of a micro-batch
REPORTED = "training/logs.py: report"


def settings(folder, output_dir, device, **changes):
    """Settings of a run on small images; on a GPU of a size that keeps it busy."""
    size = {} if device == "cpu" else {"hidden_size": 64, "projection_dim": 64, "crop_size": (128, 192)}
    return {
        "dataset": "folder", "data_dir": str(folder), "output_dir": str(output_dir), "class_weights": None,
        "hidden_size": 8, "auxiliary_hidden_size": 8, "projection_dim": 8, "crop_size": (32, 32), "batch_size": 2,
        "max_steps": 12, "validation_steps": 100, "checkpointing_steps": 100, "logging_steps": 1, "num_workers": 0,
        "optimizer": "sgd", "learning_rate": 0.05, "warmup_steps": 0, "report_to": "none", "contrastive_mode": "ms_cs",
        **size, **changes,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path, device):
    return write_folder(tmp_path / "data", num_train=8, size=(40, 56) if device == "cpu" else (160, 240))


def losses(run):
    return [entry["loss"] for entry in read_log(run) if "loss" in entry]


@pytest.mark.parametrize(
    "changes",
    [
        {"mixed_precision": "no"},
        {"mixed_precision": "bf16", "channels_last": True, "ema": True},
        {"mixed_precision": "fp16", "gradient_accumulation_steps": 2},
    ],
    ids=lambda changes: changes["mixed_precision"],
)
@part(60)
def test_a_run_learns_in_every_precision(folder, tmp_path, device, figures, changes):
    if device == "cpu" and changes["mixed_precision"] == "fp16":
        changes = {**changes, "mixed_precision": "no"}  # Accelerate scales gradients on GPUs only
    rate = 1e-2 if device == "cpu" else 1e-3  # the tiny network of the CPU needs the larger one to learn in 20 steps
    changes = {**changes, "optimizer": "adamw", "learning_rate": rate, "max_steps": 20}
    results = msctr_hf.train("quickstart", **settings(folder, tmp_path / "run", device, **changes))
    found, entries = losses(tmp_path / "run"), read_log(tmp_path / "run")
    skipped = max(entry.get("skipped_steps", 0) for entry in entries)
    figures["losses"], figures["skipped steps"], figures["mean IoU"] = found, skipped, results["mean_iou"]
    assert len(found) >= 10
    assert sum(found[-4:]) < sum(found[:4])
    assert skipped <= (3 if changes["mixed_precision"] == "fp16" else 0)  # the scale of fp16 has to be found first


@part(90)
def test_an_interrupted_run_continues_with_the_losses_of_the_uninterrupted_one(folder, tmp_path, device, figures):
    common = {"checkpointing_steps": 6, "checkpoints_kept": 9, "learning_rate": 0.01}
    whole, part_of_it = tmp_path / "whole", tmp_path / "part"
    with tf32(products=False, convolutions=False):
        msctr_hf.train("quickstart", **settings(folder, whole, device, **common))
        shutil.copytree(whole / "checkpoints/step_6", part_of_it / "checkpoints/step_6")
        msctr_hf.train("quickstart", **settings(folder, part_of_it, device, **common, resume="auto"))
    expected, found = losses(whole)[6:], losses(part_of_it)
    assert len(expected) == len(found) == 6
    difference = max(abs(a - b) / b for a, b in zip(found, expected, strict=True))
    figures["losses"], figures["largest difference"] = found, difference
    # On a GPU, the gradients of interpolation and of the losses are sums in varying order: 1e-7 a step, which six
    # steps of BatchNorm and SGD multiply. Other images, anchors or dropout change a loss by several per cent.
    assert difference <= (0 if device == "cpu" else 2e-3)
    anchors = [
        [entry[name] for entry in read_log(run) if "loss" in entry and entry["step"] > 6]
        for run in (whole, part_of_it)
        for name in ("contrastive/stage_1/anchors", "contrastive/stage_3/classes")
    ]
    assert anchors[:2] == anchors[2:]


class Synchronizations:
    """Count, by place in the package, how often the host waits for the device in some steps of a run."""

    def __init__(self):
        self.step, self.watched, self.all = 0, collections.Counter(), collections.Counter()

    def show(self, message, *_, **__):
        place = waiting_place(message)
        if place is not None:
            self.all[place] += 1
            if self.step in WATCHED:
                self.watched[place] += 1

    @contextlib.contextmanager
    def in_runs(self, device):
        """Watch every run that starts in the block."""
        run, train_step = TrainingLoop.run, TrainingLoop.train_step

        def counted(loop, *arguments):
            self.step = loop.progress.step + 1
            return train_step(loop, *arguments)

        def watched(loop):
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.showwarning = self.show
                if device == "cuda":
                    torch.cuda.set_sync_debug_mode("warn")
                try:
                    return run(loop)
                finally:
                    if device == "cuda":
                        torch.cuda.set_sync_debug_mode("default")

        TrainingLoop.run, TrainingLoop.train_step = watched, counted
        try:
            yield
        finally:
            TrainingLoop.run, TrainingLoop.train_step = run, train_step


SWIN = {
    "model_type": "swin", "embed_dim": 24, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 2, 4], "window_size": 4,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}  # fmt: skip
WATCHED_RUNS = {
    "ce": {"contrastive_mode": "ce"},
    "ms": {"contrastive_mode": "ms"},
    "ms_cs": {},
    "ms_cs bf16 channels_last ema": {"mixed_precision": "bf16", "channels_last": True, "ema": True},
    "ms_cs fp16 two micro-batches": {"mixed_precision": "fp16", "gradient_accumulation_steps": 2},
    "ms_cs adamw clipped": {"optimizer": "adamw", "learning_rate": 1e-3, "max_grad_norm": 1.0},
    "ms_cs swin": {"backbone_config": SWIN, "projection_source": "decode_head"},
    "ms_cs ocr": {"decode_head": "ocr"},
    "ms_cs class weights": {"class_weights": [1.0, 2.0, 3.0]},
    "ms_cs hard anchors any positive": {"contrastive_anchor_selection": "hard", "contrastive_positives": "any"},
}


@pytest.mark.parametrize("name", WATCHED_RUNS)
@part(
    60, on_cpu=lambda name: name == "ms_cs adamw clipped"
)  # the host has nothing to wait for: one shows that it runs
def test_the_host_waits_only_for_the_counts_of_a_micro_batch(folder, tmp_path, device, figures, name):
    changes = WATCHED_RUNS[name]
    synchronizations = Synchronizations()
    with synchronizations.in_runs(device):
        msctr_hf.train(
            "quickstart",
            **settings(folder, tmp_path / "run", device, max_steps=16, logging_steps=15, num_workers=1, **changes),
        )
    figures["in ten steps"] = dict(synchronizations.watched)
    figures["in the whole run"] = dict(synchronizations.all.most_common())
    micro_batches = len(WATCHED) * changes.get("gradient_accumulation_steps", 1)
    contrasts = changes.get("contrastive_mode") != "ce" and device == "cuda"
    assert synchronizations.watched == ({PROMISED: micro_batches} if contrasts else {})
    assert synchronizations.all[REPORTED] == (2 if device == "cuda" else 0)  # one per log, of steps 15 and 16


def test_synchronizations_are_counted_by_their_place_in_the_package(monkeypatch):
    counted = Synchronizations()

    class Loop:
        class progress:  # noqa: N801
            step = 4

    def run(loop):
        TrainingLoop.train_step(loop)
        return "done"

    def train_step(loop):
        code = compile("def sums():\n    warn('called a synchronizing CUDA operation')\n", PACKAGE / "logs.py", "exec")
        scope = {"warn": warnings.warn}
        exec(code, scope)
        scope["sums"]()
        scope["sums"]()
        warnings.warn("something else", stacklevel=1)

    monkeypatch.setattr(TrainingLoop, "run", run)
    monkeypatch.setattr(TrainingLoop, "train_step", train_step)
    with counted.in_runs("cpu"):
        assert TrainingLoop.run(Loop()) == "done"
    assert counted.watched == counted.all == {"logs.py: sums": 2}
