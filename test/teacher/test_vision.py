from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="teachers need PyTorch")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="teachers need safetensors")
transformers = pytest.importorskip("transformers", reason="teachers need transformers, the extra 'teacher'")

from lidar_semseg_ros.core.classes import ClassMap, ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED, CameraImage
from lidar_semseg_ros.formats.config_files import class_map, class_table
from lidar_semseg_ros.formats.masks import mask_files, read_mask
from lidar_semseg_ros.teacher.vision import MaskFiles, VisionConfig, load_teacher
from lidar_semseg_ros.teacher.vision_models import PatchFeatures, distinct_masks, mask_scores, stability

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("wall", "floor", "ceiling", "door", "chair")
TABLE = ClassTable(name="five", names=NAMES, colors=tuple((i, i, i) for i in range(5)))
LABELS: dict[str, Any] = {
    "id2label": dict(enumerate(NAMES)),
    "label2id": {name: number for number, name in enumerate(NAMES)},
}
NORMAL = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
WIDE, TALL = (72, 100), (90, 66)


def photo(size: tuple[int, int], seed: int = 0) -> CameraImage:
    """Something with large and small structure."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    waves = [128 + 90 * np.sin(rows / rng.uniform(3, 30) + columns / rng.uniform(3, 30)) for _ in range(3)]
    pixels = np.stack(waves, -1) + rng.normal(0, 10, (*size, 3))
    return CameraImage(stamp_ns=seed, frame_id="camera", pixels=np.clip(pixels, 0, 255).astype(np.uint8))


def sharpened(model: Any) -> Any:
    """Weights large enough that the random model says different things of different pixels."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
        elif "norm" not in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


def saved(folder: Path, model: Any, preprocessor: dict[str, Any] | None = None) -> Path:
    sharpened(model).save_pretrained(folder)
    if preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def with_tokenizer(folder: Path) -> Path:
    """A vocabulary of single letters in the layout of CLIP's."""
    letters = [chr(letter) for letter in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    return folder


SWIN = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4, "image_size": 64}


def segformer(folder: Path) -> Path:
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16,
        **LABELS,
    )  # fmt: skip
    processor = {"image_processor_type": "SegformerImageProcessor", "size": {"height": 64, "width": 64}, **NORMAL}
    return saved(folder, transformers.SegformerForSemanticSegmentation(config), processor)


def mask2former(folder: Path) -> Path:
    config = transformers.Mask2FormerConfig(
        backbone_config=transformers.SwinConfig(out_features=["stage1", "stage2", "stage3", "stage4"], **SWIN),
        feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16, encoder_layers=1,
        decoder_layers=2, num_attention_heads=2, dim_feedforward=16, num_queries=7, **LABELS,
    )  # fmt: skip
    processor = {"image_processor_type": "Mask2FormerImageProcessor", "size": {"height": 64, "width": 96}, **NORMAL}
    return saved(folder, transformers.Mask2FormerForUniversalSegmentation(config), processor)


def oneformer(folder: Path) -> Path:
    config = transformers.OneFormerConfig(
        backbone_config=transformers.SwinConfig(out_features=["stage1", "stage2", "stage3", "stage4"], **SWIN),
        conv_dim=32, mask_dim=32, hidden_dim=32, encoder_feedforward_dim=16, encoder_layers=1, decoder_layers=2,
        num_attention_heads=2, dim_feedforward=16, num_queries=7, text_encoder_width=16, text_encoder_num_layers=1,
        text_encoder_vocab_size=64, text_encoder_context_length=20, text_encoder_n_ctx=2, query_dec_layers=1,
        task_seq_len=20, max_seq_len=20, is_training=False, **LABELS,
    )  # fmt: skip
    processor = {
        "image_processor_type": "OneFormerImageProcessor", "size": {"shortest_edge": 64, "longest_edge": 128},
        "class_info_file": "ade20k_panoptic.json", "repo_path": "shi-labs/oneformer_demo", **NORMAL,
    }  # fmt: skip
    return with_tokenizer(saved(folder, transformers.OneFormerForUniversalSegmentation(config), processor))


def eomt(folder: Path, **processing: Any) -> Path:
    config = transformers.EomtConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=64, patch_size=16,
        num_blocks=1, num_queries=7, num_register_tokens=2, num_upscale_blocks=1, **LABELS,
    )  # fmt: skip
    windows = {"size": {"shortest_edge": 64, "longest_edge": None}, "do_split_image": True, "do_pad": False}
    processor = {"image_processor_type": "EomtImageProcessor", **windows, **NORMAL, **processing}
    return saved(folder, transformers.EomtForUniversalSegmentation(config), processor)


CLIP_TEXT = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64,
    "max_position_embeddings": 32, "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53,
}  # fmt: skip


def clipseg(folder: Path) -> Path:
    config = transformers.CLIPSegConfig(
        text_config=CLIP_TEXT,
        vision_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
                       "image_size": 64, "patch_size": 16},
        projection_dim=16, reduce_dim=8, extract_layers=[0, 1, 2], decoder_num_attention_heads=2,
        decoder_intermediate_size=16, conditional_layer=0,
    )  # fmt: skip
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 64}, **NORMAL}
    return with_tokenizer(saved(folder, transformers.CLIPSegForImageSegmentation(config), processor))


VIT = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 56,
}  # fmt: skip


def dinov2(folder: Path) -> Path:
    model = transformers.Dinov2Model(transformers.Dinov2Config(patch_size=14, **VIT))
    return saved(folder, model, NORMAL)


def dinov2_with_registers(folder: Path) -> Path:
    config = transformers.Dinov2WithRegistersConfig(patch_size=14, num_register_tokens=4, **VIT)
    return saved(folder, transformers.Dinov2WithRegistersModel(config), NORMAL)


def dinov3(folder: Path) -> Path:
    config = transformers.DINOv3ViTConfig(patch_size=14, num_register_tokens=4, **VIT)
    return saved(folder, transformers.DINOv3ViTModel(config), NORMAL)


def sam2(folder: Path) -> Path:
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=8, num_attention_heads=1, blocks_per_stage=[1, 1, 2, 1], embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2], window_size_per_stage=[4, 4, 4, 4], global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4], image_size=[128, 128],
    )  # fmt: skip
    config = transformers.Sam2Config(
        vision_config=transformers.Sam2VisionConfig(
            backbone_config=backbone, backbone_channel_list=[64, 32, 16, 8], fpn_hidden_size=32,
            backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        ),
        prompt_encoder_config={"hidden_size": 32, "image_size": 128, "patch_size": 16},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                             "iou_head_hidden_dim": 16, "iou_head_depth": 2},
    )  # fmt: skip
    return saved(folder, transformers.Sam2Model(config), {"size": {"height": 128, "width": 128}, **NORMAL})


LABEL_TEACHERS = {
    "segformer": segformer, "mask2former": mask2former, "oneformer": oneformer, "eomt": eomt, "clipseg": clipseg
}  # fmt: skip
FEATURE_TEACHERS = {"dinov2": dinov2, "dinov2 with registers": dinov2_with_registers, "dinov3": dinov3}
MAKERS = {**LABEL_TEACHERS, **FEATURE_TEACHERS, "sam2": sam2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of each tiny model, made when it is first asked for."""
    return functools.cache(lambda name: MAKERS[name](tmp_path_factory.mktemp(name.split()[0])))


def teacher_at(folder: Path, table: ClassTable = TABLE, mapped: ClassMap | None = None, **settings: Any) -> Any:
    config = VisionConfig(**{"model": str(folder), "device": "cpu", "scores_px": 0, **settings})
    return load_teacher(config, table, mapped)


# --- labels: the published formula on what the model itself says


def said_by(folder: Path, image: CameraImage) -> tuple[Any, Any, Any]:
    """The library's own processor and model on one image: processor, its inputs, the model's outputs."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    # Its file of class names is for training, and on the hub.
    more = {"class_info_file": None} if name.startswith("OneFormer") else {}
    processor = transformers.AutoImageProcessor.from_pretrained(folder, **more)
    if name.startswith("OneFormer"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        both = transformers.OneFormerProcessor(processor, tokenizer, max_seq_length=20, task_seq_length=20)
        inputs = both(image.pixels, task_inputs=["semantic"], return_tensors="pt")
    else:
        inputs = processor(image.pixels, return_tensors="pt")
    model = getattr(transformers, name).from_pretrained(folder).eval()
    with torch.no_grad():
        given = {name: inputs[name] for name in ("pixel_values", "task_inputs") if name in inputs}
        return processor, inputs, model(**given)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def resized(maps_CHW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    maps = torch.from_numpy(np.asarray(maps_CHW, np.float64))[None]
    return torch.nn.functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)[0].numpy()


def claims_of_queries(class_logits_QC: np.ndarray, mask_logits_Qhw: np.ndarray) -> np.ndarray:
    """Σ over queries of softmax(class) · sigmoid(mask), without the null class: (C, h, w)."""
    total = np.zeros((class_logits_QC.shape[1] - 1, *mask_logits_Qhw.shape[1:]))
    for classes, mask in zip(softmax(class_logits_QC), sigmoid(mask_logits_Qhw)):
        total += classes[:-1, None, None] * mask
    return total


def expected_scores(name: str, folder: Path, image: CameraImage) -> np.ndarray:
    """(C, height, width) scores of the model's classes."""
    size = image.pixels.shape[:2]
    _, inputs, said = said_by(folder, image)
    if name == "segformer":
        return np.moveaxis(softmax(np.moveaxis(resized(said.logits[0].numpy(), size), 0, -1)), -1, 0)
    classes, masks = said.class_queries_logits.numpy(), said.masks_queries_logits.numpy()
    if name == "oneformer":
        return resized(claims_of_queries(classes[0], masks[0]), size)
    if name == "mask2former":
        return resized(claims_of_queries(classes[0], resized(masks[0], (384, 384))), size)
    tall = size[0] > size[1]
    length = int(64 * max(size) / min(size))
    total, count = np.zeros((5, length, 64) if tall else (5, 64, length)), np.zeros(length)
    for of_classes, of_masks, (_, start, end) in zip(classes, masks, inputs["patch_offsets"]):
        part = (slice(None), slice(start, end)) if tall else (slice(None), slice(None), slice(start, end))
        total[part] += claims_of_queries(of_classes, resized(of_masks, (64, 64)))
        count[start:end] += 1
    return resized(total / (count[:, None] if tall else count), size)


@pytest.mark.parametrize("size", [WIDE, TALL], ids=["wide", "tall"])
@pytest.mark.parametrize("name", ["segformer", "mask2former", "oneformer", "eomt"])
def test_labels_confidence_and_margin_follow_the_published_formula(name: str, size: Any, folders: Any) -> None:
    image = photo(size)
    (said,) = teacher_at(folders(name)).label([image])
    scores = expected_scores(name, folders(name), image)
    second, first = np.sort(scores, axis=0)[-2:]
    total = scores.sum(axis=0)
    assert said.class_id.shape == size and said.image_size == (size[1], size[0])
    assert said.confidence == pytest.approx(first / total, abs=1e-4)
    assert said.margin == pytest.approx((first - second) / total, abs=1e-4)
    clear = (first - second) / total > 1e-4
    assert clear.mean() > 0.9 and (said.class_id == scores.argmax(axis=0))[clear].all()


@pytest.mark.parametrize("size", [WIDE, TALL], ids=["wide", "tall"])
@pytest.mark.parametrize("name", ["segformer", "mask2former", "oneformer", "eomt"])
def test_labels_are_those_of_the_library(name: str, size: Any, folders: Any) -> None:
    image = photo(size, seed=1)
    processor, inputs, outputs = said_by(folders(name), image)
    if name == "eomt":
        # The library takes the windows of the outputs' own batch.
        outputs.patch_offsets = inputs["patch_offsets"]
    (theirs,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[size])
    (ours,) = teacher_at(folders(name)).label([image])
    # Float rounding decides where two classes are equal.
    assert (ours.class_id == theirs.numpy())[ours.margin > 1e-4].all() and (ours.margin > 1e-4).mean() > 0.9


def test_a_model_that_is_asked_in_words_says_what_the_library_says_and_none_of_these(folders: Any) -> None:
    folder, image = folders("clipseg"), photo((64, 64))
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(list(NAMES), return_tensors="pt", padding=True)
    model = transformers.CLIPSegForImageSegmentation.from_pretrained(folder).eval()
    pixels = processor(image.pixels, return_tensors="pt")["pixel_values"].expand(5, -1, -1, -1)
    with torch.no_grad():
        said = model(tokens["input_ids"], pixels, tokens["attention_mask"]).logits
    claims = resized(sigmoid(said.numpy()), (64, 64))
    scores = np.concatenate([claims, 1 - claims.max(axis=0, keepdims=True)])
    (labels,) = teacher_at(folder).label([image])
    first, second = np.sort(scores, axis=0)[[-1, -2]]
    assert labels.confidence == pytest.approx(first / scores.sum(axis=0), abs=1e-4)
    clear = first - second > 1e-4
    leader = np.where(scores.argmax(axis=0) == 5, UNLABELLED, scores.argmax(axis=0))
    assert (labels.class_id == leader)[clear].all() and clear.mean() > 0.9


def test_prompts_are_the_names_in_the_map(folders: Any) -> None:
    mapped = ClassMap.from_mapping(
        {"name": "words", "size": 2, "map": {"wall": {0: ["white wall", "wall"]}, "chair": {1: "stool"}}}
    )
    teacher = teacher_at(folders("clipseg"), mapped=mapped)
    assert teacher.names[:2] == ("white wall", "stool")
    assert teacher.never_labelled == ("floor", "ceiling", "door")
    assert set(np.unique(teacher.label([photo(WIDE)])[0].class_id)) <= {0, 4, UNLABELLED}


def test_classes_are_added_up_to_their_targets(folders: Any) -> None:
    mapped = ClassMap.from_mapping(
        {"name": "m", "size": 5, "map": {"wall": {0: "wall", 3: "door", 2: "ceiling"}, "chair": {4: "chair"}}}
    )
    image = photo(WIDE)
    teacher = teacher_at(folders("segformer"), mapped=mapped)
    (said,) = teacher.label([image])
    scores = expected_scores("segformer", folders("segformer"), image)
    by_target = np.stack([scores[0] + scores[2] + scores[3], scores[4], scores[1]])
    assert said.confidence == pytest.approx(by_target.max(axis=0), abs=1e-4)
    leader = np.array([0, 4, UNLABELLED])[by_target.argmax(axis=0)]
    assert (said.class_id == leader)[said.margin > 1e-4].all()
    assert teacher.never_labelled == ("floor", "ceiling", "door")


def test_mask_scores_are_those_worked_out_by_hand() -> None:
    ln = np.log
    classes = torch.tensor([[[ln(1.0), ln(2.0), ln(1.0)], [ln(6.0), ln(2.0), ln(2.0)]]])
    masks = torch.tensor([[[[0.0, ln(3.0)]], [[ln(1 / 3), 0.0]]]])
    # softmax without the null class: (1/4, 1/2) and (6/10, 2/10); sigmoid: (1/2, 3/4) and (1/4, 1/2).
    scores = mask_scores(classes, masks, torch.eye(2))[0, :, 0]
    expected = [[0.25 * 0.5 + 0.6 * 0.25, 0.25 * 0.75 + 0.6 * 0.5], [0.5 * 0.5 + 0.2 * 0.25, 0.5 * 0.75 + 0.2 * 0.5]]
    assert scores.numpy() == pytest.approx(np.array(expected), abs=1e-6)
    summed = mask_scores(classes, masks, torch.ones(2, 1))[0, 0, 0]
    assert summed.numpy() == pytest.approx(np.array(expected).sum(axis=0), abs=1e-6)


@pytest.mark.parametrize("name", LABEL_TEACHERS)
def test_a_batch_of_mixed_sizes_equals_single_images(name: str, folders: Any) -> None:
    images = [photo(WIDE), photo(TALL, 1), photo(WIDE, 2)]
    teacher = teacher_at(folders(name))
    for image, together in zip(images, teacher.label(images)):
        (alone,) = teacher.label([image])
        assert together.confidence == pytest.approx(alone.confidence, abs=1e-5)
        assert (together.class_id == alone.class_id)[alone.margin > 1e-4].all()
    assert teacher.label([]) == []


@pytest.mark.parametrize(("precision", "error"), [("bfloat16", 0.05), ("float16", 0.005)])
@pytest.mark.parametrize("name", LABEL_TEACHERS)
def test_lower_precision_gives_nearly_the_same_in_float32(
    name: str, precision: str, error: float, folders: Any
) -> None:
    image = photo(WIDE)
    (exact,) = teacher_at(folders(name)).label([image])
    (lower,) = teacher_at(folders(name), precision=precision).label([image])
    assert lower.confidence.dtype == np.float32
    # They have 8 and 11 bits, and these random models have few layers.
    assert np.abs(lower.confidence - exact.confidence).mean() < error
    assert not (lower.confidence == exact.confidence).all()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_says_the_same_and_its_features_are_heard(folders: Any) -> None:
    image, plain = photo(WIDE), teacher_at(folders("segformer"))
    compiled = teacher_at(folders("segformer"), compile=True)
    (expected,), (said,) = plain.label([image]), compiled.label([image])
    assert said.confidence == pytest.approx(expected.confidence, abs=1e-5)
    assert compiled.features([image])[0].values == pytest.approx(plain.features([image])[0].values, abs=1e-4)


def test_a_machine_that_cannot_compile_says_what_to_set(folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    with pytest.raises(UserError, match=r"cannot be compiled: .*no-such-compiler.*; set compile to false"):
        teacher_at(folders("dinov2"), features_px=56, compile=True).features([photo(WIDE)])


def test_a_checkpoint_in_half_precision_is_computed_in_single_precision(folders: Any, tmp_path: Path) -> None:
    folder = damaged(folders("segformer"), tmp_path / "half")
    transformers.SegformerForSemanticSegmentation.from_pretrained(folder).half().save_pretrained(folder)
    teacher = teacher_at(folder)
    assert {parameter.dtype for parameter in teacher.model.parameters()} == {torch.float32}
    image = photo(WIDE)
    (exact,), (halved,) = (t.label([image]) for t in (teacher_at(folders("segformer")), teacher))
    # Half precision rounds weights by 5e-4 of their size.
    assert halved.confidence == pytest.approx(exact.confidence, abs=0.02)


def test_a_coarser_grid_covers_the_same_image(folders: Any) -> None:
    image = photo((60, 100))
    (fine,) = teacher_at(folders("segformer")).label([image])
    (coarse,) = teacher_at(folders("segformer"), scores_px=50).label([image])
    assert coarse.class_id.shape == (30, 50) and coarse.image_size == (100, 60)
    assert (coarse.class_id == fine.class_id[::2, ::2]).mean() > 0.8


# --- features


@pytest.mark.parametrize("name", FEATURE_TEACHERS)
def test_features_are_the_patch_tokens_in_their_places(name: str, folders: Any) -> None:
    folder, image = folders(name), photo((56, 84))
    (said,) = teacher_at(folder, features_px=56).features([image])
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, architecture).from_pretrained(folder).eval()
    mean, std = (np.array(NORMAL[key], np.float32) for key in ("image_mean", "image_std"))
    pixels = torch.from_numpy(np.moveaxis((np.float32(image.pixels) / 255 - mean) / std, -1, 0))[None]
    with torch.no_grad():
        tokens = model(pixel_values=pixels).last_hidden_state[0].numpy()
    rows, columns = 56 // model.config.patch_size, 84 // model.config.patch_size
    assert said.values.shape == (rows, columns, 16) and said.image_size == (84, 56)
    assert said.values == pytest.approx(tokens[-rows * columns :].reshape(rows, columns, 16), abs=1e-4)


def test_features_of_a_batch_equal_those_of_single_images_also_in_lower_precision(folders: Any) -> None:
    images = [photo(WIDE), photo(TALL, 1), photo(WIDE, 2)]
    for precision in ("float32", "bfloat16", "float16"):
        teacher = teacher_at(folders("dinov2"), features_px=56, precision=precision)
        for image, together in zip(images, teacher.features(images)):
            assert together.values.dtype == np.float32
            assert together.values == pytest.approx(teacher.features([image])[0].values, abs=1e-4)


def test_features_are_interpolated_between_the_centres_of_patches() -> None:
    # 2×3 patches over an image of 30×20 pixels: centres at 4.5, 14.5, 24.5 and at 4.5, 14.5.
    rows, columns = np.mgrid[:2, :3].astype(np.float32)
    features = PatchFeatures(values=np.stack([rows, columns], -1), image_size=(30, 20))
    uv_px = np.array([[4.5, 4.5], [24.5, 14.5], [9.5, 4.5], [4.5, 9.5], [7.0, 12.0], [-0.5, -0.5], [29.4, 19.4]])
    expected = [[0, 0], [1, 2], [0, 0.5], [0.5, 0], [0.75, 0.25], [0, 0], [1, 2]]
    assert features.at(uv_px) == pytest.approx(np.array(expected), abs=1e-6)
    assert features.at(np.empty((0, 2))).shape == (0, 2)


# --- segments


def test_automatic_masks_have_disjoint_ids_from_large_to_small(folders: Any) -> None:
    everything = {"min_mask_iou": 0.0, "min_mask_stability": 0.0, "points_per_side": 3}
    (ids,) = teacher_at(folders("sam2"), **everything).segments([photo(WIDE)])
    assert ids.shape == WIDE and ids.dtype == np.int32 and ids.min() >= -1
    assert len(np.unique(ids[ids >= 0])) >= 2


def test_masks_that_the_model_doubts_are_left_out(folders: Any) -> None:
    (ids,) = teacher_at(folders("sam2"), min_mask_iou=1.0, points_per_side=2).segments([photo(TALL)])
    assert (ids == -1).all()


def test_masks_run_in_lower_precision(folders: Any) -> None:
    settings = {"min_mask_iou": 0.0, "min_mask_stability": 0.0, "points_per_side": 2, "precision": "bfloat16"}
    (ids,) = teacher_at(folders("sam2"), **settings).segments([photo(WIDE)])
    assert ids.dtype == np.int32


def square(low: int, high: int, logit: float = 9.0) -> Any:
    mask = torch.full((10, 10), -9.0)
    mask[low:high, low:high] = logit
    return mask


def test_of_masks_that_nearly_repeat_each_other_the_best_is_kept() -> None:
    masks = torch.stack([square(0, 9), square(0, 10), square(5, 9), square(0, 0)])
    kept = distinct_masks(masks, torch.tensor([0.5, 0.9, 0.1, 1.0]))
    # 81 of 100 pixels are shared by the first two; the third is a part; the last is empty.
    assert len(kept) == 2 and torch.equal(kept[0], masks[1]) and torch.equal(kept[1], masks[2])


def test_stability_is_the_overlap_of_a_mask_at_two_thresholds() -> None:
    soft = square(0, 6)
    soft[0, :3] = 0.5
    assert stability(torch.stack([square(0, 6), soft, square(0, 0)])).tolist() == pytest.approx([1, 33 / 36, 0])


# --- loading


def test_a_teacher_says_what_it_gives_and_refuses_the_rest(folders: Any) -> None:
    gives = {
        "segformer": ("labels", "features"),
        "mask2former": ("labels",),
        "dinov2": ("features",),
        "sam2": ("segments",),
    }
    for name, what in gives.items():
        teacher = teacher_at(folders(name))
        assert teacher.gives == what
        for ask, answer in (("label", "labels"), ("features", "features"), ("segments", "segments")):
            if answer not in what:
                with pytest.raises(UserError, match=f"gives {' and '.join(what)}, not {answer}"):
                    getattr(teacher, ask)([photo(WIDE)])


def test_features_of_a_segformer_are_what_its_last_layer_classifies(folders: Any) -> None:
    teacher = teacher_at(folders("segformer"))
    wide, tall = photo(WIDE), photo(TALL)
    found = teacher.features([wide, tall])
    classify = teacher.model.decode_head.classifier
    for image, features in zip((wide, tall), found):
        assert features.image_size == image.pixels.shape[1::-1]
        pixels = teacher.processor([image.pixels], return_tensors="pt")["pixel_values"]
        logits = teacher.model(pixel_values=pixels).logits[0].permute(1, 2, 0)
        torch.testing.assert_close(
            torch.from_numpy(features.values) @ classify.weight[:, :, 0, 0].T + classify.bias, logits
        )


def test_a_teacher_is_not_trained(folders: Any) -> None:
    teacher = teacher_at(folders("segformer"))
    with pytest.raises(RuntimeError, match="not trained"):
        teacher.train()
    assert not teacher.model.training and not any(p.requires_grad for p in teacher.model.parameters())


def test_a_model_that_is_not_here_is_not_downloaded_and_the_way_to_get_it_is_said(tmp_path: Path) -> None:
    for missing in (tmp_path, tmp_path / "nowhere", "nobody/no-such-model"):
        with pytest.raises(UserError, match="hf download"):
            teacher_at(missing)


def damaged(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "preprocessor_config.json", "config.json"])
def test_a_checkpoint_that_lacks_a_file_is_refused(name: str, folders: Any, tmp_path: Path) -> None:
    folder = damaged(folders("eomt"), tmp_path / "m")
    (folder / name).unlink()
    with pytest.raises(UserError):
        teacher_at(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "preprocessor_config.json", "config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\x00\xff" * 99], ids=["empty", "cut", "list", "binary"])
def test_a_checkpoint_with_a_damaged_file_is_refused(name: str, content: bytes, folders: Any, tmp_path: Path) -> None:
    folder = damaged(folders("eomt"), tmp_path / "m")
    (folder / name).write_bytes(content)
    with pytest.raises(UserError):
        teacher_at(folder)


def test_weights_that_are_cut_off_are_refused(folders: Any, tmp_path: Path) -> None:
    path = damaged(folders("segformer"), tmp_path / "m") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError):
        teacher_at(path.parent)


def test_weights_that_are_not_all_there_are_refused(folders: Any, tmp_path: Path) -> None:
    folder = damaged(folders("segformer"), tmp_path / "m")
    weights = safetensors_torch.load_file(folder / "model.safetensors")
    del weights["decode_head.classifier.weight"]
    safetensors_torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack decode_head\.classifier\.weight"):
        teacher_at(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architectures": ["BertModel"]}, "BertModel, which cannot be a teacher"),
        ({"architectures": []}, "model without an architecture"),
        ({"hidden_sizes": [8, 16, 24, 64]}, "fetch it again"),
        ({"hidden_sizes": "many"}, "cannot be loaded"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(change: Any, said: str, folders: Any, tmp_path: Path) -> None:
    path = damaged(folders("segformer"), tmp_path / "m") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=said):
        teacher_at(path.parent)


def test_a_model_whose_classes_are_not_those_of_the_map_is_refused(folders: Any) -> None:
    with pytest.raises(UserError, match="has 5 classes, but ade20k maps 150"):
        teacher_at(folders("segformer"), class_table("indoor16"), class_map("ade20k"))
    with pytest.raises(UserError, match="no door"):
        teacher_at(folders("segformer"), ClassTable(name="t", names=NAMES[:3], colors=((0, 0, 0),) * 3))


def test_a_model_for_panoptic_segmentation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model for semantic segmentation"):
        teacher_at(eomt(tmp_path, do_split_image=False, do_pad=True))


def test_a_gpu_that_is_not_there_is_refused(folders: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="sees no CUDA GPU"):
        teacher_at(folders("segformer"), device="cuda")
    with pytest.raises(UserError, match="'tpu'"):
        VisionConfig(device="tpu")


# --- masks from files


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    from PIL import Image

    Image.fromarray(np.uint8([[0, 1, 4], [9, 2, 2]])).save(tmp_path / "100.png")
    np.save(tmp_path / "200.npy", np.int64([[0, 300, -1], [70000, 2, 2]]))
    (tmp_path / "notes.txt").write_text("by hand")
    return tmp_path


def image_at(stamp_ns: int, size: tuple[int, int] = (2, 3)) -> CameraImage:
    return CameraImage(stamp_ns=stamp_ns, frame_id="camera", pixels=np.zeros((*size, 3), np.uint8))


def test_segments_come_from_files_named_after_the_stamp(masks: Path) -> None:
    teacher = MaskFiles(mask_files(masks), read_mask)
    second, first = teacher.segments([image_at(200), image_at(100)])
    assert first.tolist() == [[0, 1, 4], [9, 2, 2]] and first.dtype == np.int32
    assert second.tolist() == [[0, 300, -1], [70000, 2, 2]] and second.dtype == np.int32
    for ask in (teacher.label, teacher.features):
        with pytest.raises(UserError):
            ask([image_at(100)])


def test_labels_come_from_files_with_and_without_a_map(masks: Path) -> None:
    (said,) = MaskFiles(mask_files(masks), read_mask, TABLE).label([image_at(100)])
    assert said.class_id.tolist() == [[0, 1, 4], [UNLABELLED, 2, 2]]
    assert said.confidence.tolist() == [[1, 1, 1], [0, 1, 1]]
    mapped = ClassMap.from_mapping({"name": "m", "size": 5, "map": {"chair": {1: "x", 2: "y"}}, "unmapped": "wall"})
    teacher = MaskFiles(mask_files(masks), read_mask, TABLE, mapped)
    first, second = teacher.label([image_at(100), image_at(200)])
    assert first.class_id.tolist() == [[0, 4, 0], [UNLABELLED, 4, 4]]
    assert second.class_id.tolist() == [[0, UNLABELLED, UNLABELLED], [UNLABELLED, 4, 4]]
    assert teacher.gives == ("labels",) and teacher.never_labelled == ("floor", "ceiling", "door")


def test_an_image_without_a_mask_or_with_one_of_another_size_is_refused(masks: Path) -> None:
    teacher = MaskFiles(mask_files(masks), read_mask)
    with pytest.raises(UserError, match="no mask file for the image at 150 ns"):
        teacher.segments([image_at(150)])
    with pytest.raises(UserError, match="3×2 pixels, but its image has 4×2"):
        teacher.segments([image_at(100, (2, 4))])


def test_files_that_are_not_named_after_stamps_are_refused(masks: Path) -> None:
    (masks / "left.png").touch()
    with pytest.raises(UserError, match=r"left\.png is not named"):
        MaskFiles(mask_files(masks), read_mask)
    with pytest.raises(UserError, match="no mask files"):
        MaskFiles([], read_mask)
