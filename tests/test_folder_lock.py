"""One process at a time has the lock of a folder, and no killed process keeps it."""

import errno
import fcntl
import multiprocessing
import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from msctr_hf import folder_lock
from msctr_hf.errors import InputWarning, UsageError
from msctr_hf.folder_lock import locked


def hold(folder, pipe, other_end):
    """Hold the lock of a folder, as does a forked copy of this process, until the other end of the pipe closes."""
    other_end.close()  # inherited
    with locked(folder):
        if os.fork():
            pipe.send("locked")
        with suppress(EOFError):
            pipe.recv()
        os._exit(0)


@pytest.fixture
def holder(tmp_path):
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=hold, args=(tmp_path / "run", there, here))
    process.start()
    assert here.recv() == "locked"
    yield process
    here.close()
    process.join()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def refusal(folder):
    with pytest.raises(UsageError) as refused, locked(folder):
        pass
    return str(refused.value)


def test_another_process_is_refused_with_the_name_of_the_holder_until_that_is_killed(tmp_path, holder):
    assert f"`output_dir`: {tmp_path / 'run'} is in use by process {holder.pid} on " in refusal(tmp_path / "run")
    assert names(tmp_path) == [".run.lock"]
    holder.kill()
    holder.join()
    with locked(tmp_path / "run"):  # although its forked copy lives
        assert (tmp_path / ".run.lock").read_text().startswith(f"process {os.getpid()} on ")
    assert names(tmp_path) == []


def test_another_thread_is_refused_and_a_finished_holder_leaves_nothing(tmp_path):
    folder, sentences = tmp_path / "new/run", []
    with locked(folder):
        thread = threading.Thread(target=lambda: sentences.append(refusal(folder)))
        thread.start()
        thread.join()
        assert "is in use by process" in refusal(folder)
        assert not folder.exists()
    assert len(sentences) == 1
    assert names(tmp_path) == []
    with pytest.raises(KeyError), locked(folder):
        raise KeyError
    with locked(folder):
        folder.mkdir()
    assert names(tmp_path / "new") == ["run"]


def test_links_to_a_folder_and_the_folder_under_its_new_name_share_one_lock(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    with locked(tmp_path / "link"):
        (tmp_path / "run").rename(tmp_path / ".run.replaced")
        assert "is in use" in refusal(tmp_path / "run")


def test_a_folder_at_which_a_volume_is_mounted_is_locked_in_all_containers(tmp_path, monkeypatch):
    volume = tmp_path / "volume"
    volume.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "output")
    for container in ("one", "other"):
        (tmp_path / container).mkdir()
        # a folder that is under two paths needs privileges, a link to it does not
        (tmp_path / container / "output").symlink_to(volume)
    monkeypatch.setattr(Path, "resolve", Path.absolute)
    with locked(tmp_path / "one/output"):
        assert refusal(tmp_path / "other/output").endswith(
            "is in use by another process; wait until it ends, or choose another folder."
        )
        assert names(volume) == []
    with locked(tmp_path / "other/output"):
        assert "is in use by" in refusal(tmp_path / "one/output")
    assert names(tmp_path / "one") == names(tmp_path / "other") == ["output"]
    assert not folder_lock._held


def test_a_forked_process_that_ends_neither_releases_nor_removes_the_lock(tmp_path):
    with locked(tmp_path / "run"):
        child = multiprocessing.get_context("fork").Process(target=os.getpid)
        child.start()
        child.join()
        assert "is in use" in refusal(tmp_path / "run")
        assert not os.get_inheritable(next(iter(folder_lock._held)))


def test_a_file_that_is_removed_between_opening_and_locking_is_not_taken_for_the_lock(tmp_path, monkeypatch):
    flock, removed = fcntl.flock, []

    def remove_first(descriptor, operation):
        if not removed:
            removed.append((tmp_path / ".run.lock").unlink())
        return flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with locked(tmp_path / "run"):
        assert "is in use" in refusal(tmp_path / "run")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_gives_a_warning_and_no_lock(tmp_path, monkeypatch, number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    with (
        pytest.warns(InputWarning, match=r"run cannot be locked \(.*; start nothing else in it"),
        locked(tmp_path / "run"),
    ):
        (tmp_path / "run").mkdir()
    assert names(tmp_path) == ["run"]
    assert not folder_lock._held


def test_a_system_without_flock_and_a_folder_that_cannot_be_written_give_a_warning(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.warns(InputWarning, match="cannot be locked"), locked(tmp_path / "file/run"):
        pass
    monkeypatch.setattr(folder_lock, "fcntl", None)
    with (
        pytest.warns(InputWarning, match=r"cannot be locked \(this system has no flock\)") as warned,
        locked(tmp_path / "run"),
    ):
        pass
    assert [each.filename for each in warned] == [__file__]


def test_a_folder_in_which_no_file_can_be_created_gives_a_warning_and_no_lock():
    with pytest.warns(InputWarning, match="/proc/run cannot be locked"), locked(Path("/proc/run")):
        pass


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "Permission denied"), RuntimeError("Symlink loop")])
def test_a_folder_whose_path_cannot_be_followed_is_refused_in_a_sentence(tmp_path, monkeypatch, error):
    def fail(_):
        raise error

    monkeypatch.setattr(Path, "exists", fail)
    sentence = refusal(tmp_path / "closed/new/run")
    assert sentence.startswith(f"`output_dir`: {tmp_path / 'closed/new/run'} cannot be reached (")
    assert sentence.endswith("); choose another folder.")
    assert names(tmp_path) == []
