"""Settings of the import of an export of a labeling tool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..data.settings import ImageSettings
from ..settings import default_workers, setting
from .formats import format_names


@dataclass(kw_only=True)
class ImportSettings(ImageSettings):
    """Settings of the import."""

    _argument_group_name = "import"

    source: str | None = setting(None, help="Folder of the export, or its file of annotations.", is_path=True)
    output_dir: str | None = setting(None, help="Folder for the data set; it must be empty or missing.", is_path=True)
    format: str | None = setting(None, help=f"Format, recognized by default: {format_names()}.")
    image_dir: str | None = setting(
        None, help="Folder of the images, where the export does not contain them.", is_path=True
    )
    unannotated_images: Literal["background", "ignore"] | None = setting(
        None,
        help="Labels of images without annotation: background or ignored; by default they are refused, except those "
        "of a test split, which then have no labels. A test split without any annotation never has labels.",
    )
    crowd_regions: Literal["ignore", "class"] | None = setting(
        None,
        help="Labels of crowd regions of COCO (iscrowd): ignored, or their class; by default they are ignored, except "
        "that those of CVAT, which marks every mask so, are refused.",
    )
    ignored_classes: list[str] = setting(
        [], help="Classes whose pixels are ignored, such as background where not every object is labeled."
    )
    validation_share: float | None = setting(
        None,
        help="Share of validation images, with which training and validation images are divided anew; by default the "
        "splits of the export are kept, and 0.1 are for validation if it has no validation split.",
        above=0,
        below=1,
    )
    seed: int = setting(0, help="Seed of the division.")
    group_pattern: str | None = setting(
        None,
        help="Regular expression on names of images; images for which it matches the same text, such as frames of one "
        "video, stay in one split.",
    )
    num_workers: int = setting(default_workers(2), help="Number of worker processes of the check.", at_least=0)
