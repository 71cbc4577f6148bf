import math

import torch
from accelerate import Accelerator

from msctr_hf.training.logs import RunningMeans


def test_means_leave_out_what_was_not_measured_but_never_a_loss():
    means, accelerator = RunningMeans(), Accelerator(cpu=True)
    means.update({"loss": torch.tensor(1.0)}, {"anchors": 4.0, "cosine": torch.tensor(0.5), "never": math.nan})
    means.update({"loss": torch.tensor(2.0)}, {"anchors": 6.0, "cosine": math.nan, "never": math.nan})
    assert means.report(accelerator) == {"loss": 1.5, "anchors": 5.0, "cosine": 0.5}

    means.update({"loss": torch.tensor(math.nan)}, {})
    means.update({"loss": torch.tensor(2.0)}, {})
    assert math.isnan(means.report(accelerator)["loss"])
