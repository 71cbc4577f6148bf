"""What a run is told: dataclasses for data, training and evaluation, read from a YAML file and the command line."""

from __future__ import annotations

import argparse
import difflib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from transformers import HfArgumentParser

from .data.loading import get_dataset_spec, load_segmentation_dataset, other_raw_values
from .data.saved_source import Copy
from .data.specs import DatasetSpec
from .errors import UsageError
from .models.configuration_msctr import MsctrConfig

_TRACKERS = {"none", "tensorboard", "wandb", "trackio"}
# Set from the data set or from `backbone`, not by hand.
_CONFIG_FIELDS_WITHOUT_FLAG = {"backbone_config", "palette", "semantic_loss_ignore_index"}


def _help(text: str, default: Any = None, **metadata: Any) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text, **metadata})
    return field(default=default, metadata={"help": text, **metadata})


@dataclass
class ModelArguments:
    """Where the network comes from; its settings are the fields of `MsctrConfig`, each a flag of its own."""

    backbone: str = _help(
        "timm name ('hrnet_w48.ms_in1k') or Hub id of a transformers backbone ('microsoft/swin-tiny-...').",
        "resnet50.tv_in1k",
    )
    output_stride: int | None = _help("Output stride of a dilated timm backbone: 8 or 16.")
    backbone_config: str | None = _help("JSON of a transformers backbone configuration; `backbone` names its weights.")
    backbone_weights: str = _help("Initial weights of the backbone: 'hub', 'none' or a local file.", "hub")
    model_name_or_path: str | None = _help("Start from this saved model instead; its classes may differ.")
    contrastive_adapter: bool = _help(
        "The saved model is any semantic segmentation model of transformers; add the contrastive objective to it.",
        False,
    )
    freeze_backbone: bool = _help("Train the heads only; the backbone keeps its statistics too.", False)
    activation_checkpointing: bool = _help("Recompute activations of the backbone to save memory.", False)

    def __post_init__(self):
        if self.contrastive_adapter and self.model_name_or_path is None:
            raise UsageError("`contrastive_adapter` needs a model to adapt: `model_name_or_path`, a folder or Hub id.")


@dataclass(kw_only=True)
class DatasetArguments:
    """Which data set, and where it lies."""

    dataset: str = _help("Name of the data set: its classes and label values.", "synthetic_scenes")
    data_dir: str | None = _help(
        "Folder of the data set: official layout, parquet files, what save_to_disk wrote, or a pre-decoded copy."
    )
    dataset_name: str | None = _help("Hub id, or folder of parquet files, to read instead of data_dir.")
    dataset_revision: str | None = _help("Branch, tag or commit of the Hub id.")
    image_column: str = _help("Column of a copy with the pictures.", "image")
    label_column: str = _help("Column of a copy with the labels.", "label")
    id_map: str | None = _help(
        "Raw label value -> train id, where a copy has other values than the official files: '{7: 0, 8: 1}'; all "
        "others are ignored."
    )
    reduce_zero_label: bool = _help("Label values count from 1, and 0 is ignored.", False)
    streaming: bool = _help("Read a copy on the way, without storing it here.", False)
    corrections: str | None = _help(
        "CSV with the columns image_id and label: frames to leave out (no label) or to take labels from elsewhere."
    )

    def load(self, split: str) -> Any:
        """One split of this data set, or several joined by `+`; see `load_segmentation_dataset`."""
        return load_segmentation_dataset(
            self.dataset,
            split,
            self.data_dir,
            dataset_name=self.dataset_name,
            revision=self.dataset_revision,
            image_column=self.image_column,
            label_column=self.label_column,
            id_map=_read_id_map(self.id_map),
            reduce_zero_label=self.reduce_zero_label,
            streaming=self.streaming,
            corrections=self.corrections,
        )

    @property
    def spec(self) -> DatasetSpec:
        """Its classes, and how raw label values become train ids."""
        spec = get_dataset_spec(self.dataset, self.data_dir)
        return other_raw_values(spec, _read_id_map(self.id_map), self.reduce_zero_label)

    @property
    def copy(self) -> Copy:
        """Where a copy lies, if it is read from one."""
        return Copy(
            self.dataset_name, self.dataset_revision, self.image_column, self.label_column, streaming=self.streaming
        )


def _read_id_map(text: str | None) -> dict[int, int] | None:
    """'{7: 0, 8: 1}' -> {7: 0, 8: 1}."""
    if text is None:
        return None
    try:
        id_map = yaml.safe_load(text)
        return {int(raw): int(train_id) for raw, train_id in id_map.items()}
    except (yaml.YAMLError, AttributeError, TypeError, ValueError):
        raise UsageError(f"`id_map` must look like '{{7: 0, 8: 1}}', got {text!r}.") from None


@dataclass(kw_only=True)
class DataArguments(DatasetArguments):
    """Which pictures, and how they are augmented (the paper's recipe by default)."""

    train_split: str = _help("Split to train on; 'train+validation' takes both.", "train")
    repeat_factor_threshold: float | None = _help(
        "Show pictures with classes that fewer than this share of the pictures hold more often (CaDIS: 0.15)."
    )
    crop_size: list[int] = _help("Height and width of a training crop, in pixels.", [512, 1024])
    scale_range: list[float] = _help("Random scale, smallest and largest.", [0.5, 2.0])
    aspect_range: list[float] = _help("Random ratio of width to height, area kept, smallest and largest.", [0.9, 1.1])
    max_class_share: float = _help("Draw another crop while one class fills this share of its valid pixels.", 0.75)
    flip_probability: float = _help("Probability of mirroring a picture.", 0.5)
    color_jitter: bool = _help("Jitter brightness, contrast, saturation and hue.", True)
    resize_shorter_side: int | None = _help("Validation: resize the shorter side to this many pixels.")
    size_divisor: int = _help("Validation: pad right and bottom to a multiple of this.", 1)
    padding_mode: Literal["constant", "reflect"] = _help(
        "Padding of pictures in training and validation: the mean colour, or reflection; labels are ignored there.",
        "constant",
    )
    num_workers: int = _help("Worker processes that load data, per process.", 4)

    def __post_init__(self):
        for name in ("crop_size", "scale_range", "aspect_range"):
            value = getattr(self, name)
            if len(value) != 2 or min(value) <= 0:
                raise UsageError(f"`{name}` needs two positive values, got {value}.")
        for name in ("scale_range", "aspect_range"):
            if getattr(self, name)[0] > getattr(self, name)[1]:
                raise UsageError(f"`{name}` goes from the smallest to the largest value, got {getattr(self, name)}.")
        for name in ("flip_probability", "max_class_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"`{name}` lies between 0 and 1, got {getattr(self, name)}.")
        if self.num_workers < 0:
            raise UsageError(f"`num_workers` must be at least 0, got {self.num_workers}.")
        if self.size_divisor < 1:
            raise UsageError(f"`size_divisor` must be at least 1, got {self.size_divisor}.")


@dataclass
class TrainingArguments:
    """How the network is trained."""

    output_dir: str = _help("Folder of the run: model, results, logs, checkpoints.", "runs/msctr")
    overwrite_output_dir: bool = _help("Replace a run that the folder already holds.", False)
    seed: int = _help("Seed of initialisation, data order, augmentation and sampling.", 0)
    max_steps: int = _help("Optimiser steps in all.", 40_000)
    batch_size: int = _help("Pictures of one step on one process.", 2)
    gradient_accumulation_steps: int = _help("Batches whose gradients are summed for one step.", 1)
    optimizer: Literal["sgd", "adam", "adamw"] = _help("Optimiser.", "sgd")
    learning_rate: float = _help("Learning rate of the heads.", 0.01)
    backbone_learning_rate_factor: float = _help("The backbone's rate as a multiple of the heads'.", 1.0)
    weight_decay: float = _help("Weight decay.", 5e-4)
    no_decay: list[str] = _help(
        "Parameters without weight decay: parts of their names, or 'norm' for all normalisation layers.", []
    )
    momentum: float = _help("Momentum of SGD.", 0.9)
    adam_betas: list[float] = _help("Betas of Adam and AdamW.", [0.9, 0.999])
    schedule: Literal["poly", "exponential", "constant"] = _help("Schedule of the rate, per step.", "poly")
    poly_power: float = _help("Power of the poly schedule.", 0.9)
    exponential_gamma: float = _help("Factor of the exponential schedule, per epoch.", 0.98)
    warmup_steps: int = _help("Steps of linear warm-up.", 0)
    max_grad_norm: float | None = _help("Clip the norm of the gradient to this.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = _help("Precision; by default what `accelerate` says.")
    validation_steps: int = _help("Validate every so many steps, and at the end.", 5_000)
    checkpointing_steps: int = _help("Save a checkpoint every so many steps, and at the end.", 5_000)
    checkpoints_kept: int = _help("Numbered checkpoints to keep.", 2)
    resume: str | None = _help("Continue from a checkpoint: 'auto' (the newest, if there is one) or its path.")
    max_skipped_steps: int = _help(
        "Stop after so many steps in a row whose loss or gradient is not finite; each of them is skipped.", 20
    )
    ema: bool = _help("Average the weights; the average is validated and saved.", False)
    ema_decay: float = _help("Decay of the average per step, after a warm-up.", 0.9999)
    logging_steps: int = _help("Log every so many steps.", 50)
    report_to: list[str] = _help("Trackers beside log.jsonl: tensorboard, wandb, trackio, or none.", ["tensorboard"])
    dry_run: bool = _help("Two steps of everything, checkpoint and validation included; nothing stays.", False)
    profile: bool = _help("Trace three steps to OUTPUT_DIR/profile/ (chrome://tracing, or perfetto.dev).", False)
    compile: bool = _help("Compile the network with torch.compile.", False)
    channels_last: bool = _help("Channels last in memory, which is faster on GPUs in half precision.", False)
    tf32: bool = _help("TF32 matrix products on NVIDIA GPUs; their convolutions use it anyway.", False)

    def __post_init__(self):
        for name in (
            "max_steps", "batch_size", "gradient_accumulation_steps", "validation_steps", "checkpointing_steps",
            "checkpoints_kept", "logging_steps", "max_skipped_steps",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise UsageError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("learning_rate", "weight_decay", "warmup_steps", "poly_power"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"`{name}` must be at least 0 and finite, got {getattr(self, name)}.")
        if not 0 <= self.ema_decay < 1:
            raise UsageError(f"`ema_decay` lies from 0 to below 1, got {self.ema_decay}.")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise UsageError(f"`max_grad_norm` must be above 0, got {self.max_grad_norm}.")
        if len(self.adam_betas) != 2 or not all(0 <= beta < 1 for beta in self.adam_betas):
            raise UsageError(f"`adam_betas` needs two values from 0 to below 1, got {self.adam_betas}.")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"`seed` must lie from 0 to 2**32 - 1, got {self.seed}.")
        for name in self.report_to:
            if name not in _TRACKERS:
                raise UsageError(f"`report_to`: {name} is unknown; choose from {sorted(_TRACKERS)}.")


@dataclass
class HubArguments:
    """Where a model goes on the Hub."""

    push_to_hub: bool = _help("Push every new best model, in the background.", False)
    hub_model_id: str | None = _help("USER/NAME on the Hub; made if it does not exist.")
    hub_private: bool = _help("Make it a private repository.", False)
    hub_license: str | None = _help("Licence of the weights ('apache-2.0', 'cc-by-nc-4.0', ...); for the card.")
    hub_pictures: bool | None = _help(
        "Also publish predictions.png, which shows pictures of the data set; by default only of those that are free."
    )

    def __post_init__(self):
        if self.push_to_hub and self.hub_model_id is None:
            raise UsageError("`push_to_hub` needs `hub_model_id='USER/NAME'`.")


@dataclass(kw_only=True)
class ScoringArguments(DatasetArguments):
    """Which network is scored on what."""

    model: str = field(metadata={"help": "Saved folder or Hub id of any AutoModelForSemanticSegmentation."})
    split: str = _help("train, validation or test.", "validation")
    output_dir: str | None = _help("Folder for results.json, report.md and figures; only printed by default.")
    boundary_iou: bool = _help("Also score the pixels near outlines (Cheng et al., CVPR 2021).", False)
    worst: int = _help("Pictures with the lowest mean IoU to show on worst.png.", 8)
    num_workers: int = _help("Worker processes that load data, per process.", 2)


@dataclass(kw_only=True)
class EmbeddingArguments(DatasetArguments):
    """Whose projections are shown, of which pictures."""

    model: str = field(metadata={"help": "Saved folder or Hub id of a network of ours."})
    features: Literal["projections", "stages", "pyramid"] = _help(
        "What is shown: projections; also of networks without contrast: the backbone's maps, or UPerNet's pyramid.",
        "projections",
    )
    split: str = _help("train, validation or test.", "validation")
    output_dir: str = _help("Folder for embeddings.png and similarity.png.", "embeddings")
    pictures: int = _help("Pictures whose pixels are mapped.", 24)
    pixels_per_class: int = _help("Pixels of every class and stage that are mapped.", 100)
    method: Literal["tsne", "umap"] = _help("How pixels are laid out: t-SNE, or UMAP if it is installed.", "tsne")
    picture: str | None = _help("Image id of the picture for similarity.png; the first by default.")
    pixel: list[int] | None = _help("Row and column that all pixels are compared with; the middle by default.")
    click: bool = _help("Choose the pixel by clicking on the picture.", False)
    seed: int = _help("Seed of the draw and of the layout.", 0)
    device: str | None = _help("cpu, cuda, ...; the best there is by default.")

    def __post_init__(self):
        if self.pixel is not None and len(self.pixel) != 2:
            raise UsageError(f"`pixel` needs a row and a column, got {self.pixel}.")
        for name in ("pictures", "pixels_per_class"):
            if getattr(self, name) < 1:
                raise UsageError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.streaming:
            raise UsageError("`streaming`: pictures from all over the split are shown; leave it out.")


@dataclass(kw_only=True)
class PreparationArguments(DatasetArguments):
    """Which data set is checked, and what copy of it is made."""

    splits: list[str] = _help("Splits to check and to convert.", ["train", "validation"])
    output_dir: str | None = _help("Folder for the copy; only the check by default.")
    predecode: bool = _help("Plain pixels, mapped into memory, instead of parquet.", False)
    skip_broken: bool = _help("Leave broken pictures out instead of refusing.", False)
    num_workers: int = _help("Worker processes of the check.", 2)


@dataclass
class PredictionArguments:
    """Which pictures a network labels."""

    model: str = field(metadata={"help": "Saved folder or Hub id of any AutoModelForSemanticSegmentation."})
    input: str = field(metadata={"help": "A picture, or a folder that is searched for pictures."})
    output_dir: str = _help("Folder for NAME.png (train ids) and NAME_overlay.png.", "predictions")
    opacity: float = _help("Opacity of the colours in overlays, 0 to 1.", 0.55)
    submission_for: str | None = _help(
        "Write what this data set's test server takes instead: raw label values under official names (cityscapes, "
        "ade20k)."
    )


@dataclass
class ExportArguments:
    """Which network is exported, and how."""

    model: str = field(metadata={"help": "Saved folder or Hub id of any AutoModelForSemanticSegmentation."})
    output_dir: str = _help("A new folder for the exported network.", "exported")
    format: Literal["onnx", "torch"] = _help("ONNX, or a program of torch.export.", "onnx")
    size_multiple: int = _help("Pictures have sides that are multiples of this; window transformers need 32.", 1)
    fixed_size: list[int] | None = _help("Only this height and width; any by default.")

    def __post_init__(self):
        if self.size_multiple < 1:
            raise UsageError(f"`size_multiple` must be at least 1, got {self.size_multiple}.")
        if self.fixed_size is not None and (len(self.fixed_size) != 2 or min(self.fixed_size) < 1):
            raise UsageError(f"`fixed_size` needs a height and a width, got {self.fixed_size}.")


@dataclass
class EvaluationArguments:
    """How a network is applied to pictures."""

    scales: list[float] = _help("Scales of test-time augmentation.", [1.0])
    flip: bool = _help("Average with the mirrored picture.", False)
    window_size: list[int] | None = _help("Height and width of a sliding window; whole pictures by default.")
    window_stride: list[int] | None = _help("Stride of the window; two thirds of it by default.")
    batch_size: int = _help("Pictures, or windows, at a time.", 1)
    device: str | None = _help("cpu, cuda, cuda:1, ...; the best there is by default.")
    dtype: Literal["float32", "float16", "bfloat16"] = _help("Precision of the network.", "float32")

    def __post_init__(self):
        for name in ("window_size", "window_stride"):
            value = getattr(self, name)
            if value is not None and len(value) != 2:
                raise UsageError(f"`{name}` needs a height and a width, got {value}.")
        if self.batch_size < 1:
            raise UsageError(f"`batch_size` must be at least 1, got {self.batch_size}.")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    pass


def parse_arguments(
    groups: Sequence[type],
    argv: Sequence[str] | None = None,
    *,
    description: str | None = None,
    with_config_fields: bool = False,
) -> tuple:
    """Parse dataclasses: defaults, then the YAML file after `--config`, then the command line.

    Args:
        groups (`Sequence[type]`): Dataclasses whose fields become flags.
        argv (`Sequence[str]`, *optional*): Command line; that of the process by default.
        description (`str`, *optional*): Text above the flags in `--help`.
        with_config_fields (`bool`): Also take every setting of `MsctrConfig`, returned as a last dict.

    Returns:
        `tuple`: one instance per group, and the dict if asked for. Errors print a sentence and exit with code 2.
    """
    parser = HfArgumentParser(groups, description=description, allow_abbrev=False, formatter_class=_HelpFormatter)
    parser.add_argument("--config", type=Path, help="YAML file; its values replace the defaults, flags win over it.")
    config_fields = _add_config_fields(parser) if with_config_fields else []
    _known_flags.update(action.dest for action in parser._actions)
    argv = list(sys.argv[1:] if argv is None else argv)
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    config_path = finder.parse_known_args(argv)[0].config
    if config_path is not None:
        argv = _read_yaml_as_flags(parser, config_path) + argv
    *parsed, rest, unknown = parser.parse_args_into_dataclasses(
        argv, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        parser.error(f"unknown argument {unknown[0]}.{_hint(parser, unknown[0].lstrip('-'), '--{}')}")
    if not with_config_fields:
        return tuple(parsed)
    given = {name: getattr(rest, name) for name in config_fields if getattr(rest, name) is not None}
    return (*parsed, given)


def exit_with_a_sentence(main: Callable[[], None]) -> None:
    """Run a script: what is wrong with its input becomes one sentence and exit code 2; MSCTR_DEBUG=1 shows it all."""
    try:
        main()
    except UsageError as error:
        if os.environ.get("MSCTR_DEBUG"):
            raise
        print(f"error: {in_words_of_flags(_last_sentence(error))}", file=sys.stderr)
        sys.stdout.flush()
        sys.exit(2)


_known_flags: set[str] = set()


def in_words_of_flags(sentence: str) -> str:
    """Arguments of functions as a command line names them: `name` -> --name, `name='value'` -> --name value."""

    def as_flag(found: re.Match) -> str:
        if found[1] not in _known_flags:
            return found[0]
        value = {"True": "true", "False": "false"}.get(found[2], (found[2] or "").strip("'"))
        return f"--{found[1]} {value}" if value else f"--{found[1]}"

    return re.sub(r"`(\w+)(?:=([^`]+))?`", as_flag, sentence)


def _last_sentence(error: Exception) -> str:
    """The message on one line."""
    return " ".join(str(error).split())


def _add_config_fields(parser: argparse.ArgumentParser) -> list[str]:
    taken = {action.dest for action in parser._actions}
    helps = dict(re.findall(r"^ {8}(\w+) \([^)]*\):\s*(.+)$", MsctrConfig.__doc__ or "", flags=re.MULTILINE))
    names = [
        name
        for name in MsctrConfig.__annotations__
        if name in helps and name not in _CONFIG_FIELDS_WITHOUT_FLAG | taken
    ]
    group = parser.add_argument_group("network and objective (MsctrConfig)")
    for name in names:
        group.add_argument(f"--{name}", type=yaml.safe_load, help=helps[name].replace("%", "%%"))
    return names


def _read_yaml_as_flags(parser: argparse.ArgumentParser, path: Path) -> list[str]:
    """Turn the file into flags, so that one parser checks names and types of both."""
    if not path.is_file():
        parser.error(f"--config: there is no file {path}.")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        parser.error(f"{path} is no valid YAML: {' '.join(str(error).split())}")
    if not isinstance(values, dict):
        parser.error(f"{path} must hold `key: value` lines.")
    actions = {action.dest: action for action in parser._actions}
    flags: list[str] = []
    for key, value in values.items():
        if key not in actions or key in ("config", "help"):
            parser.error(f"{path}: unknown key `{key}`.{_hint(parser, str(key), '`{}`')}")
        if value is not None:
            flags += [f"--{key}", *_as_words(value, many=actions[key].nargs in ("+", "*"))]
    return flags


def _hint(parser: argparse.ArgumentParser, name: str, quoted: str) -> str:
    close = difflib.get_close_matches(name, [action.dest for action in parser._actions], n=1)
    return f" Did you mean {quoted.format(close[0])}?" if close else " See --help for all settings."


def _as_words(value: Any, many: bool) -> list[str]:
    if many and isinstance(value, list):
        return [str(entry) for entry in value]
    return [value if isinstance(value, str) else json.dumps(value)]
