"""The training loop, on Accelerate."""

from __future__ import annotations

import json
import pickle
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, set_seed
from timm.utils import ModelEmaV3
from torch.distributed.tensor import DTensor
from tqdm.auto import tqdm

from ..data.settings import DataArguments
from ..errors import UsageError
from .checkpointing import Progress, States, find_checkpoint, save_checkpoint, together
from .description import describe_run, describe_start, without_secrets
from .devices import (
    FUSED_DEVICES,
    SHARDED,
    build_accelerator,
    full_state_dict,
    lay_out,
    traced,
    used_megabytes,
)
from .interruption import Interrupted, StopRequest
from .logs import RunLog, RunningMeans
from .network import build_network, choose_image_processor
from .optimization import build_optimizer, build_schedule
from .resuming import compare_settings, move_to_the_same_picture, splits_as_before
from .run_folder import (
    LAST,
    NOT_FINITE_FILE,
    RESULTS_FILE,
    forget_what_was_set_aside,
    save_model,
    set_aside,
    write_config,
    write_json,
    write_run_file,
)
from .settings import ModelArguments, TrainingArguments
from .step_guard import StepGuard, Verdict
from .training_data import build_loader, without_drawing_at_the_start
from .validation import Validation

STEPS_WITHOUT_ANCHORS = 100  # in a row, before a warning


class Run:
    """One training run: everything is built in `__init__`, nothing is written before `go`.

    Args:
        model_arguments, data_arguments, arguments: What to train, on what and how.
        settings (`dict`): Further settings of `MsctrConfig`.
        stop (`StopRequest`): Whether this process was told to stop.
        pictures (`int`, *optional*): Validate on so many pictures only.
        publish (`Callable`, *optional*): Called by the first process with the folder of every new best model.
    """

    def __init__(
        self,
        model_arguments: ModelArguments,
        data_arguments: DataArguments,
        arguments: TrainingArguments,
        settings: dict[str, Any],
        stop: StopRequest,
        pictures: int | None = None,
        publish: Callable[[Path], None] | None = None,
    ):
        self.arguments = arguments
        self.stop = stop
        self.output_dir = Path(arguments.output_dir)
        self.spec = data_arguments.spec
        train_set = data_arguments.load(data_arguments.train_split)
        validation_set = data_arguments.load("validation")
        # DPT, MobileNetV2 and others have parameters that no prediction needs; our own networks have none
        adapted = model_arguments.contrastive_adapter
        self.accelerator = build_accelerator(arguments, find_unused_parameters=adapted)
        given = {**asdict(model_arguments), **asdict(data_arguments), **asdict(arguments), **settings}
        self.settings = json.loads(json.dumps(without_secrets(given)))
        self.checkpoint = self._find_checkpoint()
        self.notes = [] if self.checkpoint is None else compare_settings(self.checkpoint, self._kept_settings())

        set_seed(arguments.seed)
        with self.accelerator.local_main_process_first():  # one download of weights per machine
            network = build_network(model_arguments, settings, self.spec)
            image_processor = choose_image_processor(network, model_arguments, data_arguments)
        loader, self.steps_per_epoch = build_loader(
            train_set, data_arguments, arguments, image_processor, self.accelerator
        )
        self.network = lay_out(
            network,
            self.accelerator.device,
            channels_last=arguments.channels_last,
            bf16=self.accelerator.mixed_precision == "bf16",
            num_processes=self.accelerator.num_processes,
        )
        self.average = self._average()
        optimizer = build_optimizer(self.network, arguments, fused=self.accelerator.device.type in FUSED_DEVICES)
        self.schedule = build_schedule(optimizer, arguments, self.steps_per_epoch)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(self.network, optimizer, loader)
        self.network = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        averages = {} if self.average is None else {"average": self.average}
        self.guard = StepGuard(
            self.accelerator, self.optimizer, self.network, *(each.module for each in averages.values())
        )
        self.progress, self.means = Progress(), RunningMeans()
        self.states = States(
            shared={"schedule": self.schedule, "progress": self.progress, **averages}, own={"means": self.means}
        )
        self.image_processor = image_processor
        self.train_set = train_set
        self.validation = Validation(
            self.accelerator,
            validation_set if pictures is None else validation_set.take(pictures),
            self.spec,
            image_processor,
            self.output_dir,
            data_arguments.num_workers,
            publish,
        )
        self.publish = publish
        self.saved_step = self.skipped_in_a_row = self.without_anchors = 0
        set_seed(arguments.seed, device_specific=True)  # every process draws its own anchors and dropout

    def _kept_settings(self) -> dict[str, Any]:
        """Settings that are kept with checkpoints, and compared when a run goes on."""
        return {**self.settings, "num_processes": self.accelerator.num_processes}

    def _find_checkpoint(self) -> Path | None:
        """Searched by the first process, for all."""
        found: list[Any] = [None, None]
        if self.accelerator.is_main_process:
            try:
                found[0] = find_checkpoint(self.output_dir, self.arguments.resume)
            except UsageError as error:
                found[1] = str(error)
        checkpoint, fault = broadcast_object_list(found)
        if fault is not None:
            raise UsageError(fault)
        return checkpoint

    def _average(self) -> ModelEmaV3 | None:
        """Copied before `prepare`, which binds the forward pass to the network itself."""
        if not self.arguments.ema:
            return None
        if self.accelerator.distributed_type in SHARDED:
            raise UsageError(f"`ema`: {self.accelerator.distributed_type.value} splits the weights; leave it out.")
        average = ModelEmaV3(self.network, decay=self.arguments.ema_decay, use_warmup=True, exclude_buffers=True)
        return average.to(self.accelerator.device)

    @property
    def best_network(self) -> torch.nn.Module:
        """What is validated and saved: the average of the weights where there is one."""
        return self.network if self.average is None else self.average.module

    def go(self) -> dict[str, Any]:
        """Train to the last step and return the best results."""
        if self.accelerator.is_main_process and self.arguments.overwrite_output_dir and self.checkpoint is None:
            set_aside(self.output_dir)
        self.accelerator.wait_for_everyone()
        if self.checkpoint is not None:
            self.go_on_from(self.checkpoint)
        together(self.accelerator, self._describe, f"`output_dir`: {self.output_dir}", "start again")
        self.log = RunLog(self.accelerator, self.output_dir, self.settings, self.progress.step)
        for line in [*describe_start(self), *self.notes]:
            self.accelerator.print(line)
        try:
            if self.progress.step:  # the interruption may have come before these
                self._validate_if_due()
                self._save_if_due()
            if self.progress.step < self.arguments.max_steps:
                self._train_to_the_last_step()
        finally:
            self.accelerator.end_training()
        if self.publish is not None and self.accelerator.is_main_process and self.progress.best_results:
            self.publish(self.output_dir)  # once more: the best may be from before an interruption
        return self.progress.best_results

    def _describe(self) -> None:
        if self.accelerator.is_main_process:
            write_run_file(self.output_dir, describe_run(self.settings, self.accelerator, self.progress.step))
            write_config(self.output_dir, self.settings)

    def go_on_from(self, checkpoint: Path) -> None:
        """Take over the state of everything."""
        same_split = splits_as_before(checkpoint, self._kept_settings())
        try:
            self.accelerator.load_state(str(checkpoint))
            self.states.load(checkpoint, self.accelerator, own=same_split)
        except pickle.UnpicklingError as error:
            raise UsageError(f"`resume`: {checkpoint} holds more than tensors; nothing of it was run.") from error
        self.saved_step = self.progress.step
        if not same_split:
            move_to_the_same_picture(self.progress, checkpoint, self._kept_settings())
            set_seed(self.arguments.seed + self.progress.step, device_specific=True)
        if self.accelerator.is_main_process and self.progress.best_results:
            write_json(self.output_dir / RESULTS_FILE, self.progress.best_results)

    def _train_to_the_last_step(self) -> None:
        self.model.train()
        bar = tqdm(
            total=self.arguments.max_steps,
            initial=self.progress.step,
            desc="training",
            unit="step",
            disable=not self.accelerator.is_local_main_process,
        )
        profile = traced(self.accelerator, self.output_dir) if self.arguments.profile else nullcontext()
        with bar, profile as profiler:
            self.since, self.last_logged = time.perf_counter(), self.progress.step
            for _ in self._steps():
                bar.update()
                told_to_stop = self._hear(of_all=self._waits())
                paused = time.perf_counter()
                if self._is_due(self.arguments.logging_steps):
                    self._log(bar)
                    paused = self.since
                if told_to_stop:
                    self._interrupt()
                self._validate_if_due()
                self._save_if_due()
                self.since += time.perf_counter() - paused
                if profiler is not None:
                    profiler.step()
                if self.progress.step == self.arguments.max_steps:
                    break

    def _steps(self) -> Iterator[None]:
        """Forward, backward and update, batch after batch without end; yields after every update."""
        while True:
            batches: Any = self.loader
            if self.progress.batches_in_epoch:
                batches = self.accelerator.skip_first_batches(self.loader, self.progress.batches_in_epoch)
            batches.set_epoch(self.progress.epoch)  # a loader that skips would count epochs from 0
            for batch in without_drawing_at_the_start(batches):
                self.progress.batches_in_epoch += 1
                with self.accelerator.accumulate(self.model):
                    self._forward_and_backward(batch)
                    if self.accelerator.sync_gradients:
                        self._update()
                if self.accelerator.sync_gradients:
                    yield
            self.progress.epoch += 1
            self.progress.batches_in_epoch = 0

    def _forward_and_backward(self, batch: dict[str, torch.Tensor]) -> None:
        pixel_values = batch["pixel_values"]
        if self.arguments.channels_last:
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        self.guard.before_forward()
        output = self.model(pixel_values=pixel_values, labels=batch["labels"])
        self.accelerator.backward(output.loss)
        terms, diagnostics = {"loss": output.loss.detach(), **output.loss_terms}, output.diagnostics or {}
        self.guard.add_batch(terms, batch["image_id"])
        self.means.update(terms, diagnostics)
        self._watch_anchors(diagnostics.get("contrastive/skipped_stages", 0.0))

    def _update(self) -> None:
        largest = float("inf") if self.arguments.max_grad_norm is None else self.arguments.max_grad_norm
        grad_norm = self.accelerator.clip_grad_norm_(self.model.parameters(), largest)
        if isinstance(grad_norm, DTensor):
            grad_norm = grad_norm.full_tensor()
        self.progress.step += 1
        self.guard.update(self.progress.step, grad_norm, stop=self.stop.came)
        self.learning_rate = self.schedule.get_last_lr()[-1]
        self.schedule.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.network, self.progress.step)
        if isinstance(grad_norm, torch.Tensor):
            self.means.update({"grad_norm": grad_norm})

    def _watch_anchors(self, share_of_skipped_stages: float) -> None:
        self.without_anchors = self.without_anchors + 1 if share_of_skipped_stages == 1 else 0
        if self.without_anchors == STEPS_WITHOUT_ANCHORS:
            warnings.warn(
                f"Nothing was contrasted in {STEPS_WITHOUT_ANCHORS} batches: in no stage has a class enough pixels of "
                "one picture. Take larger crops or batches, or a lower contrastive_min_anchors_per_class.",
                stacklevel=2,
            )

    def _is_due(self, every: int) -> bool:
        return self.progress.step % every == 0 or self.progress.step == self.arguments.max_steps

    def _waits(self) -> bool:
        """Whether this step ends with something that waits for the device anyway."""
        arguments = self.arguments
        return any(
            self._is_due(every)
            for every in (arguments.logging_steps, arguments.validation_steps, arguments.checkpointing_steps)
        )

    def _hear(self, *, of_all: bool) -> bool:
        """Learn which steps were skipped and whether to stop; all processes learn the same at the same step."""
        verdicts = list(self.guard.verdicts(of_all=of_all))
        if any(verdict.stop or verdict.faulty for verdict in verdicts):
            verdicts += self.guard.verdicts(of_all=True)
        for verdict in verdicts:
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if verdict.faulty else 0
            if verdict.faulty:
                self._tell_of(verdict)
            if self.skipped_in_a_row == self.arguments.max_skipped_steps:
                self._give_up(verdict)
        return any(verdict.stop for verdict in verdicts)

    def _tell_of(self, verdict: Verdict) -> None:
        self.progress.skipped_steps += 1
        faulty = verdict.faulty
        self.log.write({"skipped": True, "not_finite": faulty.terms, "pictures": faulty.pictures}, verdict.step)
        self.accelerator.print(
            f"\nstep {verdict.step} was skipped, not finite: {', '.join(faulty.terms)}; "
            f"pictures: {', '.join(faulty.pictures)}"
        )

    def _give_up(self, verdict: Verdict) -> None:
        self._save()
        report = self.output_dir / NOT_FINITE_FILE
        if self.accelerator.is_main_process:
            write_json(report, {"step": verdict.step, "learning_rate": self.learning_rate, **verdict.faulty._asdict()})
        raise UsageError(
            f"{self.skipped_in_a_row} steps in a row were skipped, up to step {verdict.step}: "
            f"{', '.join(verdict.faulty.terms)} not finite (see {report}). Lower `learning_rate`, set `max_grad_norm` "
            "or use another `mixed_precision`; the weights are those from before."
        )

    def _interrupt(self) -> None:
        self._save()
        raise Interrupted(f"stopped after step {self.progress.step}; continue with `resume='auto'`")

    def _log(self, bar: tqdm) -> None:
        arguments, step = self.arguments, self.progress.step
        pictures = arguments.batch_size * arguments.gradient_accumulation_steps * self.accelerator.num_processes
        values = self.means.report(self.accelerator)
        now = time.perf_counter()
        values["learning_rate"] = float(self.learning_rate)
        values["images_per_second"] = (step - self.last_logged) * pictures / (now - self.since)
        values["skipped_steps"] = self.progress.skipped_steps
        values["used_mb"] = round(used_megabytes(self.accelerator.device), 1)
        self.since, self.last_logged = now, step
        self.log.write(values, step)
        bar.set_postfix(
            loss=f"{values.get('loss', float('nan')):.4f}",
            rate=f"{values['learning_rate']:.2e}",
            img_s=f"{values['images_per_second']:.1f}",
        )

    def _validate_if_due(self) -> None:
        """Also where a run goes on from a step that was not validated any more."""
        if not self._is_due(self.arguments.validation_steps) or self.progress.validated_step == self.progress.step:
            return
        if not self.validation.run(self.best_network, self.progress, self.log, lambda: self.stop.came):
            self._interrupt()

    def _save_if_due(self) -> None:
        if self._is_due(self.arguments.checkpointing_steps):
            self._save()
            weights = full_state_dict(self.accelerator, self.best_network)
            together(self.accelerator, lambda: self._save_last(weights), f"The last model in {self.output_dir}")

    def _save(self) -> None:
        """A checkpoint, unless this step has one."""
        step = self.progress.step
        if self.saved_step == step:
            return
        kept = self.arguments.checkpoints_kept
        save_checkpoint(self.accelerator, self.output_dir, step, self.states, self._kept_settings(), keep=kept)
        self.saved_step = step
        if self.accelerator.is_main_process:
            forget_what_was_set_aside(self.output_dir)

    def _save_last(self, weights: dict[str, torch.Tensor] | None) -> None:
        if self.accelerator.is_main_process:
            save_model(self.best_network, self.image_processor, self.output_dir / LAST, weights)
