import json
import re
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
import yaml
from conftest import SWIN_TINY
from huggingface_hub import ModelCard
from layouts import write_folder
from PIL import ExifTags, Image
from safetensors.torch import load_file
from small_run import flags
from transformers import SegformerConfig, SegformerForSemanticSegmentation, pipeline

from msctr_hf import ContrastiveAdapter, MsctrForSemanticSegmentation, MsctrImageProcessor
from msctr_hf.commands.train import command_line
from msctr_hf.data import stored_pixels
from msctr_hf.data.loading import get_dataset_spec
from msctr_hf.errors import UsageError
from msctr_hf.hub.model_card import write_model_card
from msctr_hf.training.idle_settings import idle_settings
from msctr_hf.training.run_folder import write_json
from msctr_hf.training.settings import purpose

SCORES = {"sky": 0.9, "road": 0.123456, "never seen": None}
RESULTS = {
    "step": 40, "mean_iou": 0.511728, "mean_accuracy": 0.6, "overall_accuracy": 0.7, "per_category_iou": SCORES,
    "per_category_accuracy": SCORES, "images": 12,
    "largest_confusions": [{"class": "road", "predicted_as": "sky", "share": 0.25}],
}  # fmt: skip
RUN = {
    "settings": {
        "dataset": "cityscapes", "backbone": "hrnet_w48.ms_in1k", "backbone_weights": "hub", "max_steps": 40,
        "seed": 3, "data_dir": "/home/someone/data", "output_dir": "/home/someone/runs",
        "learning_rate": 0.01,
    },
    "num_processes": 4, "mixed_precision": "bf16", "device": "a very fast device", "versions": {"torch": "9.9"},
    "git_commit": "0123abcd",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, tiny_config):
    folder = tmp_path / "network"
    model = MsctrForSemanticSegmentation(tiny_config("fcn", backbone=SWIN_TINY, contrastive_temperature=0.07))
    model.save_pretrained(folder)
    MsctrImageProcessor(size_divisor=32, align_corners=model.config.align_corners).save_pretrained(folder)
    return folder


@pytest.fixture
def run_folder(folder):
    write_json(folder / "results.json", RESULTS)
    write_json(folder / "run.json", RUN)
    (folder / "predictions.png").touch()
    return folder


def test_the_python_example_of_the_card_runs(folder):
    text = write_model_card(folder).read_text()
    snippet = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    image.save(folder / "image.jpg")
    check = "\nassert labels.shape == (70, 90)\nassert set(classes) <= {f'class {label}' for label in range(5)}\n"
    subprocess.run([sys.executable, "-c", snippet + check], cwd=folder, check=True)


def labels_of_the_card(card, path):
    """Run the Python example of a card on an image, and return the labels."""
    code = re.search(r"```python\n(.*?)```", card.read_text(), re.DOTALL)[1].replace("image.jpg", path.name)
    code += "\nimport numpy\nnumpy.save('labels.npy', labels)\n"
    path.replace(card.parent / path.name)
    subprocess.run([sys.executable, "-c", code], cwd=card.parent, check=True)
    return np.load(card.parent / "labels.npy")


def test_the_python_example_labels_a_turned_photo_as_the_command_does(folder, tmp_path, run_script, monkeypatch):
    """A camera that is held upright stores the image sideways, with a tag that says how to turn it."""
    monkeypatch.setattr(stored_pixels, "simplejpeg", None)  # whose values differ by 1 from those of Pillow
    pixels = np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8).repeat(7, 0).repeat(7, 1)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels).save(tmp_path / "phone.jpg", exif=exif)
    out = tmp_path / "out"
    assert run_script("predict.py", "--model", folder, "--input", tmp_path / "phone.jpg", "--output_dir", out)[0] == 0
    expected = np.asarray(Image.open(out / "phone.png"))
    labels = labels_of_the_card(write_model_card(folder), tmp_path / "phone.jpg")
    assert labels.shape == (98, 70)
    assert len(np.unique(labels)) > 1
    assert np.array_equal(labels, expected)


def test_the_card_names_the_pipeline_for_gray_images_of_16_bits(folder, tmp_path, run_script):
    text = write_model_card(folder).read_text()
    assert (
        'Gray images of 16 bits, whose values `convert` clips, need `pipeline("msctr-segmentation", model=name)`'
        in text
    )
    pixels = np.random.default_rng(0).integers(0, 65536, (10, 14), dtype=np.uint16).repeat(7, 0).repeat(7, 1)
    path, out = tmp_path / "deep.png", tmp_path / "out"
    Image.fromarray(pixels).save(path)
    assert Image.open(path).convert("RGB").getextrema()[0][1] == 255
    assert run_script("predict.py", "--model", folder, "--input", path, "--output_dir", out)[0] == 0
    labels = pipeline("msctr-segmentation", model=str(folder))(str(path))["labels"]
    assert np.array_equal(labels, np.asarray(Image.open(out / "deep.png")))
    MsctrImageProcessor(num_channels=1, value_type="uint8").save_pretrained(folder)
    assert "16 bits" not in write_model_card(folder).read_text()


def test_the_metadata_can_be_read_by_the_hub(run_folder):
    card = ModelCard.load(write_model_card(run_folder, get_dataset_spec("cityscapes"), name="someone/network"))
    data = card.data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-segmentation")
    assert (data.license, data.license_name) == ("other", "cityscapes-terms")
    assert data.license_link == "https://www.cityscapes-dataset.com"
    assert data.base_model == "timm/hrnet_w48.ms_in1k"
    measured = {result.metric_type: result.metric_value for result in data.eval_results}
    assert measured == {name: RESULTS[name] for name in ("mean_iou", "mean_accuracy", "overall_accuracy")}
    assert {(result.dataset_name, result.dataset_split) for result in data.eval_results} == {
        ("Cityscapes", "validation")
    }
    assert "model-index" in yaml.safe_load(card.content.split("---")[1])
    assert (
        write_model_card(run_folder, get_dataset_spec("cityscapes"), license="mit").read_text().count("license: mit")
        == 1
    )


@pytest.mark.parametrize(("start", "learned_from"), [(39, 321), (40, 0), (41, 0)])
def test_a_model_of_a_step_before_images_without_labels_joined_learned_from_none(run_folder, start, learned_from):
    run = {**RUN, "labeled_images": {"labeled": 46, "unlabeled": 321}}
    run["settings"] = {**RUN["settings"], "unlabeled_start_step": start}
    write_json(run_folder / "run.json", run)
    text = write_model_card(run_folder, get_dataset_spec("cityscapes")).read_text()
    assert f"| training images | 46 with labels, {learned_from} without |" in text


def test_data_of_the_card_has_the_numbers_of_images_and_the_names_of_the_classes(run_folder, tmp_path):
    spec = get_dataset_spec("folder", write_folder(tmp_path / "data"))
    text = card_of(run_folder, spec=spec, images={"training": 46, "validation": 3}).text
    data = text.split("## Data")[1].split("\n## ")[0]
    for row in (f"classes | {len(spec.classes)}: {', '.join(spec.classes)}", "training images | 46"):
        assert f"| {row} |" in data
    assert "| validation images | 3 |" in data
    text = card_of(run_folder, spec=spec, images={"training": None, "validation": None}).text
    assert "validation images |" not in text


def test_settings_that_had_no_effect_are_left_out(run_folder):
    off = {"unlabeled": None, "unlabeled_dir": None, "unlabeled_mix": "cutmix", "ema": False, "ema_decay": 0.9999}
    text = card_of(run_folder, off).text
    for name in ("unlabeled_mix", "ema_decay", "pseudo_label_threshold", "contrastive_pseudo_labels"):
        assert f"| {name} |" not in text, name
    assert "| ema | false |" in text
    text = card_of(run_folder, {**off, "unlabeled": "test", "ema": True}).text
    for name in ("unlabeled_mix", "ema_decay", "pseudo_label_threshold", "contrastive_pseudo_labels"):
        assert f"| {name} |" in text, name


@pytest.mark.parametrize(("count", "value_type", "jittered"), [
    (None, None, True), (3, "uint16", True), (3, "float32", False), (4, "uint8", False),
])  # fmt: skip
def test_the_card_claims_no_jitter_of_images_without_colors(run_folder, count, value_type, jittered):
    MsctrImageProcessor(num_channels=count or 3, value_type=value_type).save_pretrained(run_folder)
    text = card_of(run_folder, {"color_jitter": True, "num_channels": count}).text
    assert ("| color_jitter | true |" in text) == jittered


def test_the_network_of_the_card_has_its_backbone_where_the_setting_had_no_effect(run_folder):
    text = card_of(run_folder, {"model_name_or_path": "nvidia/mit-b0", "backbone": "resnet50.tv_in1k"}).text
    assert "| backbone | swin |" in text
    assert "resnet50" not in text


def test_the_card_states_network_objective_data_recipe_and_machine(run_folder):
    text = write_model_card(run_folder, get_dataset_spec("cityscapes")).read_text()
    for line in (
        "# FCN with swin on Cityscapes",
        "| contrastive_temperature | 0.07 |",
        "| projection_stages | [1, 2, 3, 4] |",
        "| initial weights | timm/hrnet_w48.ms_in1k |",
        "| terms | Cityscapes terms of use: research only, no redistribution |",
        "Segmentation of images like those of Cityscapes into 5 classes.",
        "Terms of the data: Cityscapes terms of use: research only, no redistribution. These terms may bind",
        "Measured in the best validation, on 12 images:",
        "- Lowest IoU: road (12.35 %).",
        "- In neither labels nor predictions, and so not measured: never seen.",
        "| road | sky | 25.00 % |",
        "| learning_rate | 0.01 |",
        "| processes | 4 |",
        "| device | a very fast device |",
        "| commit of msctr_hf | 0123abcd |",
        "seed 3, step 40",
        "@inproceedings{pissas2022multiscale",
    ):
        assert line in text, line
    assert re.search(r"road +12\.35 %", text)
    assert "/home/someone" not in text


@pytest.mark.parametrize(("copy", "named"), [("someone/cityscapes", True), ("/data/parquet", False), (None, False)])
def test_a_data_set_on_the_hub_is_named_and_a_local_one_is_not(run_folder, copy, named):
    write_json(run_folder / "run.json", {**RUN, "settings": {**RUN["settings"], "dataset_name": copy}})
    text = write_model_card(run_folder, get_dataset_spec("cityscapes")).read_text()
    assert ("datasets:\n- someone/cityscapes" in text) == named
    assert "/data/parquet" not in text


def card_of(run_folder, settings=None, spec=None, **run):
    write_json(run_folder / "run.json", {**RUN, "settings": {**RUN["settings"], **(settings or {})}, **run})
    return ModelCard.load(write_model_card(run_folder, spec or get_dataset_spec("cityscapes")))


@pytest.mark.parametrize(("settings", "base_model", "relation"), [
    ({"backbone": "hrnet_w48.ms_in1k"}, "timm/hrnet_w48.ms_in1k", None),
    ({"backbone": "microsoft/swin-tiny-patch4-window7-224"}, "microsoft/swin-tiny-patch4-window7-224", None),
    ({"backbone": "microsoft/swin", "backbone_config": '{"model_type": "swin"}'}, "microsoft/swin", None),
    ({"backbone_config": '{"model_type": "timm_backbone", "backbone": "vgg11.tv_in1k"}'}, "timm/vgg11.tv_in1k", None),
    ({"backbone_weights": "none"}, None, None),
    ({"backbone_weights": "/data/weights.pth"}, None, None),
    ({"backbone": "/data/swin"}, None, None),
    ({"backbone": "../weights/swin"}, None, None),
    ({"model_name_or_path": "nvidia/mit-b0"}, "nvidia/mit-b0", "finetune"),
    ({"model_name_or_path": "runs/pretrained"}, None, None),
])  # fmt: skip
def test_the_base_model_is_named_where_it_came_from_the_hub(run_folder, settings, base_model, relation):
    local = [name for name, value in settings.items() if value == "runs/pretrained"]
    card = card_of(run_folder, settings, paths=local)
    assert card.data.base_model == base_model
    assert card.data.to_dict().get("base_model_relation") == relation
    if base_model is None:
        assert not any(value in card.content for value in settings.values() if "/" in value)


def test_a_timm_name_without_a_tag_becomes_the_repository_that_timm_downloads(run_folder):
    default = timm.create_model("resnet50").pretrained_cfg
    assert card_of(run_folder, {"backbone": "resnet50"}).data.base_model == default["hf_hub_id"]
    assert card_of(run_folder, {"backbone": "network_of_another_version"}).data.base_model is None


def test_the_base_model_is_that_of_the_start_that_did_not_resume(run_folder):
    first = {"settings": {**RUN["settings"], "model_name_or_path": "nvidia/mit-b0"}, "from_step": 0}
    card = card_of(run_folder, {"backbone_weights": "none"}, earlier_starts=[first], from_step=20)
    assert card.data.base_model == "nvidia/mit-b0"
    card = card_of(run_folder, {"backbone_weights": "none"}, earlier_starts=[first], from_step=0)
    assert card.data.base_model is None


def test_a_relative_folder_that_looks_like_a_hub_id_stays_private(run_folder):
    content = card_of(run_folder, {"dataset_name": "data/parquet"}, paths=["dataset_name"]).content
    assert "data/parquet" not in content
    first = {"settings": {**RUN["settings"], "dataset_name": "data/parquet"}, "paths": ["dataset_name"]}
    content = card_of(run_folder, {"dataset_name": "data/parquet"}, earlier_starts=[first]).content
    assert "data/parquet" not in content


def test_the_data_set_of_a_card_is_the_repository_of_the_configuration_that_was_read(run_folder):
    card = card_of(run_folder, {"dataset_name": "someone/scenes:fine"})
    assert card.data.datasets == ["someone/scenes"]
    assert "someone/scenes:fine" in card.text
    for private in ("https://someone:hf_averysecrettoken@host", "https://someone:hf_secrettoken", "C:\\data\\mine"):
        card = card_of(run_folder, {"dataset_name": private})
        assert card.data.datasets is None
        assert private not in card.content


@pytest.mark.parametrize(("description", "hub_id", "title", "name", "kind"), [
    ({"name": "Streets of Ulm"}, None, " on Streets of Ulm", "Streets of Ulm", "streets-of-ulm"),
    ({"name": "Streets of Ulm"}, "someone/ulm", " on Streets of Ulm", "Streets of Ulm", "someone/ulm"),
    ({}, "someone/ulm", "", "someone/ulm", "someone/ulm"),
    ({}, None, "", "custom data set", "custom-data-set"),
    ({"name": "道路"}, None, " on 道路", "道路", "custom-data-set"),
])  # fmt: skip
def test_a_data_set_of_the_user_is_called_by_the_name_in_its_description(
    run_folder, tmp_path, description, hub_id, title, name, kind
):
    spec = get_dataset_spec("folder", write_folder(tmp_path / "secret_project", description=description))
    card = card_of(run_folder, {"dataset": "folder", "dataset_name": hub_id}, spec)
    assert f"# FCN with swin{title}\n" in card.text
    assert {(each.dataset_name, each.dataset_type) for each in card.data.eval_results} == {(name, kind)}
    assert card.data.datasets == ([hub_id] if hub_id else None)
    assert "secret_project" not in card.content


def test_terms_of_several_lines_are_one_sentence_of_the_card(run_folder, tmp_path):
    description = {"license": "CC BY 4.0.\nName us.\n"}
    spec = get_dataset_spec("folder", write_folder(tmp_path / "data", description=description))
    text = card_of(run_folder, {"dataset": "folder"}, spec).text
    assert "Terms of the data: CC BY 4.0. Name us. These terms may bind" in text


def test_limitations_are_the_worst_classes_and_largest_confusions_of_the_results(run_folder):
    ious = {"a": 0.9, "b": 0.2, "c": 0.5, "d": 0.1, "e": 0.3, "f|g": 0.8, "never": None, "absent": None}
    confusions = [{"class": "f|g", "predicted_as": each, "share": 0.01 * each_share} for each, each_share in zip(
        ("a", "b", "c", "d", "e", "never"), range(60, 0, -10), strict=True
    )]  # fmt: skip
    write_json(run_folder / "results.json", {**RESULTS, "per_category_iou": ious, "per_category_accuracy": ious,
                                             "largest_confusions": confusions})  # fmt: skip
    section = card_of(run_folder).text.split("## Limitations")[1].split("\n## ")[0]
    assert "- Lowest IoU: d (10.00 %), b (20.00 %), e (30.00 %)." in section
    assert "not measured: never, absent." in section
    rows = re.findall(r"^\| f\\\|g \| (\w+) \| ([\d.]+) % \|$", section, re.MULTILINE)
    assert rows == [("a", "60.00"), ("b", "50.00"), ("c", "40.00"), ("d", "30.00"), ("e", "20.00")]


def test_results_of_older_runs_without_confusions_still_make_a_card(run_folder):
    older = {name: value for name, value in RESULTS.items() if name not in ("images", "largest_confusions")}
    write_json(run_folder / "results.json", older)
    text = card_of(run_folder).text
    assert "Measured in the best validation:\n\n- Lowest IoU: road (12.35 %)." in text
    assert "predicted as" not in text


def test_scores_on_tiles_are_not_called_those_of_whole_images(run_folder):
    text = card_of(run_folder).text
    assert "on the validation split: whole images at one scale, at" in text
    text = card_of(run_folder, {"tile_size": [64, 96]}).text
    assert "on the validation split: tiles of at most 64 x 96 pixels, each by itself, at one scale, at" in text
    assert "Measured in the best validation, on 12 tiles:" in text


def test_scores_for_machines_have_the_caveats_of_the_text(run_folder):
    def named(**settings):
        return [each.metric_name for each in card_of(run_folder, settings).data.eval_results or ()]

    assert named()[0] == "mean IoU (single scale)"
    assert named(tile_size=[64, 96])[0] == "mean IoU (single scale, of tiles)"
    assert named(train_split="train+validation") == []
    assert "model-index" not in card_of(run_folder, {"train_split": "train+validation"}).content


def test_scores_on_images_of_the_training_are_called_so(run_folder):
    fresh, seen = (
        "It was validated on the validation split",
        "It was trained on the images of the validation split too",
    )
    texts = {split: card_of(run_folder, {"train_split": split}).text for split in ("train", "train+validation")}
    assert {split: (fresh in text, seen in text) for split, text in texts.items()} == {
        "train": (True, False),
        "train+validation": (False, True),
    }


@pytest.mark.parametrize(
    ("count", "end"),
    [
        (50, "image_49 |"),
        (5000, "image_49 and 4950 more; `run.json` of the run, which is not published, lists all of them |"),
    ],
    ids=["short", "long"],
)
def test_drawn_training_images_are_listed_and_a_long_list_ends_with_the_place_of_all_names(run_folder, count, end):
    names = [f"image_{number}" for number in range(count)]
    drawn = {"images": count, "of": 9000, "subset_seed": 3, "image_ids": names}
    listed = ", ".join(names[:49])
    card = card_of(run_folder, drawn_images=drawn).text
    assert f"| {count} of 9000 training images, drawn by seed 3: {listed}, {end}" in card


def test_the_card_states_that_images_were_drawn_by_a_program(run_folder):
    drawn = "A program draws these images"
    assert drawn in card_of(run_folder, spec=get_dataset_spec("synthetic_scenes")).text
    assert drawn not in card_of(run_folder).text


def test_the_card_leaves_out_what_the_folder_does_not_know(folder):
    text = write_model_card(folder).read_text()
    assert "model-index" not in text
    sections = ("## Results", "## Training", "## Data", "## Limitations", "## Intended use")
    for absent in (*sections, "mean_iou", "license:", "base_model", "![", "not known"):
        assert absent not in text, absent


@pytest.mark.parametrize(("dataset", "allowed", "shown"), [
    ("synthetic_scenes", None, True), ("cityscapes", None, False), ("cityscapes", True, True),
    ("synthetic_scenes", False, False),
])  # fmt: skip
def test_images_are_shown_only_where_they_are_free_or_allowed(run_folder, dataset, allowed, shown):
    text = write_model_card(run_folder, get_dataset_spec(dataset), show_images=allowed).read_text()
    assert ("(predictions.png)" in text) == shown


def test_an_adapted_model_needs_no_code_and_says_how_it_was_trained(tmp_path):
    sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "num_attention_heads": [1] * 4}
    SegformerForSemanticSegmentation(SegformerConfig(num_labels=3, **sizes)).save_pretrained(tmp_path)
    start = {"contrastive_adapter": True, "model_name_or_path": "nvidia/mit-b0", "contrastive_loss_weight": 0.2}
    write_json(tmp_path / "run.json", {**RUN, "settings": {**RUN["settings"], **start}})
    text = write_model_card(tmp_path).read_text()
    assert "trust_remote_code" not in text
    assert "trained with multi-scale and cross-scale contrast" in text
    assert "base_model: nvidia/mit-b0" in text
    assert "base_model_relation: finetune" in text
    assert "| contrastive_loss_weight | 0.2 |" in text


def test_the_size_in_the_card_counts_the_parameters_and_no_statistics(folder, monkeypatch):
    model = MsctrForSemanticSegmentation.from_pretrained(folder)
    assert any("running_mean" in name for name in model.state_dict())
    with monkeypatch.context() as patch:
        patch.setattr(
            "msctr_hf.hub.model_card.describe_parameters", lambda sizes, head: f"{head} {sum(sizes.values())}"
        )
        text = write_model_card(folder).read_text()
    assert f"| size | fcn {sum(parameter.numel() for parameter in model.parameters())} |" in text


def embeddings_of(text):
    section = text.split("## Embeddings of pixels")[1].split("\n## ")[0]
    return section, dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", section, re.MULTILINE))


def test_the_card_states_which_embeddings_the_network_has(folder, tmp_path, tiny_config):
    section, kinds = embeddings_of(write_model_card(folder).read_text())
    assert kinds == {"projection": "8 channels at stages 1, 2, 3, 4", "backbone": "stage maps"}
    assert '`model.embed(pixel_values, features="projection")`' in section
    plain = MsctrForSemanticSegmentation(tiny_config(contrastive_mode="ce", decode_stages=[1, 2, 4]))
    plain.save_pretrained(tmp_path / "plain")
    section, kinds = embeddings_of(write_model_card(tmp_path / "plain").read_text())
    assert kinds == {"decode_head": "16 channels at stages 1, 2, 3", "backbone": "stage maps"}
    assert 'features="decode_head")` returns' in section
    assert "it has no projections" in section


def test_the_card_of_an_adapted_model_states_its_projections_if_its_head_was_saved(tmp_path):
    sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "num_attention_heads": [1] * 4}
    model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=3, **sizes))
    ContrastiveAdapter(model, projection_dim=6, projection_stages=[2]).save_pretrained(tmp_path)
    section, kinds = embeddings_of(write_model_card(tmp_path).read_text())
    assert kinds == {"projection": "6 channels at stage 2", "backbone": "hidden states"}
    assert "return_embeddings=True" in section
    (tmp_path / "projection_head.safetensors").unlink()
    assert embeddings_of(write_model_card(tmp_path).read_text())[1] == {"backbone": "hidden states"}


def test_a_card_without_the_line_of_msctr_hf_is_not_overwritten(run_folder):
    card = write_model_card(run_folder)
    assert "on Cityscapes" in write_model_card(run_folder, get_dataset_spec("cityscapes")).read_text()
    mine = re.sub(r"<!-- Written by msctr_hf.*-->", "", card.read_text()) + "It also works on Mars.\n"
    card.write_text(mine)
    assert write_model_card(run_folder).read_text() == mine


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not contain a saved model"):
        write_model_card(tmp_path)


def test_a_folder_that_cannot_be_read_or_written_is_a_usage_error(run_folder, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(UsageError, match=r"README\.md cannot be written: .*No space left on device"):
            write_model_card(run_folder)
    assert not list(run_folder.glob("*README.md"))
    (run_folder / "README.md").mkdir()
    with pytest.raises(UsageError, match=r"README\.md cannot be read: .*Is a directory"):
        write_model_card(run_folder)
    (run_folder / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"config\.json cannot be read: "):
        write_model_card(run_folder)


def test_a_run_writes_a_card_with_its_own_results_and_settings(run_script, tmp_path):
    run = tmp_path / "run"
    arguments = flags(None, run, dataset="synthetic_scenes", data_dir=None, class_weights=None, max_steps=1)
    code, out, err = run_script("train.py", *arguments)
    assert code == 0, err
    results = json.loads((run / "results.json").read_text())
    card = ModelCard.load(run / "README.md")
    assert card.data.eval_results[0].metric_value == results["mean_iou"]
    first = results["largest_confusions"][0]
    assert f"| {first['class']} | {first['predicted_as']} | {100 * first['share']:.2f} % |" in card.text
    assert f"on {results['images']} images:" in card.text
    rows = dict(re.findall(r"^\| (\w+) \| (.*) \|$", card.text, re.MULTILINE))
    settings = json.loads((run / "run.json").read_text())["settings"]
    for name in ("learning_rate", "ema", "padding_mode", "size_divisor", "dropout"):
        assert name in rows, name
    assert {"ema_decay", "tile_overlap", "unlabeled_mix"} & rows.keys() == set()
    images = json.loads((run / "run.json").read_text())["images"]
    assert images["validation"] == results["images"]
    assert f"| training images | {images['training']} |" in card.text
    printed = re.search(r"^network .*: (.+ parameters, .+ more in training)$", out + err, re.MULTILINE)[1]
    assert rows["size"] == printed
    for name in settings.keys() & rows.keys():
        assert yaml.safe_load(rows[name]) == settings[name], name


def test_the_recipe_of_a_card_repeats_the_run(run_script, tmp_path):
    data = write_folder(tmp_path / "data", num_train=6, num_validation=3)
    changes = {
        "momentum": 0.8, "optimizer": "sgd", "adam_betas": "0.8 0.9", "schedule": "exponential", "ema": True,
        "exponential_gamma": 0.5, "ema_decay": 0.7, "padding_mode": "reflect", "resize_shorter_side": 48,
        "size_divisor": 32, "no_decay": "norm bias", "seed": 3, "contrastive_temperature": 0.2, "max_steps": 2,
        "color_jitter": False,
    }  # fmt: skip
    run, again = tmp_path / "run", tmp_path / "again"
    assert run_script("train.py", *flags(data, run, **changes))[0] == 0
    rows = re.findall(r"^\| (\w+) \| (.*) \|$", (run / "README.md").read_text(), re.MULTILINE)
    known = {action.dest for action in command_line()._actions}
    recipe = {name: yaml.safe_load(value) for name, value in rows if name in known}
    assert {"momentum", "exponential_gamma", "ema_decay", "padding_mode", "size_divisor"} <= set(recipe)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    local = ["--data_dir", data, "--output_dir", again, "--num_workers", "0", "--report_to", "none"]
    assert run_script("train.py", "--config", tmp_path / "recipe.yaml", *local)[0] == 0
    before, after = (json.loads((folder / "run.json").read_text())["settings"] for folder in (run, again))
    config, config_again = (json.loads((folder / "config.json").read_text()) for folder in (run, again))
    assert config == config_again
    differing = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    # The card writes out the defaults that the network fills in, and leaves out what had no effect, paths, logging and
    # validation steps.
    logistics = {name for name in differing if not purpose(name).in_card}
    assert "adam_betas" in differing
    assert {
        name for name in differing - logistics - idle_settings(before) if config.get(name) != after.get(name)
    } == set()
    assert logistics <= {"output_dir", "validation_steps", "checkpointing_steps", "logging_steps"}
    weights, weights_again = (load_file(folder / "model.safetensors") for folder in (run, again))
    assert all(torch.equal(weights[name], weights_again[name]) for name in weights)
