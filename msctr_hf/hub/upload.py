"""Upload of a folder to the Hub, in a file that a process can run by its path: `python upload.py JSON`.

It imports nothing but huggingface_hub, so that the process starts in a fraction of a second. A process of
`multiprocessing` would import this package and the script that runs, and with them PyTorch and transformers: seconds
of a processor and more than a gigabyte of memory for every upload, next to a training run.
"""

from __future__ import annotations

import json
import sys
import textwrap
import time
from collections.abc import Sequence

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session

TIMEOUT = 60.0  # seconds without an answer
PAUSES = (2.0, 10.0, 30.0)  # seconds before the second, the third and the fourth attempt
EXIT_REFUSED = 3  # exit code of the process when stderr ends with the sentence of an `UploadError`
_TRANSIENT_CLIENT_ERRORS = (408, 429)  # time-out and too many requests: another attempt may succeed


class UploadError(Exception):
    """Error of an upload that the Hub refuses or does not answer; the message is one sentence."""


def upload(
    folder: str,
    repo_id: str,
    *,
    private: bool = False,
    message: str = "Upload model",
    replaced: Sequence[str] = (),
    timeout: float = TIMEOUT,
    pauses: tuple[float, ...] = PAUSES,
) -> str:
    """Create the repository if it does not exist and commit the folder to it; transient errors are retried.

    Args:
        folder (`str`): Folder whose files are all uploaded.
        repo_id (`str`): Repository on the Hub, USER/NAME.
        private (`bool`): Whether a new repository is private.
        message (`str`): Message of the commit.
        replaced (`Sequence[str]`): Names, or patterns of names, of files in the repository that the commit deletes
            unless the folder has them.
        timeout (`float`): Seconds without an answer after which an attempt fails.
        pauses (`tuple[float, ...]`): Seconds to wait before the second, third, ... attempt.

    Returns:
        `str`: URL of the commit.

    Raises:
        UploadError: If the Hub refuses or cannot be reached.
    """
    for pause in (*pauses, None):  # None marks the last attempt
        try:
            get_session().timeout = timeout  # by default the client of huggingface_hub waits forever
            api = HfApi()
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                folder_path=folder, repo_id=repo_id, commit_message=message, delete_patterns=list(replaced) or None
            )
            return str(commit.commit_url)
        except (
            HTTPError,
            OSError,
            RuntimeError,
            ValueError,
        ) as error:  # ValueError: the Hub does not accept the metadata
            if pause is None or not _is_transient(error):
                raise UploadError(_sentence(error, repo_id)) from error
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _is_transient(error: Exception) -> bool:
    """Return whether another attempt may succeed."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code in _TRANSIENT_CLIENT_ERRORS
    network_errors = (HTTPError, ConnectionError, TimeoutError, RuntimeError)  # hf_xet raises RuntimeError
    return isinstance(error, network_errors) and not isinstance(error, OfflineModeIsEnabled)


def _sentence(error: Exception, repo_id: str) -> str:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return f"Not logged in to the Hub; run `hf auth login` or set HF_TOKEN to push to {repo_id}."
    if status == 403:
        return f"Your token may not write to {repo_id}; use one with write access."
    if isinstance(error, OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set; unset it to push to {repo_id}."
    reason = textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__
    return f"{repo_id} could not be pushed: {reason}"


if __name__ == "__main__":
    try:
        upload(**json.loads(sys.argv[1]))
    except UploadError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_REFUSED)
