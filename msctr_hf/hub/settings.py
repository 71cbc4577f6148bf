"""Settings of pushing to the Hub, of exports and of conversions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import UsageError
from ..settings import Settings, setting


@dataclass
class DestinationSettings(Settings):
    """Where a model goes on the Hub, and what is published with it."""

    _argument_group_name = "Hub"

    hub_model_id: str | None = setting(None, help="Repository USER/NAME on the Hub; created if it does not exist.")
    hub_private: bool = setting(False, help="Create a private repository.", aliases=("hub_private_repo",))
    hub_license: str | None = setting(
        None, help="License of the weights, for the card: 'apache-2.0', 'cc-by-nc-4.0', ..."
    )
    hub_images: bool | None = setting(
        None,
        help="Also publish predictions.png, which shows images of the data set; by default only if these images are "
        "free.",
        former=("hub_pictures",),
    )


@dataclass
class HubSettings(DestinationSettings):
    """Whether and where the models of a training run are pushed."""

    push_to_hub: bool = setting(False, help="Push every new best model, in the background.")

    def __post_init__(self):
        super().__post_init__()
        if self.push_to_hub and self.hub_model_id is None:
            raise UsageError("`push_to_hub` needs `hub_model_id='USER/NAME'`.")


@dataclass
class PushSettings(DestinationSettings):
    """Which model is pushed, and where it goes."""

    _argument_group_name = "model and Hub"

    model: str = setting("", help="OUTPUT_DIR of a run, or another saved folder.")

    def __post_init__(self):
        super().__post_init__()
        if not self.model or not self.hub_model_id:
            raise UsageError("Give the folder and the repository: `model='FOLDER'` `hub_model_id='USER/NAME'`.")


@dataclass
class ExportSettings(Settings):
    """Which network is exported, and in which format."""

    model: str = setting(help="Saved folder or Hub id of any AutoModelForSemanticSegmentation.")
    output_dir: str = setting("exported", help="New folder for the exported network.", is_path=True)
    format: Literal["onnx", "torch"] = setting("onnx", help="ONNX, or a torch.export program.")
    size_multiple: int = setting(
        1, help="Height and width of images are multiples of this; window transformers need 32.", at_least=1
    )
    fixed_size: list[int] | None = setting(
        None, help="Export for this height and width only; for any size by default.", length=2, above=0
    )


@dataclass
class ConversionSettings(Settings):
    """Which checkpoint of the paper's released code is converted."""

    _argument_group_name = "checkpoint"

    checkpoint: str = setting(help="Checkpoint of the released code: {'model_state_dict': ...} or a state dict.")
