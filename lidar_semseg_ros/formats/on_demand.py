"""A cloud and its labels in every form that is asked for, each made when it is asked for the first time."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from lidar_semseg_ros.core.frame import LidarFrame, PointLabels
from lidar_semseg_ros.core.packed import PackedCloud, point_labels
from lidar_semseg_ros.core.sensor import FieldNames
from lidar_semseg_ros.formats.pointcloud2 import (
    CloudContent,
    finished_cloud,
    labelled_cloud,
    packed_cloud,
    read_cloud,
)


class CloudOnDemand:
    """A cloud to be labelled: read on the host, or only described where a device reads the bytes itself."""

    def __init__(self, content: CloudContent, names: FieldNames, layout: str, palette: np.ndarray) -> None:
        """Read nothing yet; names: as of `read_cloud`; layout, palette: as of `labelled_cloud`."""
        self.content = content
        self.layout, self.palette, self._names = layout, palette, names

    def sweep(self, takes_bytes: bool) -> LidarFrame | PackedCloud:
        """Give what a segmenter labels; takes_bytes: as it says of itself."""
        return self.packed if takes_bytes else self.frame

    @cached_property
    def frame(self) -> LidarFrame:
        """All points; errors as of `read_cloud`."""
        return read_cloud(self.content, self._names)

    @cached_property
    def packed(self) -> PackedCloud:
        """Where the points lie and the labelled ones shall lie; errors as of `packed_cloud`."""
        return packed_cloud(self.content, self._names, self.layout)


class LabelledOnDemand:
    """A cloud that a segmenter has labelled."""

    def __init__(self, cloud: CloudOnDemand, given: PointLabels | np.ndarray) -> None:
        """Make nothing yet; given: what the segmenter gave for `cloud.frame`, or the points for `cloud.packed`."""
        self.cloud, self._given = cloud, given

    @cached_property
    def labels(self) -> PointLabels:
        """The labels of all rows."""
        return self._given if isinstance(self._given, PointLabels) else point_labels(self._given)

    @cached_property
    def content(self) -> CloudContent:
        """The labelled cloud; errors as of `labelled_cloud`."""
        asked = self.cloud
        if isinstance(self._given, PointLabels):
            return labelled_cloud(asked.content, asked.frame, self._given, asked.palette, asked.layout)
        return finished_cloud(asked.content, asked.layout, self._given)
