"""Prediction and evaluation on a device: the classes of the CPU, but for near-ties."""

import contextlib

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from conftest import ROOT
from gpu_parts import part, tf32
from PIL import Image

from msctr_hf import MsctrForSemanticSegmentation, MsctrImageProcessor, load_segmentation_dataset
from msctr_hf.evaluation.inference import most_probable_classes, predict_probabilities
from msctr_hf.evaluation.predictor import load_predictor
from msctr_hf.evaluation.scoring import score_dataset
from msctr_hf.evaluation.settings import InferenceSettings

EXAMPLE = str(ROOT / "examples/street_scenes")
WAYS = {
    "whole images": {},
    "scales and mirror images": {"scales": (0.75, 1.0), "flip": True},
    "windows": {"window_size": (96, 128), "window_stride": (64, 96), "flip": True},
}
# Classes may differ where the two largest probabilities of the CPU differ by less: a probability changes by at most a
# quarter of the change of a logit, and the logits of some 10 differ by 1e-5 in float32 and, as every layer rounds by
# 5e-4, by some 0.1 in TensorFloat-32.
TIES = {"float32": 1e-3, "tf32": 0.15}


@contextlib.contextmanager
def accelerate_anew():
    """Let Accelerate choose the device again, as in a new process."""

    def reset():
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    reset()
    yield
    reset()


@pytest.mark.parametrize("precision", TIES)
@pytest.mark.parametrize("way", WAYS)
@part(40)
def test_classes_equal_those_of_the_cpu_but_for_near_ties(device, figures, way, precision):
    images = [Image.open(ROOT / f"examples/images/scene_{number}.png").convert("RGB") for number in range(2)]
    settings = InferenceSettings(**WAYS[way])
    of_cpu, of_device = (load_predictor(EXAMPLE, settings, device=each) for each in ("cpu", device))
    with tf32(products=precision == "tf32", convolutions=precision == "tf32"):
        found = list(of_device(images))
    expected = list(of_cpu(images))
    differing, widest = 0, 0.0
    for image, classes, reference in zip(images, found, expected, strict=True):
        options = {"crop_size" if key == "window_size" else key: value for key, value in WAYS[way].items()}
        options["stride"] = options.pop("window_stride", None)
        options["size_divisor"] = getattr(of_cpu.image_processor, "size_divisor", None) or 1
        options["padding_mode"] = getattr(of_cpu.image_processor, "padding_mode", "constant")
        pixel_values = of_cpu.prepare([image])
        probabilities = predict_probabilities(of_cpu.model, pixel_values, output_size=classes.shape, **options)
        first, second = probabilities.topk(2, dim=1).values[0]
        margins = (first - second).numpy()[classes != reference]
        differing, widest = differing + margins.size, max(widest, float(margins.max(initial=0.0)))
    pixels = sum(classes.size for classes in found)
    figures["differing pixels"], figures["of"], figures["widest margin"] = differing, pixels, widest
    assert differing <= 0.01 * pixels
    assert widest <= TIES[precision]


@part(40)
def test_upsampling_in_strips_equals_that_of_whole_maps(device, figures):
    cases = (
        [(19, (32, 64), (128, 256))]
        if device == "cpu"
        else [(19, (256, 512), (1024, 2048)), (300, (64, 64), (257, 511))]
    )
    for classes, size, target in cases:
        logits = torch.randn(2, classes, *size, device=device)
        for align_corners in (False, True):
            whole = torch.nn.functional.interpolate(
                logits.double(), target, mode="bilinear", align_corners=align_corners
            )
            first, second = whole.topk(2, dim=1).values.unbind(1)
            expected = whole.argmax(1)
            for _ in range(2):  # the second time with places that are already on the device
                found = most_probable_classes([logits], target, align_corners)
                assert found.dtype == (torch.uint8 if classes <= 256 else torch.int64)
                margin = (first - second)[found != expected].amax().item() if (found != expected).any() else 0.0
                figures[f"{classes} classes, widest margin"] = margin
                assert margin <= 1e-4  # logits of up to 5 in float32, times weights that are rounded too


@part(60)
def test_scores_of_a_data_set_equal_those_of_the_cpu(device, figures, monkeypatch):
    dataset = load_segmentation_dataset("synthetic_scenes", "validation").take(2 if device == "cpu" else 16)
    scores = {}
    for each in ("cpu", device):
        with accelerate_anew(), tf32(products=False, convolutions=False):
            predictor = load_predictor(EXAMPLE, device=each)
            accelerator = Accelerator(cpu=each == "cpu")
            assert accelerator.device.type == each
            result = score_dataset(predictor, dataset, num_labels=9, accelerator=accelerator, with_boundaries=True)
            scores[each] = result.confusion.scores()["mean_iou"], result.confusion.matrix
    (mean_iou, matrix), (expected, reference) = scores[device], scores["cpu"]
    moved = int(np.abs(matrix - reference).sum() // 2)
    figures["mean IoU"], figures["of the CPU"], figures["pixels of another class"] = mean_iou, expected, moved
    assert matrix.sum() == reference.sum()
    assert abs(mean_iou - expected) <= 1e-3
    assert expected > 0.3


@part(60, slow_on_cpu=True)
def test_onnx_computes_the_logits_of_the_network(device, figures, tmp_path, tiny_config):
    onnxruntime = pytest.importorskip("onnxruntime")
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    if provider not in onnxruntime.get_available_providers():
        pytest.skip(f"onnxruntime has no {provider} here.")
    from msctr_hf.hub.export import export_network

    model = MsctrForSemanticSegmentation(tiny_config()).eval()
    export_network(model, MsctrImageProcessor(), tmp_path / "exported")
    session = onnxruntime.InferenceSession(tmp_path / "exported/model.onnx", providers=[provider])
    assert session.get_providers()[0] == provider
    names = [output.name for output in session.get_outputs()]
    pixel_values = torch.randn(2, 3, 97, 131)
    logits = session.run(None, {"pixel_values": pixel_values.numpy()})[names.index("logits")]
    with torch.no_grad():
        expected = model(pixel_values).logits.numpy()
    figures["largest difference"] = float(np.abs(logits - expected).max())
    # on a GPU, ONNX Runtime uses TensorFloat-32, with 11 bits
    assert figures.values["largest difference"] <= (1e-4 if device == "cpu" else 2e-2) * max(1, np.abs(expected).max())
