from accelerate import Accelerator

from msctr_hf.training import meter
from msctr_hf.training.logs import RunningMeans
from msctr_hf.training.meter import Meter


def test_images_per_second_exclude_the_time_of_validation_and_saving(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(meter.time, "perf_counter", lambda: clock[0])
    measured = Meter(Accelerator(cpu=True), RunningMeans(), images_per_step=8)
    rates = []
    with measured.running(step=3, max_steps=9):
        for step in range(4, 10):
            clock[0] += 2  # seconds of training
            measured.end_step(None)
            with measured.paused():
                clock[0] += 50  # seconds of validation
                if step in (6, 7, 9):
                    rates.append(measured.report(step, 0.1, 0)["images_per_second"])
    assert rates == [4.0, 4.0, 4.0]
