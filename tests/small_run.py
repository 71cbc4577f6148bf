"""Build the flags for a short run of scripts/train.py on a few small images."""

from conftest import ROOT, SMALL_RESNET

TORCHRUN = (  # arguments of Python that start two processes, which meet at a free port
    *("-m", "torch.distributed.run", "--standalone", "--local_addr", "127.0.0.1"),
    *("--nproc_per_node", "2"),
)


def flags(folder, output_dir, **changes):
    """List the flags of a run on a data set folder; `changes` replaces settings, and `None` leaves one out."""
    settings = {
        "config": ROOT / "configs/quickstart.yaml",
        "backbone": SMALL_RESNET,
        "dataset": "folder",
        "data_dir": folder,
        "output_dir": output_dir,
        "crop_size": "32 32",
        "hidden_size": 8,
        "auxiliary_hidden_size": 8,
        "projection_dim": 8,
        "class_weights": "[1,1,1]",
        "batch_size": 2,
        "max_steps": 4,
        "validation_steps": 2,
        "checkpointing_steps": 2,
        "logging_steps": 1,
        "num_workers": 0,
        "report_to": "none",
        **changes,
    }
    return [word for key, value in settings.items() if value is not None for word in (f"--{key}", *str(value).split())]
