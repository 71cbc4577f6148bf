"""Compare objective, training data and evaluation with straightforward code, as ratios within one run.

    python scripts/benchmark.py loss                 # the contrastive loss, within and across scales
    python scripts/benchmark.py sampling             # sampling the anchors of a stage, with the gradient of its map
    python scripts/benchmark.py together             # the whole objective: sampling at four stages, six terms
    python scripts/benchmark.py options              # hard anchors and any positive, beside the defaults
    python scripts/benchmark.py projection           # projecting sampled pixels instead of whole maps
    python scripts/benchmark.py data                 # training samples, from files to augmented crops
    python scripts/benchmark.py upsampling           # from logits to classes at the size of the labels
    python scripts/benchmark.py metric               # from classes to mean IoU
    python scripts/benchmark.py large_images         # memory and speed with images of 12,000 x 9,000 pixels
    python scripts/benchmark.py search --threads 2   # a click searched in 100 images
    python scripts/benchmark.py step --config configs/cityscapes/hrnet_w48.yaml --batch_size 2
    python scripts/benchmark.py unlabeled --config configs/camvid/upernet_efficientnet_lite0.yaml --batch_size 4
    python scripts/benchmark.py peers                # beside other libraries; pip install ".[peers]"

Each command prints a table and writes it, with a description of the machine, to benchmark_NAME.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from msctr_hf.commands.command_line import one_sentence
from msctr_hf.commands.spelling import SpellingParser
from msctr_hf.errors import UsageError
from msctr_hf.training.description import git_commit
from msctr_hf.training.run_folder import write_json

from . import contrast, data, evaluation
from .large_images import large_images
from .measuring import describe_machine, markdown_table, misses_target
from .peers import PARTS, Sizes, missing_peers, peers
from .search import search
from .step import Setting, training_step
from .unlabeled import unlabeled

PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def main(argv: Sequence[str]) -> None:
    """Run the benchmark that the command line names."""
    options = parser().parse_args(argv)
    with one_sentence():
        measure(options)


def measure(options: argparse.Namespace) -> None:
    """Print and write one table; with `--check` exit with code 1 if a ratio misses its target."""
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch sees no GPU; use --device cpu.")
    torch.set_num_threads(options.threads)
    rows = options.measure(options, device)
    print(markdown_table(rows))
    write_json(
        Path(options.output or f"benchmark_{options.what}.json"),
        {"command": " ".join(sys.argv), "git_commit": git_commit(), **describe_machine(device), "rows": rows},
    )
    if options.what == "peers" and missing_peers():
        print(f'Not installed, so not compared: {", ".join(missing_peers())}. To install all: pip install ".[peers]"')
    missed = [row for row in rows if misses_target(row)]
    print(f"{len(missed)} of {len(rows)} rows miss their target" + (":\n" + markdown_table(missed) if missed else ""))
    if missed and options.check:
        sys.exit(1)


def parser() -> argparse.ArgumentParser:
    """Build the parser, with one subcommand per table."""
    common = SpellingParser("", add_help=False)
    common.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    common.add_argument("--threads", type=_positive, default=1, help="threads on the CPU; targets are set for 1 (1)")
    common.add_argument("--repetitions", type=_positive, help="measured rounds; by default enough for a stable median")
    common.add_argument("--output", help="JSON file (benchmark_NAME.json)")
    common.add_argument("--check", action="store_true", help="exit with code 1 if a ratio misses its target")

    whole = SpellingParser("python scripts/benchmark.py NAME", __doc__)
    names = whole.add_subparsers(dest="what", required=True, metavar="NAME")

    def add(name: str, text: str, measure: Any) -> argparse.ArgumentParser:
        usage = f"python scripts/benchmark.py {name}"
        prog = f"benchmark.py {name}"
        one = names.add_parser(name, usage=usage, prog=prog, description=text, parents=[common], help=text)
        one.set_defaults(measure=measure)
        return one

    loss = add("loss", "compare info_nce_loss with full N x N matrices", lambda o, device: contrast.loss(
        o.sizes, o.classes, o.repetitions, device))  # fmt: skip
    sizes = [500, 1000, 2000, 5000, 10_000]
    loss.add_argument("--sizes", type=_positive, nargs="+", default=sizes, help=f"numbers of anchors ({sizes})")
    loss.add_argument("--classes", type=_positive, nargs="+", default=[19, 150], help="numbers of classes (19 150)")

    sampling = add("sampling", "compare sample_anchors with a loop over pairs", lambda o, device: contrast.sampling(
        o.batch_size, o.repetitions, device))  # fmt: skip
    sampling.add_argument("--batch_size", type=_positive, default=12, help="images per batch (12)")

    together = add("together", "compare the whole objective with a dense one", lambda o, device: contrast.together(
        o.batch_sizes, o.repetitions, device))  # fmt: skip
    together.add_argument("--batch_sizes", type=_positive, nargs="+", default=[2, 6], help="images per batch (2 6)")

    options = add("options", "compare hard anchors and any positive with the defaults", lambda o, device:
        contrast.options(o.batch_sizes, o.sizes, o.classes, o.repetitions, device))  # fmt: skip
    options.add_argument("--batch_sizes", type=_positive, nargs="+", default=[2, 6], help="images per batch (2 6)")
    options.add_argument("--sizes", type=_positive, nargs="+", default=[1000, 10_000], help="anchors (1000 10000)")
    options.add_argument("--classes", type=_positive, nargs="+", default=[19, 150], help="numbers of classes (19 150)")

    projection = add("projection", "compare projecting pixels and maps", lambda o, device: contrast.projection(
        o.batch_size, o.repetitions, device))  # fmt: skip
    projection.add_argument("--batch_size", type=_positive, default=2, help="images per batch (2)")

    add("data", "compare augmentation with the released order of work", lambda o, device: data.data(
        o.repetitions, device))  # fmt: skip

    add("upsampling", "compare upsampling in strips with whole maps", lambda o, device: evaluation.upsampling(
        o.repetitions, device))  # fmt: skip

    add("metric", "compare mean IoU with the stock metric of evaluate", lambda o, device: evaluation.metric(
        o.repetitions, device))  # fmt: skip

    beside = add("peers", "compare with other libraries", lambda o, device: peers(
        o.parts, Sizes(o.anchors, o.image_size, o.training_size), o.repetitions, device))  # fmt: skip
    beside.add_argument("--parts", choices=PARTS, nargs="+", default=list(PARTS), help=f"{' '.join(PARTS)} (all)")
    beside.add_argument("--anchors", type=_positive, nargs="+", default=[1000, 5000], help="of the loss (1000 5000)")
    beside.add_argument("--image_size", type=_positive, default=512, help="side of a predicted image (512)")
    beside.add_argument("--training_size", type=_positive, default=256, help="side of images to train on (256)")

    large = add("large_images", "measure training and prediction of large images", lambda o, device: large_images(
        o.size, o.steps, device))  # fmt: skip
    large.add_argument(
        "--size", type=_positive, nargs=2, default=[9000, 12_000], help="height and width in pixels (9000 12000)"
    )
    large.add_argument("--steps", type=_positive, default=12, help="training steps, at least 2 (12)")

    clicks = add("search", "measure a search by a click", lambda o, device: search(
        o.images, o.repetitions, device))  # fmt: skip
    clicks.add_argument("--images", type=_positive, default=100, help="number of searched images (100)")

    step = add("step", "measure a training step with and without contrast", lambda o, device: training_step(
        o.config, Setting(o.batch_size, o.crop_size, device, PRECISIONS[o.mixed_precision], o.compile,
                          o.channels_last), o.repetitions))  # fmt: skip
    step.add_argument("--compile", action="store_true", help="compile the network with torch.compile")

    more = add("unlabeled", "measure a training step with images without labels", lambda o, device: unlabeled(
        o.config, Setting(o.batch_size, o.crop_size, device, PRECISIONS[o.mixed_precision],
                          channels_last=o.channels_last), o.repetitions))  # fmt: skip
    for one in (step, more):
        one.add_argument("--config", required=True, help="YAML file of the network")
        one.add_argument("--batch_size", type=_positive, default=2, help="labeled images per batch (2)")
        one.add_argument(
            "--crop_size", type=_positive, nargs=2, default=[512, 1024], help="height and width in pixels (512 1024)"
        )
        one.add_argument(
            "--mixed_precision", choices=PRECISIONS, default="no", help="precision of autocast: no, bf16 or fp16 (no)"
        )
        one.add_argument("--channels_last", action="store_true", help="keep the channels last in memory")
    return whole


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number
