"""Setup of a run: all of its parts are built, up to the first step."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import set_seed
from datasets import Dataset, IterableDataset
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader

from ..data.decoding import rows_with_channels
from ..data.loaders import ShuffledSampler
from ..data.settings import REST, DataSettings
from ..data.tiles import cut_into_tiles
from ..data.user_transform import import_transform
from ..errors import UsageError
from ..evaluation.image_preparation import Colors, ImagePreparation
from ..evaluation.precision import has_bf16
from ..models.loss_weight import UnlabeledWeight
from ..progress import say
from ..settings import as_mapping
from .adapted_network import other_scale
from .average import build_average
from .channel_statistics import CHANNELS, choose_statistics
from .checkpointing import Progress, Stateful, States, find_checkpoint, load_progress, load_state, write_on_main
from .class_thresholds import ClassThresholds
from .class_weights import CLASS_WEIGHTS, ClassPixels, choose_class_weights, describe_class_weights
from .data_checks import check_data, check_unlabeled, without_copies
from .data_record import (
    TRAINING,
    UNLABELED,
    compare_data,
    describe_change,
    describe_data,
    describe_images,
    describe_validation,
)
from .description import (
    DRAWN_IMAGES,
    IMAGES,
    LABELED_IMAGES,
    RunSummary,
    describe_drawn,
    describe_run,
    describe_start,
    without_secrets,
    without_unlabeled,
)
from .devices import (
    FUSED_DEVICES,
    SHARDED,
    build_accelerator,
    choose_precision,
    let_deepspeed_clip,
    optimize_layout,
)
from .duration import plan_duration
from .logs import RunLog, RunningMeans
from .mean_teacher import TeacherStatistics
from .meter import Meter
from .network import (
    build_network,
    choose_image_processor,
    image_processor_options,
    parameters_without_gradient,
    refuse_single_values,
    settings_without_effect,
)
from .optimization import build_optimizer, build_schedule
from .processes import on_main
from .replacement import put_aside
from .resuming import LENGTH, compare_settings, count_images_of_older_version, length_before, splits_as_before
from .run_folder import remove_unfinished, write_config, write_run_file
from .settings import ModelSettings, TrainingSettings, refuse_without_contrast, refuse_without_images
from .step_guard import StepGuard, Verdict
from .training_data import UnlabeledPosition, build_loader, build_unlabeled_loader, num_images
from .validation import Validation, check_metric


class UnlabeledData(NamedTuple):
    """Images without labels of a run.

    Args:
        loader (`DataLoader`): Batches of this process, prepared by Accelerate.
        sampler (`ShuffledSampler`, *optional*): Sampler of the loader; `None` for a stream.
        position (`UnlabeledPosition`): Position in the images, which is part of a checkpoint.
        mix (`str`): How neighboring images are mixed.
        colors (`Colors`): Normalization of the images.
        class_thresholds (`ClassThresholds`, *optional*): Thresholds by class, which are part of a checkpoint.
    """

    loader: DataLoader
    sampler: ShuffledSampler | None
    position: UnlabeledPosition
    mix: str
    colors: Colors
    class_thresholds: ClassThresholds | None


class Setup:
    """All parts of a run; `__init__` builds them and writes nothing, `start` restores a checkpoint and writes files.

    Args:
        model_arguments, data_arguments, args: Settings of the initial network, the data and training.
        network_settings (`dict`): Settings of `MsctrConfig` by name.
        validation_images (`int`, *optional*): Number of images to validate on; by default all.
        command (`str`, *optional*): Command that starts the same run, for run.json; by default that of this process.

    Raises:
        UsageError: If the settings contradict the data, the network or each other.
    """

    def __init__(
        self,
        model_arguments: ModelSettings,
        data_arguments: DataSettings,
        args: TrainingSettings,
        network_settings: dict[str, Any],
        validation_images: int | None = None,
        command: str | None = None,
    ):
        self.command = command
        self.output_dir = Path(args.output_dir)
        self.spec = data_arguments.spec
        check_metric(args.metric_for_best_model, self.spec)
        if data_arguments.augmentation is not None:
            import_transform(data_arguments.augmentation)  # to be refused before labels are read and weights loaded
        if not data_arguments.has_unlabeled:
            refuse_without_images(data_arguments, args, network_settings)
        self.train_set, self.drawn = data_arguments.load_training(args.seed)
        validation_set = data_arguments.load("validation")
        self.images = {"training": num_images(self.train_set), "validation": num_images(validation_set)}
        self.unlabeled_set = data_arguments.load_unlabeled(args.seed)
        copies: list[str] = []
        if data_arguments.unlabeled == REST:
            self.unlabeled_set, copies = without_copies(self.unlabeled_set, self.train_set)  # type: ignore[arg-type]
        self.checkpoint: Path | None = on_main(lambda: find_checkpoint(self.output_dir, args.resume))
        args = replace(args, mixed_precision=choose_precision(args.mixed_precision, self.checkpoint))
        self.notes = [*([] if self.drawn is None else [describe_drawn(self.drawn)]), *copies]
        if self.unlabeled_set is not None:
            args = self._with_teacher(args, model_arguments)
        self.args = args
        accelerator = build_accelerator(args)
        self.accelerator = accelerator
        given = {**as_mapping(model_arguments, data_arguments, args), **network_settings}
        self.settings = json.loads(json.dumps(without_secrets(given)))
        # saved with every checkpoint, to be compared on resume
        self.kept_settings = {**self.settings, "num_processes": accelerator.num_processes}
        self.data = describe_data(self.spec, self.train_set)
        if self.unlabeled_set is not None:
            self.data[UNLABELED] = describe_images(self.unlabeled_set)
        if self.checkpoint is not None:
            self.notes += compare_settings(self.checkpoint, self.kept_settings)
            self.notes += compare_data(self.checkpoint, self.data)
        if args.global_batch_size not in (None, self.images_per_step):
            self.notes.append(
                f"a step sees {args.batch_size} images x {args.gradient_accumulation_steps} batches x "
                f"{accelerator.num_processes} process(es) = {self.images_per_step} images, but learning_rate "
                f"{args.learning_rate:g} is meant for global_batch_size {args.global_batch_size}"
            )
        if accelerator.mixed_precision == "bf16" and has_bf16(accelerator.device) is False:
            self.notes.append(
                "this device only emulates bf16, so a step can take many times as long as in float32, which a new run "
                "gets by mixed_precision auto or no"
            )
        if model_arguments.contrastive_adapter and data_arguments.num_channels is not None:
            raise UsageError(
                "`num_channels`: an adapted model keeps its own image processor, for RGB of 8 bits; leave it out."
            )
        statistics = choose_statistics(data_arguments, self.train_set, self.checkpoint)
        if statistics is not None:
            self.data[CHANNELS] = statistics.as_dict()
            self.notes.append(f"channels of {statistics.value_type}, mean ± standard deviation: {statistics}")
            self.train_set, validation_set = (
                rows_with_channels(dataset, statistics.channels) for dataset in (self.train_set, validation_set)
            )
            if self.unlabeled_set is not None:
                self.unlabeled_set = rows_with_channels(self.unlabeled_set, statistics.channels)
        self.notes += check_data(self.train_set, validation_set, self.spec, data_arguments.train_split)
        if self.unlabeled_set is not None:
            self.notes += check_unlabeled(self.unlabeled_set, self.train_set, validation_set)
        if data_arguments.tile_size is not None:  # after the check, which is about images
            self.train_set = cut_into_tiles(self.train_set, data_arguments.tile_size, data_arguments.tile_overlap)
            validation_set = cut_into_tiles(validation_set, data_arguments.tile_size)
            if self.unlabeled_set is not None:
                overlap = data_arguments.tile_overlap
                self.unlabeled_set = cut_into_tiles(self.unlabeled_set, data_arguments.tile_size, overlap)
            height, width = data_arguments.tile_size
            self.notes.append(
                f"tiles of {height} x {width} pixels count as images: {len(self.train_set)} for training and "
                f"{len(validation_set)} for validation"
            )
        class_pixels = ClassPixels(self.train_set, self.spec, data_arguments.num_workers)
        if not model_arguments.contrastive_adapter:  # which refuses class weights
            weights = choose_class_weights(network_settings.get(CLASS_WEIGHTS), class_pixels, self.checkpoint)
            if weights is not None:
                network_settings = {**network_settings, CLASS_WEIGHTS: weights}
                self.data[CLASS_WEIGHTS] = weights
                self.notes.append(describe_class_weights(weights, self.spec))

        set_seed(args.seed)  # so that every process builds the same network
        with accelerator.local_main_process_first():  # so that weights are downloaded once per machine
            network = build_network(model_arguments, network_settings, self.spec)
            self.image_processor = choose_image_processor(network, model_arguments, data_arguments, statistics)
        self.notes += settings_without_effect(model_arguments)
        if model_arguments.contrastive_adapter:
            self.notes += other_scale(self.image_processor, image_processor_options(data_arguments))
        if self.unlabeled_set is not None:
            refuse_without_contrast(network.config, network_settings)
        loader, self.epochs = build_loader(
            self.train_set, data_arguments, args, self.image_processor, class_pixels, accelerator
        )
        before = {} if self.checkpoint is None else length_before(self.checkpoint, self.kept_settings)
        self.duration = plan_duration(args, self.epochs, before)
        self.kept_settings[LENGTH] = {
            "max_steps": self.duration.max_steps, "validation_steps": self.duration.validation_steps,
        }  # fmt: skip
        network = optimize_layout(  # type: ignore[assignment]
            network,
            accelerator.device,
            channels_last=args.channels_last,
            bf16=accelerator.mixed_precision == "bf16",
            num_processes=accelerator.num_processes,
        )
        if args.batch_size == 1:
            refuse_single_values(network, "batch_size")
        elif self.unlabeled_set is not None and args.unlabeled_images_per_batch == 1:
            refuse_single_values(network, "unlabeled_batch_size")
        self.average = self._average(network)
        optimizer = build_optimizer(network, args, fused=accelerator.device.type in FUSED_DEVICES)
        self.schedule = build_schedule(optimizer, args, self.duration)
        let_deepspeed_clip(accelerator, args.max_grad_norm)
        if accelerator.num_processes > 1 and accelerator.distributed_type not in SHARDED:
            # DDP would wait for gradients that never come; to look for them in every step takes time
            accelerator.ddp_handler.find_unused_parameters = bool(
                model_arguments.contrastive_adapter  # DPT, MobileNetV2 and others have such parameters
                or parameters_without_gradient(network.to(accelerator.device), data_arguments.crop_size)
            )
        self.model, self.optimizer, self.loader = accelerator.prepare(network, optimizer, loader)
        if accelerator.gradient_accumulation_steps != args.gradient_accumulation_steps:  # only DeepSpeed overrides it
            raise UsageError(
                f"`gradient_accumulation_steps` is {args.gradient_accumulation_steps}, but the configuration of "
                f"DeepSpeed says {accelerator.gradient_accumulation_steps}; use the same number in both."
            )
        self.network = accelerator.unwrap_model(self.model, keep_torch_compile=False)
        self.unlabeled = None
        if self.unlabeled_set is not None:
            self.unlabeled = self._unlabeled_data(self.unlabeled_set, data_arguments)
            self.notes += self._without_effect(data_arguments)
            self.network.unlabeled_weight = UnlabeledWeight(args.unlabeled_ramp_steps)
        scored = validation_set
        if validation_images is not None:  # datasets 4.0 cannot take more images than there are
            scored = validation_set.take(min(validation_images, num_images(validation_set) or validation_images))
        self.validation = Validation(
            accelerator,
            scored,
            self.spec,
            self.image_processor,
            data_arguments.num_workers,
        )
        self.measured_on = describe_validation(self.spec, validation_set, args.metric_for_best_model)
        self.progress, self.means = Progress(measured_on=self.measured_on), RunningMeans()
        shared: dict[str, Stateful] = {"schedule": self.schedule, "progress": self.progress}
        if self.average is not None:
            shared["average"] = self.average
        own: dict[str, Stateful] = {"means": self.means}
        if self.unlabeled is not None:
            shared["unlabeled_position"] = self.unlabeled.position
            if self.unlabeled.class_thresholds is not None:
                shared["class_thresholds"] = self.unlabeled.class_thresholds
            own["teacher_statistics"] = TeacherStatistics(self.average.module)  # type: ignore[union-attr]
            if self.network.contrastive_loss is not None:
                own["pseudo_draws"] = self.network.contrastive_loss.pseudo_draws
        self.states = States(shared=shared, own=own)
        set_seed(args.seed, device_specific=True)  # so that every process draws its own anchors and dropout

    @property
    def images_per_step(self) -> int:
        """Number of images of one step, over all processes."""
        return self.args.batch_size * self.args.gradient_accumulation_steps * self.accelerator.num_processes

    @property
    def unlabeled_join(self) -> bool:
        """Whether there are images without labels, and steps that learn from them."""
        return self.unlabeled is not None and self.args.unlabeled_start_step < self.duration.max_steps

    def _with_teacher(self, args: TrainingSettings, model_arguments: ModelSettings) -> TrainingSettings:
        """Switch the average of the weights on, which labels the images without labels."""
        if model_arguments.contrastive_adapter:
            raise UsageError(
                "`contrastive_adapter`: an adapted model learns from labeled images only; leave `unlabeled` and "
                "`unlabeled_dir` out."
            )
        if args.ema:
            return args
        self.notes.append("images without labels need a teacher, so weights are averaged, as by ema")
        return replace(args, ema=True)

    def _without_effect(self, data_arguments: DataSettings) -> list[str]:
        """Return sentences about images without labels that are not mixed, or not trained on."""
        mix, first = data_arguments.unlabeled_mix, self.args.unlabeled_start_step
        notes: list[str] = []
        if mix != "none" and self.args.unlabeled_images_per_batch == 1:
            notes.append(f"unlabeled_mix {mix} mixes nothing: a batch has one image without labels, and needs two")
        if not self.unlabeled_join:
            notes.append(
                f"images without labels are not trained on: unlabeled_start_step {first} is not below the number of "
                f"steps, {self.duration.max_steps}"
            )
        return notes

    def _unlabeled_data(self, dataset: Dataset | IterableDataset, data_arguments: DataSettings) -> UnlabeledData:
        """Build the second loader of the run."""
        loader = build_unlabeled_loader(dataset, data_arguments, self.args, self.image_processor, self.accelerator)
        sampler: Any = None if isinstance(dataset, IterableDataset) else loader.sampler
        colors = ImagePreparation(self.image_processor).colors
        prepared = self.accelerator.prepare(loader)
        thresholds, share = None, self.args.pseudo_label_class_share
        if share is not None:
            largest, device = self.network.config.pseudo_label_threshold, self.accelerator.device
            thresholds = ClassThresholds(len(self.spec.classes), share, largest, device)
        return UnlabeledData(prepared, sampler, UnlabeledPosition(), data_arguments.unlabeled_mix, colors, thresholds)

    def _average(self, network: torch.nn.Module) -> ModelEmaV3 | None:
        """Build the average of the weights, if the settings ask for one."""
        if not self.args.ema:
            return None
        if self.accelerator.distributed_type in SHARDED:
            needs = "`ema`" if self.unlabeled_set is None else "`unlabeled` and `unlabeled_dir` need `ema`"
            raise UsageError(f"{needs}: {self.accelerator.distributed_type.value} splits the weights; leave it out.")
        return build_average(network, self.args.ema_decay, self.accelerator.device)

    def start(self) -> None:
        """Restore the checkpoint, write run.json and config.yaml, and print a description of the run."""
        folder = f"`output_dir`: {self.output_dir}"
        if self.args.overwrite_output_dir and self.checkpoint is None:
            write_on_main(self.accelerator, lambda: put_aside(self.output_dir), folder, "start again")
        if self.checkpoint is not None:
            self.resume_from(self.checkpoint)
        write_on_main(self.accelerator, self._describe, folder, "start again")
        step, validated_step = self.progress.step, self.progress.validated_step
        self.log = RunLog(self.accelerator, self.output_dir, self.settings, step, validated_step)
        self.guard = StepGuard(
            self.accelerator,
            self.optimizer,
            self.network,
            max_skipped=self.args.max_skipped_steps,
            report=self._report_skipped,
        )
        self.meter = Meter(self.accelerator, self.means, self.images_per_step)
        if self.accelerator.is_main_process:
            for line in [*describe_start(self._summary()), *self.notes]:
                say(line)

    def _describe(self) -> None:
        description = describe_run(self.settings, self.accelerator, self.duration, self.progress.step, self.command)
        description[IMAGES] = self.images
        if CLASS_WEIGHTS in self.data:
            description[CLASS_WEIGHTS] = self.data[CLASS_WEIGHTS]
        if self.drawn is not None:
            description[DRAWN_IMAGES] = self.drawn
        if self.unlabeled is not None:
            description[LABELED_IMAGES] = {
                name: None if self.data[kind] is None else self.data[kind]["images"]
                for name, kind in (("labeled", TRAINING), ("unlabeled", UNLABELED))
            }
            if not self.unlabeled_join:
                description = without_unlabeled(description)
        remove_unfinished(self.output_dir)  # not all of them would be written again
        write_run_file(self.output_dir, description)
        write_config(self.output_dir, self.settings)

    def _report_skipped(self, verdict: Verdict) -> None:
        self.progress.skipped_steps += 1
        self.log.write_skipped(verdict)

    def _summary(self) -> RunSummary:
        return RunSummary(
            network=self.network,
            dataset=self.spec.name,
            num_classes=len(self.spec.classes),
            training_images=num_images(self.train_set),
            unlabeled_images=None if self.unlabeled_set is None else num_images(self.unlabeled_set) or "streamed",
            validation_images=num_images(self.validation.dataset),
            args=self.args,
            duration=self.duration,
            num_processes=self.accelerator.num_processes,
            device=self.accelerator.device,
            precision=self.accelerator.mixed_precision,
            checkpoint=self.checkpoint,
            step=self.progress.step,
        )

    def resume_from(self, checkpoint: Path) -> None:
        """Restore all states, so that the next step is the one that an uninterrupted run would take.

        Raises:
            UsageError: If the checkpoint contains pickled objects other than tensors.
        """
        same_split = splits_as_before(checkpoint, self.kept_settings)
        try:
            self.notes += load_state(self.accelerator, checkpoint)
            self.states.load(checkpoint, self.accelerator, own=same_split)
        except pickle.UnpicklingError as error:
            raise UsageError(f"`resume`: {checkpoint} contains more than tensors; no code was run.") from error
        # The states were saved before the validation of their step and are never rewritten, so that a kill during the
        # validation finds them valid; the result of the validation is in a file of its own.
        load_progress(checkpoint, self.progress)
        self.notes += count_images_of_older_version(self.progress, checkpoint)
        # Accelerate counts batches to know which is the last of a step; a checkpoint is always between two steps, but
        # the number that it restores need not be a multiple of a new `gradient_accumulation_steps`.
        self.accelerator.step = 0
        if self.progress.measured_on != self.measured_on:
            self.notes.append(describe_change(self.progress.measured_on, self.measured_on))
            self.progress.forget_scores(self.measured_on)
        if not same_split:
            # The random states belong to the processes of the old split, and are of no use for a new one. The order of
            # the data depends only on the number of images seen, so it continues.
            set_seed(self.args.seed + self.progress.step, device_specific=True)
