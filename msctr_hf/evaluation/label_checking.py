"""Search of a labeled data set for regions whose labels are probably wrong.

A bank of embeddings holds pixels of every class from all images (`embedding_bank`). The images are divided into
groups, such as the videos that they are from, and of an image only the pixels of other groups are asked: images of one
group are alike, and would vouch for each other's errors. Every cell of its map of embeddings has

- the votes of its nearest neighbors: how many of them have each class;
- the probabilities that the network gives each class at the center of the cell.

A cell is suspicious where both prefer another class to the label (`label_regions.suggest_classes`). Connected
suspicious cells of one label and one suggestion are a region (`label_regions.find_components`), of which only the
pixels with this label count. Its score is the mean score of its cells times log2(1 + area / smallest area), in pixels:
the same objects have higher scores in images of a higher resolution. The network was often trained with the labels
that it checks, and may have learned their errors.
"""

from __future__ import annotations

import csv
import hashlib
import heapq
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..data.decoding import ReadSamples, files_of, reader_of
from ..data.image_files import name_some
from ..data.predecoded import ReadMapped
from ..errors import UsageError, as_usage_error
from ..progress import progress
from .embedding_bank import EmbeddingBank, describe_embedder, index_dataset, load_bank
from .embedding_maps import Embedder
from .finite import naming_the_image
from .label_regions import Region, find_components, load_regions, pixels_of_cells, save_regions, suggest_classes

STATE_FILE, REGIONS_FILE, TABLE = "check_labels.json", "regions.npz", "suspects.csv"
BLOCKS = 8  # groups of consecutive images, where no pattern names groups
_BANK_FILE, _IMAGES = "bank.safetensors", "images"
_COSINES_AT_A_TIME = 1 << 24  # 64 MB
_NOT_SETTINGS = {
    "network": "the network is another one",
    "image_processor": "the image processor is another one",
    "classes": "the classes are others, or in another order",
    "data": "the images or labels are others",
    "channels": "the network reads other channels",
}


@dataclass(frozen=True)
class Suspects:
    """Regions whose labels are probably wrong, the most suspicious first.

    Args:
        regions (`Sequence[Region]`): The regions.
        groups (`Sequence[str]`): Names of the groups of images.
        state (`Mapping`): What the regions depend on, as `describe_check` returns it.
    """

    regions: Sequence[Region]
    groups: Sequence[str]
    state: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Short checksum of all regions and of what they depend on, which a list of accepted ones must have."""
        digest = hashlib.sha256(json.dumps(self.state, sort_keys=True).encode())
        for each in self.regions:
            digest.update(json.dumps([each.place, each.label, each.suggestion, each.score, each.box]).encode())
            digest.update(np.packbits(each.mask).tobytes())
        return digest.hexdigest()[:16]


def check_labels(
    embedder: Embedder,
    dataset: Dataset,
    classes: Sequence[str],
    output_dir: str | Path,
    *,
    group_pattern: str | None = None,
    neighbors: int = 20,
    boundary_width: int = 1,
    min_area: int = 200,
    top: int = 500,
    pixels_per_class: int = 1000,
    seed: int = 0,
) -> Suspects:
    """Rank the regions of a labeled data set whose labels are probably wrong.

    The bank and the results of every image are kept in `output_dir`, from which a second call continues. In memory are
    the bank, one image with the probabilities of all its cells, and `top` regions.

    Args:
        embedder (`Embedder`): Network and features; its predictor must have the train ids of the data set.
        dataset (`datasets.Dataset`): Rows {image, label, image_id}.
        classes (`Sequence[str]`): Names of the classes.
        output_dir (`str` or `Path`): Folder of the results.
        group_pattern (`str`, *optional*): Regular expression that is searched in every image id; what its first group
            matches, or all of it, is the group of the image. By default, at most eight blocks of consecutive images.
        neighbors (`int`): Number of neighbors that vote.
        boundary_width (`int`): Width of boundaries in cells; regions within them are left out.
        min_area (`int`): Smallest number of pixels of a region.
        top (`int`): Largest number of regions.
        pixels_per_class, seed (`int`): Size and seed of the bank, as for `index_dataset`.

    Raises:
        UsageError: If the folder has other files or the results of another check, the pattern does not fit, or no
            pixel is labeled.
        NotFiniteError: If features or logits of the network are not finite.
    """
    output_dir, image_ids = Path(output_dir), _image_ids(dataset)
    group_of = group_images(image_ids, group_pattern)
    settings = {
        "group_pattern": group_pattern,
        "neighbors": neighbors,
        "boundary_width": boundary_width,
        "min_area": min_area,
        "pixels_per_class": pixels_per_class,
        "seed": seed,
    }
    state = describe_check(embedder, dataset, classes, settings)
    _claim_folder(output_dir, state)
    bank = _bank(embedder, dataset, classes, output_dir / _BANK_FILE, pixels_per_class, seed)
    check = LabelCheck(embedder, bank, group_of, neighbors=neighbors, boundary_width=boundary_width, min_area=min_area)
    best: list[tuple[float, int, int, Region]] = []
    for place in progress(range(len(dataset)), title="checking", unit="image"):
        for number, region in enumerate(_regions_of(check, dataset, place, output_dir / _IMAGES)):
            # of equal scores, the first region is kept
            heapq.heappush(best, (region.score, -place, -number, region))
            if len(best) > top:
                heapq.heappop(best)
    ranked = [region for *_, region in sorted(best, key=lambda entry: entry[:3], reverse=True)]
    return Suspects(ranked, list(dict.fromkeys(group_of.values())), state)


def group_images(image_ids: Sequence[str], pattern: str | None = None) -> dict[str, str]:
    """Find the group of every image id.

    Args:
        image_ids (`Sequence[str]`): Ids in the order of the data set.
        pattern (`str`, *optional*): Regular expression, as for `check_labels`.

    Raises:
        UsageError: If the pattern is not a regular expression, does not match an id, or there is only one group.
    """
    if pattern is None:
        length = -(-len(image_ids) // BLOCKS)
        groups = [f"images {1 + place // length * length} and after" for place in range(len(image_ids))]
        reason = f"The data set has {len(image_ids)} image(s)"
    else:
        groups = _matches(image_ids, pattern)
        reason = f"`group_pattern`: {pattern!r} finds the same group, {groups[:1]}, in all image ids"
    group_of: dict[str, str] = {}
    for image_id, group in zip(image_ids, groups, strict=True):
        group_of.setdefault(image_id, group)
    if len({*group_of.values()}) < 2:
        raise UsageError(f"{reason}; a check needs at least two groups of images, since each is judged by the others.")
    return group_of


class LabelCheck:
    """Search of one image after another for regions whose labels are probably wrong.

    Args:
        embedder (`Embedder`): Network and features.
        bank (`EmbeddingBank`): Pixels that vote.
        group_of (`Mapping[str, str]`): Group of every image id.
        neighbors, boundary_width, min_area (`int`): As for `check_labels`.
    """

    def __init__(
        self,
        embedder: Embedder,
        bank: EmbeddingBank,
        group_of: Mapping[str, str],
        *,
        neighbors: int,
        boundary_width: int,
        min_area: int,
    ):
        self.embedder, self.bank, self.group_of = embedder, bank, group_of
        self.neighbors, self.boundary_width, self.min_area = neighbors, boundary_width, min_area
        self._groups = np.array([group_of[bank.image_ids[image]] for image in bank.images])
        self._asked: tuple[str, torch.Tensor, torch.Tensor] | None = None  # of the group of the last image

    def __call__(self, place: int, sample: Mapping[str, Any]) -> list[Region]:
        """Find the regions of an image.

        Args:
            place (`int`): Place of the image in its data set.
            sample (`Mapping`): Its row {image, label, image_id}.

        Raises:
            NotFiniteError: If features or logits of the network are not finite.
        """
        labels, num_classes = np.asarray(sample["label"]), len(self.bank.classes)
        if not (labels < num_classes).any():
            return []
        embeddings, labels_of_rows = self._voters(self.group_of[sample["image_id"]])
        can_vote = np.bincount(labels_of_rows.cpu().numpy(), minlength=num_classes) > 0
        is_doubted = tile = None
        for tile in self.embedder.tiles(sample["image"]):
            if is_doubted is None:
                centers = tile.pixel_rows, tile.pixel_columns
                cell_labels = labels[np.ix_(*centers)].astype(np.int64)
                probabilities = self.embedder.predictor.probabilities_at(sample["image"], *centers)
                # Votes are costly, and decide nothing where the network agrees with the label.
                is_doubted = _doubted(cell_labels, probabilities)
                suggestions, scores = np.zeros_like(cell_labels), np.zeros(cell_labels.shape)
            part = tile.rows, tile.columns
            asked = is_doubted[part]
            queries = tile.embeddings[:, torch.from_numpy(asked).to(tile.embeddings.device)].T
            votes = count_votes(queries, embeddings, labels_of_rows, self.neighbors, num_classes).cpu().numpy()
            suggestions[part][asked], scores[part][asked] = suggest_classes(
                cell_labels[part][asked], votes, probabilities[part][asked], can_vote
            )
        return list(self._regions(place, sample["image_id"], labels, cell_labels, suggestions, scores, tile.extent))

    def _voters(self, group: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the embeddings (n, D) and labels (n,) of the bank that are not of a group."""
        if self._asked is None or self._asked[0] != group:
            others, device = self._groups != group, next(self.embedder.network.parameters()).device
            rows, labels = (
                torch.from_numpy(each[others]).to(device) for each in (self.bank.embeddings, self.bank.labels)
            )
            self._asked = group, rows, labels
        return self._asked[1:]

    def _regions(
        self,
        place: int,
        image_id: str,
        labels: np.ndarray,
        cell_labels: np.ndarray,
        suggestions: np.ndarray,
        scores: np.ndarray,
        extent: tuple[int, int],
    ) -> Iterator[Region]:
        for component in find_components(cell_labels, suggestions, scores, self.boundary_width):
            pixels = pixels_of_cells(component, cell_labels.shape, extent, labels)
            if pixels is None or (area := int(pixels[2].sum())) < self.min_area:
                continue
            mean = scores[component.part][component.cells].mean()
            score = float(mean * np.log2(1 + area / self.min_area))
            yield Region(place, image_id, component.label, component.suggestion, score, *pixels)


def count_votes(
    queries: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor, neighbors: int, num_classes: int
) -> torch.Tensor:
    """Count the classes of the most similar rows of every query, exactly.

    Args:
        queries (`torch.Tensor` of shape `(M, D)`): Unit vectors.
        rows (`torch.Tensor` of shape `(n, D)`): Unit vectors that are searched.
        labels (`torch.Tensor` of shape `(n,)`, int64): Their classes.
        neighbors (`int`): Number of rows that vote, or all if there are fewer.
        num_classes (`int`): Number of classes.

    Returns:
        `torch.Tensor` of shape `(M, num_classes)`, int32: numbers of votes.
    """
    counts = torch.zeros((len(queries), num_classes), dtype=torch.int32, device=queries.device)
    if not len(rows):
        return counts
    block = max(1, _COSINES_AT_A_TIME // len(rows))
    for part, of_part in zip(queries.split(block), counts.split(block), strict=True):
        nearest = (part @ rows.T).topk(min(neighbors, len(rows)), dim=1, sorted=False).indices
        votes = labels[nearest]
        of_part.scatter_add_(1, votes, torch.ones_like(votes, dtype=torch.int32))
    return counts


def _doubted(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return where cells (h, w) have a label that is not the most probable of all classes, (h, w, C)."""
    of_label = np.take_along_axis(probabilities, np.minimum(labels, probabilities.shape[-1] - 1)[..., None], axis=-1)
    return (labels < probabilities.shape[-1]) & (of_label[..., 0] < probabilities.max(axis=-1))


def describe_check(
    embedder: Embedder, dataset: Dataset, classes: Sequence[str], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Describe all that the regions of a data set depend on, in a form that JSON can store."""
    predictor = embedder.predictor
    return {
        **describe_embedder(embedder),
        "classes": [list(classes), None if predictor.train_ids is None else list(predictor.train_ids)],
        "data": describe_data(dataset),
        "channels": None if predictor.channels is None else list(astuple(predictor.channels)),
        "scales": list(predictor.settings.scales),
        "flip": predictor.settings.flip,
        **settings,
    }


def describe_data(dataset: Dataset) -> str:
    """Compute a checksum of what decides on the images and labels of a data set, without decoding them.

    It covers image ids, the mapping of label values, paths, sizes and times of files, and the contents of files
    that a copy contains.
    """
    digest, reader = hashlib.sha256(json.dumps(_image_ids(dataset)).encode()), reader_of(dataset)
    if isinstance(reader, ReadSamples):
        values, ignored = reader.mapping.values, reader.mapping.ignored
        listed = None if ignored is None else sorted(map(str, ignored))
        digest.update(json.dumps([sorted(map(str, values.items())), listed]).encode())
    for path in _stored_files(dataset):
        facts = path.stat()
        digest.update(json.dumps([str(path.resolve()), facts.st_size, facts.st_mtime_ns]).encode())
    if isinstance(reader, ReadSamples) and reader.embedded:
        for row in dataset.with_format(None):
            for column in ("image", "label"):
                digest.update(hashlib.sha256((row[column] or {}).get("bytes") or b"").digest())
    return digest.hexdigest()


def read_state(output_dir: Path) -> dict[str, Any]:
    """Read what the results in a folder depend on.

    Raises:
        UsageError: If the folder has no results of a check, or their description is damaged.
    """
    path = output_dir / STATE_FILE
    if not path.is_file():
        raise UsageError(
            f"`output_dir`: {output_dir} has no {STATE_FILE}, so it is not the folder of a check of labels."
        )
    with as_usage_error(OSError, ValueError, prefix=f"`output_dir`: {path} is damaged; delete the folder: "):
        return json.loads(path.read_text(encoding="utf-8"))


def save_suspects(suspects: Suspects, classes: Sequence[str], output_dir: Path) -> None:
    """Write suspects.csv, one line for every region, and regions.npz, which has their pixels too."""
    with (output_dir / TABLE).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["rank", "image", "label", "suggestion", "score", "area", "top", "left", "bottom", "right"])
        for rank, each in enumerate(suspects.regions, start=1):
            names = classes[each.label], classes[each.suggestion]
            table.writerow([rank, each.image_id, *names, f"{each.score:.4f}", each.area, *each.box])
    save_regions(output_dir / REGIONS_FILE, suspects.regions, suspects.key)


def _matches(image_ids: Sequence[str], pattern: str) -> list[str]:
    """Return what the first group of a pattern, or all of it, matches in every image id."""
    with as_usage_error(re.error, prefix=f"`group_pattern`: {pattern!r} is not a regular expression: "):
        expression = re.compile(pattern)
    found = [expression.search(image_id) for image_id in image_ids]
    groups = [None if match is None else match[1 if expression.groups else 0] for match in found]
    if missed := [image_id for image_id, group in zip(image_ids, groups, strict=True) if group is None]:
        raise UsageError(
            f"`group_pattern`: {pattern!r} matches nothing in {len(missed)} of {len(image_ids)} image ids: "
            f"{name_some(map(repr, missed))}."
        )
    return groups


def _image_ids(dataset: Dataset) -> list[str]:
    return [str(image_id) for image_id in dataset.with_format(None)["image_id"][:]]


def _stored_files(dataset: Dataset) -> list[Path]:
    """List the files of images and labels, or those of a pre-decoded copy; there are none of other copies."""
    reader = reader_of(dataset)
    if isinstance(reader, ReadMapped):
        splits = sorted({*dataset.with_format(None)["split"][:]})
        return [Path(reader.folder) / f"{split}.{kind}" for split in splits for kind in ("images", "labels")]
    return [path for column in ("image", "label") for path in files_of(dataset, column) or []]


def _claim_folder(output_dir: Path, state: Mapping[str, Any]) -> None:
    """Write to the folder what its results depend on, or compare it with what they do depend on.

    Raises:
        UsageError: If the folder has other files, or the results of another check.
    """
    if output_dir.is_file():
        raise UsageError(f"`output_dir`: {output_dir} is a file.")
    if not (output_dir / STATE_FILE).exists():
        if output_dir.is_dir() and any(output_dir.iterdir()):
            raise UsageError(
                f"`output_dir`: {output_dir} is not empty and has no {STATE_FILE}; choose another folder."
            )
        output_dir.mkdir(parents=True, exist_ok=True)
        partial = output_dir / f".{STATE_FILE}.partial"
        partial.write_text(json.dumps(state, indent=2), encoding="utf-8")
        partial.replace(output_dir / STATE_FILE)
        return
    before = read_state(output_dir)
    for name in {**state, **before}:
        if (was := before.get(name)) != (now := state.get(name)):
            difference = _NOT_SETTINGS.get(name, f"`{name}` was {was} and is now {now}")
            raise UsageError(
                f"`output_dir`: {output_dir} has the results of another check ({difference}); choose another folder, "
                "or delete this one."
            )


def _bank(
    embedder: Embedder, dataset: Dataset, classes: Sequence[str], path: Path, pixels_per_class: int, seed: int
) -> EmbeddingBank:
    """Load the bank of an earlier call, or make it; a damaged one is made anew."""
    with suppress(UsageError):
        return load_bank(path, embedder=embedder, classes=classes)
    path.unlink(missing_ok=True)
    bank = index_dataset(
        embedder,
        dataset,
        classes,
        prototypes_per_class=1,  # they are not used
        pixels_per_class=pixels_per_class,
        seed=seed,
    )
    bank.save(path)
    return bank


def _regions_of(check: LabelCheck, dataset: Dataset, place: int, folder: Path) -> list[Region]:
    """Read the regions of an image that an earlier call found, or find them."""
    path = folder / f"{place:06d}.npz"
    with suppress(OSError, ValueError):  # missing or damaged
        return load_regions(path)[0]
    sample = dataset[place]
    with naming_the_image(sample["image_id"]):
        regions = check(place, sample)
    folder.mkdir(exist_ok=True)
    save_regions(path, regions)
    return regions
