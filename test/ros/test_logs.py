"""What libraries log is heard through a node, once."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from lidar_semseg_ros.ros.logs import PACKAGE, NodeHandler, hear_libraries


class SpeakingNode:
    """Notes what is said through it."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def get_logger(self) -> SpeakingNode:
        return self

    def info(self, text: str) -> None:
        self.said.append(("info", text))

    def warning(self, text: str) -> None:
        self.said.append(("warning", text))

    def error(self, text: str) -> None:
        self.said.append(("error", text))


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    package = logging.getLogger(PACKAGE)
    level, handlers = package.level, list(package.handlers)
    yield
    package.setLevel(level)
    package.handlers[:] = handlers


def test_what_a_library_logs_is_said_once_with_its_severity_and_through_the_newest_node(
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second = SpeakingNode(), SpeakingNode()
    hear_libraries(first)
    hear_libraries(second)
    library = logging.getLogger(f"{PACKAGE}.network.backends")
    library.debug("a detail")
    library.info("%s fits", "bfloat16")
    library.warning("modules run")
    library.error("nothing runs")
    logging.getLogger("elsewhere").info("no concern of ours")
    assert second.said == [("info", "bfloat16 fits"), ("warning", "modules run"), ("error", "nothing runs")]
    assert first.said == []
    # Python prints warnings that nobody handles; these are handled.
    assert "modules run" not in capsys.readouterr().err


def test_rclpy_takes_every_severity_from_the_same_handler(capfd: pytest.CaptureFixture[str]) -> None:
    from rclpy.logging import get_logger

    handler = NodeHandler(get_logger("segmenter"))
    for level in (logging.INFO, logging.WARNING, logging.ERROR, logging.WARNING):
        handler.handle(logging.LogRecord(PACKAGE, level, "", 0, "level %d", (level,), None))
    said = capfd.readouterr()
    heard = [line for line in (said.out + said.err).splitlines() if "level" in line]
    assert len(heard) == 4 and sum("WARN" in line for line in heard) == 2
