"""Entry point of the command `msctr`, outside the package so that help and misspelled commands do not load torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence

COMMANDS = {
    "train": "train a network, with or without contrast",
    "evaluate": "score a network on a data set: mean IoU and a report",
    "predict": "label images",
    "import": "turn the export of a labeling tool into a checked data set",
    "prepare": "check a data set, and make a copy that loads faster",
    "export": "export a network to ONNX or torch.export",
    "push": "push a trained model to the Hub",
    "convert": "convert a checkpoint of the paper's released code",
    "embeddings": "plot embeddings of pixels by class, and their similarity to one pixel",
    "index": "keep embeddings of a labeled data set in one file, with prototypes of every class",
    "check-labels": "rank the regions of a labeled data set whose labels are probably wrong",
    "find": "find in other images what is like a pixel or a box of one image",
    "demo": "serve a web page that labels your images",
}
_WIDTH = max(map(len, COMMANDS)) + 2
_HELP = f"""usage: msctr COMMAND [...]

Semantic segmentation with multi-scale and cross-scale contrast (https://arxiv.org/abs/2203.13409).

commands:
{chr(10).join(f"  {name:<{_WIDTH}}{text}" for name, text in COMMANDS.items())}

`msctr COMMAND --help` lists the flags of a command; `msctr --version` prints the version.
On several GPUs: accelerate launch -m msctr_hf train ..."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names; exit with code 2 if it is missing or unknown."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in (["-h"], ["--help"]):
        print(_HELP)
    elif arguments[:1] == ["--version"]:
        from importlib.metadata import version

        print(version("msctr_hf"))
    elif arguments and arguments[0] in COMMANDS:
        import importlib

        importlib.import_module(module_of(arguments[0])).main(arguments[1:])
    else:
        print(_unknown_command(arguments[0]) if arguments else _HELP, file=sys.stderr)
        sys.exit(2)


def module_of(command: str) -> str:
    """Return the module of a command: that of `check-labels` is `check_labels`."""
    return f"msctr_hf.commands.{command.replace('-', '_')}"


def _unknown_command(word: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(word, COMMANDS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"error: `msctr {word}` is not a command.{hint} Commands: {', '.join(COMMANDS)}."


if __name__ == "__main__":
    main()
