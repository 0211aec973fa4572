from __future__ import annotations

import numpy as np

from lidar_semseg_ros.core.geometry import rigid, rotation_from_rpy, transform_points
from lidar_semseg_ros.core.transform_tree import TransformTree


def tree() -> TransformTree:
    made = TransformTree()
    made.add("base", "lidar", rigid(np.eye(3), np.array([0, 0, 1.0])))
    made.add("/base", "/mast", rigid(rotation_from_rpy(0, 0, np.pi / 2), np.array([1.0, 0, 0])))
    made.add("mast", "camera", rigid(np.eye(3), np.array([0, 0, 2.0])))
    return made


def test_a_point_goes_up_one_branch_and_down_the_other() -> None:
    # 3 m before the lidar: (3, 0, 1) in base, (0, −2, 1) on the mast, which is turned to the left, (0, −2, −1) there.
    camera_from_lidar = tree().lookup("camera", "lidar")
    assert np.allclose(transform_points(camera_from_lidar, np.array([[3.0, 0, 0]])), [[0, -2, -1]])


def test_a_frame_is_where_it_is_in_itself_and_slashes_do_not_count() -> None:
    assert np.array_equal(tree().lookup("anything", "/anything"), np.eye(4))
    assert np.allclose(tree().lookup("/camera", "camera"), np.eye(4))
    assert tree().root("camera") == "base" and tree().root("stranger") == "stranger"


def test_frames_that_do_not_hang_together_have_no_transform() -> None:
    assert tree().lookup("camera", "stranger") is None


def test_a_ring_of_frames_ends() -> None:
    ring = TransformTree()
    for parent, child in (("a", "b"), ("b", "c"), ("c", "a")):
        ring.add(parent, child, np.eye(4))
    assert ring.lookup("x", "a") is None
    assert np.allclose(ring.lookup("b", "c"), np.eye(4))


def test_the_last_word_on_a_frame_counts() -> None:
    made = tree()
    made.add("base", "lidar", rigid(np.eye(3), np.array([0, 0, 5.0])))
    assert made.lookup("base", "lidar")[2, 3] == 5
