from __future__ import annotations

from dataclasses import dataclass

import pytest

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.options import from_mapping, setting, settings_of, to_mapping


@dataclass(frozen=True, kw_only=True)
class Inner:
    layout: str = setting("plain", "how it is written", choices=("plain", "fancy"))


@dataclass(frozen=True, kw_only=True)
class Config:
    min_score: float = setting(0.5, "lowest score", minimum=0.0, maximum=1.0)
    threads: int = setting(2, "threads", minimum=0)
    loop: bool = setting(False, "again and again")
    output: Inner = Inner()


def test_settings_are_listed_with_groups_as_dotted_names() -> None:
    assert [(s.name, s.kind, s.default) for s in settings_of(Config)] == [
        ("min_score", float, 0.5),
        ("threads", int, 2),
        ("loop", bool, False),
        ("output.layout", str, "plain"),
    ]


@pytest.mark.parametrize("values", [{"output": {"layout": "fancy"}}, {"output.layout": "fancy"}])
def test_groups_may_be_nested_or_dotted(values: dict) -> None:
    assert from_mapping(Config, values) == Config(output=Inner(layout="fancy"))


def test_an_integer_is_a_fine_float() -> None:
    assert from_mapping(Config, {"min_score": 1}).min_score == 1.0


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"min_scores": 0.3}, "no setting 'min_scores'; did you mean 'min_score'?"),
        ({"zzz": 1}, "no setting 'zzz'; there are min_score"),
        ({"output": {1: 2}}, "no setting 'output.1'"),
        ({"min_score": "high"}, "'min_score' takes float, but got 'high'"),
        ({"min_score": 1.5}, r"must lie in 0.0 … 1.0, but got 1.5"),
        ({"min_score": float("nan")}, "must lie in"),
        ({"threads": True}, "takes int"),
        ({"threads": -1}, "0 … ∞"),
        ({"loop": 1}, "takes bool"),
        ({"output.layout": "odd"}, "one of plain, fancy"),
    ],
)
def test_a_wrong_setting_says_what_is_right(values: dict, said: str) -> None:
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        from_mapping(Config, values)


def test_a_config_survives_its_mapping() -> None:
    config = Config(threads=7, output=Inner(layout="fancy"))
    assert from_mapping(Config, to_mapping(config)) == config
