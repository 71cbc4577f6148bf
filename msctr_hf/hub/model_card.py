"""The README.md of a model on the Hub, from the files of its run and from nothing else."""

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
from ..errors import UsageError
from ..evaluation.scoring import iou_table
from ..models.configuration_msctr import MsctrConfig
from ..models.decode_heads import DECODE_HEADS
from ..training.run_folder import PREDICTIONS_FILE, RESULTS_FILE, RUN_FILE, read_json, replace_file

CARD_FILE = "README.md"
_OURS = (
    "<!-- Written by msctr_hf from the files of the run. Without this line the card is yours and stays as it is. -->"
)
_CONTRASTS = {"ms": "multi-scale", "ms_cs": "multi-scale and cross-scale"}
_METRICS = {"mean_iou": "mean IoU", "mean_accuracy": "mean accuracy", "overall_accuracy": "pixel accuracy"}
_NETWORK = (
    "decode_head", "decode_stages", "hidden_size", "align_corners", "use_auxiliary_head", "auxiliary_loss_weight",
    "projection_dim", "projection_source", "projection_stages",
)  # fmt: skip
_RECIPE = (
    "max_steps", "batch_size", "gradient_accumulation_steps", "crop_size", "scale_range", "aspect_range",
    "flip_probability", "color_jitter", "max_class_share", "repeat_factor_threshold", "optimizer", "learning_rate",
    "backbone_learning_rate_factor", "weight_decay", "no_decay", "schedule", "poly_power", "warmup_steps",
    "max_grad_norm", "ema", "class_weights", "train_split", "seed",
)  # fmt: skip


def write_model_card(
    folder: str | Path,
    spec: DatasetSpec | None = None,
    *,
    name: str | None = None,
    license: str | None = None,
    show_pictures: bool | None = None,
) -> Path:
    """Write README.md into the folder of a saved model, from its config.json, run.json and results.json.

    A card that somebody else wrote, or made theirs by removing the line that says so, is left alone.

    Args:
        folder (`str` or `Path`): A folder for `from_pretrained`; what is missing there is left out of the card.
        spec (`DatasetSpec`, *optional*): What it was trained on.
        name (`str`, *optional*): Hub id the card speaks of; without it the folder.
        license (`str`, *optional*): Of the weights, as the Hub abbreviates it; where it is not given, the terms of the
            data set are named.
        show_pictures (`bool`, *optional*): Whether the card shows predictions.png, which holds pictures of the data
            set; by default only of data sets whose pictures are free.

    Raises:
        UsageError: If the folder holds no model.
    """
    folder = Path(folder)
    config, run, results = (read_json(folder / file) for file in ("config.json", RUN_FILE, RESULTS_FILE))
    if not config:
        raise UsageError(f"{folder} holds no model.")
    if (folder / CARD_FILE).exists() and _OURS not in (folder / CARD_FILE).read_text():
        return folder / CARD_FILE
    settings = run.get("settings", {})
    free = show_pictures if show_pictures is not None else spec is not None and spec.shareable
    parts = [
        f"# {_title(config, spec)}",
        _summary(config, settings),
        "![Pictures, their labels and the predictions](predictions.png)"
        if free and (folder / PREDICTIONS_FILE).exists()
        else "",
        _usage(config, name),
        _network(config, settings, folder),
        _objective(config, settings),
        _data(spec, settings),
        _training(run),
        _results(results, settings),
        _CITATION,
        _OURS,
    ]
    card = ModelCard(f"---\n{_metadata(config, settings, results, spec, license).to_yaml()}\n---\n\n" + _joined(parts))
    replace_file(folder / CARD_FILE, str(card))
    return folder / CARD_FILE


def _metadata(
    config: dict, settings: dict, results: dict, spec: DatasetSpec | None, license: str | None
) -> ModelCardData:
    copy = _hub_dataset(settings)
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
        datasets=[copy] if copy else None,
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
    """Hub id of the copy that was read; a folder of this machine is nobody's business."""
    name = settings.get("dataset_name") or ""
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists() else None


def _base_model(settings: dict) -> str | None:
    """Hub id of the weights the run started from, where they came from the Hub."""
    start, backbone = settings.get("model_name_or_path"), settings.get("backbone")
    if start is not None:
        return start if start.count("/") == 1 and not Path(start).exists() else None
    if settings.get("backbone_weights") != "hub" or not backbone:
        return None
    return backbone if "/" in backbone else f"timm/{backbone}"


def _start(settings: dict) -> str | None:
    """Where the first weights came from; paths of a machine are nobody's business."""
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


def _summary(config: dict, settings: dict) -> str:
    mode = config.get("contrastive_mode")
    if mode is None and settings.get("contrastive_adapter"):
        mode = settings.get("contrastive_mode", "ms_cs")
    what = f"Semantic segmentation into {len(config['id2label'])} classes"
    if mode not in _CONTRASTS:
        return f"{what}, by `msctr_hf`."
    return f"""{what}, trained with {_CONTRASTS[mode]} contrast ([Pissas et al., ECCV
2022](https://arxiv.org/abs/2203.13409)) by `msctr_hf`. What the contrast needs works in training only: a prediction
costs what the plain network costs."""


def _usage(config: dict, name: str | None) -> str:
    ours = config["model_type"] == MsctrConfig.model_type
    flag = ", trust_remote_code=True" if ours else ""
    note = "\nWith `msctr_hf` installed and imported, `trust_remote_code` is not needed.\n" if ours else ""
    return f"""## Use

```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

name = "{name or "."}"{"" if name else "  # this folder"}
model = AutoModelForSemanticSegmentation.from_pretrained(name{flag})
processor = AutoImageProcessor.from_pretrained(name{flag})
image = Image.open("picture.jpg").convert("RGB")
with torch.no_grad():
    output = model(**processor(image, return_tensors="pt"))
labels = processor.post_process_semantic_segmentation(output, target_sizes=[(image.height, image.width)])[0]
classes = [model.config.id2label[label] for label in labels.unique().tolist()]
```
{note}"""


def _network(config: dict, settings: dict, folder: Path) -> str:
    backbone = config.get("backbone_config") or {}
    rows = {
        "architecture": _architecture(config),
        "backbone": backbone.get("backbone") or backbone.get("model_type"),
        "initial weights": _start(settings),
        **{name: config.get(name) for name in _NETWORK},
        "parameters": _parameters(folder),
    }
    return f"## Network\n\n{_table(rows)}"


def _parameters(folder: Path) -> str | None:
    path = folder / "model.safetensors"
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as weights:
        shapes = {key: weights.get_slice(key).get_shape() for key in weights.keys()}  # noqa: SIM118 - not a dict
    counted = {key: math.prod(shape) for key, shape in shapes.items()}
    contrast = sum(count for key, count in counted.items() if key.startswith("projection_head."))
    return f"{sum(counted.values()) / 1e6:.1f} million values, {contrast / 1e6:.1f} of them for the contrast only"


def _objective(config: dict, settings: dict) -> str:
    """Contrastive settings: those of the network, or of the adapter it was trained in."""
    given = config if config["model_type"] == MsctrConfig.model_type else settings
    rows = {name: value for name, value in given.items() if name.startswith("contrastive_")}
    return f"## Objective\n\n{_table(rows)}" if rows else ""


def _data(spec: DatasetSpec | None, settings: dict) -> str:
    if spec is None:
        return ""
    rows = {
        "name": spec.name,
        "classes": len(spec.classes),
        "read from": _hub_dataset(settings),
        "terms": spec.license or "not stated",
        "source": spec.homepage,
    }
    note = "" if not spec.license else "\n\nThese terms may bind the weights too."
    return f"## Data\n\n{_table(rows)}{note}"


def _training(run: dict) -> str:
    if not run:
        return ""
    settings, versions = run["settings"], run.get("versions", {})
    rows = {
        **{name: settings.get(name) for name in _RECIPE},
        "processes": run.get("num_processes"),
        "precision": run.get("mixed_precision"),
        "device": run.get("device"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "commit of msctr_hf": run.get("git_commit"),
    }
    return f"## Training\n\n{_table(rows)}"


def _results(results: dict, settings: dict) -> str:
    if not results:
        return ""
    seed, step = (source.get(name, "not known") for source, name in ((settings, "seed"), (results, "step")))
    return f"""## Results

Measured by the run itself on the validation split: whole pictures at one scale, at the resolution of the labels. This
is the best of the validations of one run (seed {seed}, step {step}).

```
{iou_table(results)}
```"""


def _table(rows: dict[str, Any]) -> str:
    """Two columns; what is not known is left out."""
    known = {name: value for name, value in rows.items() if value not in (None, "", [])}
    lines = [f"| {name} | {_cell(value)} |" for name, value in known.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _joined(parts: list[str]) -> str:
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


_CITATION = """## Citation

```bibtex
@inproceedings{pissas2022multiscale,
  title = {Multi-scale and Cross-scale Contrastive Learning for Semantic Segmentation},
  author = {Pissas, Theodoros and Ravasio, Claudio S. and Da Cruz, Lyndon and Bergeles, Christos},
  booktitle = {European Conference on Computer Vision},
  year = {2022},
  url = {https://arxiv.org/abs/2203.13409}
}
```"""
