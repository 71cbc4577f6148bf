"""Precision and memory layout, which depend on the machine and not on the method."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator, DataLoaderConfiguration, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    ProfileKwargs,
    gather_object,
)
from torch import nn

from ..errors import UsageError, as_usage_error
from ..evaluation.precision import has_bf16
from .checkpointing import SETTINGS_FILE
from .network import synchronize_batch_norms
from .run_folder import read_json
from .settings import Precision, TrainingSettings

# Devices with fused optimizers that skip a step on the device, by `found_inf`. Those of Apple ignored it until June
# 2026 (PyTorch's pull request 186360), so that a step that is not finite changed the weights; there the host skips it.
FUSED_DEVICES = {"cpu", "cuda", "xpu"}
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)  # these split weights, gradients or states over processes
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # constants of malloc.h
_MALLOC_VARIABLES = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_"}  # variables of mallopt(3)
_SKIPPED_STEPS, _WARM_UP_STEPS, _TRACED_STEPS = 5, 2, 3  # steps of a profile
_LISTED_OPERATORS = 25


def choose_precision(asked: Precision | None, checkpoint: Path | None) -> Precision | None:
    """Return the mixed precision of a run, the same in all processes, which must all call it.

    Args:
        asked (`str`, *optional*): The setting; every value but `"auto"` is returned as it is.
        checkpoint (`Path`, *optional*): Checkpoint from which the run resumes. For `"auto"` the run keeps the
            precision that it had, on any machine; a new run gets bf16 where all devices have it in hardware, else
            float32.
    """
    if asked != "auto":
        return asked
    if checkpoint is not None:
        return read_json(checkpoint / SETTINGS_FILE).get("mixed_precision")
    return "bf16" if all(gather_object([has_bf16(PartialState().device)])) else "no"


def build_accelerator(arguments: TrainingSettings) -> Accelerator:
    """Start Accelerate in this process, with the trackers of the run.

    Args:
        arguments (`TrainingSettings`): Precision, accumulation, trackers and compilation.

    Raises:
        UsageError: If a tracker is not installed, Accelerate refuses the settings, or its configuration splits the
            weights during a validation.
    """
    refuse_missing_trackers(arguments.report_to)
    with as_usage_error(ValueError, prefix="Accelerate refuses these settings: "):  # for example, bf16 on an old GPU
        accelerator = Accelerator(
            mixed_precision=arguments.mixed_precision,
            # A step that ended with the epoch would see fewer images than the others, each with too small a gradient.
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=arguments.gradient_accumulation_steps, sync_with_dataloader=False
            ),
            log_with=[name for name in arguments.report_to if name != "none"] or None,
            project_dir=str(Path(arguments.output_dir) / "tensorboard"),
            dataloader_config=DataLoaderConfiguration(non_blocking=True),
            dynamo_backend="inductor" if arguments.compile else None,
            step_scheduler_with_optimizer=False,
            kwargs_handlers=[DistributedDataParallelKwargs()],  # completed by the setup when the network is built
        )
    refuse_weights_split_in_validation(accelerator)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator


def let_deepspeed_clip(accelerator: Accelerator, max_grad_norm: float | None) -> None:
    """Let DeepSpeed, which clips gradients itself, clip them to the setting; call it before `prepare`.

    Where its configuration does not say a value, Accelerate would fill in 1.0.

    Raises:
        UsageError: If the configuration says another value.
    """
    plugin = accelerator.deepspeed_plugin
    if plugin is None:
        return
    configured, wanted = plugin.gradient_clipping, max_grad_norm or 0.0  # DeepSpeed takes 0 for no limit
    if configured not in ("auto", wanted):
        setting = "is not set" if max_grad_norm is None else f"is {max_grad_norm:g}"
        raise UsageError(
            f"`max_grad_norm` {setting}, but the configuration of DeepSpeed says gradient_clipping {configured}; "
            "leave gradient_clipping out there."
        )
    plugin.deepspeed_config["gradient_clipping"] = wanted


def refuse_weights_split_in_validation(accelerator: Accelerator) -> None:
    """Refuse configurations of FSDP and DeepSpeed that split the weights again after every forward pass.

    Processes validate unequal numbers of images, so that one would wait for weights that the others no longer send.

    Raises:
        UsageError: If the configuration is one of these.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED and accelerator.deepspeed_plugin.zero_stage == 3:
        raise UsageError(
            "ZeRO-3 of DeepSpeed splits the weights, and cannot be used for training: use `zero_stage: 2`, as in "
            "configs/accelerate/deepspeed_zero2.yaml."
        )
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    plugin, advice = accelerator.state.fsdp_plugin, "as in configs/accelerate/fsdp2.yaml"
    if plugin.fsdp_version == 1:
        raise UsageError(f"FSDP1 cannot be used for training: use `fsdp_version: 2`, {advice}.")
    if plugin.auto_wrap_policy is not None:
        raise UsageError(
            "FSDP of parts of the network cannot be used for training: use `fsdp_auto_wrap_policy: NO_WRAP`, which "
            f"makes the network one unit, {advice}."
        )


def refuse_missing_trackers(names: list[str]) -> None:
    """Refuse trackers whose packages are not installed.

    Raises:
        UsageError: If one is not.
    """
    for name in names:
        if name != "none" and importlib.util.find_spec(name) is None:
            raise UsageError(f"`report_to='{name}'` needs the package: pip install {name}, or `report_to='none'`.")


@contextmanager
def tf32_products(allowed: bool) -> Iterator[None]:
    """Use TF32 for matrix products in a block, if `allowed`; afterwards PyTorch uses what it used before."""
    if not allowed:
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def keep_freed_memory() -> None:
    """Let the C library of Linux keep freed memory for the next large tensor instead of returning it to the system.

    Otherwise the system must provide and zero the pages of every large feature map again. With it, a step of a network
    on EfficientNet-Lite0 takes 1.2 s instead of 1.7 s (8 images of 320x448, one thread). Nothing is changed if an
    environment variable already sets this (`MALLOC_MMAP_MAX_`, `MALLOC_TRIM_THRESHOLD_`).
    """
    if platform.system() == "Linux" and not _MALLOC_VARIABLES & os.environ.keys():
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):  # glibc
            library.mallopt(_M_MMAP_MAX, 0)
            library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def optimize_layout(
    model: nn.Module, device: torch.device, *, channels_last: bool = False, bf16: bool = False, num_processes: int = 1
) -> nn.Module:
    """Adapt a network to the machine: memory format, precision of slow layers, synchronized BatchNorm."""
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    if device.type == "cpu" and bf16:
        depthwise_in_float32(model)
    if device.type == "cuda" and num_processes > 1:
        model = synchronize_batch_norms(model)
    return model


def depthwise_in_float32(model: nn.Module) -> None:
    """Compute large or strided depthwise convolutions in float32, because their bf16 gradients are slow on CPUs.

    Their backward pass takes a third to a tenth of the time in float32 (channels last, PyTorch 2.15).
    """
    for module in model.modules():
        if (
            isinstance(module, nn.Conv2d)
            and module.groups == module.in_channels > 1
            and (max(module.kernel_size) > 3 or max(module.stride) > 1)
        ):
            # a bound method, so that a deep copy of the network (the EMA) computes with its own weights
            module.forward = types.MethodType(_forward_in_float32, module)  # type: ignore[method-assign]


def _forward_in_float32(module: nn.Conv2d, features: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", enabled=False):
        return type(module).forward(module, features.float()).to(features.dtype)


def full_state_dict(accelerator: Accelerator, model: nn.Module) -> dict[str, torch.Tensor] | None:
    """Gather weights that are split over processes, so that one can save them; return `None` if they are not split.

    All processes must call it.
    """
    return accelerator.get_state_dict(model) if accelerator.distributed_type in SHARDED else None


def used_megabytes(device: torch.device) -> float:
    """Return the peak memory of PyTorch on a GPU since the last call, or the resident memory of this process."""
    if device.type != "cuda":
        return psutil.Process().memory_info().rss / 2**20
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak / 2**20


@contextmanager
def traced(accelerator: Accelerator, output_dir: Path) -> Iterator[torch.profiler.profile]:
    """Trace a few steps to OUTPUT_DIR/profile/, with a table of the operators that take longest.

    The caller must call `step()` of the profiler after every step.
    """
    folder = output_dir / "profile"
    key = "self_cuda_time_total" if accelerator.device.type == "cuda" else "self_cpu_time_total"

    def write(profiler: torch.profiler.profile) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(folder / f"trace_{accelerator.process_index}.json"))
        table = profiler.key_averages().table(sort_by=key, row_limit=_LISTED_OPERATORS)
        (folder / f"operators_{accelerator.process_index}.txt").write_text(table, encoding="utf-8")

    schedule = {
        "skip_first": _SKIPPED_STEPS,
        "wait": 0,
        "warmup": _WARM_UP_STEPS,
        "active": _TRACED_STEPS,
        "repeat": 1,
    }
    with accelerator.profile(ProfileKwargs(schedule_option=schedule, on_trace_ready=write)) as profiler:
        yield profiler
