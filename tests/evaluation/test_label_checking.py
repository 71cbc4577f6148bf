"""The check of labels: planted errors, groups, votes, the table, and checks that were stopped."""

import csv
import shutil
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from color_network import BOX, CLASSES, COLORS, color_embedder, write_boxes
from conftest import TIMM_TINY
from layouts import write_folder
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from msctr_hf import MsctrConfig, MsctrForSemanticSegmentation, MsctrImageProcessor
from msctr_hf.commands import check_labels as command
from msctr_hf.data.loading import load_segmentation_dataset
from msctr_hf.data.parquet_copy import write_parquet
from msctr_hf.data.predecoded import write_predecoded
from msctr_hf.errors import UsageError
from msctr_hf.evaluation import label_checking
from msctr_hf.evaluation.label_checking import (
    LabelCheck,
    check_labels,
    count_votes,
    describe_data,
    group_images,
    save_suspects,
)

TREE, CAR = (COLORS[1], 1), (COLORS[2], 2)
OBJECTS = {f"{video}_{number}": TREE if number % 2 else CAR for video in "abcd" for number in range(2)}
WRONG = {**OBJECTS, "c_0": (COLORS[2], 1)}
FEW = {"neighbors": 5, "pixels_per_class": 100}


@pytest.fixture
def embedder():
    return color_embedder()


@pytest.mark.parametrize("window_size", [None, (64, 64)])
def test_a_planted_swap_is_the_only_suspect_with_exactly_its_pixels(tmp_path, window_size):
    dataset = write_boxes(tmp_path / "data", WRONG)
    found = check_labels(color_embedder(window_size), dataset, CLASSES, tmp_path / "out", **FEW)
    (region,) = found.regions
    assert (region.image_id, region.label, region.suggestion) == ("c_0", 1, 2)
    assert region.part == BOX
    assert region.mask.all()
    assert region.area == 24 * 32
    cells = 0.5 * (np.log(6 / 1) + np.log(1 / 1e-3))  # five of five votes; the network is sure
    assert region.score == pytest.approx(cells * np.log2(1 + 24 * 32 / 200), rel=2e-2)
    assert dataset[region.place]["image_id"] == "c_0"


def test_images_of_one_group_do_not_vouch_for_each_other(embedder, tmp_path):
    dark = (COLORS[2][0] + 40, COLORS[2][1], COLORS[2][2])  # cars that are more alike than those of other videos
    dataset = write_boxes(tmp_path / "data", {**OBJECTS, "a_0": (dark, 1), "a_1": (dark, 1)})
    for pattern, expected in (("^[^_]+", {"a_0", "a_1"}), ("^([^_]+)_", {"a_0", "a_1"}), (".+", set())):
        out = tmp_path / f"out {len(pattern)}"
        found = check_labels(embedder, dataset, CLASSES, out, group_pattern=pattern, **FEW)
        assert {region.image_id for region in found.regions} == expected


def test_nothing_is_suggested_that_no_other_group_shows(embedder, tmp_path):
    objects = dict.fromkeys(OBJECTS, TREE)
    dataset = write_boxes(tmp_path / "data", {**objects, "a_0": CAR, "a_1": (COLORS[2], 1)})
    found = check_labels(embedder, dataset, CLASSES, tmp_path / "out", group_pattern="^.", **FEW)
    # only a_0 could say that a_1 is a car; a_0 itself agrees with the network
    assert [(region.image_id, region.suggestion) for region in found.regions] == [("a_1", 0)]
    found = check_labels(embedder, dataset, CLASSES, tmp_path / "each", group_pattern=".+", **FEW)
    assert [(region.image_id, region.suggestion) for region in found.regions] == [("a_1", 2)]


def test_small_regions_are_left_out_and_only_the_best_are_kept(embedder, tmp_path):
    dataset = write_boxes(tmp_path / "data", {**WRONG, "b_1": (COLORS[1], 2)})
    whole = check_labels(embedder, dataset, CLASSES, tmp_path / "whole", **FEW).regions
    assert {region.image_id for region in whole} == {"b_1", "c_0"}
    assert whole[0].score > whole[1].score
    for number, (options, expected) in enumerate([({"min_area": 24 * 32 + 1}, []), ({"top": 1}, whole[:1])]):
        found = check_labels(embedder, dataset, CLASSES, tmp_path / str(number), **FEW, **options).regions
        assert [region.image_id for region in found] == [region.image_id for region in expected]


def test_ignored_pixels_are_not_checked(embedder, tmp_path):
    dataset = write_boxes(tmp_path / "data", {**OBJECTS, "c_0": (COLORS[2], 25.5)})
    assert check_labels(embedder, dataset, CLASSES, tmp_path / "out", **FEW).regions == []


def test_votes_equal_those_of_scikit_learn(monkeypatch):
    monkeypatch.setattr(label_checking, "_COSINES_AT_A_TIME", 3000)  # several blocks
    random = np.random.default_rng(0)
    rows, queries = (random.standard_normal((count, 8)).astype(np.float32) for count in (300, 50))
    rows, queries = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (rows, queries))
    labels = random.integers(0, 4, 300)
    votes = count_votes(*map(torch.from_numpy, (queries, rows, labels)), 7, 5).numpy()
    nearest = NearestNeighbors(n_neighbors=7, metric="cosine").fit(rows).kneighbors(queries, return_distance=False)
    assert votes.tolist() == [np.bincount(labels[of_query], minlength=5).tolist() for of_query in nearest]
    few = count_votes(*map(torch.from_numpy, (queries, rows[:3], labels[:3])), 7, 5)
    assert few.tolist() == [np.bincount(labels[:3], minlength=5).tolist()] * 50
    assert not count_votes(*map(torch.from_numpy, (queries, rows[:0], labels[:0])), 7, 5).any()


def test_groups_are_what_a_pattern_matches_or_eight_blocks():
    ids = [f"{video}/frame{number}" for video in ("one", "two") for number in range(2)]
    assert list(group_images(ids, r"\w+").values()) == ["one", "one", "two", "two"]
    assert list(group_images(ids, r"frame(\d)").values()) == ["0", "1", "0", "1"]
    blocks = list(group_images([str(number) for number in range(20)]).values())
    assert [blocks.count(block) for block in dict.fromkeys(blocks)] == [3, 3, 3, 3, 3, 3, 2]
    assert len({*group_images(["a", "b"]).values()}) == 2


@pytest.mark.parametrize(
    ("ids", "pattern", "message"),
    [
        (["a1", "b"], r"\d", r"`group_pattern`: '\\\\d' matches nothing in 1 of 2 image ids: 'b'\."),
        (["ax", "b"], r"[a-z](x)?", r"matches nothing in 1 of 2 image ids: 'b'\."),
        (["a", "b"], "(", "`group_pattern`: '\\(' is not a regular expression: "),
        (["a1", "a2"], "a", r"`group_pattern`: 'a' finds the same group, \['a'\], in all image ids; a check needs"),
        (["a"], None, r"The data set has 1 image\(s\); a check needs at least two groups"),
    ],
)
def test_patterns_that_do_not_group_the_images_are_refused(ids, pattern, message):
    with pytest.raises(UsageError, match=message):
        group_images(ids, pattern)


def test_a_check_that_was_stopped_continues_to_the_same_table(embedder, tmp_path, monkeypatch):
    dataset = write_boxes(tmp_path / "data", {**WRONG, "b_1": (COLORS[1], 2)})
    whole = check_labels(embedder, dataset, CLASSES, tmp_path / "whole", **FEW)
    checked, check = [], LabelCheck.__call__

    def stopped(self, place, sample):
        checked.append(place)
        if len(checked) == 4:
            raise KeyboardInterrupt
        return check(self, place, sample)

    monkeypatch.setattr(LabelCheck, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        check_labels(embedder, dataset, CLASSES, tmp_path / "out", **FEW)
    (tmp_path / "out/images/000001.npz").write_bytes(b"damaged")
    monkeypatch.setattr(label_checking, "index_dataset", None)  # the bank is kept
    again = check_labels(embedder, dataset, CLASSES, tmp_path / "out", **FEW)
    assert checked == [0, 1, 2, 3, 1, 3, 4, 5, 6, 7]
    assert again.key == whole.key
    for suspects, name in ((whole, "whole"), (again, "out")):
        save_suspects(suspects, CLASSES, tmp_path / name)
    tables = [(tmp_path / name / "suspects.csv").read_text() for name in ("whole", "out")]
    assert tables[0] == tables[1]
    rows = list(csv.reader(tables[0].splitlines()))
    assert rows[0] == ["rank", "image", "label", "suggestion", "score", "area", "top", "left", "bottom", "right"]
    assert sorted(row[1:4] for row in rows[1:]) == [["b_1", "car", "tree"], ["c_0", "tree", "car"]]
    assert {tuple(row[5:]) for row in rows[1:]} == {("768", "16", "24", "40", "56")}


def test_a_folder_with_the_results_of_another_check_is_refused(embedder, tmp_path):
    dataset = write_boxes(tmp_path / "data", WRONG)
    check_labels(embedder, dataset, CLASSES, tmp_path / "out", **FEW)

    def refusal(embedder=embedder, classes=CLASSES, **options):
        with pytest.raises(UsageError, match="has the results of another check") as refused:
            check_labels(embedder, dataset, classes, tmp_path / "out", **{**FEW, **options})
        return str(refused.value)

    assert "(`neighbors` was 5 and is now 6); choose another folder" in refusal(neighbors=6)
    assert "(the classes are others, or in another order)" in refusal(classes=("a", "b", "c"))
    other = color_embedder()
    other.network.colors[0, 0] += 0.01
    assert "(the network is another one)" in refusal(other)
    assert "`window_size` was None and is now [32, 32]" in refusal(color_embedder((32, 32)))
    Image.new("L", (96, 64)).save(tmp_path / "data/train/labels/a_0.png")
    assert "(the images or labels are others)" in refusal()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/text").write_text("mine")
    for folder, message in (("mine", "is not empty and has no check_labels.json"), ("mine/text", "is a file")):
        with pytest.raises(UsageError, match=message):
            check_labels(embedder, dataset, CLASSES, tmp_path / folder, **FEW)


def test_data_are_others_if_labels_or_what_their_values_mean_have_changed(tmp_path):
    folder, copy, parquet = (tmp_path / name for name in ("folder", "copy", "parquet"))
    dataset = write_boxes(folder, WRONG)

    def described(where, **options):
        return describe_data(load_segmentation_dataset("folder", "train", where, **options))

    def write_copies():
        for other in (copy, parquet):
            shutil.rmtree(other, ignore_errors=True)
            other.mkdir()
            shutil.copy(folder / "dataset.yaml", other)
        list(write_predecoded(dataset, "train", copy, name="folder", classes=CLASSES))
        write_parquet(dataset.with_format(None), "train", parquet)
        return described(copy), described(parquet)

    before = described(folder), *write_copies()
    assert len({*before}) == 3
    assert (described(folder), described(copy), described(parquet)) == before
    ids = {"id_map": {0: 0, 10: 2, 20: 1}}
    assert described(folder, **ids) != before[0]
    assert described(parquet, **ids) != before[2]
    path = folder / "train/labels/a_0.png"
    labels = np.array(Image.open(path))
    labels[BOX] = 10
    Image.fromarray(labels).save(path)
    assert all(now != then for now, then in zip((described(folder), *write_copies()), before, strict=True))


def test_large_maps_are_not_copied_as_a_whole(tmp_path):
    side, num_classes, windows = 500, 100, 50
    height = side // windows
    tiles = [
        SimpleNamespace(
            embeddings=torch.zeros(1, height, side),
            rows=slice(top, top + height),
            columns=slice(0, side),
            pixel_rows=np.arange(side),
            pixel_columns=np.arange(side),
            extent=(side, side),
        )
        for top in range(0, side, height)
    ]
    probabilities = np.full((side, side, num_classes), 1 / num_classes, dtype=np.float32)
    probabilities[..., 1] += 0.1  # more than that of any label
    predictor = SimpleNamespace(probabilities_at=lambda *_: probabilities)
    embedder = SimpleNamespace(predictor=predictor, tiles=lambda _: tiles, network=torch.nn.Linear(1, 1))
    names = tuple(map(str, range(num_classes)))
    bank = SimpleNamespace(
        embeddings=np.ones((40, 1), np.float32),
        labels=np.arange(40) // 2,
        images=np.arange(40) % 2,
        image_ids=("a", "b"),
        classes=names,
    )
    check = LabelCheck(embedder, bank, {"a": "a", "b": "b"}, neighbors=1, boundary_width=1, min_area=1)
    sample = {"image": None, "label": np.zeros((side, side), np.uint8), "image_id": "a"}
    tracemalloc.start()
    check(0, sample)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < probabilities.nbytes / 2  # what has one value for a cell, and the votes of a window


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("check")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "auxiliary_hidden_size": 16, "projection_dim": 8}
    names = dict(enumerate(["car", "sky", "road"]))
    network = MsctrForSemanticSegmentation(MsctrConfig(backbone_config=TIMM_TINY, id2label=names, **sizes))
    network.save_pretrained(root / "model")
    MsctrImageProcessor(size_divisor=32).save_pretrained(root / "model")
    write_folder(root / "data", size=(64, 96))
    return root


def run_check(files, capsys, *flags):
    words = ["--model", files / "model", "--dataset", "folder", "--data_dir", files / "data", "--device", "cpu"]
    code = 0
    try:
        command.main([str(word) for word in (*words, *flags)])
    except SystemExit as stop:
        code = stop.code
    return (code, *capsys.readouterr())


def test_the_command_lists_the_regions_and_matches_classes_by_name(files, capsys, tmp_path):
    flags = ["--features", "decode_head", "--window_size", "64", "64", "--min_area", "1", "--boundary_width", "0"]
    for _ in range(2):
        code, out, error = run_check(files, capsys, "--output_dir", tmp_path / "out", *flags)
        assert code == 0, error
        assert "in another order, so they were matched by name" in error
        regions = len((tmp_path / "out/suspects.csv").read_text().splitlines()) - 1
        assert out.startswith(f"{regions} suspicious regions are listed in {tmp_path / 'out'}")


def test_networks_of_transformers_that_resize_images_are_checked_too(files, capsys, tmp_path):
    torch.manual_seed(0)
    small = {
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1] * 4,
        "num_attention_heads": [1] * 4,
        "decoder_hidden_size": 16,
    }
    names = dict(enumerate(["sky", "road", "car"]))
    SegformerForSemanticSegmentation(SegformerConfig(id2label=names, **small)).save_pretrained(tmp_path / "model")
    SegformerImageProcessor(size={"height": 128, "width": 160}).save_pretrained(tmp_path / "model")
    flags = ["--model", tmp_path / "model", "--features", "backbone", "--output_dir", tmp_path / "out"]
    code, out, error = run_check(files, capsys, *flags, "--min_area", "1", "--top", "9")
    assert code == 0, error
    rows = list(csv.DictReader((tmp_path / "out/suspects.csv").open()))
    assert rows  # an untrained network agrees with few labels
    assert all(int(row["bottom"]) <= 64 and int(row["right"]) <= 96 for row in rows)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--group_pattern", "x"], "--group_pattern: 'x' matches nothing in 4 of 4 image ids: '0', '1', '2'"),
        (["--output_dir", "."], "--output_dir: . is not empty and has no check_labels.json"),
        (["--neighbors", "0"], "--neighbors must be at least 1, got 0."),
        (["--streaming"], "--streaming: a check of labels needs random access"),
        (["--stage", "9"], "--stage must be one of 1, 2, 3, 4"),
    ],
)
def test_wrong_input_of_the_command_is_one_sentence(files, capsys, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    code, _, error = run_check(files, capsys, *flags)
    assert code == 2
    assert message in error.strip().splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
