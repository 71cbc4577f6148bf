"""Serve a page that labels your images, shows which pixels have similar embeddings, and finds them in other images.

msctr demo --model runs/quickstart           # then open http://127.0.0.1:7860

As a Space of the Hub: the two lines `from msctr_hf.commands.demo import main` and `main([])` as app.py,
`msctr_hf[demo] @ git+https://github.com/OWNER/msctr_hf` in requirements.txt, the variable MSCTR_MODEL = USER/NAME.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..evaluation.settings import DemoSettings
from .command_line import CommandLine


def main(argv: Sequence[str]) -> None:
    """Run `msctr demo` with the arguments that follow it on the command line."""
    CommandLine([DemoSettings], __doc__, "demo", flag_names={"source": "examples"}).run(argv, _serve)


def _serve(arguments: DemoSettings) -> None:
    import tempfile
    from pathlib import Path

    from ..evaluation.demo_page import build_page, example_images, launch
    from ..evaluation.predictor import load_predictor

    predictor = load_predictor(arguments.model, device=arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        examples = example_images(arguments.examples, predictor.model.config, folder)
        launch(build_page(predictor, Path(arguments.model).name, examples), arguments.port)
