"""Weights and constants from elsewhere: files of other code bases, runs of ours, and fixed class vectors.

In short, for a config and the names of the classes:

    weights = open_weights("maskrcnn_resnet50_fpn_coco.pth")
    apply_conventions(config, weights.conventions)
    model = build(config.model, len(names))
    variables = take_over(initialize(model, key), weights, names)
"""

import collections
import contextlib
import dataclasses
import pathlib
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from etils import epath
from flax import traverse_util

from maskx_jax.errors import one_line, some
from maskx_jax.structures import PyTree
from maskx_jax.weights.arrays import (
    CLASSIFICATIONS,
    fold_batch_norm,
    names_of_rows,
    num_background_rows,
    rows_of_class,
    rows_of_ours,
    select_classes,
    to_ours,
)
from maskx_jax.weights.files import WeightFile, read_weight_file
from maskx_jax.weights.layouts import LAYOUTS, Layout, check_evidence, field_of, published_size, recognize

if TYPE_CHECKING:
    from maskx_jax.runs.loading import Loaded

# What a source offers for each parameter: the array, or the reason why it has none that fits.
Offers = dict[str, np.ndarray | str]
# The fields of the config, outside of `model`, that belong to weights.
_PASTE_GRID, _KEYPOINTS = "evaluation.paste_grid", ("evaluation.keypoint_grid", "evaluation.keypoint_score")


class Weights(Protocol):
    """Weights that a model can start from.

    Attributes:
      origin: for messages.
      conventions: fields of the config that the weights were trained with, by dotted name.
    """

    @property
    def origin(self) -> str: ...

    @property
    def conventions(self) -> Mapping[str, Any]: ...

    def classes(self, num_rows: int) -> tuple[Sequence[str | None] | None, str]:
        """Return what the rows of class predictors stand for, without background, and how that is known.

        A row without a class is None; so is the whole where nothing is known of any row.

        Raises:
          ValueError: the names that there are do not fit the number of rows.
        """

    def offer(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Offers, Collection[str]]:
        """Return an array for each parameter that there is one for, and the names that none was made of.

        Args:
          shapes: of the model's variables by path, collection first.
        """


@dataclasses.dataclass(frozen=True)
class FileWeights:
    """A file of another code base, or of our own export.

    Attributes:
      file: see `weights.files.read_weight_file`.
      layout: of its names.
      given_classes: names of its classes in the order of its rows, where it has none itself; may be empty.
      assumed: what was taken for granted of the layout, for messages.
    """

    file: WeightFile
    layout: Layout
    given_classes: tuple[str, ...] = ()
    assumed: str = ""

    @property
    def origin(self) -> str:
        said = [self.layout.name]
        if len(self.layout.norm_suffixes) > 2:
            said.append(f"BatchNorm epsilon {self.layout.epsilon:g}")
        if self.file.prefix:
            said.append(f"names without their prefix {self.file.prefix!r}")
        if self.assumed:
            said.append(self.assumed)
        return f"{self.file.path} ({', '.join(said)})"

    @property
    def has_points(self) -> bool:
        """Whether it is a one-stage detector."""
        return self._has(r"head\.classification_head|proposal_generator\.fcos_head|rpn\.head\.cls_tower")

    @property
    def has_regions(self) -> bool:
        """Whether it is a two-stage detector."""
        return not self.has_points and self._has(r"rpn|proposal_generator|conv_rpn|roi_heads|cls_score")

    @property
    def is_c4(self) -> bool:
        """Whether it is a two-stage detector whose regions are pooled from one map, for res5."""
        return self._has(r"conv_rpn_w|roi_heads\.res5|roi_heads\.box_head\.layer4")

    def _has(self, pattern: str) -> bool:
        return any(re.match(pattern, name) for name in self.file.arrays)

    @property
    def conventions(self) -> Mapping[str, Any]:
        layout, metadata = self.layout, self.file.metadata
        conventions = _of_model(layout.backbone_conventions)
        if self.has_points:
            conventions |= _of_model(layout.dense_conventions)
        if self.has_regions:
            conventions |= _of_model(layout.rcnn_conventions) | {_PASTE_GRID: layout.paste_grid}
        if self._has(r"roi_heads\.keypoint_|kps_score"):
            conventions |= zip(_KEYPOINTS, (layout.keypoint_grid, layout.keypoint_score), strict=True)
        if self.is_c4:
            conventions |= _of_model(layout.c4_conventions)
        return conventions if metadata is None else {**conventions, **metadata.conventions}

    def classes(self, num_rows: int) -> tuple[Sequence[str | None] | None, str]:
        metadata = self.file.metadata
        names, where = (metadata.classes, "the file") if metadata else (self.given_classes, "initialize.classes")
        if not names:
            return names_of_rows(num_rows)
        if len(names) != num_rows:
            raise ValueError(f"{self.file.path}: {where} names {len(names)} classes; the predictor has {num_rows}")
        return names, f"named in {where}"

    def offer(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Offers, Collection[str]]:
        layout, arrays = self.layout, self.file.arrays
        paths = {path.partition("/")[2]: shape for path, shape in shapes.items()}
        modules = layout.modules({path.rpartition("/")[0] for path in paths}, arrays.keys())
        offers: Offers = {}
        used: set[str] = set()
        for full_path in shapes:
            collection, _, path = full_path.partition("/")
            module, _, leaf = path.rpartition("/")
            if path not in modules and module not in modules:
                continue
            suffixes = layout.norm_suffixes
            if collection != "frozen":
                suffixes = ((suffixes if module.endswith("_norm") else layout.suffixes)[leaf == "bias"],)
            # Single numbers have names of their own.
            keys = [modules[path]] if path in modules else [modules[module] + suffix for suffix in suffixes]
            used |= set(keys)
            if not all(key in arrays for key in keys):
                continue
            try:
                if collection == "frozen":
                    offers[full_path] = fold_batch_norm([arrays[key] for key in keys], layout.epsilon)[leaf]
                    continue
                rows = arrays[keys[0]].astype(np.float32)
                if rows_of_class(path, paths):
                    rows = rows_of_ours(module, rows, layout.dense_background if self.has_points else layout.background)
                offers[full_path] = to_ours(path, rows, paths)
            except ValueError as error:
                offers[full_path] = str(error)
        ignored = {name for name in arrays for pattern in layout.ignored if re.fullmatch(pattern, name)}
        return offers, arrays.keys() - used - ignored


@dataclasses.dataclass(frozen=True)
class RunWeights:
    """A run of ours."""

    workdir: str
    run: "Loaded"

    @property
    def origin(self) -> str:
        return f"run {self.workdir} at step {self.run.step}"

    @property
    def conventions(self) -> Mapping[str, Any]:
        return conventions_of(self.run.config)

    def classes(self, num_rows: int) -> tuple[Sequence[str | None] | None, str]:
        return self.run.categories.names, "named in the run"

    def offer(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Offers, Collection[str]]:
        arrays = traverse_util.flatten_dict(self.run.variables, sep="/")
        return {path: arrays[path] for path in shapes if path in arrays}, arrays.keys() - shapes.keys()


def conventions_of(config: Any) -> dict[str, Any]:
    """Return the fields of a run's config that belong to its weights; it lacks those that are younger than the run."""
    conventions = {}
    for field in (*sorted(_known_conventions()), _PASTE_GRID, *_KEYPOINTS):
        with contextlib.suppress(KeyError):
            conventions[field] = field_of(config, field)
    return conventions


def _known_conventions() -> dict[str, Any]:
    """Return the fields of `config.model` that some code base has a convention for, each with a value."""
    known: dict[str, Any] = {}
    for layout in LAYOUTS.values():
        known |= _of_model({**layout.backbone_conventions, **layout.rcnn_conventions, **layout.dense_conventions})
    return known


def _of_model(conventions: Mapping[str, Any]) -> dict[str, Any]:
    return {f"model.{field}": value for field, value in conventions.items()}


def open_weights(path: str | pathlib.Path, preset: str = "auto", classes: Sequence[str] = ()) -> Weights:
    """Open the weights at a path: a file of another code base, or the work directory of a run.

    Args:
      path: see `weights.files.read_weight_file` and `runs.loading.load`.
      preset: of a file, a name in `weights.layouts.LAYOUTS`; "auto" recognises it by the names of its arrays.
      classes: of a file, the names of its classes in the order of its rows, where it has none itself.

    Raises:
      FileNotFoundError: there is nothing at the path.
      ValueError: the preset is unknown, classes are given to a source that names its own, or the file cannot be read or
        is of no known network.
    """
    if epath.Path(path).is_dir():
        if classes:
            raise ValueError(f"got initialize.classes {list(classes)}; the run {path} names its own")
        # Runs need ml_collections and Orbax; the weights of other code bases do not.
        from maskx_jax.runs.loading import load

        return RunWeights(str(path), load(path))
    if preset != "auto" and preset not in LAYOUTS:
        raise ValueError(f"got preset {preset!r}; expected 'auto' or one of {', '.join(LAYOUTS)}")
    file = read_weight_file(path)
    layout = recognize(file) if preset == "auto" else LAYOUTS[preset]
    check_evidence(file, layout)
    if file.metadata is not None:
        if classes:
            raise ValueError(f"got initialize.classes {list(classes)}; the file {path} names its own")
        _check_conventions(file.metadata.conventions, path)
    assumed = ""
    if preset == "auto" and layout is LAYOUTS["torchvision_coco"]:
        assumed = f"assumed because of its {published_size(file)}: name another in initialize.preset"
    return FileWeights(file, layout, tuple(classes), assumed)


def _check_conventions(conventions: Mapping[str, Any], path: str | pathlib.Path) -> None:
    """Check the conventions that a file names: they go into the config."""
    known = {**dict.fromkeys((_PASTE_GRID, *_KEYPOINTS), ""), **_known_conventions()}
    for field, value in conventions.items():
        parts = value if isinstance(value, tuple) else ()
        is_plain = all(isinstance(part, int | float) for part in parts)
        if field not in known or type(value) is not type(known[field]) or not is_plain:
            raise ValueError(f"{path}: the metadata sets {field!r} to {str(value)[:50]!r}; it is no such convention")


def apply_conventions(
    config: Any, conventions: Mapping[str, Any], keep: Sequence[str] = (), say: Callable[[str], None] = print
) -> None:
    """Set the fields of the config that weights were trained with, and say what changed.

    Args:
      config: of a run; changed in place.
      conventions: see `Weights.conventions`.
      keep: fields that stay as they are, by dotted name: for weights that were trained with something else after all.
      say: receives a line for each change.

    Raises:
      ValueError: a field to keep is none of the conventions.
    """
    if unknown := [field for field in keep if field not in conventions]:
        raise ValueError(
            f"got {unknown} in initialize.keep; the conventions of these weights are {', '.join(sorted(conventions))}"
        )
    for field, value in conventions.items():
        try:
            current = field_of(config, field)
        except KeyError:
            # Of a part that this model does not have.
            continue
        if current != value and field not in keep:
            say(f"the weights set {field} to {value} (was {current})")
            section, _, leaf = field.rpartition(".")
            field_of(config, section)[leaf] = value


def take_over(
    variables: PyTree,
    weights: Weights,
    names: Sequence[str],
    *,
    new: Sequence[str] = (),
    unused: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> PyTree:
    """Return the variables with the values that the weights have for them, and say key by key what happened.

    Weights of only a backbone leave the other modules as they are. Classes are matched one by one, by name: predictors
    get the rows of those that the source has, and keep their fresh rows for the others. Everything else must fit, or be
    named.

    Args:
      variables: freshly initialised.
      weights: to take.
      names: of the classes, in label order.
      new: regular expressions over whole parameter paths ("box_head/boxes/.*"): these keep their fresh values.
      unused: regular expressions over whole names of the source: these are not asked for.
      say: receives the report.

    Raises:
      ValueError: parameters are missing in the source or have another shape there, or the source has others, and they
        are not named; or a pattern is no regular expression, or one of `new` matches no parameter.
    """
    own = traverse_util.flatten_dict(variables, sep="/")
    paths = {path: path.partition("/")[2] for path in own}
    _check_patterns(new, unused, paths.values())
    kept = {path for path in own if any(re.fullmatch(pattern, paths[path]) for pattern in new)}
    offers, leftover = weights.offer({path: value.shape for path, value in own.items()})
    num_rows, index, note = _match_classes(weights, offers, names)
    shapes = {paths[path]: value.shape for path, value in own.items()}
    fitted = {
        path: _fit(paths[path], value, own[path], rows_of_class(paths[path], shapes), num_rows, index)
        for path, value in offers.items()
        if path not in kept
    }
    loaded = {path: value for path, value in fitted.items() if not isinstance(value, str)}
    unusable = [f"{paths[path]} ({reason})" for path, reason in fitted.items() if isinstance(reason, str)]
    if all(paths[path].startswith("backbone/") for path in offers):
        kept |= {path for path in own if not paths[path].startswith("backbone/")}
    missing = sorted(paths[path] for path in own if path not in offers and path not in kept)
    unexpected = sorted(name for name in leftover if not any(re.fullmatch(pattern, name) for pattern in unused))

    lines = [
        f"{weights.origin}: loaded {len(loaded)} of {len(own)} arrays ({_modules(paths[path] for path in loaded)})",
        *([note] if note else []),
        f"newly initialised: {_modules(paths[path] for path in kept)}",
        f"missing in the source: {some(missing, 8) or 'none'}",
        f"unexpected in the source: {some(unexpected, 8) or 'none'}",
        f"of another shape, or unusable: {some(unusable, 8) or 'none'}",
    ]
    say("\n  ".join(lines))
    problems = {"missing": missing, "unexpected": unexpected, "that do not fit": unusable}
    if any(problems.values()) or not loaded:
        found = "; ".join(f"{len(which)} {what}, such as {which[0]}" for what, which in problems.items() if which)
        raise ValueError(
            f"{weights.origin} does not fit the model: {found or 'nothing in common'}. What may differ is named by "
            "regular expressions: parameters that stay new in initialize.new, names of the source in initialize.unused"
        )
    return traverse_util.unflatten_dict(own | loaded, sep="/")


def _check_patterns(new: Sequence[str], unused: Sequence[str], paths: Collection[str]) -> None:
    for pattern in (*new, *unused):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"pattern {pattern!r} in initialize is no regular expression: {error}") from error
    for pattern in new:
        if not any(re.fullmatch(pattern, path) for path in paths):
            raise ValueError(f"pattern {pattern!r} of the new parameters matches none of the model's")


def _fit(
    path: str, offer: np.ndarray | str, fresh: np.ndarray, size: int, num_rows: int, index: Sequence[int | None]
) -> np.ndarray | str:
    """Return an offer with the rows of our classes, or the reason why it does not fit.

    Args:
      path: of the parameter, without its collection.
      offer: of the source.
      fresh: the parameter as initialised.
      size: rows of each class, see `rows_of_class`.
      num_rows: see `_match_classes`; so is `index`.
      index: for each of our classes its place in the source.
    """
    if isinstance(offer, str):
        return offer
    if not np.isfinite(offer).all():
        return "not finite"
    if index and size:
        rows = select_classes(path, size, offer, fresh, num_rows, index)
        if isinstance(rows, str):
            return rows
        offer = rows
    if offer.shape != fresh.shape:
        return f"{offer.shape} in the source, {fresh.shape} in the model"
    return offer


def untrained_without_source(fresh: PyTree, variables: PyTree, untrained: Sequence[str]) -> tuple[str, ...]:
    """Return a warning for everything that keeps its initial value for good, though no weights were loaded for it.

    Args:
      fresh: variables as they were initialised.
      variables: the same with what `take_over` and `with_class_embeddings` put in; an array that neither replaced is
        the same object in both.
      untrained: regular expressions over whole parameter paths, see `optimizer.split_params`.

    Returns:
      A line for the parameters that the patterns cover, one for BatchNorm's constants and one for class embeddings;
      none where weights were loaded for all of them.
    """
    initial, given = (traverse_util.flatten_dict(tree, sep="/") for tree in (fresh, variables))
    kept: dict[str, list[str]] = collections.defaultdict(list)
    for full_path in sorted(path for path, array in given.items() if initial[path] is array):
        collection, _, path = full_path.partition("/")
        if collection == "frozen":
            is_embedding = path == "mask_weights/embedding"
            kept["random class embeddings" if is_embedding else "constants of BatchNorm"].append(path)
        elif any(re.fullmatch(pattern, path) for pattern in untrained):
            kept["untrained parameters"].append(path)
    remedies = {
        "untrained parameters": "--config.initialize.path, or --config.optimizer.untrained='()'",
        "constants of BatchNorm": "--config.initialize.path, or --config.model.backbone.norm=group",
        "random class embeddings": "--config.embedding.path",
    }
    return tuple(
        f"{what} that no weights were loaded for: "
        f"{some(_groups(kept[what]), 8)} ({len(kept[what])} arrays): set {remedy}"
        for what, remedy in remedies.items()
        if kept[what]
    )


def _groups(paths: Iterable[str]) -> list[str]:
    """Return the modules of paths to the second level, such as "backbone/res2_block0"."""
    return list(dict.fromkeys("/".join(path.split("/")[:2]) for path in paths))


def _match_classes(weights: Weights, offers: Offers, names: Sequence[str]) -> tuple[int, list[int | None], str]:
    """Return the number of the source's classes, for each of ours its place there (None: it has none), and what to say.

    Sources without classes give no rows.
    """
    module = next((name for name in CLASSIFICATIONS if f"params/{name}/bias" in offers), "")
    biases = offers.get(f"params/{module}/bias")
    if biases is None or isinstance(biases, str):
        return 0, [], ""
    num_rows = len(biases) - num_background_rows(module)
    known, note = weights.classes(num_rows)
    if known is None and num_rows == len(names):
        return num_rows, list(range(num_rows)), f"classes: {note}; they are taken for ours in their order"
    place = {name: row for row, name in enumerate(known or ())}
    index = [place.get(name) for name in names]
    new = [name for name in names if name not in place]
    fresh = f"; new, with fresh rows: {some(new, 8)}" if new else ""
    return num_rows, index, f"classes: {len(names) - len(new)} of {len(names)} found by name ({note}){fresh}"


def _modules(paths: Iterable[str]) -> str:
    counts = collections.Counter(path.split("/")[0] for path in paths)
    return ", ".join(f"{module} {count}" for module, count in sorted(counts.items())) or "none"


def load_class_embeddings(path: str | pathlib.Path, names: Sequence[str], table: str) -> np.ndarray:
    """Read fixed class vectors, one row a class, preceded by a row of zeros for background.

    Args:
      path: an `.npz` with the arrays `names` (strings, `K`) and `table` (float, `K e`).
      names: of the classes, in label order.
      table: which array of vectors, for example "glove".

    Raises:
      OSError: the file cannot be opened.
      ValueError: the file is damaged or no `.npz`, the table or a class is not in it, or there is not a row a name.
    """
    with epath.Path(path).open("rb") as opened:
        try:
            with np.lib.npyio.NpzFile(opened, allow_pickle=False) as file:
                found = sorted(file)
                arrays = {name: np.asarray(file[name]) for name in ("names", table) if name in file}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: cannot be read as an .npz of arrays: {one_line(error)}") from error
    if len(arrays) < 2:
        raise ValueError(f"{path}: expected the arrays 'names' and {table!r}; found {found}")
    row_of_name = {str(name): row for row, name in enumerate(arrays["names"].ravel())}
    rows = arrays[table]
    if rows.dtype.kind not in "fiu" or rows.ndim != 2 or len(rows) != arrays["names"].size:
        raise ValueError(
            f"{path}: got {table!r} of {rows.dtype} with shape {rows.shape}; expected numbers, a row for each of "
            f"{arrays['names'].size} names"
        )
    missing = [name for name in names if name not in row_of_name]
    if missing:
        raise ValueError(f"{path}: no vector for {len(missing)} of {len(names)} classes, such as {missing[:5]}")
    chosen = rows[[row_of_name[name] for name in names]].astype(np.float32)
    return np.concatenate([np.zeros((1, chosen.shape[1]), np.float32), chosen])


def with_class_embeddings(variables: PyTree, embeddings: np.ndarray) -> PyTree:
    """Return the variables with the weight transfer's fixed embedding replaced.

    Raises:
      ValueError: the model takes no embedding, or one of another shape.
    """
    frozen = variables.get("frozen", {})
    current = frozen.get("mask_weights", {}).get("embedding")
    if current is None:
        raise ValueError("the model has no class embedding: set model.rcnn.weight_transfer.input to 'embedding'")
    if current.shape != embeddings.shape:
        raise ValueError(f"got embeddings of shape {embeddings.shape}; the model expects {current.shape}")
    mask_weights = {**frozen["mask_weights"], "embedding": embeddings}
    return {**variables, "frozen": {**frozen, "mask_weights": mask_weights}}
