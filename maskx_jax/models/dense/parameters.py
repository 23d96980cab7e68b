"""What the parameters of this family mean to those who bring them from elsewhere, by the path of their module."""

from collections.abc import Mapping

# The predictor whose channels are the classes of a model; there is none for background.
CLASSIFICATION = "head/classification"
# Modules with channels for each class, and how many a class.
ROWS_OF_CLASS: Mapping[str, int] = {CLASSIFICATION: 1}
