"""Training loop: `train` is a run, `train_step` is one step. All parts of a run are built in setup.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from ..errors import UsageError
from ..progress import say
from .checkpointing import NO_SCORE, replace_progress, save_checkpoint, write_on_main
from .description import without_unlabeled
from .devices import full_state_dict, traced
from .interruption import Interrupted, StopRequest
from .mean_teacher import MeanTeacher, TaughtImages, draw_pseudo_labels
from .replacement import remove_replaced
from .run_folder import (
    CHECKPOINTS,
    LAST,
    NOT_FINITE_FILE,
    PREDICTIONS_FILE,
    PSEUDO_LABELS_FILE,
    RESULTS_FILE,
    RUN_FILE,
    read_json,
    save_image,
    save_model,
    write_json,
)
from .setup import Setup, UnlabeledData
from .step_guard import TooManySkippedSteps
from .training_data import endless_batches
from .validation import ValidationResult, share_statistics

WITHOUT_SCORE = "without_score"  # key in results.json: the metric for which no pixel of the validation is labeled


class TrainingLoop:
    """Loop that trains a network, validates it, and saves the best and the last one.

    Args:
        setup (`Setup`): Parts of the run; its `start` must have been called.
        stop (`StopRequest`): Record of signals that tell this process to stop.
        publish (`Callable`, *optional*): Function that the main process calls with the folder after every new best
            network.
    """

    def __init__(self, setup: Setup, stop: StopRequest, publish: Callable[[Path], None] | None = None):
        self.args, self.output_dir, self.accelerator = setup.args, setup.output_dir, setup.accelerator
        self.network, self.model, self.average = setup.network, setup.model, setup.average
        self.optimizer, self.schedule, self.image_processor = setup.optimizer, setup.schedule, setup.image_processor
        self.guard, self.meter, self.log, self.validation = setup.guard, setup.meter, setup.log, setup.validation
        self.duration = setup.duration
        self.progress, self.states, self.kept_settings = setup.progress, setup.states, setup.kept_settings
        self.data = setup.data
        self.stop = stop
        self.publish = publish
        self.batches = endless_batches(
            self.accelerator,
            setup.loader,
            self.progress,
            self.args.batch_size * self.accelerator.num_processes,
            None if setup.epochs is None else setup.epochs.sampler,
        )
        self.unlabeled, self.teacher = setup.unlabeled, self._build_teacher(setup.unlabeled)
        self.newest_pseudo_labels: TaughtImages | None = None  # kept for the figure of the validation that follows
        # a checkpoint in another folder does not belong to this run, so the same step must be saved here again
        is_own = setup.checkpoint is not None and setup.checkpoint.resolve() == self.checkpoint_folder.resolve()
        self.saved_step = self.progress.step if is_own else 0
        self.learning_rate = self.schedule.get_last_lr()[-1]  # learning rate of the newest step

    def _build_teacher(self, unlabeled: UnlabeledData | None) -> MeanTeacher | None:
        """Build the teacher of the images without labels, if there are such images."""
        if unlabeled is None or self.average is None:  # the setup builds an average for every teacher
            return None
        images_per_batch = self.args.unlabeled_images_per_batch * self.accelerator.num_processes
        batches = endless_batches(
            self.accelerator,
            unlabeled.loader,
            unlabeled.position,
            images_per_batch,
            unlabeled.sampler,
            "unlabeled_batch_size",
        )
        return MeanTeacher(
            self.accelerator,
            self.average.module,
            batches,
            unlabeled.mix,
            channels_last=self.args.channels_last,
            class_thresholds=unlabeled.class_thresholds,
        )

    @property
    def checkpoint_folder(self) -> Path:
        """Folder of the checkpoint of this step, which may not exist yet."""
        return self.output_dir / CHECKPOINTS / f"step_{self.progress.step}"

    @property
    def best_network(self) -> torch.nn.Module:
        """Network that is validated and saved, with averaged weights if there is an average."""
        return self.network if self.average is None else self.average.module

    def run(self) -> dict[str, Any]:
        """Train to the last step and return the best results.

        Raises:
            UsageError: If too many steps in a row were skipped, or a file cannot be written.
            Interrupted: If a signal told a process to stop; a checkpoint to resume from was saved before.
        """
        try:
            self.train()
        except TooManySkippedSteps as failure:
            raise self.give_up(failure) from failure
        finally:
            self.batches.close()
            if self.teacher is not None:
                self.teacher.batches.close()
            # not `end_training`, which would also destroy the process group of a program that calls `msctr_hf.train`
            for tracker in self.accelerator.trackers:
                tracker.finish()
        if not self.progress.best_results and self.accelerator.is_main_process:
            say(f"no validated network was finite, so there is no best model; the last is in {self.output_dir / LAST}")
        return self.progress.best_results

    def train(self) -> None:
        """Train from the current step to the last one, or until early stopping."""
        self.finish_what_was_due()
        self.model.train()
        profile = traced(self.accelerator, self.output_dir) if self.args.profile else nullcontext()
        with self.meter.running(self.progress.step, self.duration.max_steps), profile as profiler:
            for step in range(self.progress.step + 1, self.duration.max_steps + 1):
                if self.is_out_of_patience():
                    break
                self.train_step(self.next_batches())
                # Usually this is the outcome of the previous step: reading that of this step would make the host wait
                # for the device, which would then have an empty queue. Where the host waits anyway, it reads all
                # outcomes, so that the logs and checkpoints below include this very step in every process.
                outcome = self.guard.check(wait=self.host_waits_anyway())
                with self.meter.paused():
                    if self.is_due(self.args.logging_steps):
                        report = self.meter.report(step, self.learning_rate, self.progress.skipped_steps)
                        self.log.write(report, step)
                    # A validation takes long and may fail or be killed. With a checkpoint before it, a resumed run
                    # repeats only the validation, and no step; with one before a stop, it repeats nothing.
                    if self.save_is_due() or self.validation_is_due() or outcome.stop:
                        self.save_checkpoint()
                    if outcome.stop:
                        raise self.interrupted()
                    if self.save_is_due():
                        self.save_last()
                    if self.validation_is_due():
                        self.keep_if_best(self.validate())
                        self.show_pseudo_labels()
                if profiler is not None:
                    profiler.step()
        if self.progress.step < self.duration.max_steps:
            self.end_early()

    def train_step(self, batches: Iterator[dict[str, torch.Tensor]]) -> None:
        """Run the forward and backward passes of all batches of a step, then update the weights once."""
        self.network.contrastive_weight.set_step(self.progress.step, self.duration.max_steps)
        teacher, taught = self.teacher_of_step(), None
        for batch in batches:
            with self.accelerator.accumulate(self.model):  # processes exchange gradients only at the last batch
                self.guard.before_forward()
                pixel_values = batch["pixel_values"]
                if self.args.channels_last:
                    pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
                image_ids, unlabeled = batch["image_id"], {}
                if teacher is not None:
                    taught, others = teacher.next_batch()
                    image_ids, unlabeled = torch.cat([image_ids, others]), taught.arguments()
                output = self.model(pixel_values=pixel_values, labels=batch["labels"], **unlabeled)
                self.accelerator.backward(output.loss)
            terms = {"loss": output.loss.detach(), **output.loss_terms}
            self.guard.add_batch(terms, image_ids)
            facts, diagnostics = self.network.contrastive_facts, output.diagnostics or {}
            if teacher is not None:
                facts = {**facts, **self.network.unlabeled_weight.facts()}
                diagnostics = {**diagnostics, **teacher.diagnostics()}
            self.meter.add_batch(terms, facts, diagnostics)
        grad_norm = self.clip_gradient()
        self.progress.step += 1
        # Takes the step of the optimizer, or skips it on the device if its loss or gradient is not finite. The host
        # does not know which yet, so the lines below run in both cases and must not depend on it.
        self.guard.update(self.progress.step, grad_norm, stop=self.stop.requested)
        self.learning_rate = self.schedule.get_last_lr()[-1]
        self.schedule.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.network, self.progress.step)
        self.meter.end_step(grad_norm)
        if self.validation_is_due():
            self.newest_pseudo_labels = taught

    def teacher_of_step(self) -> MeanTeacher | None:
        """Return the teacher if images without labels join the next step, and set their weight in the loss."""
        first = self.args.unlabeled_start_step
        if self.teacher is None or self.progress.step < first:
            return None
        self.network.unlabeled_weight.set_step(self.progress.step - first, self.duration.max_steps - first)
        return self.teacher

    def next_batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield the batches of one step, `gradient_accumulation_steps` of them, even where an epoch ends within it."""
        return itertools.islice(self.batches, self.args.gradient_accumulation_steps)

    def clip_gradient(self) -> torch.Tensor | None:
        """Clip the gradient and return its norm before clipping, or `None` if the launcher does not report it."""
        # also called without a limit, since the guard needs the norm
        largest = float("inf") if self.args.max_grad_norm is None else self.args.max_grad_norm
        grad_norm = self.accelerator.clip_grad_norm_(self.model.parameters(), largest)
        return grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm

    def is_due(self, every: int) -> bool:
        """Return whether an action that is repeated after `every` steps, and at the end, is due after this step."""
        return self.progress.step % every == 0 or self.progress.step == self.duration.max_steps

    def save_is_due(self) -> bool:
        """Return whether the user asked for a checkpoint of this step."""
        return self.is_due(self.args.checkpointing_steps)

    def validation_is_due(self) -> bool:
        """Return whether a validation of this step is due and was not done before an interruption."""
        return self.is_due(self.duration.validation_steps) and self.progress.validated_step != self.progress.step

    def is_out_of_patience(self) -> bool:
        """Return whether too many validations in a row, up to the newest, found no new best network."""
        patience = self.args.early_stopping_patience
        return patience is not None and self.progress.validations_without_best >= patience

    def host_waits_anyway(self) -> bool:
        """Return whether logging, saving or validation follows this step, which wait for the device anyway."""
        return self.is_due(self.args.logging_steps) or self.save_is_due() or self.validation_is_due()

    def finish_what_was_due(self) -> None:
        """Complete what was due after the checkpoint from which the run resumes, and was cut off by an interruption.

        The run may have been killed at any time after the checkpoint was complete, so everything that follows a
        checkpoint must be repeatable: files are replaced by equal ones, and a validation of the same weights has the
        same result.
        """
        if self.progress.step == 0:
            return
        best, path = self.progress.best_results, self.output_dir / RESULTS_FILE
        # results.json differs from the checkpoint if a validation was cut off before its mark, or if the checkpoint is
        # older or in another folder; it is then replaced, and the model next to it is not pushed
        best_is_here = bool(best) and read_json(path) == best
        if best:
            write_on_main(self.accelerator, lambda: write_json(path, best), str(path))
        if self.save_is_due():
            self.save_last()
        if self.validation_is_due():
            self.save_checkpoint()  # writes one only if the run was resumed from a checkpoint in another folder
            self.keep_if_best(self.validate())
        if best_is_here and best is self.progress.best_results:
            self.push()  # its upload may have been cut off; equal files do not lead to a second commit on the Hub

    def validate(self) -> ValidationResult:
        """Score the network, without changing the state of the run.

        Raises:
            Interrupted: If a signal told a process to stop before the end.
        """
        result = self.validation.run(self.best_network, lambda: self.stop.requested)
        if result is None:
            raise self.interrupted()
        return result

    def keep_if_best(self, result: ValidationResult) -> None:
        """Log a validation, save the network if it is the best so far, and mark the validation as done.

        Where nothing is labeled, no network is better than another: the newest is kept, without a score, until a
        validation has one. A network that is not finite is never kept.

        The mark, a file in the checkpoint of this step, is written last: if the run is killed before, the validation
        is repeated with the same weights and the same result, the log drops the first line, and files are replaced by
        equal ones. An upload follows the mark, since a repeated one could lead to a second commit.
        """
        progress = self.progress
        metric = self.args.metric_for_best_model
        self.log.write_validation(result, progress.step, metric)
        has_score = result.measured(metric) is not None
        is_best = has_score and result.score(metric) > progress.best_score
        is_newest = not has_score and result.not_finite is None and progress.best_score == NO_SCORE
        is_kept = is_best or is_newest
        progress.validations_without_best = 0 if is_kept else progress.validations_without_best + 1
        if is_best:
            progress.best_score = result.score(metric)
        if is_kept:
            without = {WITHOUT_SCORE: metric} if is_newest else {}
            progress.best_results = {"step": progress.step, **result.results, **without}
            self.save_best(result)
        progress.validated_step = progress.step
        what = f"The progress in {self.checkpoint_folder}"
        write_on_main(self.accelerator, lambda: replace_progress(self.checkpoint_folder, progress), what)
        if is_kept:
            self.push()

    def save_best(self, result: ValidationResult) -> None:
        """Save the validated network, with its scores, as the model of the run."""
        weights = full_state_dict(self.accelerator, self.best_network)

        def save() -> None:
            save_model(self.best_network, self.image_processor, self.output_dir, weights)
            write_json(self.output_dir / RESULTS_FILE, self.progress.best_results)
            if result.sheet is not None:
                save_image(result.sheet, self.output_dir / PREDICTIONS_FILE)

        write_on_main(self.accelerator, save, f"The best model in {self.output_dir}")

    def show_pseudo_labels(self) -> None:
        """Draw images without labels of this step, with the labels of the teacher, for the log and the folder."""
        if self.newest_pseudo_labels is None:
            return
        newest, self.newest_pseudo_labels = self.newest_pseudo_labels, None
        threshold, path = self.network.config.pseudo_label_threshold, self.output_dir / PSEUDO_LABELS_FILE
        sheet = draw_pseudo_labels(newest, threshold, self.validation.spec, self.unlabeled.colors)
        self.log.show("training/pseudo_labels", sheet, self.progress.step)
        write_on_main(self.accelerator, lambda: save_image(sheet, path), str(path))

    def save_last(self) -> None:
        """Save the network of this step, even if it is not the best."""
        weights = full_state_dict(self.accelerator, self.best_network)
        write_on_main(
            self.accelerator,
            lambda: save_model(self.best_network, self.image_processor, self.output_dir / LAST, weights),
            f"The last model in {self.output_dir}",
        )

    def end_early(self) -> None:
        """Save the network of this step, and report why the run ends before its last step."""
        self.save_last()
        if self.accelerator.is_main_process:
            say(
                f"step {self.progress.step}: no new best {self.args.metric_for_best_model} in the last "
                f"{self.progress.validations_without_best} validations, so training ends early "
                f"(early_stopping_patience {self.args.early_stopping_patience})"
            )
        self.say_if_unlabeled_never_joined()

    def say_if_unlabeled_never_joined(self) -> None:
        """Report at the end of a run, and in run.json, that no image without labels was learned from."""
        first = self.args.unlabeled_start_step
        if self.unlabeled is None or self.progress.step > first:
            return
        path = self.output_dir / RUN_FILE
        write_on_main(self.accelerator, lambda: write_json(path, without_unlabeled(read_json(path))), str(path))
        if self.accelerator.is_main_process:
            say(f"images without labels were not trained on, since they join after unlabeled_start_step {first}")

    def save_checkpoint(self) -> None:
        """Save a checkpoint, unless this step already has one."""
        if self.saved_step == self.progress.step:
            return
        if self.validation_is_due():
            share_statistics(self.best_network)  # so that a resumed run validates the same network as this one
        save_checkpoint(
            self.accelerator,
            self.output_dir,
            self.progress.step,
            self.states,
            self.kept_settings,
            keep=self.args.checkpoints_kept,
            data=self.data,
            temporary=not self.save_is_due(),
        )
        self.saved_step = self.progress.step
        if self.accelerator.is_main_process:
            remove_replaced(self.output_dir)  # the replaced run is needed only until this one has saved something

    def push(self) -> None:
        """Publish the best network of the run, if a function to do so was given."""
        if self.publish is not None and self.accelerator.is_main_process:
            self.publish(self.output_dir)

    def interrupted(self) -> Interrupted:
        """Build the exception that ends the run after a signal, when the checkpoint of this step is saved."""
        return Interrupted(f"stopped after step {self.progress.step}; continue with `resume='auto'`")

    def give_up(self, failure: TooManySkippedSteps) -> UsageError:
        """Save a checkpoint, with the weights from before the skipped steps, and build the error that ends the run."""
        self.save_checkpoint()
        report, verdict = self.output_dir / NOT_FINITE_FILE, failure.verdict
        content = {"step": verdict.step, "learning_rate": self.learning_rate, **verdict.faulty._asdict()}
        write_on_main(self.accelerator, lambda: write_json(report, content), str(report))
        self.say_if_unlabeled_never_joined()
        return UsageError(
            f"{failure.in_a_row} steps in a row were skipped, up to step {verdict.step}: "
            f"{', '.join(verdict.faulty.terms)} not finite (see {report}). Lower `learning_rate`, set `max_grad_norm` "
            "or use another `mixed_precision`; the checkpoint has the weights from before these steps."
        )
