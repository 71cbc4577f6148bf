"""Tab of the demo page in which a visitor clicks pixels of one image and sees what is like them in other images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ..errors import UsageError
from ..models.pixel_embeddings import FEATURES
from .embedding_maps import Embedder, EmbeddingTile, embedding_network
from .finding import Compared, EmbeddedImage, Query, caption, compare, draw_mask
from .predictor import Predictor
from .settings import FindSettings
from .visitor_images import BUTTONS, IMAGE_LIFETIME, describe_fault, read_uploaded, uploaded_path

MAX_SEARCHED = 16  # images
KEPT_BYTES = 256 << 20  # of embeddings, for every visitor
_THUMBNAIL_SIDE = 480  # pixels; found images are shown at this size, which takes little time to encode and to load
_ALL_STAGES = 0  # as a choice of the page, whose components have no value for `None`
_SHOWN: dict[str, Any] = {"interactive": False, "format": "jpeg", "buttons": BUTTONS}  # images that the tab shows


class Embedded(NamedTuple):
    """Uploaded image with its embeddings.

    Args:
        thumbnail (`Image`): The image, as small as it is shown.
        size (`tuple[int, int]`): Height and width at which it was embedded.
        whole (`EmbeddingTile`): Its map; the embeddings are float16, on the CPU.
    """

    thumbnail: Image.Image
    size: tuple[int, int]
    whole: EmbeddingTile


class Match(NamedTuple):
    """Searched image: its cosines, and the image, as small as it is shown."""

    compared: Compared
    thumbnail: Image.Image


Key = tuple[str, str, int | None]  # file, features, stage; a file of the folder of uploads never changes


@dataclass(frozen=True)
class Search:
    """What a visitor searches and what was found.

    Args:
        path (`str`): File of the image that shows what is searched; empty without an image.
        image (`Image`, *optional*): That image, RGB.
        pixels (`tuple[int, ...]`): Row and column of every clicked pixel, one after another.
        matches (`tuple[Match, ...]`): Searched images, the one with the most similar pixel first.
        faults (`tuple[str, ...]`): HTML of a sentence for everything that failed or was left out.
        kept (`Mapping`): Embeddings that the next click uses again, those of the last search first.
    """

    path: str = ""
    image: Image.Image | None = None
    pixels: tuple[int, ...] = ()
    matches: tuple[Match, ...] = ()
    faults: tuple[str, ...] = ()
    kept: Mapping[Key, Embedded] = field(default_factory=dict)

    def marked(self) -> Image.Image | None:
        """Draw the clicked pixels into the image."""
        return None if self.image is None else Query(self.image, self.pixels).marked()


def with_image(search: Search, path: str | None) -> Search:
    """Replace the image that shows what is searched, or remove it; what was clicked and found is forgotten."""
    started = Search(kept=search.kept)
    if path is None:
        return started
    try:
        return replace(started, path=path, image=read_uploaded(path))
    except UsageError as error:
        return replace(started, faults=(describe_fault(error, path),))


def with_pixel(search: Search, row: int, column: int) -> Search:
    """Add a clicked pixel."""
    return replace(search, pixels=(*search.pixels, row, column))


def without_pixels(search: Search) -> Search:
    """Forget the clicked pixels and what was found."""
    return replace(search, pixels=(), matches=(), faults=())


def found_figures(search: Search, threshold: float) -> list[tuple[Image.Image, str]]:
    """Draw the mask of every searched image in yellow, with a caption; the network does not run."""
    figures = []
    for rank, (compared, thumbnail) in enumerate(search.matches, start=1):
        mask = compared.mask(threshold)
        shown = Image.fromarray(mask).resize(thumbnail.size, Image.Resampling.NEAREST)
        text = caption(rank, compared.path.name, compared.score, float(mask.mean()))
        figures.append((draw_mask(thumbnail, np.asarray(shown)), text))
    return figures


class Finder:
    """Search of images of visitors with one network.

    Args:
        predictor (`Predictor`): Network with its image processor.
        kept_bytes (`int`): Most memory of the embeddings that are kept for a visitor.

    Attributes:
        stages (`dict[str, list[int]]`): Stages of every kind of features that the network has.

    Raises:
        UsageError: If the network has no embeddings.
    """

    def __init__(self, predictor: Predictor, kept_bytes: int = KEPT_BYTES):
        self.kept_bytes = kept_bytes
        network = embedding_network(predictor.model)
        self.stages: dict[str, list[int]] = {}
        for features in FEATURES:
            with suppress(ValueError):
                self.stages[features] = network.embedding_stages(features)
        # an adapted model runs a blank image for every `Embedder`
        self._embedder = functools.cache(functools.partial(Embedder, predictor))

    def find(self, search: Search, paths: Sequence[str], features: str, stage: int | None) -> Search:
        """Compare the pixels of images with the clicked pixels.

        Args:
            search (`Search`): Image and clicked pixels, without which nothing is searched.
            paths (`Sequence[str]`): Files of images, of which the first `MAX_SEARCHED` are searched.
            features (`str`): Features of `embed`.
            stage (`int`, *optional*): Stage, from 1, the finest; by default all stages together.
        """
        search = replace(search, matches=(), faults=())
        if search.image is None or not search.pixels:
            return search
        kept = _Kept(search.kept, self.kept_bytes)

        def embed(path: str) -> Embedded:
            return kept.get((path, features, stage), lambda: _embed(self._embedder(features, stage), path))

        try:
            queries = _clicked_vectors(search, embed(search.path).whole)
        except Exception as error:
            return replace(search, faults=(describe_fault(error, search.path),))
        matches, faults = [], []
        for path in paths[:MAX_SEARCHED]:
            try:
                thumbnail, size, whole = embed(path)
            except Exception as error:
                faults.append(describe_fault(error, path))
                continue
            image = EmbeddedImage(whole.embeddings, size, whole.extent)
            matches.append(Match(compare(Path(path), image, queries), thumbnail))
        if len(paths) > MAX_SEARCHED:
            faults.append(f"<p>Only the first {MAX_SEARCHED} of {len(paths)} images are searched.</p>")
        matches.sort(key=lambda match: -match.compared.score)
        return replace(search, matches=tuple(matches), faults=tuple(faults), kept=kept.with_earlier())


class _Kept:
    """Embeddings that are kept for the next search: those of this one, then earlier ones, as many as fit.

    What does not fit is computed again. None of this search is dropped for another of it: images are always searched
    in the same order, so that the embeddings that the next search needs first would be those that it lacks.
    """

    def __init__(self, earlier: Mapping[Key, Embedded], most: int):
        self.earlier, self.most = earlier, most
        self.kept: dict[Key, Embedded] = {}
        self.bytes = 0

    def get(self, key: Key, make: Callable[[], Embedded]) -> Embedded:
        found = self.kept.get(key, self.earlier.get(key))
        if found is None:
            found = make()
        self._keep(key, found)
        return found

    def with_earlier(self) -> dict[Key, Embedded]:
        for key, embedded in self.earlier.items():
            self._keep(key, embedded)
        return self.kept

    def _keep(self, key: Key, embedded: Embedded) -> None:
        needed = embedded.whole.embeddings.nbytes
        if key not in self.kept and self.bytes + needed <= self.most:
            self.kept[key] = embedded
            self.bytes += needed


def _embed(embedder: Embedder, path: str) -> Embedded:
    image = read_uploaded(path)
    size = image.height, image.width
    whole = embedder.whole(image, dtype=torch.float16, device="cpu")
    image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    return Embedded(image, size, whole)


def _clicked_vectors(search: Search, whole: EmbeddingTile) -> torch.Tensor:
    """Return the unit vectors of the clicked pixels, (Q, D)."""
    cells = Query(search.image, search.pixels).cells(whole)
    return torch.nn.functional.normalize(whole.embeddings.flatten(1)[:, cells].T.float(), dim=1)


class Actions:
    """What the controls of the tab do.

    The first argument is what a visitor has searched so far, or `None` at the start and after the server has deleted
    it; a gallery is a list of files as a request has them. All return values of components: the image with the clicked
    pixels first, where it changes, then the search, the figures of the searched images, and HTML of what failed.

    Args:
        finder (`Finder`): Network that searches.
        folder (`str`): Folder of uploads.
    """

    def __init__(self, finder: Finder, folder: str):
        self.finder, self.folder = finder, folder

    def choose(self, search: Search | None, file: Mapping[str, Any] | None) -> list:
        """Show another image to click in, or none."""
        path = None if file is None else uploaded_path(file, self.folder)
        return _clicked_and_found(with_image(search or Search(), path))

    def click(
        self, search: Search, place: tuple[int, int], gallery: Any, features: str, stage: int, threshold: float
    ) -> list:
        """Add a pixel, at a column and a row, and search."""
        search = with_pixel(search, row=place[1], column=place[0])
        return [search.marked(), *self.find(search, gallery, features, stage, threshold)]

    def clear(self, search: Search | None) -> list:
        """Forget the clicked pixels."""
        return _clicked_and_found(without_pixels(search or Search()))

    def find(self, search: Search | None, gallery: Any, features: str, stage: int, threshold: float) -> list:
        """Search again, in other images or by other embeddings."""
        files = [item.get("image") or item["video"] for item in gallery or ()]
        paths = [uploaded_path(file, self.folder) for file in files]
        search = self.finder.find(search or Search(), paths, features, None if stage == _ALL_STAGES else stage)
        return _found(search, threshold)

    def redraw(self, search: Search | None, threshold: float) -> list[tuple[Image.Image, str]]:
        """Draw the masks of another threshold."""
        return found_figures(search or Search(), threshold)

    def stage_choices(self, features: str) -> list[tuple[str, int]]:
        """Return the names and the values of the choices of a stage."""
        return [("all", _ALL_STAGES), *((str(stage), stage) for stage in self.finder.stages.get(features, []))]


def _found(search: Search, threshold: float) -> list:
    return [search, found_figures(search, threshold), "".join(search.faults)]


def _clicked_and_found(search: Search) -> list:
    return [search.marked(), *_found(search, FindSettings.threshold)]  # nothing was found yet


def build_find_tab(predictor: Predictor, examples: Sequence[str]) -> None:
    """Add the components of the tab to the `gradio.Tab` that is open.

    Args:
        predictor (`Predictor`): Network with its image processor.
        examples (`Sequence[str]`): Paths of example images, to click in, and which are searched at first.
    """
    import gradio

    try:
        finder = Finder(predictor)
    except UsageError as error:
        gradio.HTML(describe_fault(error, str(getattr(predictor.model, "name_or_path", ""))), elem_id="find-faults")
        return
    gradio.Markdown(
        "Click what is searched, in one place or in several. In the other images, the pixels that are like any of "
        f"them are yellow. At most {MAX_SEARCHED} images are searched."
    )
    with gradio.Row():
        with gradio.Column(min_width=300):
            upload, clicked, clear = _query_components(examples)
        with gradio.Column(min_width=300):
            actions = Actions(finder, upload.GRADIO_CACHE)
            searched, features, stage, threshold = _search_components(actions, examples)
    faults = gradio.HTML(elem_id="find-faults")
    found = gradio.Gallery(
        label="Most similar first", elem_id="found", columns=3, height="auto", object_fit="contain", **_SHOWN
    )
    state = gradio.State(time_to_live=IMAGE_LIFETIME)

    def click(search: Search | None, gallery: Any, features: str, stage: int, threshold: float, event: Any) -> list:
        if search is None:
            gradio.Warning("The server has deleted this image; pick it again.")
            return actions.clear(search)
        return actions.click(search, event.index, gallery, features, stage, threshold)

    # gradio needs the class, but `from __future__ import annotations` turns annotations into strings
    click.__annotations__["event"] = gradio.SelectData

    def change_features(search: Search | None, gallery: Any, features: str, threshold: float) -> list:
        choices = gradio.Radio(choices=actions.stage_choices(features), value=_ALL_STAGES)
        return [choices, *actions.find(search, gallery, features, _ALL_STAGES, threshold)]

    settings, output = [searched, features, stage, threshold], [state, found, faults]
    # one at a time, since each goes on from the search that the one before has returned
    in_turn: dict[str, Any] = {"concurrency_id": "find", "concurrency_limit": 1}
    # `preprocess=False` passes files themselves, since our messages about damaged images are better than gradio's
    as_sent: dict[str, Any] = {"preprocess": False, **in_turn}
    upload.change(actions.choose, [state, upload], [clicked, *output], **as_sent)
    clicked.select(click, [state, *settings], [clicked, *output], trigger_mode="multiple", **as_sent)
    clear.click(actions.clear, state, [clicked, *output], **in_turn)
    searched.change(actions.find, [state, *settings], output, **as_sent)
    features.input(change_features, [state, searched, features, threshold], [stage, *output], **as_sent)
    stage.input(actions.find, [state, *settings], output, **as_sent)
    threshold.change(actions.redraw, [state, threshold], found, **in_turn)


def _query_components(examples: Sequence[str]) -> tuple[Any, Any, Any]:
    """Add the image that is uploaded, the one in which is clicked, and the button that forgets the clicks."""
    import gradio

    upload = gradio.Image(sources=["upload", "clipboard"], label="Image", height=200, elem_id="find-upload")
    if examples:
        gradio.Examples([[path] for path in examples], [upload], label="Or pick one")
    clicked = gradio.Image(label="Click what is searched", elem_id="clicked", height=320, **_SHOWN)
    return upload, clicked, gradio.Button("Clear the clicks")


def _search_components(actions: Actions, examples: Sequence[str]) -> tuple[Any, Any, Any, Any]:
    """Add the images that are searched, the choices of features and stage, and the threshold."""
    import gradio

    searched = gradio.Gallery(
        list(examples) or None,
        label="Images to search",
        elem_id="searched",
        file_types=["image"],
        columns=4,
        height=320,
        object_fit="contain",
        buttons=[],
        interactive=True,
    )
    names = list(actions.finder.stages)
    features = gradio.Radio([(name.replace("_", " "), name) for name in names], value=names[0], label="Features")
    stage = gradio.Radio(actions.stage_choices(names[0]), value=_ALL_STAGES, label="Stage")
    threshold = gradio.Slider(0, 1, FindSettings.threshold, step=0.01, label="Smallest cosine in a mask")
    return searched, features, stage, threshold
