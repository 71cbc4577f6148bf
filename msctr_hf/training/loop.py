"""The training loop, on Accelerate."""

from __future__ import annotations

import itertools
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration, PartialState
from accelerate.utils import broadcast, broadcast_object_list, set_seed
from datasets import Dataset, IterableDataset
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..arguments import DataArguments, ModelArguments, TrainingArguments
from ..data.augmentation import TrainingAugmentation
from ..data.batches import training_loader
from ..data.loading import get_dataset_spec
from ..data.repeat_factors import classes_present, repeat_factors
from ..evaluation.predictor import Predictor
from ..evaluation.scoring import iou_table, score_dataset
from ..evaluation.visualization import contact_sheet
from ..models.modeling_msctr import MsctrForSemanticSegmentation
from .checkpointing import (
    RESULTS_FILE,
    RUN_FILE,
    Progress,
    check_output_dir,
    find_checkpoint,
    holds_a_model,
    read_json,
    save_checkpoint,
    save_model,
    write_json,
)
from .logs import RunLog, RunningMeans, describe_run
from .network import (
    build_image_processor,
    build_network,
    image_processor_options,
    synchronize_batch_norms,
)
from .optimization import build_optimizer, build_schedule

PICTURES_SHOWN = 4


def train(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    arguments: TrainingArguments,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Train a network, validate it, keep the best and the last.

    Args:
        model_arguments, data_arguments, arguments: What to train, on what and how.
        settings (`dict`): Further settings of `MsctrConfig`.

    Returns:
        `dict`: results of the best model, as in `results.json`.

    Raises:
        ValueError: If the input is faulty; a folder that this call made is removed again where nothing was saved yet.
    """
    output_dir = Path(arguments.output_dir)
    was_empty = not output_dir.exists() or (output_dir.is_dir() and not any(output_dir.iterdir()))
    try:
        return _Run(model_arguments, data_arguments, arguments, settings).go()
    except BaseException:
        if was_empty and not holds_a_model(output_dir):
            shutil.rmtree(output_dir, ignore_errors=True)
        raise


class _Run:
    """One training run: everything built in `__init__`, nothing written before `go`."""

    def __init__(
        self,
        model_arguments: ModelArguments,
        data_arguments: DataArguments,
        arguments: TrainingArguments,
        settings: dict[str, Any],
    ):
        self.arguments = arguments
        self.output_dir = Path(arguments.output_dir)
        _check_arguments(arguments, data_arguments)
        check_output_dir(
            self.output_dir, overwrite=arguments.overwrite_output_dir, resume=arguments.resume is not None
        )
        self.checkpoint = find_checkpoint(self.output_dir, arguments.resume)
        self.spec = get_dataset_spec(data_arguments.dataset, data_arguments.data_dir)
        train_set = data_arguments.load(data_arguments.train_split)
        self.validation_set = data_arguments.load("validation")
        self.accelerator = _build_accelerator(arguments)
        self.description = {**asdict(model_arguments), **asdict(data_arguments), **asdict(arguments), **settings}

        set_seed(arguments.seed)
        with self.accelerator.local_main_process_first():  # one download of weights per machine
            model = build_network(model_arguments, settings, self.spec)
        self.image_processor = build_image_processor(model, **image_processor_options(data_arguments))
        if self.accelerator.num_processes > 1 and self.accelerator.device.type == "cuda":
            model = synchronize_batch_norms(model)
        loader = training_loader(
            train_set,
            _augmentation(data_arguments, self.image_processor),
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            num_workers=data_arguments.num_workers,
            repeats=self._repeats(train_set, data_arguments),
        )
        steps_per_epoch = self._steps_per_epoch(loader, train_set)
        optimizer = build_optimizer(model, arguments)
        self.schedule = build_schedule(optimizer, arguments, steps_per_epoch)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(model, optimizer, loader)
        self.num_workers = data_arguments.num_workers
        self.progress = Progress()
        self.accelerator.register_for_checkpointing(self.schedule, self.progress)
        set_seed(arguments.seed, device_specific=True)  # every process draws its own anchors and dropout

    def _repeats(self, train_set: Dataset, data_arguments: DataArguments) -> np.ndarray | None:
        """How often every picture comes in an epoch; the labels are read once, by the first process."""
        if data_arguments.repeat_factor_threshold is None:
            return None
        if isinstance(train_set, IterableDataset):
            raise ValueError("--repeat_factor_threshold needs all labels before training; leave --streaming out.")
        present: list[Any] = [None]
        if self.accelerator.is_main_process:
            present = [classes_present(train_set, len(self.spec.classes), num_workers=data_arguments.num_workers)]
        return repeat_factors(broadcast_object_list(present)[0], data_arguments.repeat_factor_threshold)

    def go(self) -> dict[str, Any]:
        """Train to the last step and return the best results."""
        if self.accelerator.is_main_process:
            if self.arguments.overwrite_output_dir and self.checkpoint is None:
                shutil.rmtree(self.output_dir, ignore_errors=True)
            write_json(self.output_dir / RUN_FILE, describe_run(self.description, self.accelerator))
        self.accelerator.wait_for_everyone()
        if self.checkpoint is not None:
            self.accelerator.load_state(str(self.checkpoint))
        self.log = RunLog(self.accelerator, self.output_dir, self.description)
        self.best_results = read_json(self.output_dir / RESULTS_FILE) if self.checkpoint is not None else {}
        self._announce()
        if self.progress.step < self.arguments.max_steps:
            self._train_to_the_last_step()
        self.accelerator.end_training()
        return self.best_results

    def _train_to_the_last_step(self) -> None:
        self.model.train()
        self.means = RunningMeans()
        with tqdm(
            total=self.arguments.max_steps,
            initial=self.progress.step,
            desc="training",
            unit="step",
            disable=not self.accelerator.is_local_main_process,
        ) as bar:
            self.since, self.last_logged = time.perf_counter(), self.progress.step
            for terms, diagnostics in self._steps():
                self.means.update(terms, diagnostics)
                if self.accelerator.sync_gradients:
                    self.progress.step += 1
                    bar.update()
                    self._report_and_save(bar)
                    if self.progress.step == self.arguments.max_steps:
                        break

    def _report_and_save(self, bar: tqdm) -> None:
        """Log, validate and save when it is time to, and after the last step."""
        arguments, step = self.arguments, self.progress.step
        last = step == arguments.max_steps
        if step % arguments.logging_steps == 0 or last:
            values = self._log_step()
            bar.set_postfix(
                loss=f"{values['loss']:.4f}",
                rate=f"{values['learning_rate']:.2e}",
                img_s=f"{values['images_per_second']:.1f}",
            )
        paused = time.perf_counter()
        if step % arguments.validation_steps == 0 or last:
            self._validate()
        if step % arguments.checkpointing_steps == 0 or last:
            save_model(self.accelerator, self.model, self.image_processor, self.output_dir / "last")
            save_checkpoint(self.accelerator, self.output_dir, self.progress, arguments.checkpoints_kept)
        self.since += time.perf_counter() - paused

    def _steps(self) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor | float]]]:
        """Forward, backward and update, batch after batch without end; yields the loss with its terms, diagnostics."""
        while True:
            batches: Any = self.loader
            if self.progress.batches_in_epoch:
                batches = self.accelerator.skip_first_batches(self.loader, self.progress.batches_in_epoch)
            batches.set_epoch(self.progress.epoch)  # a loader that skips would count epochs from 0
            for batch in batches:
                self.progress.batches_in_epoch += 1
                with self.accelerator.accumulate(self.model):
                    output = self.model(**batch)
                    self.accelerator.backward(output.loss)
                    if self.accelerator.sync_gradients and self.arguments.max_grad_norm is not None:
                        self.accelerator.clip_grad_norm_(self.model.parameters(), self.arguments.max_grad_norm)
                    self.optimizer.step()
                    self.learning_rate = self.schedule.get_last_lr()[-1]
                    if self.accelerator.sync_gradients and not self.accelerator.optimizer_step_was_skipped:
                        self.schedule.step()
                    self.optimizer.zero_grad()
                yield {"loss": output.loss.detach(), **output.loss_terms}, output.diagnostics or {}
            self.progress.epoch += 1
            self.progress.batches_in_epoch = 0

    def _log_step(self) -> dict[str, float]:
        arguments, step = self.arguments, self.progress.step
        pictures = arguments.batch_size * arguments.gradient_accumulation_steps * self.accelerator.num_processes
        values = self.means.report(self.accelerator)
        if not math.isfinite(values["loss"]):
            raise ValueError(
                f"The loss became {values['loss']} before step {step}: lower --learning_rate, set --max_grad_norm, or "
                "use another --mixed_precision."
            )
        now = time.perf_counter()
        values["learning_rate"] = float(self.learning_rate)
        values["images_per_second"] = (step - self.last_logged) * pictures / (now - self.since)
        self.since, self.last_logged = now, step
        self.log.write(values, step)
        return values

    def _validate(self) -> None:
        """Score the network on all processes; keep it if it is the best so far."""
        model = self.accelerator.unwrap_model(self.model)
        # without SyncBatchNorm every process has statistics of its own; those of the first are the ones saved
        broadcast(list(model.buffers()))
        shown: list[tuple] = []
        results = self._score(model, shown)
        self.log.write(
            {f"validation/{name}": results[name] for name in ("mean_iou", "mean_accuracy", "overall_accuracy")},
            self.progress.step,
        )
        mean_iou = results["mean_iou"] or 0.0
        self.accelerator.print(f"step {self.progress.step}: validation mIoU {100 * mean_iou:.2f} %")
        if mean_iou <= self.progress.best_mean_iou:
            return
        self.progress.best_mean_iou = mean_iou
        self.best_results = {"step": self.progress.step, **results}
        save_model(self.accelerator, self.model, self.image_processor, self.output_dir)
        if self.accelerator.is_main_process:
            write_json(self.output_dir / RESULTS_FILE, self.best_results)
            sheet = contact_sheet(shown, self.spec.palette, self.spec.classes)
            sheet.save(self.output_dir / "predictions.png")

    def _score(self, model: MsctrForSemanticSegmentation, shown: list[tuple]) -> dict[str, Any]:
        # from all over the set: neighbours are often frames of one video
        pictures = (_num_pictures(self.validation_set) or PICTURES_SHOWN) // self.accelerator.num_processes
        every, seen = max(1, pictures // PICTURES_SHOWN), itertools.count()

        def keep_a_few(samples, predictions):
            if next(seen) % every == 0 and len(shown) < PICTURES_SHOWN:
                shown.append((samples[0]["image"], samples[0]["label"], predictions[0]))

        with _in_full_precision(model):
            scores = score_dataset(
                Predictor(model, self.image_processor),
                self.validation_set,
                num_labels=len(self.spec.classes),
                accelerator=self.accelerator,
                num_workers=self.num_workers,
                on_batch=keep_a_few,
            )
        return scores.results(self.spec.id2label, self.spec.groups)

    def _announce(self) -> None:
        arguments, accelerator = self.arguments, self.accelerator
        model = accelerator.unwrap_model(self.model)
        parameters = sum(p.numel() for p in model.parameters())
        for_training = sum(
            p.numel()
            for name, p in model.named_parameters()
            if name.startswith("projection_head.")
            or (name.startswith("auxiliary_head.") and model.config.decode_head != "ocr")
        )
        batch = arguments.batch_size * arguments.gradient_accumulation_steps * accelerator.num_processes
        accelerator.print(
            f"{model.config.decode_head} on {self.description['backbone']}, {model.config.contrastive_mode}: "
            f"{(parameters - for_training) / 1e6:.1f} M parameters, {for_training / 1e6:.1f} M more in training\n"
            f"{self.spec.name}: {self.num_training or 'streamed'} training and "
            f"{_num_pictures(self.validation_set) or 'streamed'} validation "
            f"pictures, {len(self.spec.classes)} classes\n"
            f"{arguments.max_steps} steps of {batch} pictures on {accelerator.num_processes} x "
            f"{accelerator.device.type}, precision {accelerator.mixed_precision}"
        )

    def _steps_per_epoch(self, loader: DataLoader, train_set: Dataset | IterableDataset) -> int | None:
        """Steps until every picture was seen once; `None` for a stream, whose end is not known."""
        self.num_training = _num_pictures(train_set)
        if self.num_training is None:
            if self.arguments.schedule == "exponential":
                raise ValueError("--schedule exponential counts epochs, which a stream does not have; use poly.")
            return None
        batches = len(loader) // self.accelerator.num_processes
        if batches == 0:
            raise ValueError(
                f"{self.num_training} training pictures do not fill one batch of {self.arguments.batch_size} on "
                f"{self.accelerator.num_processes} process(es); lower --batch_size."
            )
        return max(1, batches // self.arguments.gradient_accumulation_steps)


def _num_pictures(dataset: Dataset | IterableDataset) -> int | None:
    return None if isinstance(dataset, IterableDataset) else len(dataset)


@contextmanager
def _in_full_precision(model: nn.Module) -> Iterator[None]:
    """Take off Accelerate's mixed precision, so that validation scores the network as it is saved."""
    mixed_precision_forward = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if mixed_precision_forward is not None:
            model.forward = mixed_precision_forward


def print_results(results: dict[str, Any], output_dir: str | Path) -> None:
    """Per-class table, and where everything lies; printed by the main process."""
    if not PartialState().is_main_process:
        return
    print(iou_table(results))
    print(f"best at step {results['step']}; model, results.json and predictions.png are in {output_dir}")


def _build_accelerator(arguments: TrainingArguments) -> Accelerator:
    trackers = [name for name in arguments.report_to if name != "none"]
    return Accelerator(
        mixed_precision=arguments.mixed_precision,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        log_with=trackers or None,
        project_dir=str(Path(arguments.output_dir) / "tensorboard"),
        dataloader_config=DataLoaderConfiguration(non_blocking=True),
        step_scheduler_with_optimizer=False,
    )


def _augmentation(arguments: DataArguments, image_processor) -> TrainingAugmentation:
    return TrainingAugmentation(
        crop_size=arguments.crop_size,
        image_mean=image_processor.image_mean,
        image_std=image_processor.image_std,
        scale_range=arguments.scale_range,
        aspect_range=arguments.aspect_range,
        max_class_share=arguments.max_class_share,
        flip_probability=arguments.flip_probability,
        color_jitter=arguments.color_jitter,
        padding_mode=arguments.padding_mode,
    )


def _check_arguments(arguments: TrainingArguments, data_arguments: DataArguments) -> None:
    for name in (
        "max_steps", "batch_size", "gradient_accumulation_steps", "validation_steps", "checkpointing_steps",
        "checkpoints_kept", "logging_steps",
    ):  # fmt: skip
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(arguments, name)}.")
    for name in ("crop_size", "scale_range", "aspect_range"):
        value = getattr(data_arguments, name)
        if len(value) != 2 or min(value) <= 0:
            raise ValueError(f"--{name} needs two positive values, got {value}.")
    known = {"none", "tensorboard", "wandb", "trackio"}
    if unknown := sorted(set(arguments.report_to) - known):
        raise ValueError(f"--report_to: {unknown} is unknown; choose from {sorted(known)}.")
