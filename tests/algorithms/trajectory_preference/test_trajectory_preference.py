from parts import T

from lit_align.algorithms.trajectory_preference.trajectory_preference import preferred


def test_labels_of_pairs_ties_are_zero():
    assert preferred(T([1.0, 0.0, 0.3, 0.7, 0.5, 0.5])).tolist() == [1, -1, -1, 1, 0, 0]
