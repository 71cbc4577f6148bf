"""The model card (README.md) of a saved model: its facts are collected here, its text is `model_card_template.md`."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open

from ..data.folder_spec import FOLDER
from ..data.specs import DatasetSpec
from ..errors import UsageError, as_usage_error
from ..evaluation.scoring import iou_table
from ..models.configuration_msctr import MsctrConfig
from ..models.decode_heads import DECODE_HEADS
from ..training.run_folder import PREDICTIONS_FILE, RESULTS_FILE, RUN_FILE, read_json, replace_file
from ..training.settings import purpose

CARD_FILE = "README.md"
_TEMPLATE = Path(__file__).with_name("model_card_template.md")
_SIGNATURE = (
    "<!-- Written by msctr_hf from the files of the run. Without this line the card is yours and stays as it is. -->"
)
_CONTRASTS = {"ms": "multi-scale", "ms_cs": "multi-scale and cross-scale"}
_METRICS = {"mean_iou": "mean IoU", "mean_accuracy": "mean accuracy", "overall_accuracy": "pixel accuracy"}
_NESTED_FIELDS = {"backbone_config", "palette"}  # of the configuration; too long for a table


def write_model_card(
    folder: str | Path,
    spec: DatasetSpec | None = None,
    *,
    name: str | None = None,
    license: str | None = None,
    show_images: bool | None = None,
) -> Path:
    """Write README.md into the folder of a saved model, from its config.json, run.json and results.json.

    A card that somebody else wrote, or took over by removing the line that says who wrote it, is left alone.

    Args:
        folder (`str` or `Path`): A folder for `from_pretrained`; what is missing there is left out of the card.
        spec (`DatasetSpec`, *optional*): What it was trained on.
        name (`str`, *optional*): Hub id that the example of the card loads; by default the folder itself.
        license (`str`, *optional*): Of the weights, as the Hub abbreviates it; by default the terms of the data set
            are named.
        show_images (`bool`, *optional*): Whether the card shows predictions.png, which holds images of the data set;
            by default only of data sets whose images are free.

    Raises:
        UsageError: If the folder holds no model, or cannot be read or written.
    """
    folder = Path(folder)
    config, run, results = (read_saved_json(folder / file) for file in ("config.json", RUN_FILE, RESULTS_FILE))
    if not config:
        raise UsageError(f"{folder} holds no model.")
    path = folder / CARD_FILE
    with as_usage_error(OSError, prefix=f"{path} cannot be read: "):
        if path.exists() and _SIGNATURE not in path.read_text(encoding="utf-8", errors="replace"):
            return path
    settings = run.get("settings", {})
    free = show_images if show_images is not None else spec is not None and spec.shareable
    card = ModelCard.from_template(
        _metadata(config, settings, results, spec, license),
        template_path=str(_TEMPLATE),
        **_facts(config, run, results, spec),
        name=name,
        predictions=PREDICTIONS_FILE if free and (folder / PREDICTIONS_FILE).exists() else None,
        network=_cells(_network(config, settings, folder)),
        signature=_SIGNATURE,
    )
    with as_usage_error(OSError, prefix=f"{path} cannot be written: "):
        replace_file(path, f"{card}\n")
    return path


def read_saved_json(path: Path) -> dict[str, Any]:
    """Read a file of a saved folder; empty where there is none.

    Raises:
        UsageError: If it cannot be read or is not JSON.
    """
    with as_usage_error(OSError, ValueError, prefix=f"{path} cannot be read: "):
        return read_json(path)


def recipe(settings: dict[str, Any]) -> dict[str, Any]:
    """Choose the settings of run.json that repeat a run: all that belong in a card and are not paths of a machine."""
    return {
        name: value
        for name, value in settings.items()
        if purpose(name).in_card and not (purpose(name).is_path and value is not None and not _is_public(value))
    }


def _is_public(name: str) -> bool:
    """Whether a value is a word or a Hub id, not a file of this machine."""
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not Path(name).exists()


def _facts(config: dict, run: dict, results: dict, spec: DatasetSpec | None) -> dict[str, Any]:
    settings = run.get("settings", {})
    return {
        "title": _title(config, spec),
        "num_classes": len(config["id2label"]),
        "contrast": _contrast(config, settings),
        "own_code": config["model_type"] == MsctrConfig.model_type,
        "objective": _cells(_objective(config, settings)),
        "data": _cells(_data(spec, settings)),
        "data_is_bound": spec is not None and bool(spec.license),
        "training": _cells(_training(config, run)),
        "scores": iou_table(results) if results else None,
        "seed": settings.get("seed", "not known"),
        "step": results.get("step", "not known"),
    }


def _metadata(
    config: dict, settings: dict, results: dict, spec: DatasetSpec | None, license: str | None
) -> ModelCardData:
    dataset = _hub_dataset(settings)
    terms: dict[str, Any] = {"license": license} if license else {}
    if not license and spec is not None and spec.license:
        terms = {"license": "other", "license_name": _slug(f"{spec.name} terms")}
        if link := re.match(r"https?://\S+", spec.homepage):
            terms["license_link"] = link.group()
    return ModelCardData(
        **terms,
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation", "contrastive-learning", "msctr", config["model_type"]],
        base_model=_base_model(settings),
        datasets=[dataset] if dataset else None,
        metrics=["mean_iou"] if results else None,
        model_name=_slug(_title(config, spec)),
        eval_results=_eval_results(results, settings, spec),
    )


def _eval_results(results: dict, settings: dict, spec: DatasetSpec | None) -> list[EvalResult] | None:
    if not results or spec is None:
        return None
    return [
        EvalResult(
            task_type="image-segmentation",
            task_name="Semantic Segmentation",
            dataset_type=_hub_dataset(settings) or spec.name,
            dataset_name=spec.name,
            dataset_split="validation",
            metric_type=metric,
            metric_name=f"{title} (single scale)",
            metric_value=results[metric],
        )
        for metric, title in _METRICS.items()
        if results.get(metric) is not None
    ]


def _hub_dataset(settings: dict) -> str | None:
    """Hub id of the data set that was read; folders of a machine stay private."""
    name = settings.get("dataset_name") or ""
    return name if "/" in name and _is_public(name) else None


def _base_model(settings: dict) -> str | None:
    """Hub id of the weights the run started from, where they came from the Hub."""
    start, backbone = settings.get("model_name_or_path"), settings.get("backbone")
    if start is not None:
        return start if "/" in start and _is_public(start) else None
    if settings.get("backbone_weights") != "hub" or not backbone:
        return None
    return backbone if "/" in backbone else f"timm/{backbone}"


def _start(settings: dict) -> str | None:
    """Where the first weights came from; paths of a machine stay private."""
    base = _base_model(settings)
    if base or not settings:
        return base
    if settings.get("model_name_or_path"):
        return "a saved model"
    return "random" if settings.get("backbone_weights") == "none" else "a file with weights of the backbone"


def _title(config: dict, spec: DatasetSpec | None) -> str:
    where = "" if spec is None or spec.name == FOLDER else f" on {spec.name}"
    return f"{_architecture(config)}{where}"


def _architecture(config: dict) -> str:
    if config["model_type"] != MsctrConfig.model_type:
        return config.get("architectures", [config["model_type"]])[0]
    backbone = config["backbone_config"]
    head = DECODE_HEADS[config["decode_head"]].display_name
    return f"{head} with {backbone.get('backbone') or backbone['model_type']}"


def _contrast(config: dict, settings: dict) -> str | None:
    mode = config.get("contrastive_mode")
    if mode is None and settings.get("contrastive_adapter"):
        mode = settings.get("contrastive_mode", "ms_cs")
    return _CONTRASTS.get(mode)


def _own_fields(config: dict) -> dict[str, Any]:
    """Fields that `MsctrConfig` adds to a configuration of transformers; none of other models."""
    if config["model_type"] != MsctrConfig.model_type:
        return {}
    return {name: config.get(name) for name in MsctrConfig.__annotations__ if name not in _NESTED_FIELDS}


def _network(config: dict, settings: dict, folder: Path) -> dict[str, Any]:
    backbone = config.get("backbone_config") or {}
    return {
        "architecture": _architecture(config),
        "backbone": backbone.get("backbone") or backbone.get("model_type"),
        "initial weights": _start(settings),
        **{name: value for name, value in _own_fields(config).items() if not name.startswith("contrastive_")},
        "parameters": _parameters(folder),
    }


def _parameters(folder: Path) -> str | None:
    path = folder / "model.safetensors"
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as weights:
        shapes = {key: weights.get_slice(key).get_shape() for key in weights.keys()}  # noqa: SIM118 - not a dict
    counted = {key: math.prod(shape) for key, shape in shapes.items()}
    contrast = sum(count for key, count in counted.items() if key.startswith("projection_head."))
    return f"{sum(counted.values()) / 1e6:.1f} million values, {contrast / 1e6:.1f} of them for the contrast only"


def _objective(config: dict, settings: dict) -> dict[str, Any]:
    """Contrastive settings of the network, or of the adapter in which another model was trained."""
    given = _own_fields(config) or settings
    return {name: value for name, value in given.items() if name.startswith("contrastive_")}


def _data(spec: DatasetSpec | None, settings: dict) -> dict[str, Any]:
    if spec is None:
        return {}
    return {
        "name": spec.name,
        "classes": len(spec.classes),
        "read from": _hub_dataset(settings),
        "terms": spec.license or "not stated",
        "source": spec.homepage,
    }


def _training(config: dict, run: dict) -> dict[str, Any]:
    if not run:
        return {}
    settings, versions = run["settings"], run.get("versions", {})
    shown_above = {*_own_fields(config), *_objective(config, settings)}
    return {
        **{name: value for name, value in recipe(settings).items() if name not in shown_above},
        "processes": run.get("num_processes"),
        "precision": run.get("mixed_precision"),
        "device": run.get("device"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "commit of msctr_hf": run.get("git_commit"),
    }


def _cells(rows: dict[str, Any]) -> dict[str, str]:
    """Format values for a table; unknown ones are left out."""
    known = {name: value for name, value in rows.items() if value not in (None, "", [])}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in known.items()}
    return {name: text.replace("|", "\\|").replace("\n", " ") for name, text in texts.items()}


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
