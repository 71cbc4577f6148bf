"""Model card (README.md) of a saved model, from facts that are collected here and `model_card_template.md`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers.utils import IMAGE_PROCESSOR_NAME

from ..data.channels import count_of
from ..data.saved_source import repository_and_configuration
from ..data.specs import DatasetSpec
from ..data.synthetic import SyntheticSource
from ..errors import UsageError, as_usage_error
from ..evaluation.scoring import iou_table, percent
from ..models.backbone_weights import HUB, NONE
from ..models.configuration_msctr import MsctrConfig
from ..models.contrastive_adapter import HEADS_FILE
from ..models.decode_heads import DECODE_HEADS
from ..training.description import (
    DRAWN_IMAGES,
    IMAGES,
    LABELED_IMAGES,
    describe_drawn,
    describe_labeled,
    describe_parameters,
)
from ..training.idle_settings import idle_settings
from ..training.run_folder import PREDICTIONS_FILE, RESULTS_FILE, RUN_FILE, read_json, replace_file
from ..training.settings import purpose

CARD_FILE = "README.md"
_TEMPLATE = Path(__file__).with_name("model_card_template.md")
# Never change these words: without them, cards of earlier versions would be treated as written by the user.
_SIGNATURE = (
    "<!-- Written by msctr_hf from the files of the run. Without this line the card is yours and stays as it is. -->"
)
_CONTRAST_NAMES = {"ms": "multi-scale", "ms_cs": "multi-scale and cross-scale"}
_METRIC_NAMES = {"mean_iou": "mean IoU", "mean_accuracy": "mean accuracy", "overall_accuracy": "pixel accuracy"}
_NESTED_FIELDS = {"backbone_config", "palette"}  # too long for a table
_UNNAMED_DATASET = "custom data set"
_MAX_WORST_CLASSES, _MAX_CONFUSIONS = 3, 5  # numbers of rows in the section on limitations
# ends of the names of values that are no parameters: statistics of BatchNorm
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_MAX_IMAGES = 50  # that are listed, if a run drew its training images


def write_model_card(
    folder: str | Path,
    spec: DatasetSpec | None = None,
    *,
    name: str | None = None,
    license: str | None = None,
    show_images: bool | None = None,
    target: str | Path | None = None,
) -> Path:
    """Write the README.md of a saved model, from its config.json, run.json and results.json.

    A card that somebody else wrote, or adopted by removing the line that says who wrote it, is not changed.

    Args:
        folder (`str` or `Path`): Folder of the model; the card leaves out what the files do not say.
        spec (`DatasetSpec`, *optional*): Data set on which the model was trained.
        name (`str`, *optional*): Hub id in the example of the card; by default the example loads the folder itself.
        license (`str`, *optional*): License of the weights, as the Hub abbreviates it; by default the card names the
            terms of the data set.
        show_images (`bool`, *optional*): Whether the card shows predictions.png, with images of the data set; by
            default only if these may be shown to everyone.
        target (`str` or `Path`, *optional*): Folder to which the card is written, by default that of the model.

    Raises:
        UsageError: If the folder does not contain a model, or cannot be read or written.
    """
    folder = Path(folder)
    config = read_saved_config(folder)
    run, results = read_saved_json(folder / RUN_FILE), read_results_of_run(folder)
    if results.get("mean_iou") is None:
        results = {}  # no pixel of the validation images was labeled
    path = Path(target or folder) / CARD_FILE
    with as_usage_error(OSError, prefix=f"{path} cannot be read: "):
        if path.exists() and _SIGNATURE not in path.read_text(encoding="utf-8", errors="replace"):
            return path
    free = show_images if show_images is not None else spec is not None and spec.shareable
    processor = read_saved_json(folder / IMAGE_PROCESSOR_NAME)
    known = {**run.get("settings", {}), **_own_fields(config), "value_type": processor.get("value_type")}
    idle = idle_settings(known)
    card = ModelCard.from_template(
        _metadata(config, run, results, spec, license),
        template_path=str(_TEMPLATE),
        **_facts(config, run, results, spec, processor, idle),
        name=name,
        predictions=PREDICTIONS_FILE if free and (folder / PREDICTIONS_FILE).exists() else None,
        network=_cells(_network(config, run, folder, idle)),
        embeddings=_cells(_embeddings(config, folder)),
        signature=_SIGNATURE,
    )
    with as_usage_error(OSError, prefix=f"{path} cannot be written: "):
        replace_file(path, f"{card}\n")
    return path


def read_saved_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of a saved model.

    Raises:
        UsageError: If the folder does not contain a model, or config.json cannot be read.
    """
    config = read_saved_json(folder / "config.json")
    if not config:
        raise UsageError(f"{folder} does not contain a saved model: config.json is missing.")
    return config


def read_saved_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a saved folder; return an empty dict if it is missing.

    Raises:
        UsageError: If the file cannot be read or is not JSON.
    """
    with as_usage_error(OSError, ValueError, prefix=f"{path} cannot be read: "):
        return read_json(path)


def read_results_of_run(folder: Path) -> dict[str, Any]:
    """Read what a run measured in its best validation; return an empty dict if results.json is missing or of others.

    Older versions of `msctr evaluate` replaced the file, with scores of any split, scales and model. Only a run writes
    the step.

    Raises:
        UsageError: If the file cannot be read.
    """
    results = read_saved_json(folder / RESULTS_FILE)
    return results if "step" in results else {}


def _recipe(run: dict) -> dict[str, Any]:
    """Select the settings that repeat a run: those that belong in a card and are not paths of a machine."""
    return {
        name: value
        for name, value in run["settings"].items()
        if purpose(name).in_card and (not purpose(name).is_path or value is None or _is_public(run, name))
    }


def _is_public(run: dict, name: str) -> bool:
    """Return whether a value is a word or a Hub id, and was not a file or folder at any start of the run."""
    value = run.get("settings", {}).get(name)
    starts = (run, *run.get("earlier_starts", []))
    if not value or Path(value).exists() or any(name in start.get("paths", []) for start in starts):
        return False
    try:
        validate_repo_id(repository_and_configuration(value)[0])
    except HFValidationError:
        return False
    return True


def _hub_id(run: dict, name: str) -> str | None:
    """Return the repository on the Hub that a setting names, or `None` if it names something else."""
    repository = repository_and_configuration(run["settings"][name])[0] if _is_public(run, name) else ""
    return repository if "/" in repository else None


def _beginning(run: dict) -> dict:
    """Return the start with the initial weights of the network; later starts resumed from a checkpoint."""
    starts = [*run.get("earlier_starts", []), run]
    return next((start for start in reversed(starts) if not start.get("from_step")), run)


def _channels(processor: dict) -> str | None:
    """Describe images that only this package reads; `None` if they are gray or RGB images of 8 bits."""
    count, value_type = processor.get("num_channels") or 3, processor.get("value_type")
    if count in (1, 3) and value_type in (None, "uint8"):
        return None
    return f"{count_of(count)}{f' of type {value_type}' if value_type else ''}"


def _facts(
    config: dict, run: dict, results: dict, spec: DatasetSpec | None, processor: dict, idle: set[str]
) -> dict[str, Any]:
    settings = run.get("settings", {})
    return {
        "title": _title(config, spec),
        "num_classes": len(config["id2label"]),
        "contrast": _contrast(config, settings),
        "own_code": config["model_type"] == MsctrConfig.model_type,
        "channels": _channels(processor),
        "keeps_8_bits": not processor.get("value_type"),  # of images with more
        "objective": _cells(_without(idle, _objective(config, settings))),
        "data": _cells(_data(spec, run, results)),
        "data_name": _data_name(spec, run),
        "data_terms": " ".join(spec.license.split()).rstrip(".") if spec is not None else None,
        "data_is_drawn": spec is not None and isinstance(spec.source, SyntheticSource),
        "training": _cells(_without(idle, _training(config, run))),
        "validation_was_trained_on": _validation_was_trained_on(run),
        "scores": iou_table(results) if results else None,
        "images": results.get("images"),
        "tile_size": " x ".join(map(str, settings.get("tile_size") or ())),
        "worst": _worst_classes(results),
        "absent": ", ".join(_absent_classes(results)),
        "confusions": _confusions(results),
        "seed": settings.get("seed", "not known"),
        "step": results.get("step"),
    }


def _metadata(config: dict, run: dict, results: dict, spec: DatasetSpec | None, license: str | None) -> ModelCardData:
    dataset, start = _hub_dataset(run), _beginning(run)
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
        base_model=_base_model(start),
        # Only a whole model is fine-tuned; the Hub has no relation for a network that is built around a backbone.
        base_model_relation="finetune" if _hub_id(start, "model_name_or_path") else None,
        datasets=[dataset] if dataset else None,
        metrics=["mean_iou"] if results else None,
        model_name=_slug(_title(config, spec)),
        eval_results=_eval_results(results, run, spec),
    )


def _validation_was_trained_on(run: dict) -> bool:
    return "validation" in run.get("settings", {}).get("train_split", "").split("+")


def _eval_results(results: dict, run: dict, spec: DatasetSpec | None) -> list[EvalResult] | None:
    if not results or spec is None or _validation_was_trained_on(run):
        return None
    of_what = "single scale, of tiles" if run.get("settings", {}).get("tile_size") else "single scale"
    dataset = _data_name(spec, run) or _UNNAMED_DATASET
    return [
        EvalResult(
            task_type="image-segmentation",
            task_name="Semantic Segmentation",
            # a name without Latin letters has no slug, and the Hub refuses an empty type
            dataset_type=_hub_dataset(run) or _slug(dataset) or _slug(_UNNAMED_DATASET),
            dataset_name=dataset,
            dataset_split="validation",
            metric_type=metric,
            metric_name=f"{title} ({of_what})",
            metric_value=results[metric],
        )
        for metric, title in _METRIC_NAMES.items()
        if results.get(metric) is not None
    ]


def _hub_dataset(run: dict) -> str | None:
    """Return the Hub id of the data set that was read, or `None`, since folders of a machine stay private."""
    return _hub_id(run, "dataset_name")


def _data_name(spec: DatasetSpec | None, run: dict) -> str | None:
    """Return the name of the data set for readers; the folder in which it was found stays private."""
    if spec is None:
        return None
    return spec.title or _hub_dataset(run)


def _base_model(start: dict) -> str | None:
    """Return the Hub id of the weights from which a run started, if they came from the Hub."""
    settings = start.get("settings", {})
    if settings.get("model_name_or_path"):
        return _hub_id(start, "model_name_or_path")
    if settings.get("backbone_weights") != HUB or not settings.get("backbone"):
        return None
    described = json.loads(settings.get("backbone_config") or "{}")  # names a network of timm, or only its dimensions
    if "backbone" in described:
        return _timm_hub_id(described["backbone"])
    return _hub_id(start, "backbone") or _timm_hub_id(settings["backbone"])


def _timm_hub_id(backbone: str) -> str | None:
    """Return the repository of the weights of a timm network, whose name may omit the tag of the weights."""
    from timm import get_pretrained_cfg

    try:
        weights = get_pretrained_cfg(backbone)
    except RuntimeError:  # this version of timm does not know the weights
        return None
    return None if weights is None else weights.hf_hub_id


def _initial_weights(start: dict) -> str | None:
    """Describe the source of the initial weights; paths of a machine stay private."""
    settings, base = start.get("settings", {}), _base_model(start)
    if base or not settings:
        return base
    if settings.get("model_name_or_path"):
        return "a saved model"
    kinds = {NONE: "random", HUB: "weights of the backbone"}
    return kinds.get(settings.get("backbone_weights"), "a file with weights of the backbone")


def _title(config: dict, spec: DatasetSpec | None) -> str:
    where = f" on {spec.title}" if spec is not None and spec.title else ""
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
    return _CONTRAST_NAMES.get(mode)


def _own_fields(config: dict) -> dict[str, Any]:
    """Return the fields that `MsctrConfig` adds to a configuration of transformers; other models have none."""
    if config["model_type"] != MsctrConfig.model_type:
        return {}
    return {name: config.get(name) for name in MsctrConfig.__annotations__ if name not in _NESTED_FIELDS}


def _network(config: dict, run: dict, folder: Path, idle: set[str]) -> dict[str, Any]:
    fields = {name: value for name, value in _own_fields(config).items() if not name.startswith("contrastive_")}
    backbone = config.get("backbone_config") or {}
    return {
        "architecture": _architecture(config),
        "backbone": backbone.get("backbone") or backbone.get("model_type"),
        "initial weights": _initial_weights(_beginning(run)),
        **_without(idle, fields),
        "size": _parameters(config, folder),
    }


def _embeddings(config: dict, folder: Path) -> dict[str, Any]:
    """Describe the embeddings of pixels that the network has, by the value of `features`."""
    if config["model_type"] != MsctrConfig.model_type:
        settings = _settings_of_saved_head(folder)
        projection = {"`projection`": _channels_at(settings["projection_dim"], settings["projection_stages"])}
        return {**(projection if settings["projection_dim"] else {}), "`backbone`": "hidden states"}
    found = {}
    if config["contrastive_mode"] != "ce":
        found["`projection`"] = _channels_at(config["projection_dim"], config["projection_stages"])
    if DECODE_HEADS[config["decode_head"]].gives_pyramid:
        found["`decode_head`"] = _channels_at(config["hidden_size"], range(1, len(config["decode_stages"]) + 1))
    return {**found, "`backbone`": "stage maps"}


def _settings_of_saved_head(folder: Path) -> dict[str, Any]:
    """Read the settings of the projection head of an adapted model; without one, they are `None`."""
    if not (folder / HEADS_FILE).exists():
        return {"projection_dim": None, "projection_stages": []}
    with (
        as_usage_error(OSError, SafetensorError, KeyError, ValueError, prefix=f"{folder / HEADS_FILE} is damaged: "),
        safe_open(folder / HEADS_FILE, framework="pt") as heads,
    ):
        return json.loads(heads.metadata()["settings"])


def _channels_at(number: int, stages: Sequence[int]) -> str:
    return f"{number} channels at stage{'s' if len(stages) > 1 else ''} {', '.join(map(str, stages))}"


def _parameters(config: dict, folder: Path) -> str | None:
    """Describe the parameters of the network, and of the projection head that an adapted model has in another file."""
    if not (folder / "model.safetensors").exists():
        return None
    sizes: dict[str, int] = {}
    for path in (folder / "model.safetensors", folder / HEADS_FILE):
        if path.exists():
            with safe_open(path, framework="pt") as weights:
                shapes = {key: weights.get_slice(key).get_shape() for key in weights.keys()}  # noqa: SIM118 - not a dict
            sizes |= {key: math.prod(shape) for key, shape in shapes.items() if not key.endswith(_STATISTICS)}
    return describe_parameters(sizes, _own_fields(config).get("decode_head"))


def _objective(config: dict, settings: dict) -> dict[str, Any]:
    """Return the contrastive settings of the network, or of the adapter in which another model was trained."""
    given = _own_fields(config) or settings
    return {name: value for name, value in given.items() if name.startswith("contrastive_")}


def _data(spec: DatasetSpec | None, run: dict, results: dict) -> dict[str, Any]:
    if spec is None:
        return {}
    return {
        "name": _data_name(spec, run),
        "classes": f"{len(spec.classes)}: {', '.join(spec.classes)}",
        "read from": _hub_dataset(run),
        "terms": spec.license or "not stated",
        "source": spec.homepage,
        **_numbers_of_images(run, results),
        **_drawn_images(run),
    }


def _numbers_of_images(run: dict, results: dict) -> dict[str, Any]:
    """Count training and validation images; if there are others, say how many of them had labels.

    A network of a step before images without labels join has learned from none of those.
    """
    images, counts = run.get(IMAGES, {}), run.get(LABELED_IMAGES)
    training = images.get("training")
    if counts:
        if results.get("step", math.inf) <= run["settings"].get("unlabeled_start_step", 0):
            counts = {**counts, "unlabeled": 0}
        training = describe_labeled(counts)
    return {"training images": training, "validation images": images.get("validation")}


def _drawn_images(run: dict) -> dict[str, str]:
    """Describe and list the training images, if they are only a part of the split."""
    drawn = run.get(DRAWN_IMAGES)
    if not drawn:
        return {}
    image_ids = drawn["image_ids"]
    more = len(image_ids) - _MAX_IMAGES
    listed = ", ".join(image_ids[:_MAX_IMAGES])
    if more > 0:
        listed += f" and {more} more; `{RUN_FILE}` of the run, which is not published, lists all of them"
    return {"labeled images": f"{describe_drawn(drawn)}: {listed}"}


def _training(config: dict, run: dict) -> dict[str, Any]:
    if not run:
        return {}
    settings, versions = run["settings"], run.get("versions", {})
    shown_above = {*_own_fields(config), *_objective(config, settings)}
    return {
        **{name: value for name, value in _recipe(run).items() if name not in shown_above},
        "processes": run.get("num_processes"),
        "precision": run.get("mixed_precision"),
        "device": run.get("device"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "commit of msctr_hf": run.get("git_commit"),
    }


def _worst_classes(results: dict) -> list[str]:
    """List the classes with the lowest IoU, worst first; at most half of those that were scored."""
    scored = {name: iou for name, iou in results.get("per_category_iou", {}).items() if iou is not None}
    names = sorted(scored, key=scored.__getitem__)[: min(_MAX_WORST_CLASSES, len(scored) // 2)]
    return [f"{name} ({percent(scored[name])})" for name in names]


def _absent_classes(results: dict) -> list[str]:
    return [name for name, iou in results.get("per_category_iou", {}).items() if iou is None]


def _confusions(results: dict) -> list[Sequence[str]]:
    largest = results.get("largest_confusions", [])[:_MAX_CONFUSIONS]
    return [(_cell(each["class"]), _cell(each["predicted_as"]), percent(each["share"])) for each in largest]


def _without(names: set[str], rows: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in rows.items() if name not in names}


def _cells(rows: dict[str, Any]) -> dict[str, str]:
    """Format values for a table, without unknown ones."""
    known = {name: value for name, value in rows.items() if value not in (None, "", [])}
    return {name: _cell(value if isinstance(value, str) else json.dumps(value)) for name, value in known.items()}


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
