import gc
import os
import sys
import zlib
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before any Hugging Face library is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # for experiments/, which is not in the wheel
sys.path[:0] = [str(Path(__file__).parent), *(str(Path(__file__).parent / name) for name in ("models", "data"))]

import pytest  # noqa: E402
import torch  # noqa: E402
from gpu_parts import (  # noqa: E402, F401
    asks_for_gpu,
    figures,
    pytest_pyfunc_call,
    record_gpu_parts,
    select_gpu_parts,
)
from skips import pytest_make_collect_report, pytest_runtest_makereport  # noqa: E402, F401

from msctr_hf import MsctrConfig  # noqa: E402
from msctr_hf.data import png_checksums, stored_pixels  # noqa: E402

SMALL_RESNET = "test_resnet"  # 0.4 million parameters, where resnet18 has 11 million
TIMM_TINY = {"model_type": "timm_backbone", "backbone": SMALL_RESNET, "out_indices": [1, 2, 3, 4]}
SWIN_TINY = {
    "model_type": "swin",
    "embed_dim": 12,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 2, 4],
    "window_size": 4,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}


def pytest_configure(config):
    """Train on the CPU, whose results are reproducible, unless the tests for a GPU are run."""
    if not asks_for_gpu(config):
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")


def pytest_collection_modifyitems(config, items):
    """Leave out tests on a GPU, and those marked `long`, unless -m or the name of a test asks for them."""
    select_gpu_parts(config, items)
    items.sort(key=minutes, reverse=True)  # a long test that starts last keeps one worker busy and the other idle
    if "long" in config.option.markexpr or any("::" in argument for argument in config.args):
        return
    left_out = [item for item in items if item.get_closest_marker("long")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("long")]


def minutes(item):
    """Return the minutes that the mark of a slow test states, 0 if it states none."""
    mark = item.get_closest_marker("slow")
    return mark.kwargs.get("minutes", 0) if mark else 0


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def pytest_sessionstart():
    """Do not wait for the disk: what a killed process has written stays, and no test cuts the power."""
    os.fsync = os.fstat  # raises the same error for a wrong file descriptor


def pytest_collection_finish(session):
    """Spare the garbage collector the million objects of imported libraries, which live until the end."""
    record_gpu_parts(session)
    gc.collect()
    gc.freeze()


@pytest.fixture
def tiny_config():
    """Build the configuration of a small network; keyword arguments override its settings."""

    def build(decode_head="upernet", backbone=TIMM_TINY, num_labels=5, **settings):
        backbone = {**backbone, "output_stride": 8} if decode_head == "deeplabv3" else backbone
        defaults = {"hidden_size": 16, "auxiliary_hidden_size": 16, "projection_dim": 8}
        return MsctrConfig(
            backbone_config=backbone,
            decode_head=decode_head,
            id2label={label: f"class {label}" for label in range(num_labels)},
            **{**defaults, **settings},
        )

    return build


@pytest.fixture
def tiny_batch():
    """Two images of 64x96 pixels whose labels are blocks of five classes and ignored pixels."""
    labels = torch.randint(0, 5, (2, 4, 6)).repeat_interleave(16, 1).repeat_interleave(16, 2)
    labels[:, :3] = 255
    return {"pixel_values": torch.randn(2, 3, 64, 96), "labels": labels}


def run_in_this_process(name, *argv):
    """Run a script in this process and return its exit code."""
    import runpy

    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)  # as in a new process
    GradientState._reset_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, argv)])
        patch.setattr(
            sys, "path", [str(ROOT / "scripts"), *sys.path]
        )  # Python, too, puts the folder of a script first
        try:
            runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
        except SystemExit as stop:
            return stop.code or 0
    return 0


@pytest.fixture
def run_script(capsys):
    """Run a script in this process and return (exit code, stdout, stderr)."""

    def run(name, *argv):
        code = run_in_this_process(name, *argv)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(params=["fast decoders", "Pillow"])
def decoder(request, monkeypatch):
    """Read images with the decoders that are used where they are installed, and with Pillow alone."""
    if request.param == "Pillow":
        monkeypatch.setattr(stored_pixels, "pyspng", None)
        monkeypatch.setattr(png_checksums, "inflater", zlib)
        monkeypatch.setattr(stored_pixels, "simplejpeg", None)
    elif stored_pixels.pyspng is None:
        pytest.skip("pyspng and simplejpeg are not installed")
