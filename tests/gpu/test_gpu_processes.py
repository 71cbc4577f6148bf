"""Two processes, each with half of a batch, have the loss and gradients of one process, and synchronized BatchNorm.

With two cards they exchange tensors by NCCL; on one card, which NCCL refuses to share, by gloo.
"""

import collections
import datetime
import functools
import warnings

import torch
import torch.distributed as dist
import torch.multiprocessing
from gpu_parts import SYNC_BATCH_NORM, part, place_of, waiting_place

from msctr_hf import MsctrConfig, MsctrForSemanticSegmentation
from msctr_hf.models.gathered_anchors import _class_sizes_of_all
from msctr_hf.models.stage_anchors import StageSampler
from msctr_hf.training.network import freeze, synchronize_batch_norms

TIMEOUT = datetime.timedelta(seconds=60)
# The host waits for the counts of the micro-batch, for the class sizes of all processes, and in every synchronized
# BatchNorm, which leaves out processes without values. gloo also copies what it exchanges to the host.
LISTED = {place_of(StageSampler._count), place_of(_class_sizes_of_all), SYNC_BATCH_NORM}
COPIED_BY_GLOO = {"models/gathered_anchors.py: forward", "models/gathered_anchors.py: backward"}


def network(device):
    """Build a network without dropout all of whose pixels are anchors; on a CPU, which has no synchronized BatchNorm,
    its statistics are fixed."""
    torch.manual_seed(0)
    config = MsctrConfig(
        backbone_config={"model_type": "timm_backbone", "backbone": "resnet18", "out_indices": [1, 2, 3, 4]},
        decode_head="upernet", hidden_size=16, auxiliary_hidden_size=16, projection_dim=8, dropout=0.0,
        id2label={label: str(label) for label in range(5)}, contrastive_mode="ms_cs", contrastive_gather_anchors=True,
        contrastive_sampling="budget", contrastive_min_anchors_per_class=1, contrastive_max_anchors=10**6,
        contrastive_max_anchors_per_class=10**6,
    )  # fmt: skip
    model = MsctrForSemanticSegmentation(config).double().train()
    if device.type == "cpu":
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                freeze(module)
    return model.to(device)


def batch(device):
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 5, (4, 4, 6), generator=generator).repeat_interleave(16, 1).repeat_interleave(16, 2)
    images = torch.randn(4, 3, 64, 96, generator=generator, dtype=torch.float64)
    return images.to(device), labels.to(device)


def backward(model, images, labels):
    output = model(pixel_values=images, labels=labels)
    output.loss.backward()
    return output.loss.detach().cpu()


def gradient(model):
    return torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.requires_grad])


def one_of_two(rank, folder, device_type, backend):
    """Compute loss and averaged gradient on half of the batch, then count in a second step where the host waits."""
    torch.set_num_threads(1)
    device = (
        torch.device(device_type, rank if backend == "nccl" else 0) if device_type == "cuda" else torch.device("cpu")
    )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=TIMEOUT)
    staged = backend == "gloo" and device.type == "cuda" and not exchanges(device)
    if staged:
        exchange_through_the_host()
    model = network(device)
    if device.type == "cuda":
        model = synchronize_batch_norms(model)
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    images, labels = (side[2 * rank : 2 * rank + 2] for side in batch(device))
    loss = backward(parallel, images, labels)
    result = {"loss": loss, "gradient": gradient(model), "means": running_means(model), "staged": staged}
    result["places"] = places_that_wait(parallel, images, labels) if device.type == "cuda" else {}
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def exchanges(device):
    """Return whether the backend has the operations of gathered anchors for tensors of this device."""
    pair = torch.ones(2, device=device)
    try:
        dist.all_gather_into_tensor(torch.empty(4, device=device), pair)
        dist.reduce_scatter_tensor(torch.empty(1, device=device), pair)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def exchange_through_the_host():
    """Replace the operations by those on copies on the host; everything else stays on the device."""
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):
        setattr(dist, name, functools.partial(exchange_copies, getattr(dist, name)))


def exchange_copies(operation, output, given):
    result = output.cpu()
    operation(result, given.cpu())
    output.copy_(result)


def running_means(model):
    return [buffer.cpu() for name, buffer in model.named_buffers() if name.endswith("running_mean")]


def places_that_wait(model, images, labels):
    counts = collections.Counter()

    def show(message, *_, **__):
        place = waiting_place(message)
        if place is not None:
            counts[place] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        torch.cuda.set_sync_debug_mode("warn")
        loss = model(pixel_values=images, labels=labels).loss
        loss.backward()
        torch.cuda.set_sync_debug_mode("default")
    return dict(counts)


@part(120, slow_on_cpu=True)
def test_two_processes_equal_one_process_with_the_whole_batch(device, figures, tmp_path):
    backend = "nccl" if device == "cuda" and torch.cuda.device_count() > 1 else "gloo"
    figures["backend"] = backend
    torch.multiprocessing.spawn(one_of_two, args=(str(tmp_path), device, backend), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    figures["places that wait in a step"] = first["places"]
    figures["anchors exchanged through the host"] = first["staged"]

    model = network(torch.device(device))
    loss = backward(model, *batch(device))
    differences = {
        "loss": abs((first["loss"] + second["loss"]) / 2 / loss - 1).item(),
        "gradient": ((first["gradient"] - gradient(model)).norm() / gradient(model).norm()).item(),
        "running means": max(
            (a - b).abs().max().item() for a, b in zip(first["means"], running_means(model), strict=True)
        ),
    }
    figures["differences"] = differences
    assert torch.equal(first["gradient"], second["gradient"])
    # all in float64 but the cross entropy, whose rounding BatchNorm over few values multiplies by some hundred
    assert differences["loss"] <= 1e-6
    assert differences["gradient"] <= 1e-4
    assert differences["running means"] <= 1e-9
    if device == "cuda":
        waiting = {place for place in first["places"] if place.startswith(("models/", SYNC_BATCH_NORM))}
        assert LISTED <= waiting <= LISTED | (COPIED_BY_GLOO if backend == "gloo" else set())
