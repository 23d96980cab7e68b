import jax
import numpy as np
import pytest

from maskx_jax.training.pretrained import load_class_embeddings, overlay, with_class_embeddings
from tests.models.build import numpy_variables, tiny_model


@pytest.fixture
def vectors(tmp_path):
    path = tmp_path / "vectors.npz"
    np.savez(path, names=np.array(["cat", "dog", "cow"]), glove=np.arange(6, dtype=np.float32).reshape(3, 2))
    return path


def test_embeddings_follow_the_labels_after_a_row_of_zeros(vectors):
    table = load_class_embeddings(vectors, ["cow", "cat"], "glove")
    np.testing.assert_array_equal(table, [[0, 0], [4, 5], [0, 1]])


@pytest.mark.parametrize(
    ("names", "table", "message"),
    [
        (["cat", "horse"], "glove", "no vector for 1 of 2 classes, such as .'horse'."),
        (["cat"], "bert", "'bert'; found"),
    ],
)
def test_a_class_or_table_that_the_file_lacks_is_named(vectors, names, table, message):
    with pytest.raises(ValueError, match=message):
        load_class_embeddings(vectors, names, table)


def test_a_pickle_in_the_file_is_refused(tmp_path):
    np.savez(tmp_path / "bad.npz", names=np.array([{"a": 1}], dtype=object), glove=np.zeros((1, 2)))
    with pytest.raises(ValueError, match="allow_pickle"):
        load_class_embeddings(tmp_path / "bad.npz", ["cat"], "glove")


def test_embeddings_go_into_the_frozen_constants_of_t():
    variables = numpy_variables(tiny_model(3, weight_transfer__input="embedding", weight_transfer__embedding_size=2))
    table = np.ones((4, 2), np.float32)
    filled = with_class_embeddings(variables, table)
    np.testing.assert_array_equal(filled["frozen"]["mask_weights"]["embedding"], table)
    with pytest.raises(ValueError, match=r"shape \(5, 2\); the model expects \(4, 2\)"):
        with_class_embeddings(variables, np.ones((5, 2)))
    with pytest.raises(ValueError, match="has no class embedding"):
        with_class_embeddings(numpy_variables(tiny_model(3)), table)


def test_overlay_takes_what_both_have_and_keeps_the_rest():
    boxes_alone = numpy_variables(tiny_model(3, mask_predictor="none"))
    masks = jax.tree.map(lambda x: x + 1, numpy_variables(tiny_model(3)))
    taken = overlay(masks, boxes_alone)
    jax.tree.map(np.testing.assert_array_equal, taken["params"]["fpn"], boxes_alone["params"]["fpn"])
    jax.tree.map(np.testing.assert_array_equal, taken["params"]["mask_head"], masks["params"]["mask_head"])


def test_overlay_of_another_number_of_classes_names_the_parameter():
    with pytest.raises(ValueError, match=r"params/box_head/.*shape \(20,\); the model expects \(16,"):
        overlay(numpy_variables(tiny_model(3)), numpy_variables(tiny_model(4)))
