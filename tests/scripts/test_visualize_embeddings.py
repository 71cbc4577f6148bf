import pytest
from layouts import write_folder
from PIL import Image

from msctr_hf import MsctrForSemanticSegmentation, MsctrImageProcessor
from msctr_hf.data.decoding import ReadSamples
from msctr_hf.evaluation import embeddings


@pytest.fixture
def options(tiny_config, tmp_path):
    MsctrForSemanticSegmentation(tiny_config(num_labels=3)).save_pretrained(tmp_path / "model")
    MsctrImageProcessor(size_divisor=32).save_pretrained(tmp_path / "model")
    folder = write_folder(tmp_path / "data", size=(64, 96))
    return {
        "model": tmp_path / "model", "dataset": "folder", "data_dir": folder, "device": "cpu", "pixels_per_class": 5,
        "output_dir": tmp_path / "out",
    }  # fmt: skip


def words(options):
    return (
        word
        for key, value in options.items()
        for word in (f"--{key}", *(value if isinstance(value, tuple) else [value]))
    )


@pytest.mark.parametrize("features", ["projection", "backbone", "pyramid"])  # the last is a former name
def test_figures_are_written(run_script, options, tmp_path, features):
    change = {"image": "1", "pixel": (10, 20), "features": features}
    code, out, error = run_script("visualize_embeddings.py", *words(options | change))
    assert code == 0, error
    for name in ("embeddings.png", "similarity.png"):
        assert name in out
        assert Image.open(tmp_path / "out" / name).width > 500


def test_images_are_read_one_by_one(run_script, options, monkeypatch):
    done = []
    read, project = ReadSamples.__call__, embeddings.stage_features
    monkeypatch.setattr(ReadSamples, "__call__", lambda *given: done.append("read") or read(*given))
    monkeypatch.setattr(embeddings, "stage_features", lambda *given: done.append("projected") or project(*given))
    code, _, error = run_script("visualize_embeddings.py", *words(options | {"split": "train"}))
    assert code == 0, error
    assert done == ["read", "projected"] * (1 + 4)  # that of similarity.png, and all of the split


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "no"}, "no image 'no'"),
        ({"pixel": (64, 0)}, "outside the image"),
        ({"pixel": (64,)}, "--pixel needs 2 values"),
        ({"num_images": 0}, "num_images"),
        ({"method": "pca"}, "invalid choice"),
        ({"model": "/no/model"}, "/no/model"),
    ],
)
def test_wrong_input_is_reported_in_one_sentence(run_script, options, tmp_path, change, message):
    code, _, error = run_script("visualize_embeddings.py", *words(options | change))
    assert code == 2
    assert message in error.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()
