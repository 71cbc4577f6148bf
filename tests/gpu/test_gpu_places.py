"""The table of CONTRIBUTING lists every place where a step or a validation reads from a device or copies to it."""

import ast
import re

from conftest import ROOT
from gpu_parts import PACKAGE, SYNC_BATCH_NORM
from test_gpu_processes import COPIED_BY_GLOO, LISTED
from test_gpu_training import PROMISED, REPORTED

FILES = [
    *sorted((PACKAGE / "models").glob("*.py")),
    *(
        PACKAGE / "training" / f"{name}.py"
        for name in (
            "class_thresholds", "devices", "logs", "loop", "mean_teacher", "meter", "optimization", "step_guard",
            "validation",
        )
    ),
    *(PACKAGE / "evaluation" / f"{name}.py" for name in ("finite", "inference", "predictor", "scoring")),
    PACKAGE / "evaluation/image_preparation.py",
    PACKAGE / "data/loaders.py",
]  # fmt: skip
READS = {"item", "tolist", "cpu", "numpy", "synchronize"}
OF_THE_HOST = {  # they read tensors that are on the host
    "data/loaders.py: __iter__", "evaluation/image_preparation.py: _shows_whole_images",
    "evaluation/image_preparation.py: _values_of_color", "evaluation/image_preparation.py: colors",
    "evaluation/inference.py: _argmax", "evaluation/scoring.py: results_by_name",
    "models/gathered_anchors.py: gather_rows", "models/misclassified_pixels.py: misclassified_pixels",
    "models/transfers.py: expand_runs",
}  # fmt: skip
OF_NO_STEP = {  # functions for users, and the construction of a network
    "evaluation/predictor.py: load_predictor", "evaluation/predictor.py: probabilities_at",
    "models/anchor_sampling.py: sample_anchors", "models/contrastive_adapter.py: __init__",
    "models/info_nce.py: _sort_by_class", "models/info_nce.py: info_nce_loss",
}  # fmt: skip


def listed():
    section = (ROOT / "CONTRIBUTING.md").read_text().split("\n## What a step on a GPU waits for")[1].split("\n## ")[0]
    rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    return {place for row in rows for place in re.findall(r"`([^`]+: \w+)`", row)}


def nodes_of_functions(file):
    """Yield all nodes of a file, each with the name of the innermost function around it."""

    def visit(node, name):
        for child in ast.iter_child_nodes(node):
            inner = child.name if isinstance(child, ast.FunctionDef) else name
            yield inner, child
            yield from visit(child, inner)

    yield from visit(ast.parse(file.read_text()), None)


def reads_or_copies(node):
    if isinstance(node, ast.Attribute):
        return node.attr == "float64"
    if not isinstance(node, ast.Call):
        return False
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
    to_a_device = called == "to" and any("device" in ast.unparse(argument) for argument in node.args)
    return called in READS | {"to_device"} or to_a_device or any(each.arg == "non_blocking" for each in node.keywords)


def test_every_place_that_is_listed_exists():
    defined = {}
    for place in listed() - {SYNC_BATCH_NORM}:
        file, name = place.split(": ")
        names = defined.setdefault(file, {found for found, _ in nodes_of_functions(PACKAGE / file)})
        assert name in names, place


def test_what_the_parts_allow_is_listed():
    assert {PROMISED, REPORTED} | LISTED | COPIED_BY_GLOO <= listed()


def test_every_place_that_reads_from_a_device_or_copies_to_one_is_listed():
    found = {
        f"{file.relative_to(PACKAGE)}: {name}"
        for file in FILES
        for name, node in nodes_of_functions(file)
        if reads_or_copies(node)
    }
    assert found - listed() == OF_THE_HOST | OF_NO_STEP
