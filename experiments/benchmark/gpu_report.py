"""Print what `make gpu` measured as the section of docs/benchmarks.md: python scripts/gpu_report.py"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "results"
NOT_MEASURED = "Not measured: `make gpu`, on a machine with an NVIDIA GPU, writes `gpu_NAME.json` to `results/`."
NETWORKS = {"hrnet_w48": "HRNet-W48", "swin_tiny": "UPerNet Swin-T"}
_STEPS = "time_and_memory_of_a_training_step"


def main(argv: Sequence[str]) -> None:
    """Print the section of all files in results/, or of those on the command line."""
    print(gpu_section(map(Path, argv) if argv else sorted(RESULTS.glob("gpu_*.json"))))


def gpu_section(files: Iterable[Path]) -> str:
    """Format the figures of every card, or say that none was measured."""
    cards = [_card(json.loads(file.read_text()), file.name) for file in files]
    return "\n\n".join(cards) or NOT_MEASURED


def _card(content: Mapping[str, Any], file: str) -> str:
    parts = content["parts"]
    figures = {name: part.get("figures", {}) for name, part in parts.items()}
    passed = sum(part["passed"] is True for part in parts.values())
    skipped = sum("skipped" in part for part in parts.values())
    failed = [name for name, part in parts.items() if part["passed"] is False]
    # a part that crashed, was killed or never began has no outcome (tests/gpu_parts.py)
    open_ends = [name for name, part in parts.items() if part["passed"] is None and "skipped" not in part]
    versions = content.get("versions", {})
    lines = [
        f"{content['device']}, {content.get('memory_gb')} GB, PyTorch {versions.get('torch')}, CUDA "
        f"{content.get('cuda')}, driver {content.get('driver')} (`{file}`): {passed} parts passed, {len(failed)} "
        f"failed, {skipped} skipped."
        + "".join(f" {what}: {', '.join(n)}." for what, n in (("Failed", failed), ("Not finished", open_ends)) if n)
    ]
    tables = [_steps(figures), _table(("part", "figure"), _other_rows(figures))]
    return "\n\n".join([*lines, *filter(None, tables)])


def _steps(figures: Mapping[str, Any]) -> str:
    rows = []
    for key, name in NETWORKS.items():
        measured = figures.get(f"{_STEPS}[{key}]", {}).get("rows", ())
        of_ce = {row["precision"]: row["step ms"] for row in measured if row["mode"] == "ce"}
        for row in measured:
            ce = of_ce.get(row["precision"])
            rows.append(
                (
                    f"{name}, {row['images']} images of {'x'.join(map(str, row['crop']))}",
                    row["mode"],
                    row["precision"],
                    *(f"{row[f'{phase} ms']:.1f}" for phase in ("forward", "loss", "backward", "optimizer")),
                    f"{row['step ms']:.1f}",
                    f"{row['step ms'] / ce:.2f}" if ce else "",
                    f"{row['images/s']:.1f}",
                    f"{row['peak GB']:.1f}",
                )
            )
    phases = ("forward ms", "loss ms", "backward ms", "optimizer ms")
    return _table(("network", "mode", "precision", *phases, "step ms", "/ ce", "images/s", "peak GB"), rows)


def _other_rows(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    terms = figures.get("time_of_the_six_terms", {})
    for precision in ("float32", "tf32"):
        if precision in terms:
            found, products = terms[precision], terms.get(f"{precision} ms of 12 N x N x D products")
            floor = f"; 12 of their matrix products alone: {products:.1f} ms" if products else ""
            ratio = f"{found['ms'] / found['aim ms']:.1f} times the aim of {found['aim ms']:.0f} ms"
            what = "six terms with {:,} anchors, gradients, " + precision
            rows.append((what.format(terms["anchors"]), f"{found['ms']:.1f} ms ({ratio}{floor})"))
            fewer = terms.get(f"{precision} ms of 1000 anchors")
            rows += [(what.format(1000), f"{fewer:.1f} ms")] if fewer else []
    for stride, row in figures.get("time_of_sampling", {}).items():
        rows.append((f"sampling {row['images']} images, {stride}, gradients", f"{row['ms']:.2f} ms"))
    for name, row in figures.get("time_of_upsampling_and_of_the_metric", {}).items():
        times = f"{row['ours ms']:.2f} ms, {row['ours MB']:.0f} MB (whole maps: {row['whole ms']:.2f} ms, "
        rows.append((f"logits to classes at the size of {name} labels", f"{times}{row['whole MB']:.0f} MB)"))
    run = figures.get("images_per_second_of_a_whole_run_with_workers", {})
    if "images/s" in run:
        where = f"HRNet-W48 with ms_cs, bf16 and {run['workers']} workers, from PNGs of 1024x2048"
        rows.append((where, f"{run['images/s']:.1f} images/s"))
    return rows


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows))
