"""Model folders to the Hub: with a card, while training goes on, and without ever ending it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..data.loading import get_dataset_spec
from ..data.specs import DatasetSpec
from ..errors import UsageError
from ..training.run_folder import PREDICTIONS_FILE, RESULTS_FILE, RUN_FILE, read_json
from . import upload
from .model_card import CARD_FILE, write_model_card
from .settings import HubArguments

LONGEST_WAIT = 1800.0  # seconds for what is still under way when training has ended
_SNAPSHOT, _WORDS = ".pushed", ".pushed.log"
_PUBLISHED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.py", CARD_FILE)
_PRIVATE = (RUN_FILE, "not_finite.json")  # command, paths and environment of a machine


@dataclass(frozen=True)
class Destination:
    """Where a model goes on the Hub, and what its card may say.

    Args:
        repo_id (`str`): USER/NAME.
        private (`bool`): Of a repository that is created.
        license (`str`, *optional*): Of the weights.
        show_pictures (`bool`, *optional*): Also publish predictions.png; see `write_model_card`.
    """

    repo_id: str
    private: bool = False
    license: str | None = None
    show_pictures: bool | None = None

    def __post_init__(self):
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise UsageError(f"`hub_model_id`: {str(error).splitlines()[0]}") from None
        if "/" not in self.repo_id:
            raise UsageError(f"`hub_model_id` must look like USER/NAME, got {self.repo_id!r}.")

    @classmethod
    def from_arguments(cls, arguments: HubArguments) -> Destination:
        """Where a command line says a model goes."""
        return cls(arguments.hub_model_id, arguments.hub_private, arguments.hub_license, arguments.hub_pictures)


class Publisher:
    """Writes the card of a run's best model and, where there is a destination, pushes it in the background.

    Call it whenever the folder holds a new best model; call `finish` at the end. Nothing here raises: a failure is
    said once, in one sentence, and the files stay where they are.

    Args:
        spec (`DatasetSpec`): What is trained on.
        destination (`Destination`, *optional*): Where to push; nowhere without it.
        longest_wait (`float`): Seconds that `finish` waits for an upload.
    """

    def __init__(self, spec: DatasetSpec, destination: Destination | None = None, longest_wait: float = LONGEST_WAIT):
        self.spec = spec
        self.destination = destination
        self.longest_wait = longest_wait
        self._process: subprocess.Popen | None = None
        self._folder: Path | None = None
        self._results: dict | None = None  # of the newest model, with its step
        self._waiting = False  # whether the newest model is not under way yet
        self._said: set[str] = set()

    def __call__(self, folder: Path) -> None:
        """Write the card into the folder and start pushing it, or push it after the upload that is under way."""
        try:
            _write_card(folder, self.spec, self.destination)
        except Exception as error:  # no fault of a card is worth a run
            self._say(f"The model card could not be written ({error}).")
            return
        results = read_json(folder / RESULTS_FILE)
        if self.destination is not None and results != self._results:
            self._folder, self._waiting, self._results = folder, True, results
            self._start_if_free()

    def finish(self) -> None:
        """Wait until everything is pushed, or `longest_wait` seconds for each upload."""
        if self.destination is None:
            return
        while self._process is not None:
            try:
                self._process.wait(self.longest_wait)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                self._say(f"The push to {self.destination.repo_id} took too long and was given up.")
            self._start_if_free()
        self._forget_snapshot()

    def abandon(self) -> None:
        """End an upload that is under way; for runs that are told to stop."""
        self._waiting = False
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._forget_snapshot()

    def _start_if_free(self) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                return
            if self._process.returncode > 0:  # killed ones were spoken of
                words = (self._folder / _WORDS).read_text().strip().splitlines()
                self._say(words[-1] if words else "The push ended without a word.")
            self._process = None
        if self._waiting:
            self._waiting = False
            try:
                self._process = _start(take_snapshot(self._folder), self.destination)
            except OSError as error:
                self._say(f"The push could not be started ({error.strerror}).")

    def _forget_snapshot(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder / _SNAPSHOT, ignore_errors=True)
            (self._folder / _WORDS).unlink(missing_ok=True)

    def _say(self, sentence: str) -> None:
        if sentence in self._said:
            return
        self._said.add(sentence)
        later = "" if self.destination is None else " Push later with scripts/push_to_hub.py."
        print(f"\nwarning: {sentence} The run is not affected.{later}", file=sys.stderr)


def publish(folder: str | Path, spec: DatasetSpec | None, destination: Destination) -> str:
    """Write the card and push a model folder now; returns the URL of the commit.

    Raises:
        UsageError: If the folder holds no model.
        ConnectionError: If the Hub refuses or cannot be reached.
    """
    _write_card(Path(folder), spec, destination)
    snapshot = take_snapshot(Path(folder))
    try:
        return upload.upload(
            str(snapshot),
            destination.repo_id,
            private=destination.private,
            message=_message(snapshot),
            silence=upload.SILENCE,
            pauses=upload.PAUSES,
        )
    finally:
        shutil.rmtree(snapshot, ignore_errors=True)


def spec_of_run(folder: str | Path) -> DatasetSpec | None:
    """What a run was trained on; `None` where the folder does not say, or the data set lies there no more."""
    settings = read_json(Path(folder) / RUN_FILE).get("settings", {})
    try:
        return get_dataset_spec(settings["dataset"], settings.get("data_dir"))
    except (KeyError, UsageError):
        return None


def _write_card(folder: Path, spec: DatasetSpec | None, destination: Destination | None) -> None:
    if destination is None:
        write_model_card(folder, spec)
        return
    write_model_card(
        folder,
        spec,
        name=destination.repo_id,
        license=destination.license,
        show_pictures=destination.show_pictures,
    )


def take_snapshot(folder: Path) -> Path:
    """What is published of a folder, as it is now: files that are replaced later keep their content here.

    Predictions show pictures of the data set and go only where the card shows them.
    """
    snapshot = folder / _SNAPSHOT
    shutil.rmtree(snapshot, ignore_errors=True)
    snapshot.mkdir()
    names = {path.name for pattern in _PUBLISHED for path in folder.glob(pattern)} - set(_PRIVATE)
    if f"({PREDICTIONS_FILE})" in (folder / CARD_FILE).read_text():
        names.add(PREDICTIONS_FILE)
    for name in sorted(names):
        try:
            os.link(folder / name, snapshot / name)
        except OSError:  # a file system without links
            shutil.copyfile(folder / name, snapshot / name)
    return snapshot


def _start(snapshot: Path, destination: Destination) -> subprocess.Popen:
    command = [sys.executable, upload.__file__, str(snapshot), destination.repo_id, "--message", _message(snapshot)]
    command += ["--silence", str(upload.SILENCE), "--pauses", *map(str, upload.PAUSES)]
    if destination.private:
        command.append("--private")
    with (snapshot.parent / _WORDS).open("w") as words:  # a pipe that nobody reads would fill up
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=words,
            env=os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"},
            start_new_session=True,  # Ctrl-C is for the run
        )


def _message(snapshot: Path) -> str:
    results = read_json(snapshot / RESULTS_FILE)
    if results.get("mean_iou") is None:
        return "Model"
    return f"Model of step {results.get('step')}: validation mIoU {100 * results['mean_iou']:.2f} %"
