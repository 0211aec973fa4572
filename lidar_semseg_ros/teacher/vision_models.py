"""How each architecture of transformers turns images into class scores, patch features or segments.

Shape letters: B images, C classes of the model, T target classes, Q queries, P prompts, h w a grid, D channels.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lidar_semseg_ros.core.classes import ClassMap, ClassTable, classes_never_given
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED, CameraImage
from lidar_semseg_ros.teacher.scores import PixelScores, pixel_scores

if TYPE_CHECKING:
    from torch import Tensor

    from lidar_semseg_ros.teacher.vision import VisionConfig

NOTHING = "nothing of these"
"""The last class of a model that is asked in words: the pixel is none of them."""
POINTS_PER_BATCH = 64
"""Points at which SAM is asked at once; bounds the memory."""
LARGEST_OVERLAP = 0.7
"""Of two automatic masks that share more of their union, the worse is left out."""
BICUBIC = 3
"""How preprocessor_config.json names the filter (PIL's number); all others are taken as bilinear."""


@dataclass(frozen=True, kw_only=True)
class PatchFeatures:
    """A map of features over one image: (h, w, D) float32, covering it evenly; image_size: (width, height), pixels."""

    values: np.ndarray
    image_size: tuple[int, int]

    def at(self, uv_px: np.ndarray) -> np.ndarray:
        """Interpolate the features bilinearly at (M, 2) pixel coordinates: (M, D) float32.

        The centre of the first pixel is (0, 0), so the image spans −0.5 … width − 0.5 and the centre of a patch lies
        in its middle; beyond the centres of the outermost patches their features go on.
        """
        h, w = self.values.shape[:2]
        width, height = self.image_size
        x = np.clip((uv_px[:, 0] + 0.5) * (w / width) - 0.5, 0, w - 1)
        y = np.clip((uv_px[:, 1] + 0.5) * (h / height) - 0.5, 0, h - 1)
        left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
        right, bottom = np.minimum(left + 1, w - 1), np.minimum(top + 1, h - 1)
        along = (x - left).astype(np.float32)[:, None]
        down = (y - top).astype(np.float32)[:, None]
        upper = self.values[top, left] * (1 - along) + self.values[top, right] * along
        lower = self.values[bottom, left] * (1 - along) + self.values[bottom, right] * along
        return upper * (1 - down) + lower * down


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model on this machine: its folder or hub id, its config.json and how images are prepared for it."""

    model: str
    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any]
    download: bool

    @property
    def architectures(self) -> tuple[str, ...]:
        """The classes that the model says it can be loaded with."""
        return tuple(self.config.get("architectures") or ())


def read_checkpoint(model: str, *, download: bool) -> Checkpoint:
    """Read what a folder in the layout of `save_pretrained`, or a model of the hub's cache, says of itself.

    download: ask the hub for what is not in the cache. UserError tells how to fetch a model that is missing.
    """
    config = _json_of(model, "config.json", download)
    if config is None:
        raise _not_here(model)
    preprocessor = _json_of(model, "preprocessor_config.json", download)
    if preprocessor is None:
        preprocessor = (_json_of(model, "processor_config.json", download) or {}).get("image_processor", {})
    return Checkpoint(model=_place(model), config=config, preprocessor=preprocessor, download=download)


def _place(model: str) -> str:
    folder = Path(model).expanduser()
    return str(folder) if folder.is_dir() else model


def _json_of(model: str, name: str, download: bool) -> dict[str, Any] | None:
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(_place(model), name, local_files_only=not download)
    except (OSError, ValueError):
        return None
    if path is None:
        return None
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; fetch the model again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a JSON object, but it holds {type(values).__name__}; fetch the model again")
    return values


def _not_here(model: str) -> UserError:
    return UserError(
        f"the model {model} is neither a folder with config.json, weights and preprocessor_config.json nor complete "
        f"in the cache of the hub; fetch it once with 'hf download {model}', or allow its download"
    )


class VisionModel:
    """A model of transformers that is only asked, never trained."""

    gives: tuple[str, ...]
    model_class: ClassVar[str | None] = None
    """The class to load where it is another than the architecture that the checkpoint names."""
    compiled_part: ClassVar[str] = ""
    """The submodule that `compile` is for; all of the model by default."""

    def __init__(self, checkpoint: Checkpoint, architecture: str, config: VisionConfig) -> None:
        """Load the weights onto the device; UserError if they are missing or not all there."""
        import transformers

        self.checkpoint, self.config = checkpoint, config
        self.never_labelled: tuple[str, ...] = ()
        self.device = _device(config.device)
        name = self.model_class or architecture
        loader = getattr(transformers, name, None)
        if loader is None:
            raise UserError(f"transformers {transformers.__version__} has no {name}; install a newer one")
        with self._reading():
            model, said = loader.from_pretrained(
                checkpoint.model,
                local_files_only=not checkpoint.download,
                output_loading_info=True,
                # Some checkpoints hold half precision, which processors compute slowly if at all.
                dtype="float32",
            )
        # The library would fill them with random numbers and only warn.
        lost = [*said["missing_keys"], *said["mismatched_keys"]]
        if lost:
            raise UserError(f"the weights of {checkpoint.model} lack {lost[0]} and do not fit {name}; fetch it again")
        self.model = model.eval().requires_grad_(False).to(self.device)
        if config.compile:
            self.model.get_submodule(self.compiled_part).compile()

    def train(self, mode: bool = True) -> None:
        """Refuse: what a teacher says must not depend on who it taught."""
        raise RuntimeError("a teacher is not trained; it stays as it was loaded")

    def label(self, images: Sequence[CameraImage]) -> list[PixelScores]:
        """Give the target class of every pixel of each image; UserError if this model knows no classes."""
        raise self._refusal("labels")

    def features(self, images: Sequence[CameraImage]) -> list[PatchFeatures]:
        """Give a map of features of each image; UserError if this is no such model."""
        raise self._refusal("features")

    def segments(self, images: Sequence[CameraImage]) -> list[np.ndarray]:
        """Give each image's segments, (height, width) int32, −1 for none; UserError if this is no such model."""
        raise self._refusal("segments")

    def _refusal(self, wanted: str) -> UserError:
        given = " and ".join(self.gives)
        return UserError(f"{self.checkpoint.model} gives {given}, not {wanted}; choose another model")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _not_here(self.checkpoint.model) from error
        except ModuleNotFoundError:
            raise
        except Exception as error:  # of many kinds, for what people may put into a checkpoint
            raise UserError(f"{self.checkpoint.model} cannot be loaded: {error}; fetch it again") from error

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Run what is inside without gradients, and the model's arithmetic in the precision that is set.

        UserError where the model cannot be compiled.
        """
        import torch

        precision = getattr(torch, self.config.precision)
        # Autocast rather than weights of this type: several architectures mix in float32 tensors of their own.
        lower = torch.autocast(self.device.partition(":")[0], precision, enabled=precision != torch.float32)
        try:
            with torch.inference_mode(), lower:
                yield
        except torch._dynamo.exc.TorchDynamoException as error:
            why = str(error).strip().splitlines()[0]
            raise UserError(f"{self.checkpoint.model} cannot be compiled: {why}; set compile to false") from error

    def _asked(self, **inputs: Any) -> Any:
        with self._asking():
            return self.model(**inputs)

    def _from_pretrained(self, loader: Any, **more: Any) -> Any:
        with self._reading():
            return loader.from_pretrained(self.checkpoint.model, local_files_only=not self.checkpoint.download, **more)

    def _resized(self, images_BHWC: Sequence[np.ndarray], size: tuple[int, int]) -> Tensor:
        """Resize images to (height, width) and normalise them as preprocessor_config.json says: (B, 3, h, w)."""
        import torch

        said = self.checkpoint.preprocessor
        stacked = torch.from_numpy(np.stack(images_BHWC)).to(self.device).permute(0, 3, 1, 2).float() / 255
        mode = "bicubic" if said.get("resample") == BICUBIC else "bilinear"
        resized = torch.nn.functional.interpolate(stacked, size, mode=mode, antialias=True).clamp(0, 1)
        if not said.get("do_normalize", True):
            return resized
        try:
            mean, std = (
                torch.tensor(said[key], device=self.device)[:, None, None] for key in ("image_mean", "image_std")
            )
        except (KeyError, TypeError, ValueError):
            raise _not_here(self.checkpoint.model) from None
        return (resized - mean) / std


def _device(wanted: str) -> str:
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device is {wanted}, but PyTorch {torch.__version__} sees no CUDA GPU; set device to cpu")
    return wanted


def _same_size(images: Sequence[CameraImage]) -> dict[tuple[int, ...], list[int]]:
    """Group the positions of images by their size; a batch of one size needs no padding, so it equals single images."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for position, image in enumerate(images):
        groups.setdefault(image.pixels.shape[:2], []).append(position)
    return groups


def mask_scores(class_logits_BQC: Tensor, mask_logits_BQhw: Tensor, onto_CT: Tensor) -> Tensor:
    """Score every class at every pixel by the queries that claim it: (B, T, h, w).

    s_c = Σ_queries softmax(class logits)[query, c] · sigmoid(mask logits)[query], where the last class means that the
    query found nothing and is left out (MaskFormer, arXiv 2107.06278, section 3.4). The classes are added up to
    targets by `onto_CT` first, which gives the same sum for less work.
    """
    import torch

    classes_BQT = class_logits_BQC.float().softmax(-1)[..., :-1] @ onto_CT
    return torch.einsum("bqt,bqhw->bthw", classes_BQT, mask_logits_BQhw.float().sigmoid())


def _interpolated(maps: Tensor, size: tuple[int, int]) -> Tensor:
    import torch

    return torch.nn.functional.interpolate(maps, size, mode="bilinear", align_corners=False)


class LabelModel(VisionModel):
    """A model that scores classes at pixels. names: its classes by id. remap: (C,) uint8, their target classes."""

    gives = ("labels",)

    def __init__(self, checkpoint: Checkpoint, architecture: str, config: VisionConfig) -> None:
        super().__init__(checkpoint, architecture, config)
        named = self.model.config.id2label
        self.names: tuple[str, ...] = tuple(str(named[number]) for number in sorted(named))
        self._prepare_inputs()

    def _prepare_inputs(self) -> None:
        from transformers import AutoImageProcessor

        self.processor = self._from_pretrained(AutoImageProcessor)

    def answer_in(self, table: ClassTable, class_map: ClassMap | None) -> None:
        """Have `label` give classes of `table`; UserError if the model's classes do not fit the map."""
        class_map = class_map or ClassMap.of_same_names(table, self.names)
        self._answer_by(table, class_map.remap(table, self.names))

    def _answer_by(self, table: ClassTable, remap: np.ndarray) -> None:
        self.remap = remap
        self.never_labelled = classes_never_given(table, remap)

    def label(self, images: Sequence[CameraImage]) -> list[PixelScores]:
        """Give the target class of every pixel of each image, its confidence and margin."""
        import torch

        targets = np.unique(self.remap)
        onto_CT = torch.from_numpy((self.remap[:, None] == targets).astype(np.float32)).to(self.device)
        scores = self._scores(images, onto_CT)
        return [
            pixel_scores(np.moveaxis(of_image, 0, -1), targets, image.pixels.shape[1::-1])
            for image, of_image in zip(images, scores)
        ]

    def _scores(self, images: Sequence[CameraImage], onto_CT: Tensor) -> list[np.ndarray]:
        found: dict[int, np.ndarray] = {}
        for size, positions in _same_size(images).items():
            scores_BThw = self._class_scores([images[i].pixels for i in positions], onto_CT, self._grid(size))
            found |= dict(zip(positions, scores_BThw.cpu().numpy()))
        return [found[position] for position in range(len(images))]

    def _grid(self, image_size: tuple[int, ...]) -> tuple[int, int]:
        longer = max(image_size)
        scale = min(1.0, (self.config.scores_px or longer) / longer)
        return max(1, round(image_size[0] * scale)), max(1, round(image_size[1] * scale))

    def _prepared(self, images: list[np.ndarray], **more: Any) -> Any:
        return self.processor(images, return_tensors="pt", **more)["pixel_values"].to(self.device)

    def _class_scores(self, images: list[np.ndarray], onto_CT: Tensor, grid: tuple[int, int]) -> Tensor:
        """Score images of one size on a grid that covers them: (B, T, *grid) float32, not negative."""
        raise NotImplementedError


class Segformer(LabelModel):
    """Dense logits at a quarter of the input; the score of a class is its softmax.

    Its features are what the last layer classifies.
    """

    gives = ("labels", "features")
    # Not the head: hooks, by which features are seen, are not heard inside of what is compiled.
    compiled_part = "segformer"

    def features(self, images: Sequence[CameraImage]) -> list[PatchFeatures]:
        """Give the fused features of all stages as a map over each image: (h, w, D) float32."""
        found: dict[int, PatchFeatures] = {}
        for (height, width), positions in _same_size(images).items():
            fused_BDhw = self._fused([images[i].pixels for i in positions])
            values = np.ascontiguousarray(fused_BDhw.permute(0, 2, 3, 1).cpu().numpy())
            found |= {
                position: PatchFeatures(values=of_image, image_size=(width, height))
                for position, of_image in zip(positions, values)
            }
        return [found[position] for position in range(len(images))]

    def _fused(self, images: list[np.ndarray]) -> Tensor:
        classified: list[Tensor] = []
        watch = self.model.decode_head.classifier.register_forward_pre_hook(
            lambda _, inputs: classified.append(inputs[0])
        )
        try:
            self._asked(pixel_values=self._prepared(images))
        finally:
            watch.remove()
        return classified[0].float()

    def _class_scores(self, images: list[np.ndarray], onto_CT: Tensor, grid: tuple[int, int]) -> Tensor:
        import torch

        said = self._asked(pixel_values=self._prepared(images))
        return torch.einsum("bchw,ct->bthw", _interpolated(said.logits.float(), grid).softmax(1), onto_CT)


class Mask2Former(LabelModel):
    """Masks and their classes from queries."""

    MASKS = (384, 384)
    """Size that masks are brought to before they are added up, as in the library."""

    def _class_scores(self, images: list[np.ndarray], onto_CT: Tensor, grid: tuple[int, int]) -> Tensor:
        said = self._asked(pixel_values=self._prepared(images))
        masks = _interpolated(said.masks_queries_logits.float(), self.MASKS)
        return _interpolated(mask_scores(said.class_queries_logits, masks, onto_CT), grid)


class OneFormer(LabelModel):
    """Masks and their classes from queries that are told the task."""

    def _prepare_inputs(self) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer

        # The class file is needed for training only, and lies in another place of the hub.
        self.processor = self._from_pretrained(AutoImageProcessor, class_info_file=None)
        tokenizer = self._from_pretrained(AutoTokenizer)
        length = self.model.config.task_seq_len
        words = tokenizer(["the task is semantic"], padding="max_length", max_length=length, return_tensors="pt")
        # The model's own processor sets the padding to 0, whatever the tokenizer pads with.
        self.task = (words["input_ids"] * words["attention_mask"]).to(self.device)

    def _class_scores(self, images: list[np.ndarray], onto_CT: Tensor, grid: tuple[int, int]) -> Tensor:
        pixels = self._prepared(images, task_inputs=["semantic"] * len(images))
        said = self._asked(pixel_values=pixels, task_inputs=self.task.expand(len(images), -1))
        return _interpolated(mask_scores(said.class_queries_logits, said.masks_queries_logits, onto_CT), grid)


class Eomt(LabelModel):
    """Masks and their classes from queries inside a plain vision transformer, in windows along the longer side."""

    def _prepare_inputs(self) -> None:
        super()._prepare_inputs()
        if not self.processor.do_split_image:
            raise UserError(f"{self.checkpoint.model} is no model for semantic segmentation; choose one that is")

    def _class_scores(self, images: list[np.ndarray], onto_CT: Tensor, grid: tuple[int, int]) -> Tensor:
        prepared = self.processor(images, return_tensors="pt")
        pixels = prepared["pixel_values"].to(self.device)
        said = self._asked(pixel_values=pixels)
        masks = _interpolated(said.masks_queries_logits.float(), (pixels.shape[-2], pixels.shape[-1]))
        scores = mask_scores(said.class_queries_logits, masks, onto_CT)
        windows = [tuple(int(value) for value in window) for window in prepared["patch_offsets"]]
        tall = images[0].shape[0] > images[0].shape[1]
        return _interpolated(_joined(scores, windows, len(images), tall), grid)


def _joined(scores_NThw: Tensor, windows: list[tuple[int, ...]], images: int, tall: bool) -> Tensor:
    """Lay windows (image, start, end) along the longer side of their images, with their mean where they overlap."""
    import torch

    scores = scores_NThw.transpose(-1, -2) if tall else scores_NThw
    length = max(end for _, _, end in windows)
    total = torch.zeros(images, *scores.shape[1:-1], length, device=scores.device)
    count = torch.zeros(images, 1, 1, length, device=scores.device)
    for window, (image, start, end) in zip(scores, windows):
        total[image, ..., start:end] += window
        count[image, ..., start:end] += 1
    joined = total / count
    return joined.transpose(-1, -2) if tall else joined


class ClipSeg(LabelModel):
    """CLIP with a decoder that gives one map per prompt; the image is encoded once for all of them.

    What none of the prompts claims is NOTHING, with the score 1 − max over the prompts' sigmoids, so that weak claims
    do not become labels.
    """

    compiled_part = "clip.vision_model"

    def answer_in(self, table: ClassTable, class_map: ClassMap | None) -> None:
        """Ask for the names in the map, the first of each class; without a map, for those of the table."""
        from transformers import AutoTokenizer

        class_map = class_map or ClassMap.of_same_names(table, table.names)
        prompts = [class_map.names[number][0] for number in sorted(class_map.names)]
        tokenizer = self._from_pretrained(AutoTokenizer)
        tokens = tokenizer(prompts, return_tensors="pt", padding=True, truncation=True).to(self.device)
        with self._asking():
            said = self.model.clip.get_text_features(tokens["input_ids"], tokens["attention_mask"])
        self.prompts_PD = said.pooler_output
        self.names = (*prompts, NOTHING)
        self._answer_by(table, np.append(class_map.remap(table, prompts), np.uint8(UNLABELLED)))

    def _class_scores(self, images: list[np.ndarray], onto_CT: Tensor, grid: tuple[int, int]) -> Tensor:
        import torch

        pixels = self._prepared(images)
        logits = []
        with self._asking():
            said = self.model.clip.get_image_features(
                pixel_values=pixels, interpolate_pos_encoding=True, output_hidden_states=True
            )
            # The first hidden state is what goes into the first layer.
            layers = [said.hidden_states[number + 1] for number in self.model.extract_layers]
            for image in range(len(images)):
                same = [layer[image].expand(len(self.prompts_PD), -1, -1) for layer in layers]
                logits.append(self.model.decoder(same, self.prompts_PD).logits)
        claims = _interpolated(torch.stack(logits).float().sigmoid(), grid)
        scores = torch.cat([claims, 1 - claims.amax(1, keepdim=True)], 1)
        return torch.einsum("bchw,ct->bthw", scores, onto_CT)


class PatchEncoder(VisionModel):
    """A vision transformer without a head: DINOv2 and DINOv3, with and without register tokens."""

    gives = ("features",)

    def features(self, images: Sequence[CameraImage]) -> list[PatchFeatures]:
        """Give the last layer's patch tokens as a map over each image: (h, w, D) float32."""
        found: dict[int, PatchFeatures] = {}
        patch = self.model.config.patch_size
        before = 1 + getattr(self.model.config, "num_register_tokens", 0)
        for (height, width), positions in _same_size(images).items():
            scale = self.config.features_px / (min(height, width) * patch)
            # Whole patches that cover the whole image, by stretching it less than half a patch.
            h, w = max(1, round(height * scale)), max(1, round(width * scale))
            pixels = self._resized([images[i].pixels for i in positions], (h * patch, w * patch))
            tokens_BND = self._asked(pixel_values=pixels).last_hidden_state.float()[:, before:]
            values = tokens_BND.reshape(len(positions), h, w, -1).cpu().numpy()
            found |= {
                position: PatchFeatures(values=of_image, image_size=(width, height))
                for position, of_image in zip(positions, values)
            }
        return [found[position] for position in range(len(images))]


class Sam2(VisionModel):
    """SAM 2 asked at a grid of points: class-agnostic masks."""

    gives = ("segments",)
    model_class = "Sam2Model"
    compiled_part = "vision_encoder"

    def segments(self, images: Sequence[CameraImage]) -> list[np.ndarray]:
        """Give the automatic masks of each image as (height, width) int32 ids, 0 the largest; −1 where there is none.

        Where masks overlap, the smallest has the pixel: parts lie on what they are parts of.
        """
        return [self._segments(image.pixels) for image in images]

    def _segments(self, pixels: np.ndarray) -> np.ndarray:
        import torch

        masks_Nhw = distinct_masks(*self._masks(pixels))
        area_N = (masks_Nhw > 0).flatten(1).sum(1)
        ids = torch.full(pixels.shape[:2], -1, dtype=torch.int32, device=self.device)
        for number, mask in enumerate(masks_Nhw[area_N.argsort(descending=True, stable=True)]):
            ids[_interpolated(mask[None, None], (pixels.shape[0], pixels.shape[1]))[0, 0] > 0] = number
        return ids.cpu().numpy()

    def _masks(self, pixels: np.ndarray) -> tuple[Tensor, Tensor]:
        """Ask at every point; keep the masks that are good and stable: logits (N, h, w), quality (N,)."""
        import torch

        size = self._input_size()
        with self._asking():
            seen = self.model.get_image_embeddings(self._resized([pixels], size))
        points = _point_grid(self.config.points_per_side, size).to(self.device)
        masks, quality = [], []
        for some in points.split(POINTS_PER_BATCH):
            said = self._asked(image_embeddings=seen, input_points=some[None, :, None])
            logits, iou = said.pred_masks[0].flatten(0, 1).float(), said.iou_scores[0].flatten().float()
            good = (iou >= self.config.min_mask_iou) & (stability(logits) >= self.config.min_mask_stability)
            masks.append(logits[good])
            quality.append(iou[good])
        return torch.cat(masks), torch.cat(quality)

    def _input_size(self) -> tuple[int, int]:
        size = self.checkpoint.preprocessor.get("size") or {}
        if not {"height", "width"} <= set(size):
            raise _not_here(self.checkpoint.model)
        return size["height"], size["width"]


def _point_grid(side: int, size: tuple[int, int]) -> Tensor:
    """Lay side × side points (x, y) in the middles of equal cells of an image: (side², 2) float32, pixels."""
    import torch

    middles = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(middles * size[0], middles * size[1], indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2)


def stability(logits_Nhw: Tensor) -> Tensor:
    """Rate masks by the IoU of what they are at logits above 1 and above −1 (Segment Anything, arXiv 2304.02643, B)."""
    inner = (logits_Nhw > 1).flatten(1).sum(1)
    outer = (logits_Nhw > -1).flatten(1).sum(1)
    return inner / outer.clamp(min=1)


def distinct_masks(logits_Nhw: Tensor, quality_N: Tensor) -> Tensor:
    """Leave out masks that nearly repeat a better one (by IoU above LARGEST_OVERLAP), and empty ones."""
    flat_NP = (logits_Nhw > 0).flatten(1).float()
    area_N = flat_NP.sum(1)
    shared_NN = flat_NP @ flat_NP.T
    overlap_NN = shared_NN / (area_N[:, None] + area_N - shared_NN).clamp(min=1)
    kept: list[int] = []
    for number in quality_N.argsort(descending=True, stable=True).tolist():
        if area_N[number] > 0 and not bool((overlap_NN[number, kept] > LARGEST_OVERLAP).any()):
            kept.append(number)
    return logits_Nhw[kept]
