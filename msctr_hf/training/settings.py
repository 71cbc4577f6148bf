"""Settings of a training run: initial network, and training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Literal

from ..data.settings import DataSettings, is_about_unlabeled
from ..errors import UsageError
from ..models.configuration_msctr import MsctrConfig
from ..settings import SettingInfo, Settings, as_mapping, defaults, setting, setting_infos

DEFAULT_MAX_STEPS = 40_000
Precision = Literal["no", "fp16", "bf16", "auto"]
_TRACKERS = ("none", "tensorboard", "trackio", "wandb")


@dataclass
class ModelSettings(Settings):
    """Settings of the initial network: backbone, weights, saved model; other settings are in `MsctrConfig`."""

    _argument_group_name = "network"

    backbone: str = setting(
        "resnet50.tv_in1k",
        help="timm name ('hrnet_w48.ms_in1k') or Hub id of a transformers backbone ('microsoft/swin-tiny-...').",
        is_path=True,
    )
    output_stride: int | None = setting(
        None, help="Output stride of a timm backbone, 8 or 16, by dilation; undilated by default.", at_least=1
    )
    backbone_config: str | None = setting(
        None, help="JSON of a transformers backbone configuration; `backbone` names its weights."
    )
    backbone_weights: str = setting(
        "hub", help="Initial weights of the backbone: 'hub', 'none' or a local file.", on_resume="free", is_path=True
    )
    model_name_or_path: str | None = setting(
        None,
        help="Start from this saved model instead of a backbone; its classes may differ.",
        on_resume="replaced",
        is_path=True,
    )
    contrastive_adapter: bool = setting(
        False,
        help="Train a saved segmentation model of transformers with the contrastive objective.",
    )
    freeze_backbone: bool = setting(
        False, help="Train only the heads; weights and normalization statistics of the backbone do not change."
    )
    activation_checkpointing: bool = setting(
        False,
        help="Recompute the activations of the backbone in the backward pass, to save memory.",
        resembles=("gradient_checkpointing",),
        on_resume="announced",
    )

    def __post_init__(self):
        super().__post_init__()
        if self.contrastive_adapter and self.model_name_or_path is None:
            raise UsageError("`contrastive_adapter` needs a model to adapt: `model_name_or_path`, a folder or Hub id.")


@dataclass
class TrainingSettings(Settings):
    """Settings of training: folder, length, optimizer, validation, checkpoints, logs and precision."""

    _argument_group_name = "training"

    output_dir: str = setting(
        "runs/msctr",
        help="Folder of the run, with model, results, logs and checkpoints.",
        on_resume="free",
        in_card=False,
        is_path=True,
    )
    overwrite_output_dir: bool = setting(
        False,
        help="Replace the run that is in the folder.",
        on_resume="free",
        in_card=False,
        launch_only=True,
    )
    seed: int = setting(
        0,
        help="Seed of initialization, data order, augmentation and sampling.",
        at_least=0,
        below=2**32,
    )
    max_steps: int | None = setting(
        None,
        help=f"Total number of optimizer steps; by default {DEFAULT_MAX_STEPS:,}, unless `num_train_epochs` is given.",
        at_least=1,
        on_resume="announced",
        instead_of=("num_train_epochs",),
    )
    num_train_epochs: float | None = setting(
        None,
        help="Number of passes over the training set, instead of `max_steps`; not possible with `streaming`.",
        above=0,
        on_resume="announced",
        instead_of=("max_steps",),
    )
    batch_size: int = setting(
        2,
        help="Number of images in a batch of one process.",
        at_least=1,
        aliases=("per_device_train_batch_size",),
        on_resume="batch",
    )
    gradient_accumulation_steps: int = setting(
        1, help="Number of batches whose gradients are accumulated for one step.", at_least=1, on_resume="batch"
    )
    unlabeled_batch_size: int | None = setting(
        None,
        help="Number of images without labels in a batch of one process; by default `batch_size`.",
        at_least=1,
        on_resume="batch",
        follows="batch_size",
    )
    unlabeled_start_step: int = setting(
        0, help="Number of steps on labeled images alone before those without labels join.", at_least=0
    )
    unlabeled_ramp_steps: int = setting(
        0,
        help="Number of steps, from `unlabeled_start_step` on, over which the weight of the images without labels "
        "rises to its value.",
        at_least=0,
    )
    pseudo_label_class_share: float | None = setting(
        None,
        help="Train on at least this share of the pixels that the teacher gives to a class, by a threshold of its own "
        "where fewer reach `pseudo_label_threshold`; by default all classes have that one.",
        above=0,
        below=1,
    )
    global_batch_size: int | None = setting(
        None,
        help="Number of images of one step, over all processes, for which the learning rate is meant; a run with "
        "another number reports it when it starts.",
        at_least=1,
        on_resume="free",
        in_card=False,
    )
    optimizer: Literal["sgd", "adam", "adamw"] = setting(
        "sgd", help="Optimizer: SGD with momentum, Adam or AdamW.", resembles=("optim",)
    )
    learning_rate: float = setting(0.01, help="Learning rate of the heads.", at_least=0)
    backbone_learning_rate_factor: float = setting(
        1.0, help="Learning rate of the backbone as a multiple of that of the heads.", at_least=0
    )
    weight_decay: float = setting(5e-4, help="Weight decay of the optimizer.", at_least=0)
    no_decay: list[str] = setting(
        [], help="Parameters without weight decay: parts of their names, or 'norm' for all normalization layers."
    )
    momentum: float = setting(0.9, help="Momentum of SGD.", at_least=0)
    adam_betas: list[float] = setting(
        [0.9, 0.999],
        help="Betas of Adam and AdamW.",
        length=2,
        at_least=0,
        below=1,
        resembles=("adam_beta1", "adam_beta2"),
    )
    schedule: Literal["poly", "exponential", "constant"] = setting(
        "poly", help="Schedule of the learning rate.", resembles=("lr_scheduler_type",)
    )
    poly_power: float = setting(0.9, help="Power of the poly schedule.", at_least=0)
    exponential_gamma: float = setting(0.98, help="Factor of the exponential schedule for every epoch.", at_least=0)
    warmup_steps: int = setting(0, help="Steps of linear warm-up of the learning rate.", at_least=0)
    max_grad_norm: float | None = setting(
        None, help="Clip the norm of the gradient to this value; by default it is not clipped.", above=0
    )
    mixed_precision: Precision | None = setting(
        None,
        help="Mixed precision; 'auto' is bf16 where the device has it in hardware, else 'no', and a resumed run keeps "
        "what it had; by default that of the Accelerate configuration.",
        resembles=("bf16", "fp16"),
        on_resume="announced",
    )
    validation_steps: int | None = setting(
        None,
        help="Validate every this many steps, and at the end; by default after every epoch, or about 20 times in a "
        "run of many epochs, and at least every 5,000 steps.",
        at_least=1,
        resembles=("eval_steps",),
        on_resume="free",
        in_card=False,
    )
    metric_for_best_model: str = setting(
        "mean_iou",
        help="Score that decides which model is the best: mean_iou, mean_accuracy, or the name of a group of classes "
        "of the data set (Cityscapes: vehicle, human, ...), for its mean IoU.",
    )
    early_stopping_patience: int | None = setting(
        None,
        help="End training after this many validations in a row without a new best model; by default never.",
        at_least=1,
        on_resume="announced",
    )
    checkpointing_steps: int = setting(
        5_000,
        help="Save a checkpoint every this many steps, and at the end.",
        at_least=1,
        resembles=("save_steps",),
        on_resume="free",
        in_card=False,
    )
    checkpoints_kept: int = setting(
        2,
        help="Number of checkpoints to keep.",
        at_least=1,
        resembles=("save_total_limit",),
        on_resume="free",
        in_card=False,
    )
    resume: str | None = setting(
        None,
        help="Resume from a checkpoint: 'auto' (the newest, if any) or its path.",
        resembles=("resume_from_checkpoint",),
        on_resume="free",
        in_card=False,
        launch_only=True,
    )
    max_skipped_steps: int = setting(
        20,
        help="Stop after this many steps in a row were skipped because their loss or gradient was not finite.",
        at_least=1,
        on_resume="free",
        in_card=False,
    )
    ema: bool = setting(False, help="Average the weights (EMA); the average is validated and saved.")
    ema_decay: float = setting(0.9999, help="Decay of the average per step, after a warm-up.", at_least=0, below=1)
    logging_steps: int = setting(50, help="Log every this many steps.", at_least=1, on_resume="free", in_card=False)
    report_to: list[str] = setting(
        ["tensorboard"],
        help="Trackers in addition to log.jsonl: tensorboard, wandb, trackio, or none.",
        on_resume="free",
        in_card=False,
    )
    dry_run: bool = setting(
        False,
        help="Try everything in two steps, including checkpoints and validation, and keep nothing.",
        on_resume="free",
        in_card=False,
        launch_only=True,
    )
    profile: bool = setting(
        False,
        help="Trace three steps to OUTPUT_DIR/profile/ (chrome://tracing, or perfetto.dev).",
        on_resume="free",
        in_card=False,
    )
    compile: bool = setting(
        False,
        help="Compile the network with torch.compile.",
        aliases=("torch_compile",),
        on_resume="announced",
    )
    channels_last: bool = setting(
        False,
        help="Keep the channels last in memory, which is faster on GPUs in half precision.",
        on_resume="announced",
    )
    tf32: bool = setting(
        False,
        help="Use TF32 for matrix products on NVIDIA GPUs, as their convolutions do by default.",
        on_resume="announced",
    )

    def __post_init__(self):
        super().__post_init__()
        for name in self.report_to:
            if name not in _TRACKERS:
                raise UsageError(f"`report_to`: {name} is unknown; choose from {', '.join(_TRACKERS)}.")
        if self.max_steps is not None and self.num_train_epochs is not None:
            raise UsageError(
                f"`max_steps` and `num_train_epochs` both say how long to train, got {self.max_steps} and "
                f"{self.num_train_epochs}; give one of them."
            )
        if self.max_steps is None and self.num_train_epochs is None:
            self.max_steps = DEFAULT_MAX_STEPS

    @property
    def unlabeled_images_per_batch(self) -> int:
        """Number of images without labels in a batch of one process, if there are such images."""
        return self.batch_size if self.unlabeled_batch_size is None else self.unlabeled_batch_size


def refuse_without_images(data: DataSettings, training: TrainingSettings, network: Mapping[str, Any]) -> None:
    """Refuse settings about images without labels in a run that has none.

    Args:
        data, training (`DataSettings` and `TrainingSettings`): Settings of the run.
        network (`Mapping`): Settings of `MsctrConfig` that were given, by name.

    Raises:
        UsageError: If such a setting is not at its default.
    """
    known = {**defaults(DataSettings, TrainingSettings), **_network_defaults()}
    given = {**as_mapping(data, training), **network}
    for name, value in given.items():
        if is_about_unlabeled(name) and value != known.get(name):
            raise UsageError(
                f"`{name}={value}` is about images without labels, and there are none; name them by `unlabeled_dir` "
                "or `unlabeled`."
            )


def refuse_without_contrast(config: MsctrConfig, given: Mapping[str, Any]) -> None:
    """Refuse settings about the contrast of images without labels for a network that does not contrast them.

    Args:
        config (`MsctrConfig`): Settings of the network, some of which may be those of a saved model.
        given (`Mapping`): Settings of `MsctrConfig` that were given, by name.

    Raises:
        UsageError: If such a setting is not at its default.
    """
    has_contrast = config.contrastive_mode != "ce"
    if has_contrast and config.contrastive_pseudo_labels:
        return
    missing = "contrastive_pseudo_labels=True" if has_contrast else "contrastive_mode='ms_cs'"
    known = _network_defaults()
    for name, value in given.items():
        if name.startswith("contrastive_pseudo") and value != known[name]:
            raise UsageError(
                f"`{name}={value}` is about the contrast of images without labels, which are not contrasted; add "
                f"`{missing}`, or leave it out."
            )


def _network_defaults() -> dict[str, Any]:
    return {each.name: each.default for each in fields(MsctrConfig)}


@cache
def purposes() -> dict[str, SettingInfo]:
    """Return the descriptions of the settings of a run; those of `MsctrConfig` have the default description."""
    return setting_infos(ModelSettings, DataSettings, TrainingSettings)


def purpose(name: str) -> SettingInfo:
    """Return the description of a setting of a run."""
    return purposes().get(name, SettingInfo())


def in_full(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Replace settings that were not given by what they mean, where that is known.

    They are those that follow others, and those of a network that does not start from a saved model.
    """
    known = {} if settings.get("model_name_or_path") is not None else _network_defaults()
    full = {**known, **{name: value for name, value in settings.items() if value is not None}}
    followed = {name: info.follows for name, info in purposes().items() if info.follows is not None}
    return {**{name: full.get(other) for name, other in followed.items()}, **full}


def add_missing(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
    """Add the defaults of settings that an older version did not record, because only `current` has them."""
    known = defaults(ModelSettings, DataSettings, TrainingSettings)
    return {**{name: known[name] for name in current if name in known}, **recorded}
