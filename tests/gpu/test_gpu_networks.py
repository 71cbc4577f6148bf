"""Networks on a device: loss, gradients and logits of float64 on the host, in every precision and memory layout."""

from types import SimpleNamespace

import pytest
import torch
from conftest import SWIN_TINY, TIMM_TINY
from gpu_parts import difference, part, tf32
from test_modeling_msctr import HRNET, NETWORKS

from msctr_hf import MsctrForSemanticSegmentation
from msctr_hf.models.decode_heads import DECODE_HEADS

RESNET = {**TIMM_TINY, "backbone": "resnet18"}
LITE0 = {"model_type": "timm_backbone", "backbone": "tf_efficientnet_lite0", "out_indices": [1, 2, 3, 4]}
CONVNEXT = {
    "model_type": "convnext",
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
BACKBONES = {"resnet": RESNET, "hrnet": HRNET, "swin": SWIN_TINY, "convnext": CONVNEXT, "lite0": LITE0}
PAIRS = {
    f"{head}-{name}": (head, backbone, {})
    for head in DECODE_HEADS
    for name, backbone in BACKBONES.items()
    if head != "deeplabv3" or name == "resnet"  # which needs a backbone with dilated convolutions
}
ALL = {**PAIRS, **{name: row for name, row in NETWORKS.items() if row[2]}}
FEW = {"fcn-hrnet", "deeplabv3-resnet", "ocr-hrnet", "upernet-swin", "upernet-lite0"}

# Largest difference of the loss, of the logits, and of the gradient of all parameters as a vector, all relative. The
# batch has 2 images of 64x96, so that the coarsest BatchNorm averages over 12 values: that multiplies rounding by some
# hundred, and where it moves a value over the kink of a ReLU, a share of the gradient changes. The cross entropy is
# always computed in float32.
BOUNDS = {"float64": (1e-6, 1e-7, 1e-4), "float32": (1e-5, 1e-3, 5e-2)}
# With fewer bits the same networks differ by up to 100 % in the gradient, so that the bound is a multiple of what the
# host differs in a precision of as many bits; TensorFloat-32 has 11 as fp16. An H100 rounds the bf16 gradient of
# ConvNeXt 3.2 times as much as the host, and all others at most 1.5 times.
ROUNDED_AS = {"tf32": "fp16", "fp16": "fp16", "bf16": "bf16"}
LEAST = (1e-2, 2e-2, 5e-2)
MULTIPLE = 4
PRECISIONS = ["float32", "float32 channels_last", "tf32", "fp16", "bf16", "bf16 channels_last"]
CHECKED_ON_THE_CPU = [
    ("fcn-hrnet", "float32"), ("ocr-resnet", "float32 channels_last"), ("upernet-swin", "tf32"),
    ("upernet-lite0", "bf16 channels_last"), ("upernet-convnext", "bf16"),
]  # fmt: skip
SCALE = 2.0**10  # of the loss in fp16, so that small gradients are not rounded to zero


def build(tiny_config, row):
    """Build a network whose loss does not depend on random numbers: without dropout, and all pixels are anchors."""
    head, backbone, settings = row
    config = tiny_config(
        head, backbone, dropout=0.0, contrastive_sampling="budget", contrastive_min_anchors_per_class=1,
        contrastive_max_anchors_per_class=10**6, contrastive_max_anchors=10**6, **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    network = MsctrForSemanticSegmentation(config).double().train()
    for module in network.modules():
        if "DropPath" in type(module).__name__:  # of Swin and ConvNeXt
            module.eval()
    return network


def step(network, batch, precision):
    """Compute loss, logits and the gradient of all parameters as one vector."""
    autocast = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision.split()[0])
    scale = SCALE if autocast == torch.float16 else 1.0
    with torch.autocast(batch["labels"].device.type, dtype=autocast, enabled=autocast is not None):
        output = network(**batch)
    (scale * output.loss).backward()
    gradient = torch.cat([p.grad.flatten().double() / scale for p in network.parameters() if p.requires_grad])
    return SimpleNamespace(loss=output.loss.detach(), logits=output.logits.detach(), gradient=gradient)


def on(network, batch, device, precision):
    dtype = torch.float64 if precision == "float64" else torch.float32
    layout = torch.channels_last if precision.endswith("channels_last") else torch.contiguous_format
    network.to(device, dtype).to(memory_format=layout)
    pixel_values = batch["pixel_values"].to(device, dtype).contiguous(memory_format=layout)
    return network, {"pixel_values": pixel_values, "labels": batch["labels"].to(device)}


def compare(tiny_config, tiny_batch, row, device, precision, figures, wrap=lambda network: network):
    tiny_batch["pixel_values"] = tiny_batch["pixel_values"].double()
    expected = step(build(tiny_config, row), tiny_batch, "float64")
    network, batch = on(build(tiny_config, row), tiny_batch, device, precision)
    with tf32(products=precision == "tf32", convolutions=precision == "tf32"):
        actual = step(wrap(network), batch, precision)
    assert actual.logits.device.type == device
    found, kind = differences(actual, expected), precision.split()[0]
    bounds = BOUNDS.get(kind)
    if bounds is None:
        rounded = step(*on(build(tiny_config, row), tiny_batch, "cpu", "float32"), ROUNDED_AS[kind])
        on_host = differences(rounded, expected)
        figures["the same on the host"] = on_host
        bounds = [max(least, MULTIPLE * each) for least, each in zip(LEAST, on_host, strict=True)]
    figures["loss, logits, gradient"] = found
    assert all(each <= bound for each, bound in zip(found, bounds, strict=True)), (found, bounds)


def differences(actual, expected):
    gradients = actual.gradient.cpu() - expected.gradient
    return (
        difference(actual.loss, expected.loss),
        difference(actual.logits, expected.logits),
        (gradients.norm() / expected.gradient.norm()).item(),
    )


@pytest.mark.parametrize("name", ALL)
@part(40, on_cpu=lambda name: name in FEW)  # tests/models runs all of them on the CPU, which is the host
def test_every_network_in_float64_equals_the_host(tiny_config, tiny_batch, device, figures, name):
    compare(tiny_config, tiny_batch, ALL[name], device, "float64", figures)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["fcn-hrnet", "ocr-resnet", "upernet-swin", "upernet-lite0", "upernet-convnext"])
@part(40, on_cpu=lambda name, precision: (name, precision) in CHECKED_ON_THE_CPU)
def test_a_network_in_every_precision_is_close_to_float64(tiny_config, tiny_batch, device, figures, name, precision):
    compare(tiny_config, tiny_batch, ALL[name], device, precision, figures)


@part(150, slow_on_cpu=True)
def test_a_compiled_network_on_efficientnet_lite0_is_close_to_float64(tiny_config, tiny_batch, device, figures):
    torch._dynamo.reset()
    backend = "inductor" if device == "cuda" else "eager"  # on a CPU inductor would need a compiler for C++
    wrap = lambda network: torch.compile(network, backend=backend)  # noqa: E731
    try:
        compare(tiny_config, tiny_batch, ALL["upernet-lite0"], device, "bf16 channels_last", figures, wrap)
    finally:
        torch._dynamo.reset()
