"""One upload of a folder to the Hub. As a process of its own it may hang or crash without harm to a training run.

Imports nothing but huggingface_hub, so that the process is small and starts at once.
"""

from __future__ import annotations

import argparse
import sys
import time

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session

SILENCE = 60.0  # seconds without an answer that count as a time-out
PAUSES = (2.0, 10.0, 30.0)  # seconds before the second, third and fourth attempt
_BUSY = (408, 429)


def upload(
    folder: str,
    repo_id: str,
    *,
    private: bool = False,
    message: str = "Upload model",
    silence: float = SILENCE,
    pauses: tuple[float, ...] = PAUSES,
) -> str:
    """Create the repository if need be, and commit the folder to it; what may pass is tried again.

    Args:
        folder (`str`): Everything in it is uploaded.
        repo_id (`str`): USER/NAME.
        private (`bool`): Of a repository that is created.
        message (`str`): Of the commit.
        silence (`float`): Seconds without an answer that count as a time-out.
        pauses (`tuple[float, ...]`): Seconds before every further attempt.

    Returns:
        `str`: URL of the commit.

    Raises:
        ConnectionError: With one sentence, if the Hub refuses or cannot be reached.
    """
    for pause in (*pauses, None):  # None: the last attempt
        try:
            get_session().timeout = silence  # of the client of this process; it has none by itself
            api = HfApi()
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(folder_path=folder, repo_id=repo_id, commit_message=message).commit_url)
        except Exception as error:  # of the HTTP library, the Hub, or ours
            if pause is None or _is_final(error):
                raise ConnectionError(_sentence(error, repo_id)) from error
            time.sleep(pause)
    raise AssertionError


def _status(error: Exception) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _is_final(error: Exception) -> bool:
    """Whether another attempt would end the same way."""
    if isinstance(error, (LocalTokenNotFoundError, OfflineModeIsEnabled, ValueError)):
        return True
    status = _status(error)
    return status is not None and 400 <= status < 500 and status not in _BUSY


def _sentence(error: Exception, repo_id: str) -> str:
    status = _status(error)
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return f"The Hub does not know you; log in with `hf auth login` or set HF_TOKEN to push to {repo_id}."
    if status == 403:
        return f"Your token may not write to {repo_id}; use one with write access."
    if isinstance(error, OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set; unset it to push to {repo_id}."
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{repo_id} could not be pushed: {lines[0][:200]}"


def main() -> None:
    """Upload what the command line names; print the URL, or the sentence and exit with 1."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("repo_id")
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--message", default="Upload model")
    parser.add_argument("--silence", type=float, default=SILENCE)
    parser.add_argument("--pauses", type=float, nargs="*", default=PAUSES)
    arguments = vars(parser.parse_args())
    try:
        print(upload(arguments.pop("folder"), arguments.pop("repo_id"), **arguments))
    except ConnectionError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
