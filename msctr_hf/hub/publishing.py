"""Publishing of model folders on the Hub: at once, or in the background of a run, which continues either way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers.dynamic_module_utils import get_relative_imports
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    CONFIG_NAME,
    IMAGE_PROCESSOR_NAME,
    PROCESSOR_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
)

from ..data.loading import get_dataset_spec
from ..data.specs import DatasetSpec
from ..errors import UsageError, as_usage_error, first_line
from ..models.contrastive_adapter import HEADS_FILE
from ..progress import say
from ..training.interruption import Interrupted, StopRequest
from ..training.run_folder import PREDICTIONS_FILE, RESULTS_FILE, RUN_FILE, read_json
from . import upload
from .model_card import CARD_FILE, read_results_of_run, read_saved_config, read_saved_json, write_model_card
from .settings import DestinationSettings

LONGEST_WAIT = 1800.0  # seconds that a run waits for an upload at its end
_CODE_KEYS = ("auto_map", "custom_pipelines")  # of a configuration, below which classes are named
_SNAPSHOT, _UPLOAD_LOG = ".pushed", ".pushed.log"
# What `save_pretrained` of networks, adapted models, image processors and PEFT writes, and the card. Weights in many
# files are those that the index names, and code is what the configurations name. All else in the folder stays private:
# embeddings of images (`msctr index`), run.json and not_finite.json (command, paths and environment), states of the
# optimizer, scripts of the user.
_PUBLISHED_FILES = {
    *(CONFIG_NAME, SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, HEADS_FILE, IMAGE_PROCESSOR_NAME, PROCESSOR_NAME),
    *(ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME, CARD_FILE),
}
# Weights in several files, as `save_pretrained` names them. Without wildcards for words: they match folders too.
_SHARDS = "model-{0}-of-{0}.safetensors".format("[0-9]" * 5)
# What an earlier push may have left in a repository, where it would be shown, or loaded with the new weights. Code is
# not among it: a name does not tell that of a network from the user's own.
_REPLACED = {*_PUBLISHED_FILES, _SHARDS, RESULTS_FILE, PREDICTIONS_FILE}


@dataclass(frozen=True)
class Destination:
    """Repository on the Hub to which a model is pushed, with options for its card.

    Args:
        repo_id (`str`): Repository, USER/NAME.
        private (`bool`): Whether a new repository is private.
        license (`str`, *optional*): License of the weights.
        show_images (`bool`, *optional*): Whether predictions.png is published too; see `write_model_card`.
    """

    repo_id: str
    private: bool = False
    license: str | None = None
    show_images: bool | None = None

    def __post_init__(self):
        with as_usage_error(HFValidationError, prefix="`hub_model_id`: "):
            validate_repo_id(self.repo_id)
        if "/" not in self.repo_id:
            raise UsageError(f"`hub_model_id` must look like USER/NAME, got {self.repo_id!r}.")

    @classmethod
    def from_settings(cls, settings: DestinationSettings) -> Destination:
        """Build the destination from the settings of a command."""
        return cls(settings.hub_model_id, settings.hub_private, settings.hub_license, settings.hub_images)


class Publisher:
    """Callable that writes the card of the best model of a run and, with a destination, pushes it in the background.

    Call it whenever the folder has a new best model, and call `finish` at the end. Transient errors are retried,
    permanent ones are reported once; training never waits and continues either way, and all files stay in the folder.

    Args:
        spec (`DatasetSpec`): Data set on which the model is trained.
        destination (`Destination`, *optional*): Repository to push to; nothing is pushed without it.
        longest_wait (`float`): Seconds that `finish` waits for each upload.
    """

    def __init__(self, spec: DatasetSpec, destination: Destination | None = None, longest_wait: float = LONGEST_WAIT):
        self.spec = spec
        self.destination = destination
        self.longest_wait = longest_wait
        self._process: subprocess.Popen | None = None
        self._folder: Path | None = None
        self._results: dict | None = None  # results of the newest model, with its step
        self._pushed = False  # whether the newest model is on the Hub
        self._waiting = False  # whether the newest model still has to be uploaded
        self._reported: set[str] = set()

    def __call__(self, folder: Path) -> None:
        """Write the card, then start to push the folder, after a running upload if there is one."""
        try:
            results = read_json(folder / RESULTS_FILE)
            is_new = results != self._results
            _write_card(folder, self.spec, self.destination, named=self._pushed and not is_new)
        except Exception as error:  # a run must not end because of its card
            details = "" if isinstance(error, UsageError) else traceback.format_exc()
            self._report(f"The model card could not be written ({first_line(error)}).", details)
            return
        if self.destination is not None and is_new:
            self._folder, self._waiting, self._pushed, self._results = folder, True, False, results
            self._start_if_free()

    def finish(self) -> None:
        """Wait until everything is pushed, but at most `longest_wait` seconds for each upload.

        Raises:
            Interrupted: If SIGTERM or Ctrl-C arrives while waiting.
        """
        with StopRequest("ending the upload") as stop:
            while self._process is not None and not stop.requested:
                self._wait_for_upload(stop)
                self._start_if_free()
        self.abandon()
        if stop.requested:
            raise Interrupted("stopped before the model was pushed; continue with `resume='auto'`")

    def abandon(self) -> None:
        """Kill a running upload, because the run must end."""
        self._waiting = False
        self._end_upload()
        if self._folder is not None:
            shutil.rmtree(self._folder / _SNAPSHOT, ignore_errors=True)
            (self._folder / _UPLOAD_LOG).unlink(missing_ok=True)

    def _wait_for_upload(self, stop: StopRequest) -> None:
        deadline = time.monotonic() + self.longest_wait
        while self._process.poll() is None and not stop.requested:
            if time.monotonic() > deadline:
                self._report(f"The push to {self.destination.repo_id} took too long and was stopped.")
                self._end_upload()
                return
            time.sleep(0.05)

    def _end_upload(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start_if_free(self) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                return
            code, self._process = self._process.returncode, None
            self._report_failure(code)
            if code == 0 and not self._waiting:  # otherwise the folder already has a newer model
                self._pushed = True
                self(self._folder)  # now the card may name the repository
        if self._waiting:
            self._waiting = False
            try:
                self._process = _start(take_snapshot(self._folder, self.spec, self.destination), self.destination)
            except (OSError, UsageError) as error:
                self._report(f"The push could not be started ({first_line(error)}).")

    def _report_failure(self, code: int) -> None:
        if code == 0:
            return
        log = self._folder / _UPLOAD_LOG
        text = log.read_text(errors="replace", encoding="utf-8").strip() if log.is_file() else ""
        if code == upload.EXIT_REFUSED and text:
            self._report(text.splitlines()[-1])  # after warnings of huggingface_hub
        else:
            reason = f": {text.splitlines()[-1]}" if text else " without a message."
            self._report(f"The upload process failed{reason}", text)

    def _report(self, sentence: str, details: str = "") -> None:
        if sentence not in self._reported:
            self._reported.add(sentence)
            later = "" if self.destination is None else " Push later with `msctr push`."
            warning = f"warning: {sentence} The run is not affected.{later}"
            say(f"{details}\n{warning}" if details else warning, file=sys.stderr)


def publish(folder: str | Path, spec: DatasetSpec | None, destination: Destination) -> str:
    """Push a model folder with its card, write the card there too, and return the URL of the commit.

    Args:
        folder (`str` or `Path`): Folder of a saved model, for example the `OUTPUT_DIR` of a run.
        spec (`DatasetSpec`, *optional*): Data set on which the model was trained.
        destination (`Destination`): Repository to push to.

    Raises:
        UsageError: If the folder does not contain a model or cannot be written, or the Hub refuses or does not answer.
    """
    folder = Path(folder)
    read_saved_config(folder)  # refuses other folders before anything is written
    try:
        with as_usage_error(OSError, prefix=f"{folder} cannot be written: "):
            snapshot = take_snapshot(folder, spec, destination)
        with as_usage_error(upload.UploadError):
            url = upload.upload(**_upload_arguments(snapshot, destination))
    finally:
        shutil.rmtree(folder / _SNAPSHOT, ignore_errors=True)
    _write_card(folder, spec, destination, named=True)
    return url


def spec_of_run(folder: str | Path) -> DatasetSpec | None:
    """Return the data set of a run, or `None` if its folder does not name one or, as is said, it is not found here.

    Raises:
        UsageError: If run.json cannot be read.
    """
    settings = read_saved_json(Path(folder) / RUN_FILE).get("settings", {})
    if "dataset" not in settings:
        return None
    try:
        return get_dataset_spec(settings["dataset"], settings.get("data_dir"))
    except UsageError as error:
        say(
            f"the card will say nothing about the data set of the run, its license and its scores: {error} Push from "
            "the folder where training was started, with the data in its place, for a card that does"
        )
        return None


def take_snapshot(folder: Path, spec: DatasetSpec | None, destination: Destination) -> Path:
    """Link the files to publish in another folder, because the run may replace them during the upload.

    Only the card in that folder names the repository, because the upload may fail. predictions.png shows images of the
    data set and is published only if the card shows it.
    """
    snapshot = folder / _SNAPSHOT
    shutil.rmtree(snapshot, ignore_errors=True)
    snapshot.mkdir()
    _link(_names_to_publish(folder), folder, snapshot)
    _write_card(folder, spec, destination, named=True, target=snapshot)
    if f"({PREDICTIONS_FILE})" in (snapshot / CARD_FILE).read_text(errors="replace", encoding="utf-8"):
        _link([PREDICTIONS_FILE], folder, snapshot)
    return snapshot


def _names_to_publish(folder: Path) -> list[str]:
    """List the files of a folder that are published, except predictions.png."""
    published = {*_PUBLISHED_FILES, *read_saved_json(folder / SAFE_WEIGHTS_INDEX_NAME).get("weight_map", {}).values()}
    published |= _code_of(folder)
    if read_results_of_run(folder):  # results of an evaluation have paths of this machine
        published.add(RESULTS_FILE)
    return sorted(path.name for path in folder.iterdir() if path.name in published and path.is_file())


def _code_of(folder: Path) -> set[str]:
    """List the files of the classes that the configurations name, and of all that these import from the folder."""
    wanted = [
        reference.partition(".")[0]
        for name in (CONFIG_NAME, IMAGE_PROCESSOR_NAME, PROCESSOR_NAME)
        for reference in _references(read_saved_json(folder / name))
    ]
    code: set[str] = set()
    while wanted:
        path = folder / f"{wanted.pop()}.py"
        if path.name not in code and path.is_file():
            code.add(path.name)
            wanted += get_relative_imports(path)
    return code


def _references(value: Any, names_classes: bool = False) -> Iterator[str]:
    """Yield what a configuration calls MODULE.CLASS, where it names code."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _references(entry, names_classes or key in _CODE_KEYS)
    elif isinstance(value, list):
        for entry in value:
            yield from _references(entry, names_classes)
    elif names_classes and isinstance(value, str) and "." in value:
        yield value


def _link(names: Sequence[str], folder: Path, target: Path) -> None:
    for name in names:
        try:
            # not a link itself, as in a snapshot of the Hub cache: it is relative, and would lead nowhere from there
            os.link(os.path.realpath(folder / name), target / name)
        except OSError:  # the file system has no hard links
            shutil.copyfile(folder / name, target / name)


def _write_card(
    folder: Path, spec: DatasetSpec | None, destination: Destination | None, *, named: bool, target: Path | None = None
) -> None:
    """Write the card; it names the repository of the destination only if the model is there, or goes there with it."""
    options: dict[str, Any] = {}
    if destination is not None:
        options = {"license": destination.license, "show_images": destination.show_images}
        options["name"] = destination.repo_id if named else None
    write_model_card(folder, spec, target=target, **options)


def _start(snapshot: Path, destination: Destination) -> subprocess.Popen:
    command = [sys.executable, "-P", upload.__file__, json.dumps(_upload_arguments(snapshot, destination))]
    # not a pipe, which nobody reads: it would fill up and block
    with (snapshot.parent / _UPLOAD_LOG).open("wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"},
            start_new_session=True,  # so that Ctrl-C reaches only the run, which then ends the upload
        )


def _replaced_by(snapshot: Path) -> list[str]:
    """List what a push deletes in the repository; an image processor only if the snapshot has another in its place."""
    processors = {IMAGE_PROCESSOR_NAME, PROCESSOR_NAME}
    has_one = any((snapshot / name).exists() for name in processors)
    return sorted(_REPLACED if has_one else _REPLACED - processors)


def _upload_arguments(snapshot: Path, destination: Destination) -> dict[str, Any]:
    results = read_results_of_run(snapshot)
    message = "Model"
    if results.get("mean_iou") is not None:
        message = f"Model of step {results['step']}: validation mIoU {100 * results['mean_iou']:.2f} %"
    return {
        "folder": str(snapshot),
        "repo_id": destination.repo_id,
        "private": destination.private,
        "message": message,
        "replaced": _replaced_by(snapshot),
        "timeout": upload.TIMEOUT,
        "pauses": upload.PAUSES,
    }
