"""Time and memory on a device; alone on a GPU, since others would be measured too. No speed is asserted."""

import functools
import gc
import itertools
import json
import os
import shutil
import statistics
import time

import pytest
import torch
from gpu_parts import part, tf32

import msctr_hf
from experiments.benchmark import evaluation
from experiments.benchmark.contrast import CHANNELS, NUM_LABELS, STRIDES, VIEWS, blob_labels
from experiments.benchmark.data import CASES, write_images
from experiments.benchmark.measuring import median_seconds, peak_megabytes
from experiments.benchmark.step import PHASES, Setting, TrainingStep
from msctr_hf.commands.train import command_line
from msctr_hf.models import anchor_sampling, info_nce_tiles
from msctr_hf.models.anchor_sampling import sample_anchors
from msctr_hf.models.info_nce import contrast_across, contrast_within_scale, unit_rows
from msctr_hf.training.run_folder import read_log

MODES = ("ce", "ms", "ms_cs")
RECIPES = {  # recipe, crop, batches to try from the largest, and what the CPU takes instead
    "hrnet_w48": ("cityscapes/hrnet_w48", (512, 1024), (12, 8, 4, 2)),
    "swin_tiny": ("cityscapes/upernet_swin_tiny", (512, 512), (16, 12, 8, 4, 2)),
}
PRECISIONS = {  # precision of autocast, channels last, TensorFloat-32 for matrix products
    "float32": (None, False, False),
    "tf32": (None, False, True),
    "bf16": (torch.bfloat16, False, False),
    "bf16 channels_last": (torch.bfloat16, True, False),
}
AIMS = {"float32": 20.0, "tf32": 8.0}  # milliseconds of the six terms at N = 10,000 on an H100 or H200


def milliseconds(step, device, repetitions=10):
    """Measure the median time of a step, after one that is not counted, between events in the queue of a GPU."""
    step()
    if device.type == "cpu":
        return 1000 * median_seconds({"step": step}, 1, device)["step"]
    times = []
    for _ in range(repetitions):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def free(device):
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_gigabytes(step, device):
    """Measure the most memory in use during a step, with weights and inputs; `None` on a CPU."""
    if device.type == "cpu":
        step()
        return None
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 2)


def update(step):
    step.forward().backward()
    step.update()


def sorted_rows(size, device):
    """Make unit rows of random anchors, sorted by class, as the sampler returns them."""
    classes = torch.randint(0, NUM_LABELS, (-(-size // VIEWS),)).sort().values.repeat_interleave(VIEWS)[:size]
    found, counts = classes.unique_consecutive(return_counts=True)
    sizes = dict(zip(found.tolist(), counts.tolist(), strict=True))
    features = torch.randn(size, CHANNELS, device=device, requires_grad=True)
    return features, classes.to(device), sizes


def six_terms(stages):
    """Compute four terms within scales and two across, with all gradients."""
    rows = [unit_rows(*stage) for stage in stages]
    terms = [contrast_within_scale(stage) for stage in rows]
    terms += [contrast_across(rows[0], rows[coarse]) for coarse in (3, 2)]
    torch.autograd.grad(torch.stack(terms).sum(), [features for features, _, _ in stages])


@part(60)
def test_time_of_the_six_terms(device, figures, monkeypatch):
    device = torch.device(device)
    size = 200 if device.type == "cpu" else 10_000
    stages = [sorted_rows(size, device) for _ in STRIDES]
    figures["anchors"], figures["rows of a tile"] = size, info_nce_tiles.tile_rows(device)
    for precision, aim in AIMS.items():
        with tf32(products=precision == "tf32", convolutions=True):
            found = milliseconds(lambda: six_terms(stages), device)
            figures[precision] = {"ms": found, "aim ms": aim, "reached": found <= aim}
            figures[f"{precision} peak GB"] = peak_gigabytes(lambda: six_terms(stages), device)
            for rows in (1024, 2048, 4096, 8192) if device.type == "cuda" else ():
                with monkeypatch.context() as patch:
                    patch.setattr(info_nce_tiles, "tile_rows", lambda _, rows=rows: rows)
                    figures[f"{precision} ms with tiles of {rows}"] = milliseconds(lambda: six_terms(stages), device)
            for part_size in (1000, 3000) if device.type == "cuda" else ():
                fewer = [sorted_rows(part_size, device) for _ in STRIDES]
                figures[f"{precision} ms of {part_size} anchors"] = milliseconds(lambda s=fewer: six_terms(s), device)
            # the floor: the matrix products of the terms alone, 3 of N x N x D in every one of them
            rows = torch.randn(size, CHANNELS, device=device)
            square = rows @ rows.T
            products = lambda rows=rows, square=square: (rows @ rows.T, square @ rows)  # noqa: E731
            figures[f"{precision} ms of 12 N x N x D products"] = 6 * milliseconds(products, device)


@part(60)
def test_time_of_sampling(device, figures):
    device = torch.device(device)
    images, crop = (2, (64, 64)) if device.type == "cpu" else (12, (512, 1024))
    labels = blob_labels(images, crop, device)
    for stride in STRIDES:
        size = [side // stride for side in crop]
        features = torch.randn(images, CHANNELS, *size, device=device, requires_grad=True)
        pairs = anchor_sampling.pair_of_every_pixel(labels, features, NUM_LABELS)

        def sample(features=features):
            torch.autograd.grad(sample_anchors(features, labels, NUM_LABELS).features.sum(), [features])

        figures[f"stride {stride}"] = {
            "images": images,
            "anchors": len(sample_anchors(features, labels, NUM_LABELS).labels),
            "ms": milliseconds(sample, device),
            "ms of pairs": milliseconds(
                functools.partial(anchor_sampling.pair_of_every_pixel, labels, features, NUM_LABELS), device
            ),
            "ms of counts": milliseconds(
                functools.partial(anchor_sampling.count_pairs, pairs, images, NUM_LABELS), device
            ),
        }


@part(60)
def test_time_of_upsampling_and_of_the_metric(device, figures):
    device = torch.device(device)
    cases = {"tiny": (3, (8, 8), (32, 32))} if device.type == "cpu" else evaluation.CASES
    for name, (classes, source, target) in cases.items():
        row = {}
        for way in ("whole", "ours"):
            row[f"{way} ms"] = milliseconds(evaluation.upsampling_step(way, classes, source, target, device), device)
            if device.type == "cuda":
                arguments, small = (way, classes, source, target, device), (way, 3, (8, 8), (32, 32), device)
                row[f"{way} MB"] = peak_megabytes(evaluation.upsampling_step, arguments, small, device)
        score = evaluation.metric_step("ours", classes, target)  # numpy on the CPU
        row[f"metric of {evaluation.METRIC_IMAGES} images ms"] = milliseconds(score, torch.device("cpu"))
        figures[name] = row


def recipe_of(name):
    return command_line().parse(["--config", name, "--backbone_weights", "none"])


def largest_batch(recipe, setting, batches):
    """Find the largest batch whose step fits in float32 with the whole objective."""
    for images in batches:
        try:
            update(TrainingStep(recipe, "ms_cs", setting._replace(batch_size=images)))
            return images
        except torch.OutOfMemoryError:
            pass  # leave the block first, since the traceback holds the tensors of the step
        free(setting.device)
    raise torch.OutOfMemoryError(f"not even {batches[-1]} images fit")


@pytest.mark.parametrize("network", RECIPES)
@part(110, on_cpu=lambda network: network == "hrnet_w48")  # both are the quickstart there
def test_time_and_memory_of_a_training_step(device, figures, network):
    device = torch.device(device)
    name, crop, batches = RECIPES[network] if device.type == "cuda" else ("quickstart", (64, 64), (2,))
    recipe, setting = recipe_of(name), Setting(2, crop, device)
    setting = setting._replace(batch_size=largest_batch(recipe, setting, batches))
    free(device)
    rows = []
    modes, precisions = (MODES, PRECISIONS) if device.type == "cuda" else (("ms_cs",), {"bf16": PRECISIONS["bf16"]})
    for mode, channels_last in itertools.product(modes, (False, True)):
        step = TrainingStep(recipe, mode, setting._replace(channels_last=channels_last))
        for precision, (autocast, layout, products) in precisions.items():
            if layout == channels_last:
                step.setting = step.setting._replace(precision=autocast)
                with tf32(products=products, convolutions=True):  # as PyTorch and `--tf32` have it
                    rows.append({"mode": mode, "precision": precision, **measured(step)})
                figures["rows"] = rows
        del step
        free(device)


def measured(step):
    """Measure a training step: phases, between which the host waits, the whole step without waiting, and memory."""
    device, images = step.setting.device, step.setting.batch_size
    update(step)
    peak = peak_gigabytes(lambda: update(step), device)
    phases = [step.run() for _ in range(3 if device.type == "cuda" else 1)]
    total = milliseconds(lambda: update(step), device, 5)
    return {
        "images": images,
        "crop": list(step.setting.crop_size),
        **{f"{phase} ms": 1000 * statistics.median(each[phase] for each in phases) for phase in PHASES},
        "step ms": total,
        "images/s": 1000 * images / total,
        "peak GB": peak,
    }


@part(120)
def test_images_per_second_of_a_whole_run_with_workers(device, figures, tmp_path):
    folder = tmp_path / "data"
    on_gpu = device == "cuda"
    write_many(folder, 960 if on_gpu else 8, {} if on_gpu else {"size": (64, 96)})
    workers = workers_that_fit() if on_gpu else 1
    small = {"crop_size": (32, 32), "batch_size": 2, "max_steps": 4, "logging_steps": 2, "hidden_size": 8}
    small |= {"auxiliary_hidden_size": 8, "projection_dim": 8}
    large = {"batch_size": 12, "max_steps": 60, "logging_steps": 10, "mixed_precision": "bf16", "channels_last": True}
    changes = large if on_gpu else small
    started = time.perf_counter()
    msctr_hf.train(
        "cityscapes/hrnet_w48" if on_gpu else "quickstart",
        **{
            "dataset": "folder", "data_dir": str(folder), "output_dir": str(tmp_path / "run"), "class_weights": None,
            "backbone_weights": "none", "contrastive_mode": "ms_cs", "num_workers": workers, "report_to": "none",
            "validation_steps": 1000, "checkpointing_steps": 1000, "warmup_steps": 0, **changes,
        },
    )  # fmt: skip
    lines = [entry for entry in read_log(tmp_path / "run") if "images_per_second" in entry]
    figures["images/s of every log"] = [entry["images_per_second"] for entry in lines]
    figures["images/s"] = statistics.median(figures.values["images/s of every log"][1:])
    figures["workers"], figures["batch"], figures["peak MB"] = workers, changes["batch_size"], lines[-1]["used_mb"]
    figures["seconds of the whole run, with validation and saving"] = time.perf_counter() - started


def workers_that_fit():
    """Choose the number of workers: one per core but two, if the shared memory holds what they read ahead."""
    batch = 12 * 512 * 1024 * (3 * 4 + 8)
    room = shutil.disk_usage("/dev/shm").free // (3 * batch)
    return max(1, min(14, len(os.sched_getaffinity(0)) - 2, room))


def write_many(folder, count, case):
    """Write a few images as Cityscapes has them, and give them many names, so that an epoch is long."""
    folder.mkdir()
    case = {**CASES["PNG as Cityscapes"], **case}
    write_images(folder, case)
    for kind in ("images", "labels"):
        files = sorted((folder / kind).iterdir())
        for number in range(len(files), count):
            source = files[number % len(files)]
            os.link(source, source.with_name(f"{number}{source.suffix}"))
        (folder / f"validation_{kind}").mkdir()
        for file in files[:2]:
            os.link(file, folder / f"validation_{kind}" / file.name)
    description = json.loads((folder / "dataset.yaml").read_text())
    description["splits"]["validation"] = {"images": "validation_images", "labels": "validation_labels"}
    (folder / "dataset.yaml").write_text(json.dumps(description))
