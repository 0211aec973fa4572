from __future__ import annotations

import numpy as np
import pytest

from lidar_semseg_ros.core.pairing import NearestPairing, Paired, PairingConfig, nearest_stamp

S = 10**9


def pairing(*cameras: str, **settings: float) -> NearestPairing[str, str]:
    return NearestPairing(cameras, PairingConfig(**settings))


def ms(number: float) -> int:
    return round(number * 1e6)


def said(pairs: list[Paired[str, str]]) -> list[tuple[str, dict[str, str]]]:
    return [(pair.cloud, {camera: image for camera, (_, image) in pair.images.items()}) for pair in pairs]


def test_the_nearest_stamp_is_found_and_none_beyond_the_limit() -> None:
    stamps = np.array([0, 100, 230]) * 10**6
    assert nearest_stamp(stamps, ms(90), 0.05) == 1
    assert nearest_stamp(stamps, ms(160), 0.05) is None
    assert nearest_stamp(np.array([], np.int64), 0, 1.0) is None


@pytest.mark.parametrize("stamp_ns", [10**47, -(10**47), 2**63, -(2**63) - 1])
def test_a_time_that_no_clock_shows_is_near_to_nothing(stamp_ns: int) -> None:
    assert nearest_stamp(np.array([0, 100]), stamp_ns, 0.05) is None
    pairs = pairing("left")
    pairs.add_image("left", ms(100), "image")
    assert said(pairs.add_cloud(stamp_ns, "odd") + pairs.flush()) == [("odd", {})]


def test_stamps_at_both_ends_of_what_64_bits_hold_are_far_from_each_other() -> None:
    assert nearest_stamp(np.array([-(2**63), 5]), 2**63 - 1, 1.0) is None


def test_a_cloud_waits_for_the_image_after_it_and_takes_the_nearer_one() -> None:
    pairs = pairing("left")
    assert pairs.add_image("left", ms(90), "before") == []
    assert pairs.add_cloud(ms(100), "cloud") == []
    assert said(pairs.add_image("left", ms(107), "after")) == [("cloud", {"left": "after"})]
    assert pairs.flush() == []


def test_an_image_that_came_first_may_be_the_nearest() -> None:
    pairs = pairing("left")
    pairs.add_image("left", ms(98), "before")
    pairs.add_cloud(ms(100), "cloud")
    assert said(pairs.add_image("left", ms(107), "after")) == [("cloud", {"left": "before"})]


def test_every_camera_is_waited_for_but_not_longer_than_the_patience() -> None:
    pairs = pairing("left", "right", max_wait_s=0.3)
    pairs.add_cloud(ms(100), "first")
    assert pairs.add_image("left", ms(100), "l") == []
    assert pairs.add_cloud(ms(400), "second") == []
    # Something newer than 100 ms + 300 ms: the right camera is given up for the first cloud only.
    assert said(pairs.add_image("left", ms(401), "l2")) == [("first", {"left": "l"})]
    assert said(pairs.add_image("right", ms(410), "r2")) == [("second", {"left": "l2", "right": "r2"})]


def test_without_an_image_near_enough_the_cloud_goes_alone() -> None:
    pairs = pairing("left", max_dt_s=0.02)
    pairs.add_image("left", ms(0), "old")
    pairs.add_cloud(ms(100), "cloud")
    assert said(pairs.add_image("left", ms(121), "late")) == [("cloud", {})]


def test_without_cameras_a_cloud_goes_at_once() -> None:
    assert said(pairing().add_cloud(5, "cloud")) == [("cloud", {})]


def test_clouds_keep_their_order_and_the_end_gives_what_waits() -> None:
    pairs = pairing("left")
    pairs.add_cloud(ms(100), "a")
    pairs.add_cloud(ms(200), "b")
    pairs.add_image("left", ms(105), "i")
    assert said(pairs.flush()) == [("b", {})]


@pytest.mark.parametrize("stream", ["cloud", "image"])
def test_after_a_jump_back_in_time_old_images_are_forgotten_and_pairs_are_as_before(stream: str) -> None:
    pairs = pairing("left")

    def drive() -> list[tuple[str, dict[str, str]]]:
        found = []
        for k in range(20):
            steps = [
                lambda k=k: pairs.add_cloud(10 * S + ms(100 * k), f"c{k}"),
                lambda k=k: pairs.add_image("left", 10 * S + ms(100 * k + 3), f"i{k}"),
            ]
            for step in steps if stream == "cloud" else steps[::-1]:
                found += said(step())
        return found

    first = drive()
    # The last cloud of the first round waits for an image after it where images come first.
    again = drive() + said(pairs.flush())
    expected = [(f"c{k}", {"left": f"i{k}"}) for k in range(20)]
    assert first + again == expected * 2


def test_only_what_lies_within_two_seconds_is_kept() -> None:
    pairs = pairing("left")
    for k in range(1000):
        pairs.add_image("left", ms(33 * k), str(k))
    assert len(pairs._images["left"]) <= 62


def test_a_little_disorder_is_no_jump() -> None:
    pairs = pairing("left")
    pairs.add_image("left", 10 * S, "a")
    pairs.add_image("left", 10 * S - ms(5), "b")
    assert said(pairs.add_cloud(10 * S - ms(6), "cloud")) == [("cloud", {"left": "b"})]


def test_stamps_that_stand_still_pile_nothing_up() -> None:
    pairs = pairing("left", "right")
    for _ in range(1000):
        pairs.add_image("left", 0, "same")
    given = [pair for number in range(1000) for pair in pairs.add_cloud(0, str(number))]
    assert [pair.cloud for pair in given] == [str(number) for number in range(950)]
    assert len(pairs._images["left"]) == 200 and len(pairs.flush()) == 50
