"""A run that is replaced is removed only when the new one has saved a checkpoint."""

import pytest

from msctr_hf.training.replacement import put_aside, remove_replaced, restore
from msctr_hf.training.run_folder import check_output_dir

FILES = ("run.json", "results.json", "last/model.safetensors", "checkpoints/step_1/COMPLETE")


def write(folder, *names, text="new"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(tmp_path):
    write(tmp_path / "run", *FILES, text="old")
    return tmp_path / "run"


def test_a_replaced_run_is_renamed_and_restored(run):
    before = content(run)
    put_aside(run)
    assert not run.exists()
    assert content(run.parent / ".run.replaced") == before
    write(run, "run.json")
    assert "holds the old run again" in restore(run)
    assert content(run.parent) == {f"run/{name}": text for name, text in before.items()}


def test_nothing_is_restored_if_nothing_was_replaced(run):
    before = content(run)
    assert restore(run) is None
    assert content(run) == before


@pytest.mark.parametrize("between", [(), ("run.json",), ("run.json", "checkpoints/.step_2.partial/optimizer.bin")])
def test_after_a_kill_the_next_start_keeps_the_old_run(run, between):
    before = content(run)
    put_aside(run)
    write(run, *between)  # killed before it saved anything
    put_aside(run)
    assert not run.exists()
    restore(run)
    assert content(run) == before


def test_the_log_of_a_failed_run_is_kept_under_another_name(run):
    before = content(run)
    for number in (1, 2):
        put_aside(run)
        write(run, "run.json", "log.jsonl")
        assert f".run.failed_{number}" in restore(run)
        assert content(run) == before
        assert content(run.parent / f".run.failed_{number}") == {"run.json": "new", "log.jsonl": "new"}


@pytest.mark.parametrize("saved", ["checkpoints/step_2/COMPLETE", "last/config.json", "results.json"])
def test_a_run_that_has_saved_a_checkpoint_or_model_replaces_the_old_one(run, saved):
    put_aside(run)
    write(run, saved)
    put_aside(run)  # it was killed before it removed the old one, and is now replaced too
    assert content(run.parent) == {f".run.replaced/{saved}": "new"}
    remove_replaced(run)
    assert not content(run.parent)


def test_a_run_that_an_older_version_kept_inside_the_folder_is_restored(run):
    before = content(run)
    run.rename(run.with_name("old"))
    run.mkdir()
    run.with_name("old").rename(run / ".replaced")
    write(run, "run.json")
    put_aside(run)
    assert "holds the old run again" in restore(run)
    assert content(run) == before


def test_a_symbolic_link_to_the_folder_is_kept(run, tmp_path):
    before, link = content(run), tmp_path / "link"
    link.symlink_to(run)
    put_aside(link)
    write(run, "run.json")
    restore(link)
    assert content(link) == content(run) == before


def test_a_run_that_was_renamed_by_a_start_that_was_killed_is_reported(run):
    put_aside(run)
    with pytest.raises(ValueError, match=r"is in .*\.run\.replaced.* rename it back, or replace it with"):
        check_output_dir(run, overwrite=False, resume=False)
    check_output_dir(run, overwrite=True, resume=False)
    write(run, "run.json", "checkpoints/step_2/COMPLETE")
    with pytest.raises(ValueError, match="holds another run"):
        check_output_dir(run, overwrite=False, resume=False)
