"""Descriptions of a run: the content of run.json, and the lines that are printed before the first step."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedConfig, TimmBackboneConfig

from ..models.contrastive_adapter import ContrastiveAdapter
from ..models.decode_heads import DECODE_HEADS
from ..models.info_nce_tiles import tile_rows
from .duration import Duration
from .settings import TrainingSettings, purpose

_PACKAGES = ("msctr_hf", "torch", "transformers", "accelerate", "datasets", "timm", "evaluate", "huggingface_hub")
# variables that change the computations of a run, and those that say where a scheduler started it
_ENVIRONMENT = re.compile(
    r"(ACCELERATE_|OMP_NUM_THREADS|CUDA_VISIBLE_DEVICES|NCCL_|TORCH|FSDP_|SLURM_(JOB|NNODES|NTASKS|NODELIST)|HF_HUB_OFFLINE)"
)
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY", re.IGNORECASE)
_TOKEN = re.compile(r"\bhf_\w{8,}|\bapi_org_\w{8,}")
HIDDEN = "***"
LABELED_IMAGES = "labeled_images"  # key in run.json: numbers of images with and without labels, if there are both
IMAGES = "images"  # key in run.json: numbers of training and validation images, `None` for a stream
DRAWN_IMAGES = "drawn_images"  # key in run.json: the training images, if not all of the split are used


def describe_run(
    settings: dict[str, Any], accelerator: Accelerator, duration: Duration, step: int, command: str | None = None
) -> dict[str, Any]:
    """Collect the facts that explain a run later: command, settings, versions, git state, environment, machine.

    Access tokens in them are hidden.
    """
    return without_secrets(
        {
            "command": command or shlex.join(sys.argv),
            "from_step": step,
            "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "settings": settings,
            "duration": asdict(duration),
            "paths": _paths(settings),
            "num_processes": accelerator.num_processes,
            "mixed_precision": accelerator.mixed_precision,
            "device": device_name(accelerator.device),
            "contrastive_tile_rows": tile_rows(accelerator.device),
            "versions": {name: _version(name) for name in _PACKAGES} | {"python": platform.python_version()},
            "git_commit": git_commit(),
            "git_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
            "environment": {name: value for name, value in sorted(os.environ.items()) if _ENVIRONMENT.match(name)},
        }
    )


def describe_drawn(drawn: dict[str, Any]) -> str:
    """Return a sentence about drawn training images, which `draw_images` described."""
    return f"{drawn['images']} of {drawn['of']} training images, drawn by seed {drawn['subset_seed']}"


def describe_labeled(counts: dict[str, int | None]) -> str:
    """Return a sentence about the numbers of images with and without labels, the value of `LABELED_IMAGES`."""
    labeled, unlabeled = ("a stream" if counts[name] is None else counts[name] for name in ("labeled", "unlabeled"))
    return f"{labeled} with labels, {unlabeled} without"


def without_unlabeled(run: dict[str, Any]) -> dict[str, Any]:
    """Return the contents of run.json of a run that has images without labels, but has learned from none of them."""
    return {**run, LABELED_IMAGES: {**run[LABELED_IMAGES], "unlabeled": 0}}


def describe_parameters(sizes: Mapping[str, int], decode_head: str | None) -> str:
    """Return a phrase about the numbers of parameters that are always used, and only in training.

    Args:
        sizes (`Mapping[str, int]`): Number of values of every parameter, by its name in the network.
        decode_head (`str`, *optional*): Name of the decode head; `None` for an adapted model, which always uses all of
            its own parameters.
    """
    prefixes = ["projection_head."]
    if decode_head is not None and not DECODE_HEADS[decode_head].needs_auxiliary_logits:
        prefixes.append("auxiliary_head.")
    in_training = sum(size for name, size in sizes.items() if name.startswith(tuple(prefixes)))
    always = sum(sizes.values()) - in_training
    return f"{always / 1e6:.1f} M parameters, {in_training / 1e6:.1f} M more in training"


def _paths(settings: dict[str, Any]) -> list[str]:
    """List the settings whose values are files or folders of this machine, and not Hub ids to show in a model card.

    They are recorded at the start, since a relative path has no meaning in another folder or on another machine.
    """
    values = {name: value for name, value in settings.items() if purpose(name).is_path and isinstance(value, str)}
    return [name for name, value in values.items() if Path(value).exists()]


def without_secrets(value: Any) -> Any:
    """Hide access tokens of the Hub, and values of secret environment variables, in a value of any type."""
    secrets = [secret for name, secret in os.environ.items() if len(secret) >= 8 and _SECRET_NAME.search(name)]

    def hidden(value: Any) -> Any:
        if isinstance(value, dict):
            return {hidden(key): hidden(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [hidden(entry) for entry in value]
        if not isinstance(value, str):
            return value
        for secret in secrets:
            value = value.replace(secret, HIDDEN)
        return _TOKEN.sub(HIDDEN, value)

    return hidden(value)


def git_commit() -> str | None:
    """Return the commit of the code, or `None` if the code is not under version control."""
    return _git("rev-parse", "HEAD")


def _git(*command: str) -> str | None:
    this_file = Path(__file__)
    # an installed package may be in a virtual environment within a repository of the user, which has other commits
    is_tracked = ("ls-files", "--error-unmatch", this_file.name)
    try:
        for arguments in (is_tracked, command):
            run = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=this_file.parent, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ImportError:
        return None


@dataclass(frozen=True)
class RunSummary:
    """Facts about a run that are printed before its first step.

    Args:
        network (`nn.Module`): Network that is trained.
        dataset (`str`): Name of the data set.
        num_classes (`int`): Number of classes.
        training_images, validation_images (`int`, *optional*): Numbers of images; `None` for a stream.
        unlabeled_images (`int` or `str`, *optional*): Number of images without labels, or "streamed"; `None` if there
            are none.
        args (`TrainingSettings`): Settings of the training.
        duration (`Duration`): Length of the run in steps and epochs.
        num_processes (`int`): Number of processes that train together.
        device (`torch.device`): Device of this process.
        precision (`str`): Mixed precision of Accelerate.
        checkpoint (`Path`, *optional*): Checkpoint from which the run resumes.
        step (`int`): Number of the step of the checkpoint.
    """

    network: nn.Module
    dataset: str
    num_classes: int
    training_images: int | None
    unlabeled_images: int | str | None
    validation_images: int | None
    args: TrainingSettings
    duration: Duration
    num_processes: int
    device: torch.device
    precision: str
    checkpoint: Path | None
    step: int


def describe_start(run: RunSummary) -> list[str]:
    """Return the lines about a run that are printed before its first step."""
    args = run.args
    batch = args.batch_size * args.gradient_accumulation_steps * run.num_processes
    duration = run.duration
    epochs = "" if duration.num_epochs is None else f", {duration.num_epochs:.1f} epochs"
    unlabeled = "" if run.unlabeled_images is None else f", {run.unlabeled_images} unlabeled"
    lines = [
        f"network   {_architecture(run.network)}: {_parameters(run.network)}",
        f"data      {run.dataset}, {run.num_classes} classes: {run.training_images or 'streamed'} training{unlabeled} "
        f"and {run.validation_images or 'streamed'} validation images",
        f"batch     {batch} = {args.batch_size} images x {args.gradient_accumulation_steps} batches x "
        f"{run.num_processes} process(es)",
        f"schedule  {duration.max_steps} steps{epochs}, validation every {duration.validation_steps} steps: "
        f"{args.optimizer}, {args.schedule}, rate {args.learning_rate:g}, {args.warmup_steps} steps of warm-up"
        + (f", weights averaged with {args.ema_decay:g}" if args.ema else ""),
        f"device    {device_name(run.device)}, precision {run.precision}",
        f"folder    {Path(args.output_dir)}",
    ]
    return lines if run.checkpoint is None else [*lines, f"resumes   from step {run.step}, {run.checkpoint}"]


def _architecture(network: nn.Module) -> str:
    if isinstance(network, ContrastiveAdapter):
        return f"{network.name_or_path} ({network.config.model_type}), {network.objective.contrastive_mode}"
    config: Any = network.config
    return f"{config.decode_head} on {_backbone_name(config.backbone_config)}, {config.contrastive_mode}"


def _backbone_name(config: PreTrainedConfig) -> str:
    """Return the name in timm or on the Hub, which need not be the setting `backbone`, or else the kind of network."""
    if isinstance(config, TimmBackboneConfig):
        return config.backbone
    return config.name_or_path or config.model_type


def _parameters(network: nn.Module) -> str:
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    config: Any = network.config
    return describe_parameters(sizes, None if isinstance(network, ContrastiveAdapter) else config.decode_head)


def device_name(device: torch.device) -> str:
    """Return the name of a device; for a CPU with the number of threads."""
    if device.type == "cpu":
        return f"{processor_name()}, {torch.get_num_threads()} thread(s)"
    library = torch.get_device_module(device)
    if hasattr(library, "get_device_name"):
        return library.get_device_name(device)
    return f"{device.type} of {processor_name()}"  # torch.mps, for example, knows no names


def processor_name() -> str:
    """Return the name of the processor, as the operating system reports it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
