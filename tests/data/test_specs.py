import pytest

from msctr_hf.data.classes import CADIS_VIDEOS, PASCAL_CONTEXT_CLASSES, PASCAL_CONTEXT_VOC_ORDER
from msctr_hf.data.specs import DATASETS

NUM_CLASSES = {
    "cityscapes": 19, "ade20k": 150, "camvid": 11, "pascal_context": 59, "pascal_context_60": 60,
    "pascal_context_voc_order": 59, "pascal_context_60_voc_order": 60, "cadis_task1": 8, "cadis_task2": 17,
    "cadis_task3": 25, "synthetic_scenes": 9, "synthetic_scenes_nir": 10,
}  # fmt: skip


@pytest.mark.parametrize("name", DATASETS)
def test_classes_colors_and_label_values_of_every_data_set_are_consistent(name):
    spec = DATASETS[name]
    assert len(spec.classes) == len(set(spec.classes)) == len(spec.palette) == NUM_CLASSES[name]
    assert spec.title
    assert all(len(color) == 3 and all(0 <= value < 256 for value in color) for color in spec.palette)
    assert set(spec.label_values.values()) == set(range(len(spec.classes)))
    assert not set(spec.label_values) & set(spec.ignored or ())
    assert all(set(group) <= set(range(len(spec.classes))) for group in spec.groups.values())


def test_groups_cover_every_class_once():
    assert sorted(sum(map(list, DATASETS["cityscapes"].groups.values()), [])) == list(range(19))
    for task, rare in ((1, 1), (2, 5), (3, 11)):
        spec = DATASETS[f"cadis_task{task}"]
        parts = [list(group) for name, group in spec.groups.items() if name != "rare"]
        assert sorted(sum(parts, [])) == list(range(len(spec.classes)))
        assert len(set(spec.groups["rare"])) == rare


def test_every_raw_cadis_label_is_a_class_or_ignored():
    ignored = {1: set(), 2: {25, 26, 29, 30, 31, 34, 35}, 3: set(range(25, 36))}
    for task in (1, 2, 3):
        spec = DATASETS[f"cadis_task{task}"]
        assert set(spec.ignored) - {255} == ignored[task]
        assert set(spec.label_values) | ignored[task] == set(range(36))


def test_no_cadis_video_is_in_two_splits():
    assert sorted(sum(CADIS_VIDEOS.values(), ())) == list(range(1, 26))


def test_both_orders_of_pascal_context_name_the_same_classes():
    assert sorted(PASCAL_CONTEXT_CLASSES) == list(PASCAL_CONTEXT_CLASSES)
    assert sorted(PASCAL_CONTEXT_VOC_ORDER) == list(PASCAL_CONTEXT_CLASSES)
    alphabetical, voc = DATASETS["pascal_context"], DATASETS["pascal_context_voc_order"]
    assert alphabetical.classes == voc.classes
    assert voc.classes[voc.label_values[20]] == "tvmonitor"
    assert DATASETS["pascal_context_60"].classes[0] == "background"
