"""Functions of the user that change crops and labels: what they get, what they may return, and their randomness."""

import json
import random
import re

import numpy as np
import pytest
import torch
from layouts import write_folder
from small_run import flags
from test_augmentation import augment

from msctr_hf import load_segmentation_dataset
from msctr_hf.data.augmentation import TrainingAugmentation
from msctr_hf.data.loaders import training_loader
from msctr_hf.data.user_transform import UserTransform, import_transform
from msctr_hf.errors import UsageError

THIS = __name__


def invert(image, labels):
    return 255 - image, np.where(labels == 1, 2, labels).astype(np.uint8)


def change_in_place(image, labels):
    image[:] = 255 - image
    labels[labels == 1] = 2
    return [image[::-1][::-1], labels]


def add_noise(image, labels):
    shift = random.randrange(100) + int(np.random.randint(100)) + int(torch.randint(50, ()))
    return np.full_like(image, shift), labels


WRONG = {
    "nothing": (lambda image, labels: None, "must return an image and labels, got a value of type NoneType."),
    "image_only": (lambda image, labels: image, "must return an image and labels, got an array of shape (32, 48, 3)"),
    "three": (lambda image, labels: (image, labels, labels), "got a tuple of 3 values."),
    "smaller": (
        lambda image, labels: (image[1:], labels[1:]),
        "must return an image of shape (32, 48, 3) and type uint8, got an array of shape (31, 48, 3) and type uint8.",
    ),
    "normalized": (
        lambda image, labels: (image / 255, labels),
        "and type uint8, got an array of shape (32, 48, 3) and",
    ),
    "one_hot": (
        lambda image, labels: (image, labels[..., None] == np.arange(5)),
        "must return labels of shape (32, 48) and type uint8, got an array of shape (32, 48, 5) and type bool.",
    ),
    "tensor": (lambda image, labels: (torch.from_numpy(image), labels), "got a value of type Tensor."),
    "unknown": (
        lambda image, labels: (image, labels + 5),
        "must return labels that are classes, 0 to 4, or 255 where ignored, got [5, 6, 7, 8, 9].",
    ),
}
for wrong_name, (wrong_function, _) in WRONG.items():
    globals()[wrong_name] = wrong_function


@pytest.mark.parametrize("function", [invert, change_in_place])
@pytest.mark.parametrize("options", [{}, {"flip_probability": 1.0}, {"rotate90": True}])
def test_the_function_changes_the_pixels_and_labels_of_the_crop(function, options):
    for seed in range(4):
        image, labels = augment(seed, **options)
        changed = augment(seed, user_transform=UserTransform(f"{THIS}:{function.__name__}", 5), **options)
        assert np.abs(changed[0] - (255 - image)).max() < 1e-3
        assert np.array_equal(changed[1], np.where(labels == 1, 2, labels))


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused_in_a_sentence(name):
    with pytest.raises(UsageError, match=re.escape(WRONG[name][1])) as caught:
        augment(user_transform=UserTransform(f"{THIS}:{name}", 5))
    assert str(caught.value).startswith(f"`augmentation`: {THIS}:{name} must return")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("flips.py", "`augmentation` must be 'module:function', got 'flips.py'."),
        ("my/flips:flip", "must be 'module:function', got 'my/flips:flip'."),
        (":flip", "must be 'module:function', got ':flip'."),
        ("no_such_module:flip", "no_such_module cannot be imported: No module named 'no_such_module'."),
        ("json:flip", "`augmentation`: json has no function 'flip'."),
        (f"{THIS}:THIS", "has a str instead of a function 'THIS'."),
        ("broken_module:flip", "`augmentation`: broken_module cannot be imported: "),
        ("importing_module:flip", "importing_module cannot be imported: No module named 'library_that_is_absent'."),
    ],
)
def test_a_name_that_leads_to_no_function_is_refused_in_a_sentence(name, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_module.py").write_text("def flip(:\n")
    (tmp_path / "importing_module.py").write_text("import library_that_is_absent\n")
    with pytest.raises(UsageError, match=re.escape(sentence)):
        import_transform(name)


def batches(num_workers, name, num_classes=9):
    dataset = load_segmentation_dataset("synthetic_scenes", "validation")
    augmentation = TrainingAugmentation(
        crop_size=(32, 48), image_mean=[0.5] * 3, image_std=[0.5] * 3, color_jitter=False,
        user_transform=UserTransform(f"{THIS}:{name}", num_classes),
    )  # fmt: skip
    loader = training_loader(dataset, augmentation, batch_size=4, seed=1, num_workers=num_workers)
    return [batch["pixel_values"] for batch, _ in zip(loader, range(2), strict=False)]


def test_random_functions_give_the_same_images_with_and_without_workers_and_leave_the_random_states():
    random.seed(0)
    np.random.seed(0)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    alone = torch.cat(batches(0, "add_noise"))
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    random.seed(5)
    np.random.seed(5)
    assert torch.equal(alone, torch.cat(batches(2, "add_noise")))
    assert len({image.mean().item() for image in alone}) > 4  # of eight


def test_the_sentence_of_a_worker_process_names_the_function():
    with pytest.raises(
        UsageError, match=rf"^`augmentation`: {THIS}:unknown must return labels that are classes, 0 to 1"
    ):
        batches(1, "unknown", num_classes=2)


@pytest.mark.slow
def test_a_run_records_the_function_and_is_not_resumed_with_another(run_script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_flips.py").write_text(
        "def flip(image, labels):\n    return image[::-1], labels[::-1]\n\ndef same(image, labels):\n"
        "    return image, labels\n"
    )
    folder, run = write_folder(tmp_path / "data", num_train=6, num_validation=3), tmp_path / "run"
    given = {"augmentation": "own_flips:flip", "num_workers": 1, "max_steps": 2}
    code, _, error = run_script("train.py", *flags(folder, run, **given))
    assert code == 0, error
    assert json.loads((run / "run.json").read_text())["settings"]["augmentation"] == "own_flips:flip"
    code, _, error = run_script(
        "train.py", *flags(folder, run, **given, resume="auto"), "--augmentation", "own_flips:same"
    )
    assert code == 2
    assert "augmentation was 'own_flips:flip' and is 'own_flips:same'" in error
    import_transform.cache_clear()
