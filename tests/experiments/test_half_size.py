"""A copy of CamVid at half its size has the means of 2 x 2 pixels, and labels that were there."""

import numpy as np
import pytest
from PIL import Image

from experiments.half_size import FOLDERS, write_half_size
from msctr_hf.data.loading import get_dataset_spec, load_segmentation_dataset
from msctr_hf.data.preparation import prepare
from msctr_hf.data.saved_source import SavedDataset
from msctr_hf.errors import UsageError


@pytest.fixture
def camvid(tmp_path):
    random = np.random.default_rng(0)
    for number, folder in enumerate(FOLDERS.values()):
        for kind in ("images", "labels"):
            (tmp_path / "camvid" / folder / kind).mkdir(parents=True)
        name = f"{folder}_0000{number}.png"
        Image.fromarray(random.integers(0, 256, (8, 12, 3), dtype=np.uint8)).save(
            tmp_path / "camvid" / folder / "images" / name
        )
        labels = Image.fromarray(random.integers(0, 12, (8, 12), dtype=np.uint8))
        labels.save(tmp_path / "camvid" / folder / "labels" / name)
    return tmp_path / "camvid"


def pixels(path):
    return np.asarray(Image.open(path)).astype(float)


def test_pixels_are_means_and_labels_are_among_the_four(camvid, tmp_path):
    assert write_half_size(str(camvid), tmp_path / "half") == 3
    for split, folder in FOLDERS.items():
        (large,), (small,) = (list((root / folder / "images").iterdir()) for root in (camvid, tmp_path / "half"))
        means = pixels(large).reshape(4, 2, 6, 2, 3).mean((1, 3))
        assert np.abs(pixels(small) - means).max() <= 0.5
        labels, before = (pixels(root / folder / "labels" / small.name) for root in (tmp_path / "half", camvid))
        blocks = before.reshape(4, 2, 6, 2).transpose(0, 2, 1, 3).reshape(4, 6, 4)
        assert (blocks == labels[..., None]).any(-1).all()
        (row,) = load_segmentation_dataset("camvid", split, str(tmp_path / "half"))
        assert row["image"].size == (6, 4)
        assert row["image_id"] == large.stem
    assert not list(tmp_path.rglob(".partial*"))


def test_files_are_not_written_again_and_the_data_set_is_not_overwritten(camvid, tmp_path):
    write_half_size(str(camvid), tmp_path / "half")
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "half").rglob("*.png")}
    write_half_size(str(camvid), tmp_path / "half")
    assert {path: path.stat().st_mtime_ns for path in written} == written
    with pytest.raises(UsageError, match="must not be --data_dir"):
        write_half_size(str(camvid), camvid)


def test_a_copy_without_files_of_its_own_is_refused(camvid, tmp_path):
    prepare(get_dataset_spec("camvid"), None, camvid, SavedDataset(), output_dir=tmp_path / "copy")
    with pytest.raises(UsageError, match="is a copy"):
        write_half_size(str(tmp_path / "copy"), tmp_path / "half")
    assert not (tmp_path / "half").exists()
