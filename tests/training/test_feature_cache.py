"""What a frozen backbone makes of an image: computed once, the same as without, and no more of it than is allowed."""

import errno
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging as absl_logging

from configs import embedmask
from maskx_jax import files
from maskx_jax.models.build import build
from maskx_jax.models.detector import BackboneDetector
from maskx_jax.training import loop
from maskx_jax.training.feature_cache import FeatureCache
from tests.models.build import NUM_CLASSES, numpy_variables, shapes_batch, tiny_config, tiny_model


def host_batch(flip=False, **options):
    batch = jax.tree.map(np.asarray, shapes_batch(image_size=64, **options))
    return batch.replace(images=batch.images[:, :, ::-1]) if flip else batch


def backbone_of(model):
    return {name: {"backbone": tree["backbone"]} for name, tree in numpy_variables(model).items() if "backbone" in tree}


def computed(model, batch):
    return jax.jit(lambda *inputs: model.apply(backbone_of(model), *inputs, method="maps"))(
        batch.images, batch.image_sizes
    )


def entries(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def assert_close(actual, expected):
    assert actual.keys() == expected.keys()
    for level in expected:
        assert actual[level].dtype == expected[level].dtype
        np.testing.assert_allclose(actual[level], expected[level], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_maps_are_computed_once_and_come_back_to_the_bit(tmp_path, dtype):
    model = tiny_model(dtype=dtype)
    assert isinstance(model, BackboneDetector)
    batch = host_batch()
    first = FeatureCache(model, backbone_of(model), "maps", tmp_path, 10**9).add_to(batch)
    if dtype == "float32":
        assert_close(first.maps, computed(model, batch))
    assert len(entries(tmp_path)) == 2

    again = FeatureCache(model, backbone_of(model), "maps", tmp_path, 10**9)
    read = again.add_to(batch.replace(images=batch.images[::-1], image_sizes=batch.image_sizes[::-1]))
    for level, maps in first.maps.items():
        assert maps.dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(read.maps[level][::-1], maps)
    # They are read: what lies there is believed.
    for file in entries(tmp_path):
        file.write_bytes(bytes(file.stat().st_size))
    assert not any(maps.any() for maps in again.add_to(batch).maps.values())


def test_another_direction_and_another_backbone_are_other_maps(tmp_path):
    model = tiny_model()
    cache = FeatureCache(model, backbone_of(model), "maps", tmp_path, 10**9)
    cache.add_to(host_batch())
    flipped = host_batch(flip=True)
    assert_close(cache.add_to(flipped).maps, computed(model, flipped))
    assert len(entries(tmp_path)) == 4
    other = jax.tree.map(lambda x: x * 0.5, backbone_of(model))
    halved = FeatureCache(model, other, "maps", tmp_path, 10**9).add_to(flipped).maps
    assert len(entries(tmp_path)) == 6
    assert np.abs(halved[5] - cache.add_to(flipped).maps[5]).max() > 0.01
    # The same pixels as part of a larger image are another image.
    size = np.float32([[64, 48], [64, 64]])
    assert_close(
        cache.add_to(flipped.replace(image_sizes=size)).maps, computed(model, flipped.replace(image_sizes=size))
    )


def test_a_full_folder_takes_no_more_and_says_so(tmp_path, caplog):
    model = tiny_model()
    batch = host_batch(batch_size=4)
    whole = FeatureCache(model, backbone_of(model), "maps", tmp_path / "whole", 10**9).add_to(batch)
    size = entries(tmp_path / "whole")[0].stat().st_size
    absl_logging.set_verbosity("warning")
    for _ in range(2):
        # What lies there already counts.
        cache = FeatureCache(model, backbone_of(model), "maps", tmp_path / "full", int(2.5 * size))
        given = cache.add_to(batch)
        assert len(entries(tmp_path / "full")) == 2
        for level in whole.maps:
            np.testing.assert_array_equal(given.maps[level], whole.maps[level])
    assert sum("takes no more (data.cache_gigabytes)" in record.message for record in caplog.records) == 2


def test_what_others_write_at_the_same_time_or_left_half_written_does_not_count(tmp_path, monkeypatch):
    model, batch = tiny_model(), host_batch()
    FeatureCache(model, backbone_of(model), "maps", tmp_path, 10**9).add_to(batch)
    whole = sum(path.stat().st_size for path in entries(tmp_path))
    (tmp_path / ".name.0123.partial").write_bytes(bytes(10**6))
    (tmp_path / "deleted").write_bytes(bytes(10**6))
    is_file = pathlib.Path.is_file

    def is_file_until_now(path):
        found = is_file(path)
        if path.name == "deleted":
            path.unlink()
        return found

    monkeypatch.setattr(pathlib.Path, "is_file", is_file_until_now)
    assert FeatureCache(model, backbone_of(model), "maps", tmp_path, 10**9)._left == 10**9 - whole


def test_a_disk_that_takes_nothing_stops_no_run(tmp_path, caplog, monkeypatch):
    def refuse(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    model, batch = tiny_model(), host_batch()
    monkeypatch.setattr(files, "write_bytes", refuse)
    absl_logging.set_verbosity("warning")
    cache = FeatureCache(model, backbone_of(model), "maps", tmp_path, 10**9)
    for _ in range(2):
        assert_close(cache.add_to(batch).maps, computed(model, batch))
    assert ["No space left on device" in record.message for record in caplog.records] == [True]


def test_a_damaged_file_is_named(tmp_path):
    model, batch = tiny_model(), host_batch()
    cache = FeatureCache(model, backbone_of(model), "maps", tmp_path, 10**9)
    cache.add_to(batch)
    entries(tmp_path)[0].write_bytes(b"1234")
    with pytest.raises(ValueError, match=rf"{entries(tmp_path)[0].name} has 4 bytes; expected \d+: delete it"):
        cache.add_to(batch)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["maskx_rcnn", "embedmask"])
def test_losses_and_gradients_are_those_without(tmp_path, system):
    model = tiny_model() if system == "maskx_rcnn" else build(embedmask.get_config("size=tiny").model, NUM_CLASSES)
    batch, variables = host_batch(), numpy_variables(model)
    still = {name: value for name, value in variables["params"].items() if name in ("backbone", "fpn")}
    heads = {name: value for name, value in variables["params"].items() if name not in still}

    @jax.jit
    def gradient(heads, batch):
        def loss(heads):
            params = {"params": still | heads}
            return model.apply(variables | params, batch, jax.random.key(1), method="losses")

        return jax.value_and_grad(loss, has_aux=True)(heads)

    (total, parts), grads = gradient(heads, batch)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads))
    for kind, modules in (("maps", ("backbone",)), ("pyramid", ("backbone", "fpn"))):
        own = {"params": {name: still[name] for name in modules}}
        if "frozen" in variables and "backbone" in variables["frozen"]:
            own["frozen"] = {"backbone": variables["frozen"]["backbone"]}
        given = FeatureCache(model, own, kind, tmp_path, 10**9).add_to(batch)
        assert getattr(given, kind) is not None
        (found, found_parts), found_grads = gradient(heads, given)
        np.testing.assert_allclose(found, total, rtol=1e-4)
        for name, value in parts.items():
            np.testing.assert_allclose(found_parts[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
        for value, reference in zip(jax.tree.leaves(found_grads), jax.tree.leaves(grads), strict=True):
            np.testing.assert_allclose(value, reference, atol=1e-3 * scale)


def cached_config(tmp_path, **optimizer):
    config = tiny_config()
    config.data.shapes.update(num_train=8, num_eval=4, image_size=64, num_hues=3, num_textures=2)
    config.data.transform.update(canvas=(64, 64), short_sides=(64,), max_long_side=64)
    config.train.update(num_steps=4, log_every=1, eval_every=0, checkpoint_every=2)
    config.optimizer.update(untrained=("backbone/.*",), **optimizer)
    config.data.cache_features = str(tmp_path / "features")
    return config


@pytest.mark.slow
@pytest.mark.parametrize("untrained", ["backbone/.*", "(backbone|fpn|rpn|box_head)/.*"])
def test_a_run_learns_the_same_with_kept_maps_and_another_run_shares_them(tmp_path, capsys, untrained):
    losses, kept = {}, {}
    for name in ("without", "first", "second"):
        config = cached_config(tmp_path)
        config.optimizer.untrained = (untrained,)
        if name == "without":
            config.data.cache_features = None
        loop.train(config, str(tmp_path / name))
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses[name] = [json.loads(line)["train/total"] for line in lines]
        kept[name] = {path: path.stat().st_mtime_ns for path in entries(tmp_path / "features")}
        said = "the backbone and the pyramid make of" if "fpn" in untrained else "what the backbone makes of"
        assert (said in capsys.readouterr().out) == (name != "without")
    # Eight images, and some of them flipped.
    assert 8 < len(kept["first"]) <= 16 and kept["first"] == kept["second"]
    assert losses["first"] == losses["second"] and len(losses["first"]) == 4
    np.testing.assert_allclose(losses["first"], losses["without"], rtol=1e-3)


def test_maps_of_a_backbone_that_is_trained_are_refused(tmp_path):
    config = cached_config(tmp_path)
    config.optimizer.untrained = ("backbone/stem.*",)
    with pytest.raises(
        ValueError, match=r"^config.data.cache_features is .* while \d+ arrays of the backbone are trained"
    ):
        loop.train(config, str(tmp_path / "run"))
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transform.jitter_scales": (0.5, 1.0)}, "jitter_scales is .*; expected None with data.cache_features"),
        ({"cache_features": "gs://bucket/features"}, "cache_features is .*; expected a folder on a local disk"),
        ({"cache_gigabytes": -1.0}, "cache_gigabytes is -1.0; expected"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_anything_is_read(tmp_path, change, message):
    config = cached_config(tmp_path)
    config.data.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=message):
        loop.train(config, str(tmp_path / "run"))
    assert not pathlib.Path(tmp_path / "run").exists()
