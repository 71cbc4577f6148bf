import pytest

from msctr_hf.data.image_files import files_below, visible_entries


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a file, in a folder with another."""
    (tmp_path / "data/a").mkdir(parents=True)
    (tmp_path / "data/a/1.png").write_bytes(b"")
    (tmp_path / "2.png").write_bytes(b"")
    return tmp_path / "data"


def names(folder):
    return [path.relative_to(folder).as_posix() for path in files_below(folder).files]


def test_folders_that_link_to_each_other_are_followed_once_from_each(folder):
    (folder / "b").mkdir()
    (folder / "b/3.png").write_bytes(b"")
    (folder / "a/to_b").symlink_to("../b")
    (folder / "b/to_a").symlink_to("../a")
    assert names(folder) == ["a/1.png", "a/to_b/3.png", "b/3.png", "b/to_a/1.png"]


def test_links_to_a_folder_above_the_search_are_not_followed(folder):
    (folder / "a/top").symlink_to("../..")
    (folder / "root").symlink_to("/")
    assert names(folder) == ["a/1.png"]


def test_linked_files_are_files_and_links_to_nothing_are_listed(folder):
    (folder / "2.png").symlink_to("../2.png")
    (folder / "x").symlink_to("gone")
    (folder / "itself.png").symlink_to("itself.png")
    (folder / ".hidden").symlink_to("gone")
    found = files_below(folder)
    assert [path.name for path in found.files] == ["2.png", "1.png"]
    assert [path.name for path in found.broken_links] == ["itself.png", "x"]


def test_hidden_entries_and_those_in_hidden_folders_are_not_visible(folder):
    for name in ("._1.png", "a/._1.png", ".cache/1.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    assert visible_entries(folder) == [folder / "a"]
    assert visible_entries(folder, "*/*.png") == visible_entries(folder, "**/*.png") == [folder / "a/1.png"]
    assert visible_entries(folder / "none") == []
