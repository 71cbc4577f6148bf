"""Recipes of configs/ are found by name and by path."""

import pytest
from conftest import ROOT

from msctr_hf.commands.recipes import find_recipe, recipe_names
from msctr_hf.errors import UsageError


def test_every_file_of_configs_except_those_of_the_launcher_is_a_recipe():
    files = (path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml"))
    names = {path.with_suffix("").as_posix() for path in files if path.parts[0] != "accelerate"}
    assert set(recipe_names()) == names
    assert {"quickstart", "cityscapes/hrnet_w48"} <= names


def test_a_recipe_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no such file exists
    assert find_recipe("quickstart").read_text() == (ROOT / "configs/quickstart.yaml").read_text()


def test_a_folder_with_the_name_of_a_recipe_does_not_hide_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "quickstart").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_recipe("quickstart").is_file()


def test_an_existing_file_takes_precedence_over_a_recipe_of_the_same_name(tmp_path, monkeypatch):
    (tmp_path / "quickstart").write_text("max_steps: 3")
    monkeypatch.chdir(tmp_path)
    assert find_recipe("quickstart").read_text() == "max_steps: 3"


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("quikstart", r"Did you mean quickstart\? Recipes: ade20k/.*quickstart"),
        ("accelerate/ddp", "'accelerate/ddp' is neither a file nor a recipe"),
        ("missing.yml", "the file missing.yml does not exist"),
        ("cityscapes", "'cityscapes' is neither a file nor a recipe.*cityscapes/hrnet_w48"),
    ],
)
def test_a_word_that_is_neither_a_file_nor_a_recipe_is_refused(config, sentence):
    with pytest.raises(UsageError, match=sentence):
        find_recipe(config)
