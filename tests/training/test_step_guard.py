"""Steps with numbers that are not finite change nothing, and the other steps are not affected."""

import pytest
import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import nn

from msctr_hf.data.loaders import _encode
from msctr_hf.training.step_guard import StepGuard, TooManySkippedSteps

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01, fused=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.01, fused=True),
    "not fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.01),
}


class Trained:
    """A small network with BatchNorm that was trained on given batches."""

    def __init__(self, optimizer, images):
        torch.manual_seed(0)
        self.accelerator = Accelerator(cpu=True)
        self.network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))
        self.average = ModelEmaV3(self.network, decay=0.5)
        model, self.optimizer = self.accelerator.prepare(
            self.network, OPTIMIZERS[optimizer](self.network.parameters())
        )
        self.guard = StepGuard(self.accelerator, self.optimizer, self.network)
        self.verdicts = []
        for step, (name, batch) in enumerate(images, 1):
            self.guard.before_forward()
            loss = model(batch).square().mean()
            self.accelerator.backward(loss)
            self.guard.add_batch({"loss": loss.detach()}, _encode(name)[None])
            norm = self.accelerator.clip_grad_norm_(model.parameters(), float("inf"))
            self.guard.update(step, norm, stop=step == 2)
            self.optimizer.zero_grad()
            self.average.update(self.network)
            self.verdicts += self.guard.verdicts(include_newest=False)
        self.verdicts += self.guard.verdicts(include_newest=True)


def batch(seed):
    return torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("spoiled", [[0], [2], [0, 1], [2, 3, 4]])
def test_training_with_a_faulty_batch_equals_training_without_it(optimizer, spoiled):
    images = [(f"city/{n}", batch(n)) for n in range(6)]
    for n in spoiled:
        images[n][1][0, 0, 0, 0] = float("nan") if n % 2 else float("inf")
    trained = Trained(optimizer, images)
    without = Trained(optimizer, [image for n, image in enumerate(images) if n not in spoiled])
    weights_and_statistics = state(trained.network)
    for name, expected in state(without.network).items():
        assert torch.equal(weights_and_statistics[name], expected), name
    faulty = [verdict for verdict in trained.verdicts if verdict.faulty]
    assert [verdict.step - 1 for verdict in faulty] == spoiled
    assert [verdict.faulty.images for verdict in faulty] == [[f"city/{n}"] for n in spoiled]
    assert all(verdict.faulty.terms == ["loss"] for verdict in faulty)


def test_the_average_after_a_faulty_batch_follows_the_weights_and_statistics_before_it():
    images = [(str(n), batch(n)) for n in range(3)]
    images[2][1][:] = float("nan")
    trained, before = (Trained("sgd", images[:end]) for end in (3, 2))
    newest, average = state(before.network), state(before.average.module)
    for name, value in state(trained.average.module).items():
        expected = newest[name] if value.dtype == torch.int64 else (average[name] + newest[name]) / 2
        torch.testing.assert_close(value, expected)


def test_buffers_of_every_kind_are_restored_and_expanded_ones_left_alone():
    layer = nn.BatchNorm2d(2)
    layer.register_buffer("positions", torch.arange(3)[:, None].expand(3, 4))  # as some of transformers are
    layer.register_buffer("scalar", torch.tensor(2.0))
    layer.register_buffer("empty", torch.empty(0, 3))
    layer.register_buffer("turned", torch.arange(6.0).view(2, 3).T)
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(layer, OPTIMIZERS["sgd"](layer.parameters()))
    guard, before = StepGuard(accelerator, optimizer, layer), state(layer)
    guard.before_forward()
    loss = model(torch.full((2, 2, 1, 1), torch.nan)).sum()
    layer.turned += 1
    accelerator.backward(loss)
    guard.add_batch({"loss": loss.detach()}, _encode("a")[None])
    guard.update(1, accelerator.clip_grad_norm_(model.parameters(), 1.0), stop=False)
    for name, value in state(layer).items():
        assert torch.equal(value, before[name]), name


def test_outcomes_are_reported_for_every_step_in_order():
    images = [(str(n), batch(n)) for n in range(4)]
    verdicts = Trained("adamw", images).verdicts
    assert [verdict.step for verdict in verdicts] == [1, 2, 3, 4]
    assert [verdict.stop for verdict in verdicts] == [False, True, False, False]
    assert not any(verdict.faulty for verdict in verdicts)


def test_a_step_whose_gradient_alone_is_not_finite_is_skipped():
    class Spoiled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("inf")

    accelerator, layer = Accelerator(cpu=True), nn.Linear(1, 1)
    model, optimizer = accelerator.prepare(layer, OPTIMIZERS["sgd"](layer.parameters()))
    guard, before = StepGuard(accelerator, optimizer, layer), layer.weight.detach().clone()
    loss = Spoiled.apply(model(torch.ones(1, 1))).square().sum()
    accelerator.backward(loss)
    guard.add_batch({"loss": loss.detach()}, _encode("a")[None])
    guard.update(1, accelerator.clip_grad_norm_(model.parameters(), 1.0), stop=False)
    (verdict,) = guard.verdicts(include_newest=True)
    assert verdict.faulty.terms == ["gradient"]
    assert torch.equal(layer.weight, before)


def test_an_overflow_in_half_precision_is_skipped_and_lowers_the_scale():
    accelerator, layer = Accelerator(cpu=True), nn.Linear(1, 1)
    model, optimizer = accelerator.prepare(layer, OPTIMIZERS["sgd"](layer.parameters()))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)  # Accelerate creates one for GPUs only
    accelerator.scaler = optimizer.scaler = scaler
    optimizer._accelerate_step_called = False
    optimizer._optimizer_original_step_method = optimizer.optimizer.step
    optimizer._optimizer_patched_step_method = optimizer.optimizer.step
    guard, before, verdicts = StepGuard(accelerator, optimizer, layer), layer.weight.detach().clone(), []
    for step, factor in enumerate((float("inf"), 1.0), 1):
        loss = (model(torch.ones(1, 1)) * factor).sum()
        accelerator.backward(loss)
        guard.add_batch({"loss": loss.detach()}, _encode(str(step))[None])
        guard.update(step, None, stop=False)
        optimizer.zero_grad()
        verdicts += guard.verdicts(include_newest=True)
        if step == 1:
            assert torch.equal(layer.weight, before)
            assert scaler.get_scale() == 2.0
    assert not torch.equal(layer.weight, before)
    assert [bool(verdict.faulty) for verdict in verdicts] == [True, False]


class Checked:
    """Run steps with a finite or infinite loss, each followed by a check."""

    def __init__(self, max_skipped):
        self.accelerator, self.layer = Accelerator(cpu=True), nn.Linear(1, 1)
        model, optimizer = self.accelerator.prepare(self.layer, OPTIMIZERS["sgd"](self.layer.parameters()))
        self.model, self.optimizer, self.reported, self.step = model, optimizer, [], 0
        self.guard = StepGuard(
            self.accelerator, optimizer, self.layer, max_skipped=max_skipped,
            report=lambda verdict: self.reported.append(verdict.step),
        )  # fmt: skip

    def __call__(self, *, finite=True, stop=False, wait=False):
        self.step += 1
        self.guard.before_forward()
        loss = self.model(torch.full((1, 1), 1.0 if finite else float("nan"))).sum()
        self.accelerator.backward(loss)
        self.guard.add_batch({"loss": loss.detach()}, _encode(str(self.step))[None])
        self.guard.update(self.step, self.accelerator.clip_grad_norm_(self.layer.parameters(), 1.0), stop=stop)
        self.optimizer.zero_grad()
        return self.guard.check(wait=wait)


def test_too_many_skipped_steps_in_a_row_raise_an_error():
    run = Checked(max_skipped=3)
    for finite in (False, False, True, False, True):
        assert not run(finite=finite).stop
    assert run.reported == [1, 2, 4]
    run(finite=False, wait=True)
    run(finite=False, wait=True)
    with pytest.raises(TooManySkippedSteps, match="3 steps in a row were skipped, up to step 8") as caught:
        run(finite=False, wait=True)
    assert (caught.value.in_a_row, caught.value.verdict.step) == (3, 8)
    assert run.reported == [1, 2, 4, 6, 7, 8]


def test_the_host_reads_the_outcome_of_a_step_one_step_later_unless_it_waits():
    run = Checked(max_skipped=9)
    assert not run(stop=True).stop
    assert run().stop
    assert run(stop=True, wait=True).stop
    run(finite=False)
    assert run.reported == []
    run()
    assert run.reported == [4]
    run(finite=False, wait=True)
    assert run.reported == [4, 6]
