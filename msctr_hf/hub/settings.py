"""Settings of pushes to the Hub, of exports and of conversions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import UsageError
from ..settings import Settings, setting


@dataclass
class DestinationSettings(Settings):
    """Settings of the repository for a model on the Hub, and of what is published with it."""

    _argument_group_name = "Hub"

    hub_model_id: str | None = setting(
        None, help="Repository USER/NAME on the Hub, which is created if it does not exist."
    )
    hub_private: bool = setting(False, help="Create a private repository.", aliases=("hub_private_repo",))
    hub_license: str | None = setting(
        None, help="License of the weights, for the card: 'apache-2.0', 'cc-by-nc-4.0', ..."
    )
    hub_images: bool | None = setting(
        None,
        help="Also publish predictions.png, which shows images of the data set; by default only if these may be shown "
        "to everyone.",
        former=("hub_pictures",),
    )


@dataclass
class HubSettings(DestinationSettings):
    """Settings of pushes of the models of a training run."""

    push_to_hub: bool = setting(False, help="Push every new best model, in the background.")

    def __post_init__(self):
        super().__post_init__()
        if self.push_to_hub and self.hub_model_id is None:
            raise UsageError("`push_to_hub` needs `hub_model_id='USER/NAME'`.")


@dataclass
class PushSettings(DestinationSettings):
    """Settings of a push: folder and repository."""

    _argument_group_name = "model and Hub"

    model: str = setting("", help="OUTPUT_DIR of a run, or another saved folder.")

    def __post_init__(self):
        super().__post_init__()
        if not self.model or not self.hub_model_id:
            raise UsageError("Give the folder and the repository: `model='FOLDER'` `hub_model_id='USER/NAME'`.")


@dataclass
class ExportSettings(Settings):
    """Settings of an export: network, format and sizes."""

    model: str = setting(help="Saved folder or Hub id of any AutoModelForSemanticSegmentation.")
    output_dir: str = setting("exported", help="New folder for the exported network.", is_path=True)
    format: Literal["onnx", "torch"] = setting("onnx", help="Format: ONNX, or a torch.export program.")
    size_multiple: int = setting(
        1,
        help="Number of which heights and widths are multiples, to which the saved image processor pads; window "
        "transformers need 32.",
        at_least=1,
    )
    fixed_size: list[int] | None = setting(
        None, help="Export only for this height and width; by default for any size.", length=2, above=0
    )


@dataclass
class ConversionSettings(Settings):
    """Settings of the conversion of a checkpoint of the paper's released code."""

    _argument_group_name = "checkpoint"

    checkpoint: str = setting(help="Checkpoint of the released code: {'model_state_dict': ...} or a state dict.")
