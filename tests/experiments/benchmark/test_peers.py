"""Comparisons with other libraries, of which these tests need none but torchmetrics, which other tests use too."""

import importlib.util
import json

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmark import evaluation, peers
from msctr_hf.models.info_nce import info_nce_loss

CPU = torch.device("cpu")
SWIN = {
    "model_type": "swin", "embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 4,
    "drop_path_rate": 0.1, "out_features": ["stage1", "stage2", "stage3", "stage4"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_work(monkeypatch, tmp_path):
    recipe = yaml.safe_load(peers.CONFIG.read_text()) | {"backbone_config": SWIN}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(peers, "CONFIG", tmp_path / "recipe.yaml")
    monkeypatch.setattr(peers, "DRAWS", 1)
    monkeypatch.setattr("experiments.benchmark.data.DRAWS", 1)
    monkeypatch.setattr("experiments.benchmark.data.SAMPLES", 1)
    for case in peers.IMAGES.values():
        monkeypatch.setitem(case, "size", (40, 60))
        monkeypatch.setitem(case, "crop", (32, 48))
    monkeypatch.setitem(evaluation.CASES, "ADE20K", (150, (8, 8), (64, 64)))
    monkeypatch.setitem(evaluation.CASES, "Cityscapes", (19, (8, 16), (32, 64)))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def without_peers(monkeypatch):
    found = importlib.util.find_spec
    hidden = set(peers.REQUIREMENTS.values())
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name in hidden else found(name))


def test_rows_of_libraries_that_are_missing_say_so_and_one_sentence_tells_what_to_install(
    without_peers, run_script, tmp_path
):
    output = tmp_path / "figures.json"
    options = ["--parts", "augmentation", "metric", "decoding", "--repetitions", "1", "--output", output]
    code, out, _ = run_script("benchmark.py", "peers", *options)
    assert code == 0
    rows = json.loads(output.read_text())["rows"]
    assert [row["peer"] for row in rows] == [
        *["torchvision v2", "albumentations (not installed)"] * 2,
        *["torchmetrics (not installed)", "evaluate mean_iou (our copy)"] * 2,
        *["Pillow", "torchvision"] * 2,
    ]
    for row in rows:
        assert (row["peer ms"] is None) == ("not installed" in row["peer"])
    assert "not compared: pytorch-metric-learning SupConLoss, segmentation_models_pytorch UPerNet" in out
    assert 'pip install ".[peers]"' in out


@pytest.mark.slow
def test_networks_predict_and_train_beside_upernet_of_transformers(without_peers, monkeypatch):
    monkeypatch.setattr(peers, "peak_megabytes", lambda build, arguments, warm_up, device: 4.0)
    sizes = peers.Sizes(image=64, training=64)
    rows = [*peers.prediction(sizes, 1, CPU), *peers.training(sizes, 1, CPU)]
    names = ["transformers UPerNet", "segmentation_models_pytorch UPerNet (not installed)"]
    alone = "msctr_hf, network alone"
    own = ["msctr_hf, cross entropy alone", "msctr_hf, cross entropy, products of the projection head"]
    assert [row["peer"] for row in rows] == [*names, alone, *names, *own]
    assert [row["memory ratio"] for row in rows] == [1.0, None, 1.0, None, None, None, None]
    for row in rows:
        if "not installed" not in row["peer"]:
            assert row["speed-up"] == pytest.approx(row["peer ms"] / row["ours ms"])


def test_the_network_alone_gives_the_logits_that_the_prediction_turns_into_labels():
    labels, logits = (peers.prediction_step(way, 64, CPU)() for way in ("msctr_hf", peers.NETWORK_ALONE))
    assert logits.shape == (1, peers.NUM_LABELS, 16, 16)
    whole = torch.nn.functional.interpolate(logits, (64, 64), mode="bilinear", align_corners=False)
    chosen = whole.gather(1, torch.as_tensor(labels).long().reshape(1, 1, 64, 64))
    torch.testing.assert_close(chosen, whole.amax(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)


def test_the_floor_of_a_step_with_contrast_has_the_multiplications_of_the_first_layers_of_the_projection_head():
    def multiplications(step):
        with FlopCounterMode(display=False) as counter:
            step()
        return counter.get_total_flops() / 2

    added = multiplications(peers.step_with_products(64, CPU)) - multiplications(
        peers.training_step("msctr_hf", 64, CPU)
    )
    pixels = sum(2 * (64 // stride) ** 2 for stride in (4, 8, 16, 32))
    assert added == 3 * pixels * 512 * 512  # forward, and gradients of maps and weights


def test_upernet_of_transformers_has_the_decode_head_of_ours():
    networks = [peers.NETWORKS[name](64) for name in ("transformers UPerNet", "msctr_hf")]
    shapes = [sorted(tuple(each.shape) for each in network.decode_head.parameters()) for network in networks]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("way", ["torchmetrics", "stock"])
def test_metrics_agree_on_the_same_label_maps(way):
    scores = [evaluation.metric_step(each, 19, (64, 64))() for each in (way, "ours")]
    other, ours = (float(score["mean_iou"] if isinstance(score, dict) else score) for score in scores)
    assert other == pytest.approx(ours, rel=1e-6)


def test_augmentations_return_pixel_values_and_labels_of_the_size_of_the_crop():
    image = torch.randint(0, 256, (40, 60, 3), dtype=torch.uint8).numpy()
    labels = torch.randint(0, 3, (40, 60), dtype=torch.uint8).numpy()
    for build in (peers._torchvision_augmentation, peers._own_augmentation):
        sample = build(image, labels, (64, 48))
        for draw in range(4):  # images smaller and larger than the crop
            pixel_values, classes = sample(draw)
            assert (pixel_values.shape, pixel_values.dtype) == ((3, 64, 48), torch.float32)
            assert (classes.shape, classes.dtype) == ((64, 48), torch.int64)
            assert set(classes.unique().tolist()) <= {0, 1, 2, 255}
            assert pixel_values.abs().max() < 3


def test_supcon_of_pytorch_metric_learning_puts_positives_into_the_denominator():
    """The rows compare cost, not values: loops in float64 show in what the formulas differ."""
    rows = torch.nn.functional.normalize(torch.randn(6, 4, dtype=torch.float64), dim=1)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    similarities = (rows @ rows.T / 0.1).exp()
    expected = {"ours": [], "supcon": []}
    for i in range(6):
        positives = [p for p in range(6) if p != i and labels[p] == labels[i]]
        negatives = sum(similarities[i, n] for n in range(6) if labels[n] != labels[i])
        everyone = negatives + sum(similarities[i, p] for p in positives)
        for name, denominators in (
            ("ours", [similarities[i, p] + negatives for p in positives]),
            ("supcon", [everyone] * len(positives)),
        ):
            terms = [-(similarities[i, p] / of).log() for p, of in zip(positives, denominators, strict=True)]
            expected[name].append(sum(terms) / len(terms))
    assert info_nce_loss(rows, labels).item() == pytest.approx(float(sum(expected["ours"]) / 6), rel=1e-10)
    assert expected["supcon"] != expected["ours"]
    if importlib.util.find_spec("pytorch_metric_learning"):
        from pytorch_metric_learning.losses import SupConLoss

        value = SupConLoss(temperature=0.1)(rows, labels).item()
        assert value == pytest.approx(float(sum(expected["supcon"]) / 6), rel=1e-6)
