"""Templates of paths match the files that `pathlib` finds, and name them by what the asterisks stand for."""

import random
import re

import pytest

from msctr_hf.data.path_template import PathTemplate

FOLDERS = ("", "a/", "a/b/", "Video1/Images/", "Video10/Images/", "x.y/", "(1)/")
NAMES = ("0.jpg", "0_mask.png", "a_b_c.jpg", "image.jpg", "mask.png", "a[7].jpg", "é.jpg", "two words.jpg")
TEMPLATES = (
    *("*.jpg", "*/*.jpg", "**/*.jpg", "a/**/*.jpg", "a/*_mask.png", "Video*/Images/*.jpg", "*/image.jpg", "*.png"),
    *("**/*_mask.png", "*/*/a*.jpg", "(1)/*].jpg", "x.y/*é.jpg", "./a/*.jpg"),
)


def stem(path, template):
    return path[: -len(PathTemplate(template).ending)]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Return a folder with every name in every folder."""
    root = tmp_path_factory.mktemp("tree")
    for path in (root / folder / name for folder in FOLDERS for name in NAMES):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_matches_the_files_that_pathlib_finds(tree, template):
    paths = [path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()]
    ending = PathTemplate(template).ending
    matched = {path for path in paths if path.endswith(ending) and PathTemplate(template).name(stem(path, template))}
    # in a pattern of pathlib, an asterisk may also stand for nothing
    pattern = re.sub(r"(?<!\*)\*(?!\*)", "?*", template)
    assert matched == {path.relative_to(tree).as_posix() for path in tree.glob(pattern)}


@pytest.mark.parametrize(
    ("template", "path", "name"),
    [
        ("photos/*.jpg", "photos/0", "0"),
        ("photos/*.jpg", "photos/a/0", ""),
        ("photos/**/*.jpg", "photos/a/b/0", "a/b/0"),
        ("photos/**/*.jpg", "photos/0", "0"),
        ("photos/**.jpg", "photos/a/b/0", "a/b/0"),
        ("Video*/Images/*.png", "Video01/Images/f_7", "01/f_7"),
        ("scenes/*/image.png", "scenes/north (1)/image", "north (1)"),
        ("masks/*_mask.png", "masks/0_mask", "0"),
        ("masks/*_mask.png", "masks/_mask", ""),
        ("photos/*", "photos/0", "0"),
        ("photos/*.*", "photos/0", "0"),
    ],
)
def test_files_are_named_by_what_the_asterisks_stand_for(template, path, name):
    assert PathTemplate(template).name(path) == name


def test_an_image_and_its_label_have_the_same_name_under_any_pair_of_templates():
    rng = random.Random(0)
    for _ in range(300):
        parts = [rng.choice(("a", "b_c", "x.y", "_", "é", "1")) for _ in range(3)]
        texts = [rng.choice(("v", "v_w", "7")) for _ in range(2)]
        images, labels = (f"{side}*{parts[0]}/{parts[1]}*{end}" for side, end in (("i", ".jpg"), ("l", "_m.png")))
        names = {
            PathTemplate(template).name(stem(template, template).replace("*", texts[0], 1).replace("*", texts[1]))
            for template in (images, labels)
        }
        assert len(names) == 1
        assert "" not in names


def test_the_search_starts_in_the_folder_before_the_first_asterisk():
    assert PathTemplate("data/photos/*.jpg").folder == "data/photos"
    assert PathTemplate("data/v*/Images/*.jpg").folder == "data"
    assert PathTemplate("*.jpg").folder == "."
