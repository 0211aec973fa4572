"""What a teacher's classes mean: the map of ADE20K and the maps that users write."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from lidar_semseg_ros.core.classes import ClassMap, ClassTable, classes_never_given
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED
from lidar_semseg_ros.formats.config_files import class_map, class_table

ADE20K = {
    "wall": "wall 0",
    "floor": "floor 3, rug 28",
    "ceiling": "ceiling 5",
    "column": "column 42",
    "door": "door 14, screen door 58",
    "stair": "stairs 53, stairway 59, step 121, escalator 96",
    "table": "table 15, desk 33, coffee table 64",
    "chair": "chair 19, armchair 30, seat 31, bench 69, swivel chair 75, stool 110",
    "sofa": "sofa 23, cushion 39, ottoman 97",
    "cabinet_shelf": "cabinet 10, shelf 24, wardrobe 35, chest of drawers 44, bookcase 62",
    "display": "computer 74, television 89, screen 130, crt screen 141, monitor 143",
    "light": "lamp 36, light 82, chandelier 85, sconce 134",
    "vegetation": "plant 17, flower 66, palm 72",
    "board": "signboard 43, poster 100, bulletin board 144",
    "other": "counter 45, countertop 70, bar 77, sink 47, refrigerator 50, tray 137, plate 142, pot 125, painting 22, "
    "clock 148, flag 149, curtain 18, blind 63, fence 32, railing 38, pole 93, bannister 95, sculpture 132, "
    "ashcan 138, box 41, bag 115, radiator 146",
    "person": "person 12",
    None: "windowpane 8, mirror 27, glass 147",
}
"""The table of the recipe (see the module's documentation): target ← name and id counted from 0."""
OUTDOORS = {
    1: "building", 2: "sky", 4: "tree", 6: "road", 9: "grass", 11: "sidewalk", 13: "earth", 16: "mountain", 20: "car",
    21: "water", 26: "sea", 46: "sand", 48: "skyscraper", 60: "river", 68: "hill", 80: "bus", 83: "truck",
    90: "airplane",
}  # fmt: skip
INDOORS_UNMAPPED = {7: "bed", 37: "bathtub", 49: "fireplace", 57: "pillow", 65: "toilet", 98: "bottle", 112: "basket"}


def by_id() -> dict[int, tuple[str, str | None]]:
    """ADE20K id → its name and its target, as the table above has them."""
    entries = [(entry.rpartition(" "), target) for target, text in ADE20K.items() for entry in text.split(", ")]
    return {int(number): (name, target) for (name, _, number), target in entries}


def published_names() -> list[str]:
    names = {number: name for number, (name, _) in by_id().items()} | OUTDOORS | INDOORS_UNMAPPED
    shipped = class_map("ade20k").names
    return [names.get(number) or shipped.get(number, (f"thing {number}",))[0] for number in range(150)]


@pytest.mark.parametrize("table_name", ["indoor16", "indoor17"])
def test_every_class_of_ade20k_goes_where_the_recipe_says(table_name: str) -> None:
    table = class_table(table_name)
    remap = class_map("ade20k").remap(table, published_names())
    assert remap.shape == (150,) and remap.dtype == np.uint8
    for number, (name, target) in by_id().items():
        ignored = target is None or (target == "person" and table_name == "indoor16")
        expected = UNLABELLED if ignored else table.names.index(str(target))
        assert remap[number] == expected, name
    assert (remap[list(OUTDOORS)] == UNLABELLED).all()
    assert (remap[list(INDOORS_UNMAPPED)] == table.names.index("other")).all()


def test_an_ade20k_teacher_gives_every_class_but_beam() -> None:
    for name in ("indoor16", "indoor17"):
        table = class_table(name)
        assert classes_never_given(table, class_map("ade20k").remap(table, published_names())) == ("beam",)


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (53, "stairs, steps"), (121, "step, stair"), (14, "door;double;door"), (44, "chest of drawers, chest, bureau"),
        (89, "tv"), (89, "television receiver"), (8, "window "), (38, "rail"), (138, "trash can"), (87, "street_lamp"),
    ],
)  # fmt: skip
def test_the_spellings_of_the_lists_in_use_are_the_same_class(number: int, name: str) -> None:
    names = published_names()
    names[number] = name
    table = class_table("indoor16")
    assert (class_map("ade20k").remap(table, names) == class_map("ade20k").remap(table, published_names())).all()


def test_a_teacher_that_calls_a_class_by_another_name_is_refused() -> None:
    names = published_names()
    names[3], names[5] = names[5], names[3]
    with pytest.raises(UserError, match="calls its class 3 'ceiling', but in ade20k it is 'floor'"):
        class_map("ade20k").remap(class_table("indoor16"), names)


def test_a_name_that_only_begins_with_the_same_letters_is_another_name() -> None:
    names = published_names()
    names[0] = "wallpaper"
    with pytest.raises(UserError, match="wallpaper"):
        class_map("ade20k").remap(class_table("indoor16"), names)


def test_a_teacher_of_another_number_of_classes_is_refused() -> None:
    with pytest.raises(UserError, match="has 151 classes, but ade20k maps 150"):
        class_map("ade20k").remap(class_table("indoor16"), [*published_names(), "more"])


def test_a_teacher_without_names_is_taken_by_its_ids_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    table = class_table("indoor16")
    with caplog.at_level(logging.WARNING):
        remap = class_map("ade20k").remap(table, [f"LABEL_{number}" for number in range(150)])
    assert (remap == class_map("ade20k").remap(table, published_names())).all()
    assert "taken by their ids" in caplog.text


TABLE = ClassTable(name="three", names=("wall", "floor", "chair"), colors=((0, 0, 0),) * 3)
SMALL: dict[str, Any] = {"name": "small", "size": 4, "map": {"wall": {0: "wall", 2: ["screen", "board"]}}}


def test_what_a_map_leaves_out_is_ignored_unless_it_says_where_it_goes() -> None:
    names = ["wall", "sky", "board", "thing"]
    ignoring = ClassMap.from_mapping(SMALL)
    assert ignoring.remap(TABLE, names).tolist() == [0, 255, 0, 255]
    collecting = ClassMap.from_mapping({**SMALL, "unmapped": "chair", "ignore": {1: "sky"}})
    assert collecting.remap(TABLE, names).tolist() == [0, 255, 0, 2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"map": {"wall": {0: "wall"}, "floor": {0: "floor"}}}, "maps id 0 twice"),
        ({"map": {"wall": {0: "wall"}, "floor": {"0": "floor"}}}, "maps id 0 twice"),
        ({"map": {"wall": {0: "wall"}}, "ignore": {0: "wall"}}, "maps id 0 twice"),
        ({"map": {"wall": {4: "wall"}}}, "end at 3"),
        ({"map": {"wall": {-1: "wall"}}}, "end at 3"),
        ({"map": {"wall": {"first": "wall"}}}, "expected 'name', 'size' and 'map'"),
        ({"map": {"wall": "wall"}}, "expected 'name', 'size' and 'map'"),
        ({"map": None}, "expected 'name', 'size' and 'map'"),
        ({"size": "many"}, "expected 'name', 'size' and 'map'"),
    ],
)
def test_a_faulty_map_is_refused_with_its_source(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        ClassMap.from_mapping({**SMALL, **change}, source="my.yaml")
    assert "my.yaml" in str(raised.value) or "small" in str(raised.value)


def test_a_target_that_the_table_does_not_have_is_refused() -> None:
    with pytest.raises(UserError, match="no class 'sofa'"):
        ClassMap.from_mapping({"name": "m", "size": 1, "map": {"sofa": {0: "sofa"}}}).remap(TABLE, ["sofa"])


def test_a_target_that_tables_may_lack_is_ignored_there() -> None:
    lenient = ClassMap.from_mapping({"name": "m", "size": 1, "map": {"sofa": {0: "sofa"}}, "may_lack": ["sofa"]})
    assert lenient.remap(TABLE, ["sofa"]).tolist() == [UNLABELLED]


def test_a_teacher_of_the_same_class_names_needs_no_map() -> None:
    assert ClassMap.of_same_names(TABLE, ("chair", "wall")).remap(TABLE, ("chair", "wall")).tolist() == [2, 0]
    with pytest.raises(UserError, match="no sofa"):
        ClassMap.of_same_names(TABLE, ("chair", "sofa"))
