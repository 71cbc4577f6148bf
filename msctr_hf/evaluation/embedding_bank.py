"""Bank of embeddings of a labeled data set: prototypes of every class, and pixels with their image and position."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import nn

from ..errors import UsageError, as_usage_error, first_line, warn_caller
from ..progress import progress
from .embedding_maps import Embedder, EmbeddingTile
from .finite import naming_the_image
from .settings import InferenceSettings, Size

_FORMAT = "msctr embedding bank 1"
_NUMBERS_AT_ONCE = 2**24  # of found rows, while their cosines are computed
_TENSORS = ("prototypes", "prototype_labels", "embeddings", "labels", "images", "pixels")
_K_MEANS_STARTS = 4
# settings of image processors that change no pixel value: what concerns labels, logits, or the loading of code
_NOT_OF_PIXELS = ("align_corners", "auto_map", "do_reduce_labels", "processor_class")


@dataclass(frozen=True)
class EmbeddingBank:
    """Embeddings of the pixels of a labeled data set, by one network.

    Args:
        prototypes (`np.ndarray` of shape `(P, D)`, float32): Unit vectors in the middle of the clusters of each class.
        prototype_labels (`np.ndarray` of shape `(P,)`, int64): Their classes, in ascending order.
        embeddings (`np.ndarray` of shape `(N, D)`, float32): Unit vectors of sampled pixels.
        labels (`np.ndarray` of shape `(N,)`, int64): Classes of the pixels, in ascending order.
        images (`np.ndarray` of shape `(N,)`, int64): Places of their images in `image_ids`.
        pixels (`np.ndarray` of shape `(N, 2)`, int64): Row and column of every pixel in its image.
        image_ids (`tuple[str, ...]`): Ids of the images.
        classes (`tuple[str, ...]`): Names of the classes.
        fingerprint (`str`): `network_fingerprint` of the network.
        features (`str`): Features that were embedded, as in `Embedder`.
        stage (`int`, *optional*): Stage that was embedded; all stages if `None`.
        window_size, window_stride (`tuple[int, int]`, *optional*): Windows with which images were embedded.
        image_processor (`str`, *optional*): `image_processor_fingerprint` of the image processor; `None` of a bank
            that was written before it was kept.
    """

    prototypes: np.ndarray
    prototype_labels: np.ndarray
    embeddings: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    pixels: np.ndarray
    image_ids: tuple[str, ...]
    classes: tuple[str, ...]
    fingerprint: str
    features: str
    stage: int | None = None
    window_size: Size | None = None
    window_stride: Size | None = None
    image_processor: str | None = None

    def neighbors(self, queries: np.ndarray, k: int, *, use_faiss: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Find the most similar pixels of the bank, exactly.

        Args:
            queries (`np.ndarray` of shape `(M, D)`): Unit vectors.
            k (`int`): Number of neighbors of every query.
            use_faiss (`bool`): Search with faiss, which is faster in large banks, instead of scikit-learn.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: cosines (M, k), float32, the largest first, and the places (M, k) of the
            neighbors in `embeddings`, int64.

        Raises:
            UsageError: If the library is missing, or `k` or the vectors do not fit the bank.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if not 1 <= k <= len(self.embeddings):
            raise UsageError(f"`k` must be between 1 and {len(self.embeddings)}, the pixels of the bank, got {k}.")
        if queries.ndim != 2 or queries.shape[1] != self.embeddings.shape[1]:
            raise UsageError(
                f"`queries` must be vectors of {self.embeddings.shape[1]} channels, (M, "
                f"{self.embeddings.shape[1]}), got {queries.shape}."
            )
        return (_search_with_faiss if use_faiss else _search_with_scikit_learn)(self.embeddings, queries, k)

    def save(self, path: str | Path) -> None:
        """Write the bank to one safetensors file, which replaces a bank that is there.

        Raises:
            UsageError: If the file cannot be written, or is there and is not a bank.
        """
        path = Path(path)
        refuse_other_files(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        facts = json.dumps({each.name: getattr(self, each.name) for each in fields(self) if each.name not in _TENSORS})
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in _TENSORS}
        metadata = {"format": _FORMAT, "facts": facts, "checksum": _checksum(facts, tensors)}
        try:
            with as_usage_error(OSError, SafetensorError, prefix=f"`bank`: {path} cannot be written: "):
                path.parent.mkdir(parents=True, exist_ok=True)
                partial.write_bytes(save(tensors, metadata))  # a file of `save_file` only its owner could read
                partial.replace(path)
        finally:
            with suppress(OSError):  # nothing was written where the folder cannot be
                partial.unlink()


def load_bank(
    path: str | Path, *, embedder: Embedder | None = None, classes: Sequence[str] | None = None
) -> EmbeddingBank:
    """Load a bank that `EmbeddingBank.save` wrote.

    Args:
        path (`str` or `Path`): The file.
        embedder (`Embedder`, *optional*): Network, image processor, features and windows whose embeddings will be
            compared with those of the bank. A bank that does not say its image processor is accepted with a warning.
        classes (`Sequence[str]`, *optional*): Names of the classes that the bank must have, in their order.

    Raises:
        UsageError: If the file is missing, damaged or not a bank, or the bank is of another network, of another image
            processor, of other features, of other windows or of other classes.
    """
    if not Path(path).is_file():
        raise UsageError(f"`bank`: {path} is not a file; `msctr index` writes a bank.")
    metadata = _metadata_of(Path(path))
    if metadata.get("format") != _FORMAT:
        raise UsageError(f"`bank`: {path} is not a bank of embeddings; `msctr index` writes one.")
    damaged = f"`bank`: {path} is damaged; write it anew by `msctr index`."
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
    except (OSError, SafetensorError) as error:
        raise UsageError(damaged) from error
    if metadata.get("checksum") != _checksum(metadata.get("facts", ""), tensors):
        raise UsageError(damaged)
    facts = json.loads(metadata["facts"])
    facts = {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}
    bank = EmbeddingBank(**tensors, **facts)
    if embedder is not None:
        _refuse_other_embeddings(bank, embedder, path)
    if classes is not None and tuple(classes) != bank.classes:
        other = next(
            (pair for pair in zip(bank.classes, classes, strict=False) if pair[0] != pair[1]),
            (f"{len(bank.classes)} classes", f"{len(classes)}"),
        )
        raise UsageError(
            f"`bank`: {path} is of other classes ({other[0]} instead of {other[1]}); write one for these by "
            "`msctr index`."
        )
    return bank


def refuse_other_files(path: str | Path) -> None:
    """Refuse to write a bank to a folder, or over a file that is not a bank.

    Raises:
        UsageError: If something else is there.
    """
    is_folder, path = str(path).endswith(("/", os.sep)), Path(path)  # Path drops the slash
    is_folder |= path.is_dir()
    if is_folder or (path.exists() and _metadata_of(path).get("format") != _FORMAT):
        kind = "a folder" if is_folder else "a file, but not a bank of embeddings"
        raise UsageError(f"`bank`: {path} is {kind}; name another file.")


def network_fingerprint(network: nn.Module) -> str:
    """Return a SHA-256 of the names, types and values of all weights and statistics of a network."""
    digest = hashlib.sha256()
    for name, values in sorted(network.state_dict().items()):
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def image_processor_fingerprint(embedder: Embedder) -> str:
    """Return a SHA-256 of the settings by which the image processor of an embedder makes pixel values of images."""
    settings = json.loads(embedder.predictor.preparation.image_processor.to_json_string())
    of_pixels = {name: value for name, value in settings.items() if name not in _NOT_OF_PIXELS and value is not None}
    return hashlib.sha256(json.dumps(of_pixels, sort_keys=True).encode()).hexdigest()


def describe_embedder(embedder: Embedder) -> dict[str, Any]:
    """Describe all that the embeddings of an image depend on, in a form that JSON can store."""
    settings = embedder.predictor.settings
    return {
        "network": network_fingerprint(embedder.network),
        "image_processor": image_processor_fingerprint(embedder),
        "features": embedder.features,
        "stage": embedder.stage,
        "window_size": None if settings.window_size is None else list(settings.window_size),
        "window_stride": None if settings.window_stride is None else list(settings.window_stride),
    }


def index_dataset(
    embedder: Embedder,
    samples: Iterable[dict[str, Any]],
    classes: Sequence[str],
    *,
    prototypes_per_class: int = 8,
    pixels_per_class: int = 1000,
    seed: int = 0,
) -> EmbeddingBank:
    """Embed a labeled data set, and keep a sample of pixels and the prototypes of every class.

    Images contribute about equally: the sample of a class has one pixel of every image with the class before it has
    two of any. Memory does not grow with the number of images.

    Args:
        embedder (`Embedder`): Network and features.
        samples (`Iterable[dict]`): Rows {image, label, image_id}, each read once.
        classes (`Sequence[str]`): Names of the classes.
        prototypes_per_class (`int`): Number of clusters of a class, whose means are its prototypes.
        pixels_per_class (`int`): Largest number of pixels of a class.
        seed (`int`): Seed of the sample and of k-means.

    Raises:
        UsageError: If no pixel is labeled, or scikit-learn is missing.
        NotFiniteError: If the features of the network are not finite.
    """
    _scikit_learn()  # before the images, which take time
    random = np.random.default_rng(seed)
    kept = [_ClassSample(pixels_per_class) for _ in classes]
    for sample in progress(samples, title="indexing", unit="image"):
        with naming_the_image(sample["image_id"]):
            _add_image(kept, embedder, sample, random)
    found = [label for label, pixels in enumerate(kept) if len(pixels.keys)]
    if not found:
        raise UsageError("No pixel of these images is labeled with a class, so there is nothing to index.")
    image_ids = sorted({image_id for label in found for image_id in kept[label].image_ids})
    place_of = {image_id: place for place, image_id in enumerate(image_ids)}
    prototypes = [_prototypes(kept[label].embeddings, prototypes_per_class, seed) for label in found]
    settings = embedder.predictor.settings
    return EmbeddingBank(
        prototypes=np.concatenate(prototypes),
        prototype_labels=np.repeat(found, [len(each) for each in prototypes]),
        embeddings=np.concatenate([kept[label].embeddings for label in found]),
        labels=np.repeat(found, [len(kept[label].keys) for label in found]),
        images=np.array([place_of[image_id] for label in found for image_id in kept[label].image_ids]),
        pixels=np.concatenate([kept[label].pixels for label in found]),
        image_ids=tuple(image_ids),
        classes=tuple(classes),
        fingerprint=network_fingerprint(embedder.network),
        features=embedder.features,
        stage=embedder.stage,
        window_size=settings.window_size,
        window_stride=settings.window_stride,
        image_processor=image_processor_fingerprint(embedder),
    )


class _ClassSample:
    """Pixels of one class with the smallest keys among all that were offered, in the order of their keys."""

    def __init__(self, size: int):
        self.size = size
        self.keys = np.empty(0)
        self.embeddings: np.ndarray | None = None
        self.pixels = np.empty((0, 2), dtype=np.int64)
        self.image_ids: list[str] = []

    def draw(self, cells: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw cells of an image that the sample has room for; return them with their keys.

        The key of the n-th pixel drawn from an image is n plus a random fraction, so that the pixels with the smallest
        keys come from all images in turn.
        """
        drawn = random.permutation(cells)[: self.size]
        keys = np.arange(len(drawn)) + random.random(len(drawn))
        if len(self.keys) == self.size:
            fits = keys < self.keys[-1]
            drawn, keys = drawn[fits], keys[fits]
        return drawn, keys

    def add(self, keys: np.ndarray, embeddings: np.ndarray, pixels: np.ndarray, image_id: str) -> None:
        """Add pixels of an image, in place of those with the largest keys."""
        if not len(keys):
            return
        every = np.concatenate([self.keys, keys])
        order = np.argsort(every)[: self.size]
        before = embeddings[:0] if self.embeddings is None else self.embeddings
        ids = [*self.image_ids, *[image_id] * len(keys)]
        self.keys, self.image_ids = every[order], [ids[place] for place in order]
        self.embeddings = np.concatenate([before, embeddings])[order]
        self.pixels = np.concatenate([self.pixels, pixels])[order]


def _add_image(
    kept: Sequence[_ClassSample], embedder: Embedder, sample: dict[str, Any], random: np.random.Generator
) -> None:
    """Offer the pixels of an image to the samples of their classes, each at the center of a cell of the map."""
    image, labels = sample["image"], np.asarray(sample["label"])
    drawn: list[tuple[np.ndarray, np.ndarray]] = []  # cells and keys of every class

    def choose(tile: EmbeddingTile) -> np.ndarray:
        of_cells = tile.labels_of_cells(labels, image)
        for label, of_class in enumerate(kept):
            drawn.append(of_class.draw(np.flatnonzero(of_cells == label), random))
        return np.concatenate([cells for cells, _ in drawn])

    embeddings, pixels = embedder.embed_cells(image, choose)
    start = 0
    for of_class, (cells, keys) in zip(kept, drawn, strict=True):
        part = slice(start, start + len(cells))
        of_class.add(keys, embeddings[part], pixels[part], sample["image_id"])
        start += len(cells)


def _prototypes(embeddings: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Return the means of the clusters that k-means finds, as unit rows (at most `number`, D)."""
    number = min(number, len(np.unique(embeddings, axis=0)))
    means = (
        _scikit_learn()
        .KMeans(number, n_init=_K_MEANS_STARTS, random_state=seed)
        .fit(embeddings.astype(np.float64))
        .cluster_centers_
    )
    return (means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def _scikit_learn() -> Any:
    try:
        import sklearn.cluster as cluster
    except ImportError:
        raise UsageError("A bank of embeddings needs scikit-learn: pip install scikit-learn.") from None
    return cluster


def _search_with_scikit_learn(rows: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.neighbors import NearestNeighbors
    except ImportError:
        raise UsageError("Searching a bank needs scikit-learn: pip install scikit-learn.") from None
    found = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(rows).kneighbors(queries, return_distance=False)
    cosines = np.empty(found.shape, np.float32)
    at_once = max(1, _NUMBERS_AT_ONCE // (k * rows.shape[1]))  # the found rows of all queries may not fit into memory
    for start in range(0, len(queries), at_once):
        part = slice(start, start + at_once)
        cosines[part] = np.einsum("md,mkd->mk", queries[part], rows[found[part]])
    return cosines, found


def _search_with_faiss(rows: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        import faiss
    except ImportError:
        raise UsageError("`use_faiss` needs faiss: pip install faiss-cpu, or search with scikit-learn.") from None
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    return index.search(queries, k)


def _refuse_other_embeddings(bank: EmbeddingBank, embedder: Embedder, path: str | Path) -> None:
    for name in ("features", "stage"):
        of_bank, wanted = getattr(bank, name), getattr(embedder, name)
        if of_bank != wanted:
            raise UsageError(f"`bank`: {path} has `{name}={of_bank!r}`, not {wanted!r}.")
    if bank.fingerprint != network_fingerprint(embedder.network):
        raise UsageError(f"`bank`: {path} is of another network; write one for this network by `msctr index`.")
    if bank.image_processor is None:
        warn_caller(
            f"`bank`: {path} does not say with which image processor it was made, so that this one was not compared "
            "with it; a bank that `msctr index` writes anew does."
        )
    elif bank.image_processor != image_processor_fingerprint(embedder):
        raise UsageError(
            f"`bank`: {path} is of another image processor (other mean, size or the like), which changes all "
            "embeddings; write one for this image processor by `msctr index`."
        )
    settings = InferenceSettings(window_size=bank.window_size, window_stride=bank.window_stride)
    of_bank, wanted = _windows(settings), _windows(embedder.predictor.settings)
    if of_bank != wanted:
        raise UsageError(
            f"`bank`: {path} was made with {of_bank}, not with {wanted}, and a pixel has other embeddings where less "
            "around it is seen; use the windows of the bank, or write one for these by `msctr index`."
        )


def _windows(settings: InferenceSettings) -> str:
    """Name the windows of inference by the arguments that make them, with the default stride."""
    if settings.window_size is None:
        return "`window_size=None`"
    return f"`window_size={tuple(settings.window_size)}` and `window_stride={tuple(settings.stride)}`"


def _metadata_of(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file; return none if it is not such a file.

    Raises:
        UsageError: If the file cannot be read, or is one of the format that was cut off or changed.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        with path.open("rb") as file:
            if _FORMAT.encode() in file.read(1 << 20):
                raise UsageError(
                    f"`bank`: {path} is damaged ({first_line(error)}); write it anew by `msctr index`."
                ) from error
        return {}
    except OSError as error:
        raise UsageError(f"`bank`: {path} cannot be read ({error.strerror or first_line(error)}).") from error


def _checksum(facts: str, tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(facts.encode())
    for name, values in tensors.items():
        digest.update(f"{name} {values.dtype} {values.shape}\n".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
