import contextlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, SWIN_TINY, TIMM_TINY
from pages import blocks
from PIL import ExifTags, Image
from transformers import SegformerImageProcessor

from msctr_hf import MsctrConfig, MsctrForSemanticSegmentation, MsctrImageProcessor, MsctrImageProcessorPil
from msctr_hf.data.images import read_image
from msctr_hf.errors import InputWarning, UsageError
from msctr_hf.evaluation.predictor import Predictor
from msctr_hf.hub import export
from msctr_hf.hub.export import export_network
from msctr_hf.models.decode_heads import DECODE_HEADS, average_cells

onnxruntime = pytest.importorskip("onnxruntime")
ExportedModel = pytest.importorskip("transformers.exporters").ExportedModel


def network(config):
    return MsctrForSemanticSegmentation(config).eval()


@pytest.fixture(scope="module")
def exported_with_padding(tmp_path_factory):
    """Export a network whose images are padded, and return the folder, the network and its image processor."""
    sizes = {"hidden_size": 16, "auxiliary_hidden_size": 16}
    config = MsctrConfig(backbone_config=TIMM_TINY, decode_head="fcn", num_labels=5, **sizes)
    torch.manual_seed(0)
    model, folder = network(config), tmp_path_factory.mktemp("export") / "padded"
    processor = MsctrImageProcessor(size_divisor=32, align_corners=config.align_corners)
    export_network(model, processor, folder)
    return folder, model, processor


@pytest.mark.slow
@pytest.mark.parametrize("decode_head", DECODE_HEADS)
def test_onnx_computes_the_logits_of_the_network_at_other_batches_and_sizes(tiny_config, tmp_path, decode_head):
    model = network(tiny_config(decode_head))
    comparisons = export_network(model, MsctrImageProcessor(), tmp_path / "exported")
    assert [comparison.size for comparison in comparisons] == [(160, 192), (195, 310)]
    assert all(comparison.difference < 1e-4 for comparison in comparisons)

    session = onnxruntime.InferenceSession(tmp_path / "exported/model.onnx")  # runs without transformers
    names = [output.name for output in session.get_outputs()]
    for shape in ((1, 3, 97, 131), (4, 3, 256, 64)):
        pixel_values = torch.randn(shape)
        logits = session.run(None, {"pixel_values": pixel_values.numpy()})[names.index("logits")]
        with torch.no_grad():
            np.testing.assert_allclose(logits, model(pixel_values).logits.numpy(), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGBA", "L", "P"])
def test_the_example_of_the_page_labels_images_of_any_mode_upright_and_at_their_size(exported_with_padding, mode):
    folder, model, processor = exported_with_padding
    pixels = np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8).repeat(7, 0).repeat(7, 1)
    image, exif = Image.fromarray(pixels).convert(mode), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image.save(folder / "image.png", exif=exif)
    code = next(block.code for block in blocks(ROOT / "docs/models.md") if "onnxruntime" in block.code)
    code = code.replace('"exported', f'"{folder}').replace("examples/images/scene_0.png", f"{folder}/image.png")
    found: dict = {}
    exec(code, found)
    expected = next(Predictor(model, processor)([read_image(folder / "image.png")]))
    assert expected.shape == (98, 70)
    assert len(np.unique(expected)) > 1
    assert (found["labels"].numpy() == expected).mean() > 0.999  # logits differ by rounding


@pytest.mark.slow
def test_a_torch_program_loads_and_computes_the_logits_of_the_network(tiny_config, tmp_path):
    model = network(tiny_config())
    export_network(model, MsctrImageProcessor(), tmp_path / "exported", format="torch")
    pixel_values = torch.randn(1, 3, 97, 131)
    trust = {}
    if "trust_remote_code" in inspect.signature(ExportedModel.from_pretrained).parameters:  # transformers 5.24
        with pytest.raises(ValueError, match="trust_remote_code"):
            ExportedModel.from_pretrained(tmp_path / "exported", trust_remote_code=False)
        trust = {"trust_remote_code": True}  # it is a pickle, but this test wrote it
    logits = ExportedModel.from_pretrained(tmp_path / "exported", **trust)(pixel_values=pixel_values)["logits"]
    torch.testing.assert_close(logits, model(pixel_values).logits.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_window_transformers_can_be_exported_for_one_size(tiny_config, tmp_path):
    model = network(tiny_config("fcn", backbone=SWIN_TINY))
    comparisons = export_network(model, MsctrImageProcessor(), tmp_path / "exported", fixed_size=(64, 96))
    assert [(comparison.batch, comparison.size) for comparison in comparisons] == [(1, (64, 96)), (3, (64, 96))]


def test_an_export_that_differs_from_the_network_is_refused_and_leaves_no_files(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_compare", lambda *arguments: export.Comparison(1, (64, 96), 0.26, 1.0))
    with pytest.raises(ValueError, match=r"differ by 0.26 at size \(64, 96\); try `size_multiple=32`"):
        export_network(network(tiny_config("fcn")), MsctrImageProcessor(), tmp_path / "exported", format="torch")
    assert list(tmp_path.iterdir()) == []


class Saved:
    def save_pretrained(self, folder):
        folder.mkdir(exist_ok=True)
        (folder / "model.onnx").touch()


@pytest.mark.parametrize("place", [".", "./", "../work", "new/..", "new", "new/", "../link"])
def test_the_new_folder_may_be_the_working_directory_or_a_link(tiny_config, tmp_path, monkeypatch, place):
    monkeypatch.setattr(export, "_export", lambda *arguments: Saved())
    monkeypatch.setattr(export, "_compare", lambda *arguments: export.Comparison(1, (64, 96), 0.0, 1.0))
    (tmp_path / "work").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    monkeypatch.chdir(tmp_path / "work")
    export_network(network(tiny_config("fcn")), MsctrImageProcessor(), place)
    names = {"new": "work/new", "new/": "work/new", "../link": "target"}
    written = tmp_path / names.get(place, "work")
    assert {"model.onnx", "preprocessor_config.json"} <= {path.name for path in written.iterdir()}
    assert not (written / ".partial").exists()
    assert Path.cwd() == tmp_path / "work"
    assert {path.name for path in tmp_path.iterdir()} <= {"work", "link", "target"}


def quick_export(monkeypatch, *arguments, **options):
    monkeypatch.setattr(export, "_export", lambda *arguments: Saved())
    monkeypatch.setattr(export, "_compare", lambda *arguments: export.Comparison(1, (64, 96), 0.0, 1.0))
    export_network(*arguments, **options)


@pytest.mark.parametrize("cls", [MsctrImageProcessor, MsctrImageProcessorPil])
def test_the_saved_image_processor_pads_to_sizes_that_the_export_accepts(tiny_config, tmp_path, monkeypatch, cls):
    model, given = network(tiny_config("fcn")), cls(size_divisor=12)
    quick_export(monkeypatch, model, given, tmp_path / "exported", size_multiple=32)
    saved = cls.from_pretrained(tmp_path / "exported")
    assert (saved.size_divisor, given.size_divisor) == (96, 12)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (75, 100, 3), dtype=np.uint8))
    pixel_values = saved(image, return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (1, 3, 96, 192)
    with torch.no_grad():
        output = model(pixel_values)
    (labels,) = saved.post_process_semantic_segmentation(output, target_sizes=[(75, 100)])
    expected = F.interpolate(output.logits, (96, 192), mode="bilinear")[0, :, :75, :100].argmax(dim=0)
    assert torch.equal(labels, expected)


@pytest.mark.slow
def test_a_window_transformer_that_is_exported_runs_on_what_its_saved_image_processor_prepares(tiny_config, tmp_path):
    model = network(tiny_config("fcn", backbone=SWIN_TINY))
    export_network(model, MsctrImageProcessor(), tmp_path / "exported", size_multiple=32)
    saved = MsctrImageProcessor.from_pretrained(tmp_path / "exported")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (75, 100, 3), dtype=np.uint8))
    pixel_values = saved(image, return_tensors="pt")["pixel_values"]
    session = onnxruntime.InferenceSession(tmp_path / "exported/model.onnx")
    logits = session.run(["logits"], {"pixel_values": pixel_values.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(pixel_values).logits.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("processor", "sizes", "needed"),
    [
        (MsctrImageProcessor(), {"fixed_size": (64, 96)}, "exactly 64 x 96"),
        (MsctrImageProcessor(do_resize=True, size={"height": 64, "width": 96}), {"fixed_size": (64, 96)}, None),
        (SegformerImageProcessor(size={"shortest_edge": 64}), {"size_multiple": 32}, "multiples of 32"),
        (SegformerImageProcessor(size={"height": 64, "width": 96}), {"size_multiple": 32}, None),
        (SegformerImageProcessor(size={"shortest_edge": 64}), {}, None),
    ],
)
@pytest.mark.filterwarnings("error")
def test_an_image_processor_that_prepares_other_sizes_is_reported(
    tiny_config, tmp_path, monkeypatch, processor, sizes, needed
):
    expected = (
        contextlib.nullcontext() if needed is None else pytest.warns(InputWarning, match=f"{needed} pixels only")
    )
    model = network(tiny_config("fcn"))
    with expected:
        quick_export(monkeypatch, model, processor, tmp_path / "exported", **sizes)


@pytest.mark.parametrize("place", ["..", ".", "new/..", "text", "text/exported", "/proc/none/exported"])
@pytest.mark.filterwarnings("ignore:.*cannot be locked")
def test_a_folder_that_cannot_be_written_is_refused_before_the_export(tiny_config, tmp_path, monkeypatch, place):
    monkeypatch.setattr(export, "_export", lambda *arguments: pytest.fail("it was exported"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("text").touch()
    with pytest.raises(UsageError, match=rf"`output_dir`: {re.escape(place)} (is a file|could not be written)"):
        export_network(network(tiny_config("fcn")), MsctrImageProcessor(), place)
    assert [path.name for path in Path().iterdir()] == ["text"]


def test_a_network_that_cannot_be_exported_is_reported_in_one_sentence(tiny_config, tmp_path, monkeypatch):
    model = network(tiny_config("fcn"))
    monkeypatch.setattr(model, "_decode", lambda maps: maps[0].untraceable)
    with pytest.raises(ValueError, match="cannot be exported"):
        export_network(model, MsctrImageProcessor(), tmp_path / "exported", format="torch")


def test_a_folder_that_is_not_empty_is_refused(tiny_config, tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(ValueError, match="is not empty"):
        export_network(network(tiny_config()), MsctrImageProcessor(), tmp_path)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (6, 6), (7, 9), (16, 32)])
@pytest.mark.parametrize("cells", [1, 2, 3, 6])
def test_averaging_by_matrix_products_equals_adaptive_pooling(size, cells):
    features = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(average_cells(features, cells), F.adaptive_avg_pool2d(features, cells))


@pytest.mark.parametrize("format", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_the_lines_that_the_script_prints_run_the_exported_network_in_another_process(
    run_script, tiny_config, tmp_path, format
):
    model = network(tiny_config("fcn"))
    model.save_pretrained(tmp_path / "model")
    MsctrImageProcessor().save_pretrained(tmp_path / "model")
    arguments = ["--model", tmp_path / "model", "--output_dir", tmp_path / "my 'own' export", "--format", format]
    code, out, err = run_script("export.py", *arguments, "--fixed_size", "64", "96")
    assert code == 0, err
    assert out.splitlines()[1].split()[:3] == ["1", "64", "96"]
    printed = out.partition("this runs it:\n")[2]
    assert len(printed.splitlines()) == 4
    saved = tmp_path / "logits.pt"
    keep = f"import torch\ntorch.save(torch.as_tensor(logits), {str(saved)!r})"
    run = subprocess.run([sys.executable, "-c", f"{printed}\n{keep}"], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    with torch.no_grad():
        expected = model(torch.zeros(1, 3, 64, 96)).logits
    torch.testing.assert_close(torch.load(saved), expected, rtol=0, atol=1e-4)
    code, _, err = run_script("export.py", *arguments)
    assert code == 2
    assert "is not empty" in err
