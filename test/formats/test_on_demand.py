from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import LidarFrame, PointLabels
from lidar_semseg_ros.core.packed import packed_frame, point_labels
from lidar_semseg_ros.core.sensor import FieldNames
from lidar_semseg_ros.formats.on_demand import CloudOnDemand, LabelledOnDemand
from lidar_semseg_ros.formats.pointcloud2 import (
    LAYOUTS,
    CloudContent,
    CloudField,
    cloud_from_frame,
    column,
    labelled_cloud,
    packed_cloud,
    read_cloud,
)

PALETTE = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)


def sweep(points: int = 6) -> LidarFrame:
    rng = np.random.default_rng(0)
    return LidarFrame(
        stamp_ns=5,
        frame_id="lidar",
        xyz=rng.normal(size=(points, 3)).astype(np.float32),
        intensity=rng.random(points, np.float32),
        ring=np.arange(points, dtype=np.uint16),
        time_s=rng.random(points, np.float32),
    )


def labels(points: int = 6) -> PointLabels:
    rng = np.random.default_rng(1)
    class_id = rng.choice(np.array([0, 3, 255], np.uint8), points)
    return PointLabels(
        class_id=class_id, probability=rng.random(points, np.float32), entropy=rng.random(points, np.float32)
    )


def with_field(content: CloudContent, name: str, count: int) -> CloudContent:
    """The same points with a field of so many bytes behind each."""
    step = content.point_step + count
    data = np.zeros((len(content), step), np.uint8)
    data[:, : content.point_step] = content.data.reshape(len(content), -1)
    fields = (*content.fields, CloudField(name, content.point_step, 2, count))
    return replace(
        content, fields=fields, point_step=step, row_step=len(content) * step, data=data.ravel(), is_dense=False
    )


def test_bytes_are_described_by_the_fields_that_are_read_and_not_copied() -> None:
    content = cloud_from_frame(sweep())
    packed = packed_cloud(content, FieldNames(intensity="time"), "append")
    points = packed.rows.reshape(-1).view(packed.point)
    assert np.shares_memory(packed.rows, content.data) and len(packed) == 6
    assert points["intensity"].tolist() == column(content, "time").tolist()
    assert [points[name].tolist() for name in "xyz"] == read_cloud(content).xyz.T.tolist()
    assert not packed.without_intensity().has_intensity() and packed.without_intensity().point.itemsize == 22
    assert packed.kept == 22 and packed.labelled.itemsize == 35


@pytest.mark.parametrize(
    "names", [FieldNames(intensity="power"), FieldNames(ring="rings"), FieldNames(time="then"), FieldNames()]
)
def test_fields_that_cannot_be_read_are_refused_alike_by_whoever_reads_them(names: FieldNames) -> None:
    content = cloud_from_frame(sweep())
    content = content if names != FieldNames() else with_field(content, "t", count=2)
    with pytest.raises(UserError) as by_host:
        read_cloud(content, names)
    with pytest.raises(UserError) as by_device:
        packed_cloud(content, names, "aligned")
    assert str(by_device.value) == str(by_host.value)


def test_layouts_that_cannot_be_written_are_refused_alike_by_whoever_writes_them() -> None:
    for content, layout in (
        (with_field(cloud_from_frame(sweep()), "rgb", 1), "append"),
        (cloud_from_frame(sweep()), "pcl"),
    ):
        with pytest.raises(UserError) as by_host:
            labelled_cloud(content, sweep(), labels(), PALETTE, layout)
        with pytest.raises(UserError) as by_device:
            packed_cloud(content, FieldNames(), layout)
        assert str(by_device.value) == str(by_host.value)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("points", [0, 6])
def test_the_labelled_cloud_and_its_labels_are_the_same_of_labels_and_of_finished_bytes(
    layout: str, points: int
) -> None:
    content = cloud_from_frame(sweep(points))
    expected = labelled_cloud(content, sweep(points), labels(points), PALETTE, layout)
    asked = CloudOnDemand(content, FieldNames(), layout, PALETTE)
    finished = expected.data.view(asked.packed.labelled)
    for given in (labels(points), finished):
        found = LabelledOnDemand(asked, given)
        assert found.content.data.tobytes() == expected.data.tobytes()
        assert replace(found.content, data=expected.data) == expected
        assert all(np.array_equal(getattr(found.labels, name), values) for name, values in vars(labels(points)).items())


def test_nothing_is_read_that_nobody_asks_for() -> None:
    content = cloud_from_frame(sweep())
    asked = CloudOnDemand(content, FieldNames(), "aligned", PALETTE)
    answer = LabelledOnDemand(asked, np.zeros(6, asked.packed.labelled))
    assert len(answer.content) == 6 and answer.labels.class_id.tolist() == [0] * 6
    assert "frame" not in vars(asked)
    assert asked.frame is asked.frame and answer.labels is answer.labels


def test_a_sweep_in_memory_is_described_by_its_own_numbers() -> None:
    frame = sweep()
    packed = packed_frame(frame)
    points = packed.rows.ravel().view(packed.point)
    assert points["z"].tolist() == frame.xyz[:, 2].tolist() and points["intensity"].tolist() == frame.intensity.tolist()
    alone = packed_frame(replace(frame, intensity=None))
    assert not alone.has_intensity() and np.shares_memory(alone.rows, frame.xyz)
    assert len(packed_frame(sweep(0))) == 0
    found = point_labels(np.array([(3, 0.5, 0.25)], packed.labelled))
    assert (found.class_id.tolist(), found.probability.tolist(), found.entropy.tolist()) == ([3], [0.5], [0.25])
    with pytest.raises(UserError, match="rows must be uint8 of a multiple of 16 bytes"):
        replace(packed, rows=packed.rows[:, 1:])
