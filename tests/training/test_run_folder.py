import fcntl
import os
import shlex
from pathlib import Path

import pytest
import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from msctr_hf import ContrastiveAdapter, MsctrForSemanticSegmentation, MsctrImageProcessor
from msctr_hf.commands.train import command_line
from msctr_hf.errors import UsageError
from msctr_hf.training import run_folder
from msctr_hf.training.run_folder import check_output_dir, replace_file, save_model, write_config, write_json


def content(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_model_is_replaced_only_when_all_of_its_files_are_written(tmp_path):
    class Saved:
        def __init__(self, name, text, error=None):
            self.name, self.text, self.error = name, text, error

        def save_pretrained(self, folder, **_):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / self.name).write_text(self.text)
            if self.error:
                raise self.error

    save_model(Saved("model", "1"), Saved("processor", "1"), tmp_path)
    with pytest.raises(OSError, match="full"):
        save_model(Saved("model", "2"), Saved("processor", "2", OSError("full")), tmp_path)
    assert content(tmp_path) == {"model", "processor"}
    assert (tmp_path / "model").read_text() == "1"


def test_the_command_in_config_yaml_starts_the_run_in_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "run.json", {})
    write_config(tmp_path, {"max_steps": 7, "output_dir": str(tmp_path)})
    words = shlex.split((tmp_path / "config.yaml").read_text().splitlines()[0].split(": ")[1])
    assert words[:2] == ["msctr", "train"]
    training = command_line().parse(words[2:])[2]
    assert training.max_steps == 7
    check_output_dir(Path(training.output_dir), overwrite=False, resume=False)


def test_a_file_keeps_its_content_if_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    replace_file(path, "old")

    def fail(_):
        raise OSError("full")

    monkeypatch.setattr(run_folder, "sync", fail)
    with pytest.raises(OSError, match="full"):
        replace_file(path, "new")
    assert path.read_text() == "old"
    assert content(tmp_path) == {"results.json"}


def test_files_are_replaced_on_windows_which_opens_no_folders_and_flushes_no_files_that_are_only_read(
    tmp_path, monkeypatch
):
    def open_as_windows_does(path, flags, *rest):
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        return posix_open(path, flags, *rest)

    def flush_as_windows_does(descriptor):
        flushed.append(descriptor)
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")

    flushed, posix_open = [], os.open
    monkeypatch.setattr(os, "open", open_as_windows_does)
    monkeypatch.setattr(os, "fsync", flush_as_windows_does)
    with pytest.raises(OSError, match="Bad file descriptor"):
        replace_file(tmp_path / "results.json", "new")
    monkeypatch.setattr(run_folder, "_IS_WINDOWS", True)
    replace_file(tmp_path / "results.json", "new")
    assert (tmp_path / "results.json").read_text() == "new"
    assert len(flushed) == 2


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_saved_weights_have_the_permissions_of_their_neighbors(tiny_config, tmp_path, umask):
    before = os.umask(umask)
    try:
        save_model(MsctrForSemanticSegmentation(tiny_config("fcn")), MsctrImageProcessor(), tmp_path)
    finally:
        os.umask(before)
    permissions = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert {"model.safetensors", "config.json"} <= set(permissions)
    assert set(permissions.values()) == {0o666 & ~umask}


@pytest.mark.parametrize("mode", ["ms", "ce"])
def test_an_adapted_model_is_saved_with_its_projection_head_if_it_has_one(tmp_path, mode):
    sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "num_attention_heads": [1] * 4}
    model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=3, **sizes))
    adapter = ContrastiveAdapter(model, projection_dim=6, contrastive_mode=mode).eval()
    save_model(adapter, MsctrImageProcessor(), tmp_path)
    assert ("projection_head.safetensors" in content(tmp_path)) == (mode != "ce")
    loaded = ContrastiveAdapter.with_saved_head(SegformerForSemanticSegmentation.from_pretrained(tmp_path))
    features = "projection" if mode == "ms" else "backbone"
    with torch.no_grad():
        pixel_values = torch.randn(1, 3, 64, 64)
        assert torch.equal(loaded.embed(pixel_values, features), adapter.embed(pixel_values, features))


def test_a_folder_that_is_not_a_run_is_never_replaced(tmp_path):
    (tmp_path / ".out.replaced").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").touch()
    with pytest.raises(UsageError, match="is not empty and does not hold a run"):
        check_output_dir(tmp_path / "out", overwrite=True, resume=False)
