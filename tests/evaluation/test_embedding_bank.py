"""The bank of embeddings: what it keeps, exact neighbors, its file, and which files are refused."""

import itertools
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TIMM_TINY
from layouts import write_folder
from PIL import Image
from safetensors.numpy import load_file, save_file

from msctr_hf import MsctrConfig, MsctrForSemanticSegmentation, MsctrImageProcessor
from msctr_hf.commands import index
from msctr_hf.errors import InputWarning, UsageError
from msctr_hf.evaluation import embedding_bank
from msctr_hf.evaluation.embedding_bank import EmbeddingBank, index_dataset, load_bank, network_fingerprint
from msctr_hf.evaluation.embedding_maps import Embedder
from msctr_hf.evaluation.predictor import Predictor
from msctr_hf.evaluation.settings import InferenceSettings

CLASSES = ("left", "right", "absent", "rare")
SIZE = (64, 96)


def network(seed=0):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "auxiliary_hidden_size": 16, "projection_dim": 8}
    return MsctrForSemanticSegmentation(MsctrConfig(backbone_config=TIMM_TINY, num_labels=4, **sizes)).eval()


@pytest.fixture(scope="module")
def embedder():
    settings = InferenceSettings(window_size=(64, 64), window_stride=(32, 32))
    return Embedder(Predictor(network(), MsctrImageProcessor(size_divisor=32), settings))


@pytest.fixture(scope="module")
def samples():
    """Six images of two classes; the third has a small object, and the last only ignored pixels."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(6):
        labels = np.zeros(SIZE, dtype=np.uint8)
        labels[:, SIZE[1] // 2 :] = 1
        labels[: SIZE[0] // 4] = 255
        if number == 2:
            labels[40:48, 8:16] = 3
        if number == 5:
            labels[:] = 255
        image = Image.fromarray(random.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
        rows.append({"image": image, "label": Image.fromarray(labels), "image_id": f"day/{number}"})
    return rows


@pytest.fixture(scope="module")
def bank(embedder, samples):
    return index_dataset(embedder, samples, CLASSES, prototypes_per_class=3, pixels_per_class=12)


def test_every_pixel_has_the_label_and_the_embedding_of_its_position(bank, embedder, samples):
    maps = {sample["image_id"]: embedder(sample["image"]).numpy() for sample in samples}
    labels = {sample["image_id"]: np.asarray(sample["label"]) for sample in samples}
    for embedding, label, image, (row, column) in zip(
        bank.embeddings, bank.labels, bank.images, bank.pixels, strict=True
    ):
        image_id = bank.image_ids[image]
        assert labels[image_id][row, column] == label
        assert np.array_equal(maps[image_id][:, row // 4, column // 4], embedding)
    places = set(zip(bank.images.tolist(), *bank.pixels.T.tolist(), strict=True))
    assert len(places) == len(bank.labels)


def test_classes_have_equal_shares_to_which_images_contribute_equally(bank):
    assert np.bincount(bank.labels, minlength=4).tolist() == [12, 12, 0, 4]
    assert bank.image_ids == tuple(f"day/{number}" for number in range(5))
    for label in (0, 1):
        assert sorted(np.bincount(bank.images[bank.labels == label], minlength=5)) == [2, 2, 2, 3, 3]
    assert set(bank.images[bank.labels == 3]) == {2}


def test_prototypes_are_the_normalized_means_of_the_best_clusters(bank):
    assert bank.prototype_labels.tolist() == [0, 0, 0, 1, 1, 1, 3, 3, 3]
    np.testing.assert_allclose(np.linalg.norm(bank.prototypes, axis=1), 1, atol=1e-6)
    rows = bank.embeddings[bank.labels == 3].astype(np.float64)
    partitions = []
    for clusters in itertools.product(range(3), repeat=len(rows)):
        means = [rows[np.equal(clusters, cluster)].mean(axis=0) for cluster in range(3) if cluster in clusters]
        if len(means) == 3:
            spread = sum(np.sum((row - means[cluster]) ** 2) for row, cluster in zip(rows, clusters, strict=True))
            partitions.append((spread, clusters, np.array(means)))
    means = min(partitions, key=lambda partition: partition[0])[2]
    cosines = bank.prototypes[bank.prototype_labels == 3] @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    np.testing.assert_allclose(cosines.max(axis=0), 1, atol=1e-6)


def test_a_saved_bank_is_bit_equal_when_it_is_loaded(bank, tmp_path, embedder):
    bank.save(tmp_path / "new" / "bank.safetensors")
    loaded = load_bank(tmp_path / "new" / "bank.safetensors", embedder=embedder, classes=CLASSES)
    for name, value in vars(bank).items():
        again = getattr(loaded, name)
        if isinstance(value, np.ndarray):
            assert (again.dtype, again.shape, again.tobytes()) == (value.dtype, value.shape, value.tobytes()), name
        else:
            assert again == value, name
    bank.save(tmp_path / "new" / "bank.safetensors")  # replaces a bank
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["bank.safetensors"]


@pytest.mark.parametrize(("use_faiss", "at_once"), [(False, 2**24), (False, 500), (True, 2**24)])
def test_neighbors_equal_brute_force(use_faiss, at_once, monkeypatch):
    monkeypatch.setattr(embedding_bank, "_NUMBERS_AT_ONCE", at_once)  # 500: the rows of two of the forty queries
    if use_faiss:
        pytest.importorskip("faiss", reason="faiss is not installed")
    random = np.random.default_rng(0)
    rows, queries = (random.standard_normal((count, 24)).astype(np.float32) for count in (500, 40))
    rows, queries = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (rows, queries))
    cosines, places = bank_of(rows).neighbors(queries, 7, use_faiss=use_faiss)
    for query, of_query, found in zip(queries.astype(np.float64), cosines, places, strict=True):
        every = [sum(a * b for a, b in zip(query, row, strict=True)) for row in rows.astype(np.float64)]
        expected = sorted(range(len(rows)), key=lambda place: -every[place])[:7]
        assert found.tolist() == expected
        np.testing.assert_allclose(of_query, [every[place] for place in expected], atol=1e-6)
    assert cosines.dtype == np.float32


def bank_of(rows):
    none = np.zeros(len(rows), dtype=np.int64)
    return EmbeddingBank(
        rows[:1], none[:1], rows, none, none, np.stack([none, none], axis=1), ("a",), ("b",), "c", "projection"
    )


def test_neighbors_of_vectors_that_do_not_fit_are_refused():
    bank = bank_of(np.eye(4, dtype=np.float32))
    with pytest.raises(UsageError, match="`k` must be between 1 and 4, the pixels of the bank, got 5"):
        bank.neighbors(np.eye(4), 5)
    with pytest.raises(UsageError, match=r"vectors of 4 channels, \(M, 4\), got \(3, 3\)"):
        bank.neighbors(np.eye(3), 1)


def test_missing_libraries_are_named(monkeypatch, embedder, samples):
    bank = bank_of(np.eye(4, dtype=np.float32))
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UsageError, match="pip install faiss-cpu"):
        bank.neighbors(np.eye(4), 1, use_faiss=True)
    monkeypatch.setitem(sys.modules, "sklearn.neighbors", None)
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(UsageError, match="pip install scikit-learn"):
        bank.neighbors(np.eye(4), 1)
    with pytest.raises(UsageError, match="pip install scikit-learn"):
        index_dataset(embedder, samples, CLASSES)


def test_a_bank_of_another_network_other_features_or_other_classes_is_refused(bank, embedder, tmp_path):
    path = tmp_path / "bank.safetensors"
    bank.save(path)
    other = Embedder(Predictor(network(seed=1), MsctrImageProcessor(size_divisor=32)))
    with pytest.raises(UsageError, match="is of another network"):
        load_bank(path, embedder=other)
    with pytest.raises(UsageError, match="has `stage=None`, not 2"):
        load_bank(path, embedder=Embedder(embedder.predictor, stage=2))
    with pytest.raises(UsageError, match=r"is of other classes \(right instead of wrong\)"):
        load_bank(path, classes=["left", "wrong", "absent", "rare"])
    with pytest.raises(UsageError, match=r"is of other classes \(4 classes instead of 3\)"):
        load_bank(path, classes=CLASSES[:3])


def other_embedder(embedder, window_size=(64, 64), window_stride=(32, 32), **changes):
    settings = InferenceSettings(window_size=window_size, window_stride=window_stride)
    processor = MsctrImageProcessor(**{"size_divisor": 32, **changes})
    return Embedder(Predictor(embedder.network, processor, settings))


@pytest.mark.parametrize(
    "change", [{"image_mean": [0.4, 0.4, 0.4]}, {"image_std": [0.3, 0.3, 0.3]}, {"padding_mode": "reflect"}]
)
def test_a_bank_of_another_image_processor_is_refused(bank, embedder, tmp_path, change):
    path = tmp_path / "bank.safetensors"
    bank.save(path)
    with pytest.raises(UsageError, match=r"is of another image processor \(other mean, size or the like\)") as refused:
        load_bank(path, embedder=other_embedder(embedder, **change))
    assert "\n" not in str(refused.value)


def test_what_changes_no_pixel_of_an_image_processor_keeps_its_bank(bank, embedder, tmp_path, recwarn):
    path = tmp_path / "bank.safetensors"
    bank.save(path)
    MsctrImageProcessor(size_divisor=32).save_pretrained(tmp_path)  # adds `auto_map`
    saved = MsctrImageProcessor.from_pretrained(tmp_path)
    labels_only = MsctrImageProcessor(size_divisor=32, do_reduce_labels=True)
    for processor in (saved, labels_only):
        again = Embedder(Predictor(embedder.network, processor, embedder.predictor.settings))
        load_bank(path, embedder=again)
    assert not [each for each in recwarn if "bank" in str(each.message)]


def test_a_bank_of_other_windows_is_refused(bank, embedder, tmp_path):
    path = tmp_path / "bank.safetensors"
    bank.save(path)
    made = r"was made with `window_size=\(64, 64\)` and `window_stride=\(32, 32\)`, not with "
    for size, stride, message in (
        (None, None, made + "`window_size=None`, "),
        ((64, 96), (32, 32), made + r"`window_size=\(64, 96\)` and `window_stride=\(32, 32\)`, "),
        ((64, 64), None, made + r"`window_size=\(64, 64\)` and `window_stride=\(42, 42\)`, "),
    ):
        with pytest.raises(UsageError, match=message):
            load_bank(path, embedder=other_embedder(embedder, size, stride))
    replace(bank, window_stride=None).save(path)
    load_bank(path, embedder=other_embedder(embedder, window_stride=(42, 42)))  # the default, in numbers


def test_a_bank_without_its_image_processor_is_accepted_with_a_warning(bank, embedder, tmp_path):
    path = tmp_path / "bank.safetensors"
    bank.save(path)
    tensors, metadata = load_file(path), embedding_bank._metadata_of(path)
    facts = json.loads(metadata["facts"])
    del facts["image_processor"]  # as banks were written before
    metadata["facts"] = json.dumps(facts)
    ordered = {name: tensors[name] for name in embedding_bank._TENSORS}
    metadata["checksum"] = embedding_bank._checksum(metadata["facts"], ordered)
    save_file(tensors, path, metadata)
    with pytest.warns(InputWarning, match="does not say with which image processor it was made"):
        loaded = load_bank(path, embedder=other_embedder(embedder, image_mean=[0.4, 0.4, 0.4]))
    assert loaded.image_processor is None


def test_a_damaged_bank_is_refused_wherever_the_damage_is(bank, tmp_path):
    path = tmp_path / "bank.safetensors"
    bank.save(path)
    content = path.read_bytes()
    header = int.from_bytes(content[:8], "little")
    facts = content.index(b"day/3")
    damaged = [content[:-1], content[:100], content[: header // 2], b""]
    for place in (facts, header + 9, len(content) // 2, len(content) - 1):
        damaged.append(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    for changed in damaged:
        path.write_bytes(changed)
        with pytest.raises(UsageError, match="is damaged|is not a bank") as refused:
            load_bank(path)
        assert "\n" not in str(refused.value)


def test_other_files_are_neither_read_nor_overwritten(bank, tmp_path):
    save_file({"weight": np.zeros(3)}, tmp_path / "model.safetensors")
    (tmp_path / "text").write_text("a text")
    for name, message in [("model.safetensors", "is not a bank"), ("text", "is not a bank"), ("none", "not a file")]:
        with pytest.raises(UsageError, match=message):
            load_bank(tmp_path / name)
    for name in ("model.safetensors", "text", "."):
        with pytest.raises(UsageError, match="name another file"):
            bank.save(tmp_path / name)
    assert (tmp_path / "text").read_text() == "a text"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "text"]


def test_a_bank_below_a_file_is_refused_in_one_sentence(bank, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="`bank`: .*bank.safetensors cannot be written"):
        bank.save(tmp_path / "file" / "bank.safetensors")


def test_images_without_labels_are_refused(embedder, samples):
    with pytest.raises(UsageError, match="No pixel of these images is labeled"):
        index_dataset(embedder, samples[5:], CLASSES)


def test_the_fingerprint_follows_every_weight_and_statistic():
    model = network()
    before = network_fingerprint(model)
    assert network_fingerprint(network()) == before
    for name in ("projection_head.stages.3.output.bias", "backbone._backbone.bn1.running_mean"):
        tensor = model.state_dict()[name]
        value = tensor[0].item()
        tensor[0] = float(np.nextafter(np.float32(value), np.float32(9)))
        assert network_fingerprint(model) != before, name
        tensor[0] = value
    assert network_fingerprint(model) == before


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("index")
    network().save_pretrained(root / "model")
    MsctrImageProcessor(size_divisor=32).save_pretrained(root / "model")
    write_folder(root / "data", size=(64, 96))
    return root


def run_index(files, capsys, *flags):
    words = ["--model", files / "model", "--dataset", "folder", "--data_dir", files / "data", "--device", "cpu"]
    code = 0
    try:
        index.main([str(word) for word in (*words, *flags)])
    except SystemExit as stop:
        code = stop.code
    return (code, *capsys.readouterr())


def test_the_command_writes_the_bank_of_a_folder(files, capsys, tmp_path):
    path = tmp_path / "bank.safetensors"
    flags = ["--bank", path, "--features", "pyramid", "--stage", "1", "--window_size", "64", "64"]
    code, out, error = run_index(files, capsys, *flags, "--pixels_per_class", "5", "--prototypes_per_class", "2")
    assert code == 0, error
    bank = load_bank(path, classes=["sky", "road", "car"])
    assert (bank.features, bank.stage, bank.window_size) == ("decode_head", 1, (64, 64))
    assert out == f"15 pixels and 6 prototypes, of 16 channels, are in {path}\n"
    expected = {"embeddings", "images", "labels", "pixels", "prototype_labels", "prototypes"}
    assert load_file(path).keys() == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--stage", "7"], "--stage must be one of 1, 2, 3, 4 with --features projection, got 7."),
        (["--features", "logits"], "invalid choice: 'logits'"),
        (["--bank", "."], "--bank: . is a folder; name another file."),
        (["--bank", "new/"], "--bank: new is a folder; name another file."),
        (["--window_stride", "3", "3"], "--window_stride needs --window_size."),
    ],
)
def test_wrong_input_of_the_command_is_one_sentence(files, capsys, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    code, _, error = run_index(files, capsys, *flags)
    assert code == 2
    assert message in error.strip().splitlines()[-1]
    assert not list(tmp_path.iterdir())
