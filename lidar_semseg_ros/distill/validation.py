"""How good a network is, while it learns, on recordings that it does not learn from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.metrics import confusion_matrix, mean_iou
from lidar_semseg_ros.distill.batches import Sample, collate, logits_of
from lidar_semseg_ros.distill.recordings import Recording
from lidar_semseg_ros.network.inputs import InputConfig, prepare, to_points
from lidar_semseg_ros.network.waffleiron import WaffleIron


class Validation:
    """Sweeps of recordings that are kept apart, always the same ones, with their labels.

    sweeps: as (recording, number).
    """

    def __init__(
        self, recordings: Sequence[Recording], inputs: InputConfig, classes: ClassTable, most_sweeps: int, seed: int
    ) -> None:
        """Choose at most so many sweeps; recordings: labelled with these classes. UserError if there is none."""
        everything = [(recording, number) for recording in recordings for number in range(len(recording))]
        if not everything:
            raise UserError("validate is set, but there is nothing to validate on; fill the list 'validation'")
        unlabelled = [recording.name for recording in recordings if recording.classes is None]
        if unlabelled:
            raise UserError(f"{unlabelled[0]} has no labels to validate with; take it out of the list 'validation'")
        chosen = np.sort(np.random.default_rng(seed).permutation(len(everything))[:most_sweeps])
        self.sweeps = [everything[number] for number in chosen.tolist()]
        self._inputs, self._classes = inputs, classes

    def miou(self, network: WaffleIron) -> float:
        """Label the sweeps, every row as the segmenter does, and compare: mean IoU of the classes that occur."""
        import torch

        confusion = np.zeros((len(self._classes), len(self._classes) + 1), np.int64)
        for recording, number in self.sweeps:
            sweep = recording.sweep(number)
            prepared = prepare(sweep.frame, self._inputs)
            logits = np.empty((0, len(self._classes)), np.float32)
            if len(prepared):
                batch = collate([Sample(prepared, sweep.class_id[prepared.kept], prepared.kept)])
                with torch.no_grad():
                    logits = logits_of(network, batch).float().cpu().numpy()
            predicted = to_points(logits, prepared).class_id
            confusion += confusion_matrix(sweep.class_id, predicted, len(self._classes))
        if not confusion.any():
            raise UserError(f"none of the {len(self.sweeps)} sweeps to validate on has labels; look at 'validation'")
        return mean_iou(confusion)
