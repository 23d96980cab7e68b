"""How much AP each kind of error costs, class by class, as TIDE (Bolya et al., ECCV 2020) defines it.

hotcoco's `tide_errors` has the mean over all classes, and these numbers have the same mean
(tests/report/test_analysis.py). By class they can be averaged over A and over B. Leaving the other classes out of the
ground truth would not do: an error of class is about an object of another class.
"""

import dataclasses

import numpy as np

from maskx_jax.report import bootstrap
from maskx_jax.report.matches import BACKGROUND, BOTH, CLASS, DUPLICATE, LOCATION, Matches

# By name, what is set right; "missed" are the objects that no error of class or location is about.
ERRORS = {"class": CLASS, "location": LOCATION, "both": BOTH, "duplicate": DUPLICATE, "background": BACKGROUND}


def lost(matches: Matches, kinds: np.ndarray, about: np.ndarray) -> dict[str, np.ndarray]:
    """Return float64 `k` by kind of error: what AP50 of each class would gain; NaN for classes without objects.

    Args:
      matches: of a model.
      kinds: of each detection; see `matches.outcomes`.
      about: of each detection; likewise.
    """
    matches = dataclasses.replace(matches, matched=matches.matched[:1], ignored=matches.ignored[:1])
    before = _ap(matches)
    place = np.full(max([-1, *about.tolist(), *matches.object_number.tolist()]) + 1, -1)
    place[matches.object_number] = np.arange(len(matches.object_number))
    objects = np.where(about >= 0, place[about], -1) if len(place) else about
    gained = {name: _ap(_without(matches, kinds == kind, objects)) - before for name, kind in ERRORS.items()}
    missed = matches.missed.copy()
    missed[objects[objects >= 0]] = False
    kept = {
        name: getattr(matches, name)[~missed] for name in ("object_image", "object_label", "object_number", "missed")
    }
    after = _ap(dataclasses.replace(matches, **kept))
    # Of a class all of whose objects were missed nothing is left to find, and nothing gained.
    return gained | {"missed": np.where(np.isnan(after) & ~np.isnan(before), 0.0, after - before)}


def _without(matches: Matches, wrong: np.ndarray, objects: np.ndarray) -> Matches:
    """Return matches in which some errors are set right.

    A detection that is wrong about an object finds it, if no other has, and if it has the highest score of all that are
    wrong about this object, in whichever way; else it is taken away, as one that is wrong about nothing is.
    """
    matched, ignored, label = matches.matched.copy(), matches.ignored.copy(), matches.label.copy()
    ignored[:, wrong] = True
    about = np.flatnonzero(objects >= 0)
    about = about[matches.missed[objects[about]]]
    about = about[np.argsort(-matches.score[about], kind="stable")]
    _, first = np.unique(objects[about], return_index=True)
    best = about[first]
    best = best[wrong[best]]
    matched[:, best], ignored[:, best] = True, False
    label[best] = matches.object_label[objects[best]]
    return dataclasses.replace(matches, matched=matched, ignored=ignored, label=label)


def _ap(matches: Matches) -> np.ndarray:
    return bootstrap.average_precisions(matches, np.ones((1, matches.num_images), np.int32))[0, 0]
