"""What the parameters of this family mean to those who bring them from elsewhere, by the path of their module."""

from collections.abc import Mapping

# Which predictor has a row, in front of all others, that says what is background; its rows are the classes of a model.
CLASSIFICATION = "box_head/classification"
# Modules with rows for each class, and how many a class.
ROWS_OF_CLASS: Mapping[str, int] = {CLASSIFICATION: 1, "box_head/boxes": 4, "mask_weights": 1}
# In a mask head of fully connected layers: the layer with a row for each pixel of the masks of all classes, or of the
# one mask that they share; which layer sees the features, of half the masks' side, flattened; and which one makes them.
# Of several it is the first that a model has.
PIXELS = "mask_head/output"
SEES_FEATURES, MAKES_FEATURES = ("mask_head/fc1", PIXELS), ("fpn/output2", "backbone/res5_block0/conv3")
# Layers that see maps flattened by row, column and channel, and the layers whose outputs these maps are: the first of
# them that a model has.
FLATTENED: Mapping[str, tuple[str, ...]] = {
    "box_head/fc6": ("fpn/output2",),
    "mask_head/mlp": ("mask_head/mlp_reduction", "mask_head/deconvolution"),
}
# Transposed convolutions, whose kernels other code bases arrange with inputs before outputs.
TRANSPOSED = ("mask_head/deconvolution", "keypoint_head/deconvolution")
