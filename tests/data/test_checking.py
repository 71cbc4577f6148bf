import numpy as np
from layouts import LAYOUTS, write_image, write_labels

from msctr_hf.data.checking import SplitReport, check_rows, report_table
from msctr_hf.data.loading import get_dataset_spec

LAYOUT = LAYOUTS["ade20k"]


def check(root, num_workers=0):
    spec = get_dataset_spec("ade20k")
    rows = spec.index("train", root)
    return check_rows(rows, spec.reader(), 150, num_workers=num_workers, title=""), spec


def test_the_report_counts_the_images_and_pixels_of_every_class(tmp_path):
    LAYOUT.write(tmp_path)
    write_labels(LAYOUT.pair(tmp_path, 1)[1], np.full((12, 16), 3, dtype=np.uint8))
    report, spec = check(tmp_path)
    assert report.images == 3
    assert report.sizes == {"16x12": 3}
    assert report.pixels[2] == 12 * 16
    assert report.in_images[[0, 2, 149, 5]].tolist() == [2, 1, 2, 0]
    assert report.pixels.sum() + report.ignored == 3 * 12 * 16
    assert "wall" in report_table(report, spec, "train")


def test_every_broken_file_is_listed(tmp_path):
    LAYOUT.write(tmp_path, count=6)
    write_image(LAYOUT.pair(tmp_path, 0)[0], (3, 3))
    write_labels(LAYOUT.pair(tmp_path, 2)[1], np.full((12, 16), 222, dtype=np.uint8))
    LAYOUT.pair(tmp_path, 3)[0].write_bytes(b"not an image")
    for num_workers in (0, 2):
        report, _ = check(tmp_path, num_workers)
        assert report.images == 3
        assert sorted(report.broken) == [f"ADE_train_0000000{number}" for number in (0, 2, 3)]
        assert "222" in report.broken["ADE_train_00000002"]


def test_the_report_is_unchanged_by_a_round_trip_through_json(tmp_path):
    LAYOUT.write(tmp_path)
    report, spec = check(tmp_path)
    assert SplitReport.from_dict(report.as_dict(spec)).as_dict(spec) == report.as_dict(spec)
