import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import traverse_util

from configs import base, embedmask, keypoint_rcnn
from maskx_jax.distributed.mesh import global_batch, local_part, make_mesh, replicated, state_shardings
from maskx_jax.inference import make_detect_step
from maskx_jax.models.build import build, initialize
from maskx_jax.ops.losses import masked_mean
from maskx_jax.structures import merge
from maskx_jax.training.optimizer import learning_rate_schedule, make_optimizer, split_params
from maskx_jax.training.steps import make_state, make_train_step
from tests.models.build import NUM_CLASSES, numpy_variables, shapes_batch, tiny_model

SGD = {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4, "bias_learning_rate_factor": 2.0, "clip_norm": None}


def small_model(system: str = "maskx_rcnn"):
    if system == "embedmask":
        return build(embedmask.get_config("size=tiny,data=shapes").model, NUM_CLASSES)
    if system == "keypoint_rcnn":
        config = keypoint_rcnn.get_config("size=tiny,data=shapes")
        config.model.rcnn.keypoint_head.update(channels=16, num_convs=1, num_samples=4)
        return build(config.model, NUM_CLASSES)
    fields = {
        "box_supervision": {"box_supervision__enabled": True, "box_supervision__warmup_steps": 4},
        "class_prior": {"class_prior": True, "box_head__body": "conv"},
    }.get(system, {})
    return tiny_model(rpn__post_nms_top_k=(20, 20), box_head__num_samples=16, mask_head__num_samples=4, **fields)


def run(devices, system: str = "maskx_rcnn", num_steps: int = 2, state_sharding: str = "replicated", **options):
    """Return the state and the losses after a few steps on the given devices, and the compiled step."""
    model = small_model(system)
    mesh = make_mesh(devices)
    optimizer = make_optimizer(optax.constant_schedule(0.01), **SGD)
    untrained = options.pop("untrained", ())
    state = make_state(numpy_variables(model), optimizer, untrained, ema=options.get("ema_decay") is not None)
    options["state_shardings"] = state_shardings(mesh, state, state_sharding, min_size=2**10)
    step = make_train_step(model, optimizer, mesh, seed=0, **options)
    state = jax.device_put(state, options["state_shardings"])
    batch = shapes_batch(8, keypoints=system == "keypoint_rcnn")
    if system == "box_supervision":
        gt = batch.ground_truth
        batch = batch.replace(ground_truth=gt.replace(has_mask=gt.has_mask & (gt.labels % 2 == 0)))
    if system == "class_prior":
        # And masks of different weights, which no other has.
        gt = batch.ground_truth
        batch = batch.replace(ground_truth=gt.replace(mask_weight=jnp.where(gt.labels % 2 == 0, 0.3, 1.0)))
    batch = global_batch(mesh, batch)
    compiled = step.lower(state, batch).compile()
    for _ in range(num_steps):
        state, losses = compiled(state, batch)
    return jax.device_get(state), jax.device_get(losses), compiled


# Of what is a matter of the arrays, or of the devices, more than of the family.
rcnn_or_long = pytest.mark.parametrize(
    "system",
    ["maskx_rcnn", pytest.param("embedmask", marks=pytest.mark.long)],
    indirect=True,
    scope="module",
)


# One of each family, with all that the family has.
@pytest.fixture(
    scope="module",
    params=[
        *("maskx_rcnn", "embedmask"),
        *(
            pytest.param(system, marks=pytest.mark.long)
            for system in ("keypoint_rcnn", "box_supervision", "class_prior")
        ),
    ],
)
def system(request):
    return request.param


@pytest.fixture(scope="module")
def one_device(system):
    return run(jax.devices()[:1], system)


@pytest.fixture(scope="module")
def eight_devices(system):
    return run(jax.devices(), system)


def assert_same_training(system, actual, expected):
    """Check that two runs see the same losses and change every parameter alike.

    A convolution adds in another order for another number of images, and on another processor, and activations near 0
    may change their sign: changes differ by up to 0.3 % of their norm. A device whose gradients were lost would show
    in more than 10 %.
    """
    for name, loss in expected[1].items():
        np.testing.assert_allclose(actual[1][name], loss, rtol=1e-4, atol=1e-6, err_msg=name)
    trees = (numpy_variables(small_model(system))["params"], actual[0].params, expected[0].params)
    begun, *ended = (traverse_util.flatten_dict(tree, sep="/") for tree in trees)
    for path, start in begun.items():
        found, wanted = (params[path] - start for params in ended)
        assert np.linalg.norm(found - wanted) <= 0.02 * np.linalg.norm(wanted), path


@pytest.mark.slow
def test_eight_devices_compute_what_one_does(system, one_device, eight_devices):
    assert_same_training(system, eight_devices, one_device)


@pytest.fixture(scope="module")
def eight_devices_fsdp(system):
    return run(jax.devices(), system, state_sharding="fsdp")


@pytest.mark.slow
@rcnn_or_long
def test_a_split_state_learns_what_a_replicated_one_does(system, eight_devices, eight_devices_fsdp):
    assert_same_training(system, eight_devices_fsdp, eight_devices)


@pytest.mark.long
def test_parts_of_a_batch_teach_what_the_whole_does(system, one_device):
    assert_same_training(system, run(jax.devices()[:1], system, num_microbatches=2), one_device)


@pytest.mark.slow
@rcnn_or_long
def test_a_device_holds_its_part_of_a_split_state_before_and_after_a_step(eight_devices, eight_devices_fsdp):
    state, _, compiled = eight_devices_fsdp
    expected = state_shardings(make_mesh(), state, "fsdp", min_size=2**10)
    jax.tree.map(
        lambda array, *shardings: all(s.is_equivalent_to(shardings[0], array.ndim) for s in shardings) or pytest.fail(),
        state,
        expected,
        compiled.input_shardings[0][0],
        compiled.output_shardings[0],
    )
    held = jax.tree.map(lambda array, sharding: int(np.prod(sharding.shard_shape(array.shape))) * 4, state, expected)
    saved = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) - sum(jax.tree.leaves(held))
    whole, split = (result[2].memory_analysis() for result in (eight_devices, eight_devices_fsdp))
    assert whole.argument_size_in_bytes - split.argument_size_in_bytes == pytest.approx(saved, rel=1e-3)
    assert split.argument_size_in_bytes < whole.argument_size_in_bytes / 7


@pytest.mark.slow
@rcnn_or_long
def test_devices_that_share_a_state_exchange_weights_and_gradients_and_no_features(eight_devices_fsdp):
    state, _, compiled = eight_devices_fsdp
    weights = {leaf.size for leaf in jax.tree.leaves(state.params)}
    text = compiled.as_text()
    assert not re.search(r"all-to-all|collective-permute", text)
    for shape in re.findall(r"= \w+\[([\d,]+)\]\S* all-gather(?:-start)?\(", text):
        assert int(np.prod([int(size) for size in shape.split(",")])) in weights


@pytest.mark.slow
def test_devices_exchange_gradients_and_no_features(eight_devices):
    text = eight_devices[2].as_text()
    collectives = re.findall(r"= (.*?) (all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(", text)
    assert collectives == []
    assert "all-reduce" in text


@pytest.mark.slow
def test_a_step_leaves_untrained_parameters_as_they_are():
    patterns = ("(backbone|fpn|rpn|box_head)/.*",)
    model = small_model()
    before = numpy_variables(model)["params"]
    state, losses, _ = run(jax.devices()[:1], num_steps=1, untrained=patterns)
    # Nothing learns from the losses of the detector: they are not computed.
    assert set(losses) == {"mask", "total", "gradient_norm"} and losses["total"] == losses["mask"]
    before, after = (traverse_util.flatten_dict(tree, sep="/") for tree in (before, state.params))
    for path, leaf in before.items():
        trained = path.startswith(("mask_head/", "mask_weights/"))
        assert (leaf != after[path]).any() == trained, path
    num_momenta = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim > 0)
    assert num_momenta == sum(leaf.size for path, leaf in before.items() if path.startswith("mask_"))


class TwoLayers(nn.Module):
    """Of which one may be left untrained."""

    @nn.compact
    def loss_means(self, batch, keys):
        features = nn.Dense(2, name="backbone")(batch.scales[:, None])
        error = nn.Dense(1, name="head")(features)[:, 0] ** 2
        return {"error": masked_mean(error, batch.valid)}


def test_a_step_of_two_layers_changes_the_trained_one():
    model, mesh = TwoLayers(), make_mesh(jax.devices()[:1])
    optimizer = make_optimizer(optax.constant_schedule(0.01), **SGD)
    batch = toy_batch()
    variables = model.init(jax.random.key(0), batch, jax.random.split(jax.random.key(1), 8), method="loss_means")
    before = jax.device_get(variables["params"])
    state = make_state(variables, optimizer, ("backbone/.*",), ema=True)
    assert set(state.trained) == {"head"} == set(state.average) and set(state.untrained) == {"backbone"}
    # The momenta, of which the optimizer has as many as there are trained arrays.
    assert sum(leaf.ndim > 0 for leaf in jax.tree.leaves(state.opt_state)) == 2
    step = make_train_step(model, optimizer, mesh, seed=0, ema_decay=0.9)
    state = jax.device_get(step(state, global_batch(mesh, batch))[0])
    jax.tree.map(np.testing.assert_array_equal, state.params["backbone"], before["backbone"])
    assert (state.params["head"]["kernel"] != before["head"]["kernel"]).all()
    assert set(state.variables["params"]) == {"backbone", "head"}
    jax.tree.map(np.testing.assert_array_equal, state.variables["params"]["head"], state.average["head"])


class TwoLosses(nn.Module):
    """Of which one teaches the backbone alone."""

    learners = types.MappingProxyType({"smooth": frozenset({"backbone"})})

    @nn.compact
    def loss_means(self, batch, keys):
        features = nn.Dense(2, name="backbone")(batch.scales[:, None])
        error = nn.Dense(1, name="head")(features)[:, 0] ** 2
        return {"error": masked_mean(error, batch.valid), "smooth": masked_mean(jnp.tanh(features[:, 0]), batch.valid)}


@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_a_loss_from_which_nothing_learns_is_not_computed(num_microbatches):
    model, mesh, batch = TwoLosses(), make_mesh(jax.devices()[:1]), toy_batch()
    optimizer = optax.sgd(0.01)
    variables = model.init(jax.random.key(0), batch, jax.random.split(jax.random.key(1), 8), method="loss_means")
    variables, found = jax.device_get(variables), {}
    for untrained in ((), ("backbone/.*",)):
        state = make_state(variables, optimizer, untrained, ema=False)
        step = make_train_step(model, optimizer, mesh, seed=0, num_microbatches=num_microbatches)
        text = step.lower(state, global_batch(mesh, batch)).compile().as_text()
        found[untrained] = "tanh" in text, set(step(state, global_batch(mesh, batch))[1])
    assert found[()] == (True, {"error", "smooth", "total", "gradient_norm"})
    assert found[("backbone/.*",)] == (False, {"error", "total", "gradient_norm"})


class Toy(nn.Module):
    """Anything with the method "loss_means"."""

    @nn.compact
    def loss_means(self, batch, keys):
        kernel = self.param("kernel", nn.initializers.ones, ())
        error = (kernel * batch.scales - batch.image_sizes[:, 0]) ** 2
        noise = kernel * jax.vmap(jax.random.uniform)(keys)
        # Of one image in the first half of the batch and three in the second.
        return {"error": masked_mean(error, batch.valid), "noise": masked_mean(noise, jnp.ones(len(error), bool))}


def toy_batch():
    scales, valid = jnp.arange(1.0, 9), jnp.array([False, True] * 2 + [True] * 4)
    return dataclasses.replace(shapes_batch(8), scales=scales, image_sizes=jnp.arange(16.0).reshape(8, 2), valid=valid)


class WarmingUp(Toy):
    warmups = types.MappingProxyType({"noise": 4})


def toy_step(num_steps: int, num_devices: int = 1, model=Toy, learning_rate: float = 0.01, **options):
    mesh = make_mesh(jax.devices()[:num_devices])
    optimizer = optax.sgd(learning_rate)
    ema = "ema_decay" in options
    state = make_state({"params": {"kernel": jnp.float32(1)}}, optimizer, (), ema=ema)
    step = make_train_step(model(), optimizer, mesh, seed=0, **options)
    batch = global_batch(mesh, toy_batch())
    for _ in range(num_steps):
        state, losses = step(state, batch)
    return state, losses


@pytest.mark.parametrize(("num_devices", "num_microbatches"), [(1, 2), (1, 8), (2, 2)])
def test_any_number_of_parts_gives_the_losses_and_gradients_of_the_whole_batch(num_devices, num_microbatches):
    # The parts have different numbers of valid images: a mean of their means would be another.
    state, losses = toy_step(2, num_devices, num_microbatches=num_microbatches)
    whole, expected = toy_step(2)
    for name, loss in expected.items():
        np.testing.assert_allclose(losses[name], loss, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(state.params["kernel"], whole.params["kernel"], rtol=1e-6)


@pytest.mark.parametrize(("num_devices", "num_microbatches"), [(1, 3), (1, 16), (2, 8), (1, 0)])
def test_parts_that_do_not_divide_the_images_of_a_device_are_refused_by_name(num_devices, num_microbatches):
    images = 8 // num_devices
    with pytest.raises(ValueError, match=f"num_microbatches {num_microbatches} .* a device's {images} images"):
        toy_step(1, num_devices, num_microbatches=num_microbatches)


@pytest.mark.parametrize(("num_steps", "weight"), [(1, 0.25), (3, 0.75), (6, 1.0)])
def test_the_weight_of_a_part_of_the_loss_rises_over_its_first_steps(num_steps, weight):
    _, plain = toy_step(num_steps, learning_rate=0.0)
    for options in ({}, {"num_microbatches": 2}):
        _, losses = toy_step(num_steps, model=WarmingUp, learning_rate=0.0, **options)
        assert losses["noise"] == pytest.approx(weight * float(plain["noise"]))
        assert losses["error"] == pytest.approx(float(plain["error"]))
        assert losses["total"] == pytest.approx(float(losses["error"] + losses["noise"]))
    before, after = 1.0, toy_step(1, model=WarmingUp)[0].params["kernel"]
    assert after != before and after != toy_step(1)[0].params["kernel"]


def test_average_of_the_parameters_follows_them_closely_at_first():
    first, second = (toy_step(num_steps)[0].params["kernel"] for num_steps in (1, 2))
    # The decay of step t is (1 + t) / (10 + t), or the configured one where that is less.
    for decay, (early, late) in {0.9: (1 / 10, 2 / 11), 0.15: (1 / 10, 0.15)}.items():
        averaged = toy_step(2, ema_decay=decay)[0]
        np.testing.assert_allclose(averaged.params["kernel"], second, rtol=1e-6)
        expected = late * (early * 1 + (1 - early) * first) + (1 - late) * second
        np.testing.assert_allclose(averaged.average["kernel"], expected, rtol=1e-5)


@pytest.mark.parametrize("norm", ["frozen_batch", "group"])
def test_the_stem_and_res2_are_frozen_by_default_with_their_norms(norm):
    model = tiny_model(backbone__norm=norm)
    shapes = jax.eval_shape(lambda: initialize(model, jax.random.key(0)))["params"]
    trained, _ = split_params(shapes, base.get_config().optimizer.untrained)
    backbone = {name.split("_")[0] for name in trained["backbone"]}
    assert backbone == {"res3", "res4", "res5"}


@pytest.mark.slow
@rcnn_or_long
def test_detection_needs_no_communication(system):
    model = small_model(system)
    mesh = make_mesh()
    batch = shapes_batch(8)
    images = global_batch(mesh, (batch.images, batch.image_sizes))
    variables = jax.device_put(numpy_variables(model), replicated(mesh))
    text = make_detect_step(model, mesh).lower(variables, *images).compile().as_text()
    assert not re.search(r"all-gather|all-to-all|all-reduce|collective-permute", text)


@pytest.mark.slow
@rcnn_or_long
def test_detection_takes_split_weights(system):
    model = small_model(system)
    mesh = make_mesh()
    batch = shapes_batch(8)
    images = global_batch(mesh, (batch.images, batch.image_sizes))
    step = make_detect_step(model, mesh)
    variables = numpy_variables(model)
    whole, split = (
        step(jax.device_put(variables, state_shardings(mesh, variables, mode)), *images)
        for mode in ("replicated", "fsdp")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), split, whole)


def test_a_batch_that_the_devices_cannot_share_is_refused():
    with pytest.raises(ValueError, match="global batch of 6; expected a multiple of the 8 devices"):
        global_batch(make_mesh(), np.zeros((6, 2)))


def test_a_process_gets_back_what_it_gave_to_the_devices():
    given = {"scores": np.arange(32, dtype=np.float32).reshape(16, 2), "masks": None}
    back = local_part(global_batch(make_mesh(), given))
    np.testing.assert_array_equal(back["scores"], given["scores"])
    assert back["masks"] is None


def one_update(params, gradients, **changes):
    optimizer = make_optimizer(optax.constant_schedule(0.1), **{**SGD, **changes})
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    return updates


def test_biases_learn_twice_as_fast_and_do_not_decay():
    params = {"fc": {"kernel": jnp.full(2, 3.0), "bias": jnp.full(2, 3.0)}, "norm": {"scale": jnp.full(2, 3.0)}}
    gradients = jax.tree.map(jnp.ones_like, params)
    updates = one_update(params, gradients, weight_decay=0.5)
    np.testing.assert_allclose(updates["fc"]["kernel"], -0.1 * (1 + 0.5 * 3), rtol=1e-6)
    np.testing.assert_allclose(updates["fc"]["bias"], -0.1 * 2 * 1, rtol=1e-6)
    np.testing.assert_allclose(updates["norm"]["scale"], -0.1, rtol=1e-6)


def test_clipping_bounds_the_norm_of_the_whole_gradient():
    params = {"a": {"kernel": jnp.zeros(1)}, "b": {"kernel": jnp.zeros(1)}}
    gradients = {"a": {"kernel": jnp.array([30.0])}, "b": {"kernel": jnp.array([40.0])}}
    updates = one_update(params, gradients, clip_norm=5.0)
    np.testing.assert_allclose([updates["a"]["kernel"][0], updates["b"]["kernel"][0]], [-0.3, -0.4], rtol=1e-5)


def test_step_schedule_warms_up_and_decays_as_detectron_does():
    rate = learning_rate_schedule(0.02, schedule="step", num_steps=90_000, decay_steps=(60_000, 80_000))
    expected = {0: 0.02 / 3, 250: 0.02 * 2 / 3, 500: 0.02, 59_999: 0.02, 60_001: 0.002, 80_001: 0.0002}
    for step, value in expected.items():
        np.testing.assert_allclose(rate(step), value, rtol=1e-5, err_msg=str(step))


def test_cosine_schedule_ends_at_zero():
    rate = learning_rate_schedule(1.0, schedule="cosine", num_steps=100, warmup_steps=0)
    np.testing.assert_allclose([rate(0), rate(50), rate(100)], [1.0, 0.5, 0.0], atol=1e-6)


def test_splitting_and_merging_parameters_are_inverse():
    params = numpy_variables(small_model())["params"]
    trained, rest = split_params(params, ("backbone/stem/.*", "backbone/res2_.*"))
    assert set(rest) == {"backbone"} and "stem" not in trained["backbone"]
    jax.tree.map(np.testing.assert_array_equal, merge(trained, rest), params)


@pytest.mark.parametrize(
    ("patterns", "message"), [(("bakbone/.*",), "matches no parameter"), ((".*",), "no parameter")]
)
def test_a_pattern_that_freezes_nothing_or_everything_is_refused(patterns, message):
    with pytest.raises(ValueError, match=message):
        split_params(numpy_variables(small_model())["params"], patterns)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["maskx_rcnn"], indirect=True, scope="module")
def test_the_state_of_another_step_draws_other_samples(one_device):
    state, _, compiled = one_device
    batch = shapes_batch(8)
    mesh = make_mesh(jax.devices()[:1])
    first = dataclasses.replace(state, step=np.int32(0))
    second = dataclasses.replace(state, step=np.int32(1))
    losses = [
        compiled(jax.device_put(s, replicated(mesh)), global_batch(mesh, batch))[1] for s in (first, first, second)
    ]
    assert losses[0]["total"] == losses[1]["total"] != losses[2]["total"]
