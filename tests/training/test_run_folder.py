import pytest

from msctr_hf.training import run_folder
from msctr_hf.training.run_folder import bring_back, forget_what_was_set_aside, replace_file, save_model, set_aside


def content(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(tmp_path):
    for name in ("run.json", "results.json", "last/model.safetensors", "checkpoints/step_1/COMPLETE"):
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("old")
    return tmp_path / "run"


def test_a_run_that_is_replaced_comes_back(run):
    before = content(run)
    set_aside(run)
    assert content(run) == {f".replaced/{name}" for name in before}
    (run / "run.json").write_text("new")
    bring_back(run)
    assert content(run) == before
    assert (run / "run.json").read_text() == "old"


def test_an_attempt_that_saved_nothing_does_not_replace_what_was_set_aside(run):
    before = content(run)
    set_aside(run)
    (run / "run.json").write_text("killed before it saved anything")
    set_aside(run)
    bring_back(run)
    assert content(run) == before
    assert (run / "run.json").read_text() == "old"


def test_a_run_that_has_saved_replaces_the_old_one(run):
    set_aside(run)
    (run / "run.json").write_text("new")
    forget_what_was_set_aside(run)
    assert content(run) == {"run.json"}


def test_a_model_is_replaced_when_all_of_it_is_written(tmp_path):
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


def test_a_file_that_cannot_be_written_keeps_its_content(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    replace_file(path, "old")

    def fail(_):
        raise OSError("full")

    monkeypatch.setattr(run_folder, "sync", fail)
    with pytest.raises(OSError, match="full"):
        replace_file(path, "new")
    assert path.read_text() == "old"
    assert content(tmp_path) == {"results.json"}
