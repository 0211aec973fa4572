"""Folders are layers: who may import whom, of ours and of others, also inside functions."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "lidar_semseg_ros"

OURS = {
    "core": set(),
    "formats": {"core"},
    "network": {"core"},
    "teacher": {"core"},
    "sim": {"core"},
    "view": {"core"},
    "distill": {"core", "formats", "network", "teacher"},
    "ros": {"core", "formats", "network", "teacher", "sim", "view", "distill"},
    "cli": {"core", "formats", "network", "teacher", "sim", "view", "distill"},
}
ROS = {
    "rclpy",
    "builtin_interfaces",
    "diagnostic_msgs",
    "geometry_msgs",
    "nav_msgs",
    "rcl_interfaces",
    "rosgraph_msgs",
    "sensor_msgs",
    "std_msgs",
    "std_srvs",
    "tf2_msgs",
    "tf2_ros",
    "message_filters",
    "launch",
    "launch_ros",
    "vision_msgs",
}
OTHERS = {
    "core": {"numpy"},
    "formats": {"numpy", "yaml", "rosbags", "apsw", "mcap", "PIL"},
    "network": {"numpy", "numba", "llvmlite", "scipy", "torch", "triton", "safetensors", "onnx", "onnxruntime"},
    "teacher": {"numpy", "torch", "transformers", "skimage", "sklearn"},
    "sim": {"numpy", "embreex"},
    "view": {"numpy", "PIL"},
    "distill": {"numpy", "torch", "transformers"},
    "ros": {"numpy", "yaml"} | ROS,
    "cli": {"numpy", "tqdm", "ray"},
}
"""What each layer may import of third parties."""
HEAVY = {
    "torch",
    "triton",
    "onnx",
    "onnxruntime",
    "safetensors",
    "scipy",
    "numba",
    "llvmlite",
    "rosbags",
    "mcap",
    "embreex",
    "PIL",
} | {
    "transformers",
    "skimage",
    "sklearn",
}
"""What may be imported only where it is used, except by the modules that are about it."""
ABOUT = {
    "network/crew.py": {"numba", "llvmlite"},
    "network/device_inputs.py": {"torch"},
    "network/device_points.py": {"torch"},
    "network/device_segmenter.py": {"torch"},
    "network/fused_network.py": {"torch"},
    "network/inference.py": {"torch"},
    "network/library_products.py": {"torch"},
    "network/machine_code.py": {"numba", "llvmlite"},
    "network/reference.py": {"torch"},
    "network/tiled_network.py": {"torch", "numba"},
    "network/tile_instructions.py": {"numba", "llvmlite"},
    "network/tiles.py": {"torch", "numba"},
    "network/triton_kernels.py": {"torch", "triton"},
    "network/waffleiron.py": {"torch"},
    "network/weights.py": {"torch"},
    "network/workers.py": {"torch"},
    "distill/batch_norms.py": {"torch"},
    "distill/distillation.py": {"torch"},
    "distill/losses.py": {"torch"},
    "distill/objectives.py": {"torch"},
    "distill/processes.py": {"torch"},
    "distill/run_files.py": {"torch"},
    "distill/samples.py": {"torch"},
    "distill/batches.py": {"torch"},
    "distill/train_teacher.py": {"torch"},
}
VAGUE = {"utils", "common", "helpers", "misc"}


def violations(package: Path) -> list[str]:
    """List every import of a package tree that breaks the table."""
    found = []
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package)
        if place.stem in VAGUE or any(part in VAGUE for part in place.parts):
            found.append(f"{place}: the name says nothing")
        if len(place.parts) < 2:
            continue
        layer = place.parts[0]
        tree = ast.parse(path.read_text())
        lazy = {id(node) for scope in ast.walk(tree) if _defers(scope) for node in ast.walk(scope)}
        for node, module in _imports(tree):
            top, _, rest = module.partition(".")
            if top == PACKAGE:
                other = rest.partition(".")[0]
                if other and other != layer and other not in OURS[layer]:
                    found.append(f"{place}: {layer} imports {other}")
            elif top not in sys.stdlib_module_names and top not in OTHERS[layer]:
                found.append(f"{place}: {layer} imports {top}")
            elif top in HEAVY - ABOUT.get(place.as_posix(), set()) and id(node) not in lazy:
                found.append(f"{place}: {top} is imported before it is needed")
    return found


def _defers(scope: ast.AST) -> bool:
    """Tell whether imports inside do not happen with the module's: in a function, or for the type checker only."""
    if isinstance(scope, ast.If):
        return isinstance(scope.test, ast.Name) and scope.test.id == "TYPE_CHECKING"
    return isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef))


def _imports(tree: ast.AST) -> list[tuple[ast.AST, str]]:
    found: list[tuple[ast.AST, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            found += [(node, f"{PACKAGE}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node, "." * node.level + (node.module or "")))
    return found


def test_imports_go_only_downward() -> None:
    assert violations(ROOT / PACKAGE) == []


@pytest.mark.parametrize(
    ("place", "line", "said"),
    [
        ("core/a.py", "import torch", "core imports torch"),
        ("core/a.py", "def f():\n    import rosbags", "core imports rosbags"),
        ("cli/a.py", "from lidar_semseg_ros.ros.worker import Worker", "cli imports ros"),
        ("sim/a.py", "from lidar_semseg_ros.formats import bags", "sim imports formats"),
        ("core/a.py", "from lidar_semseg_ros import ros", "core imports ros"),
        ("network/a.py", "import rclpy", "network imports rclpy"),
        ("network/a.py", "import torch", "before it is needed"),
        ("network/a.py", "from .inputs import prepare", "network imports "),
        ("view/helpers.py", "", "says nothing"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, place: str, line: str, said: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert any(said in found for found in violations(tmp_path))


def test_allowed_imports_are_not_complained_about(tmp_path: Path) -> None:
    path = tmp_path / "network" / "a.py"
    path.parent.mkdir(parents=True)
    path.write_text("import numpy\nfrom lidar_semseg_ros.core import frame\n\ndef f():\n    import torch\n")
    assert violations(tmp_path) == []


@pytest.mark.parametrize(
    "module",
    [
        "network.segmenter",
        "network.inputs",
        "formats.bags",
        "formats.pointcloud2",
        "cli.main",
        "sim.drive",
        "teacher.vision",
        "teacher.superpixels",
    ],
)
def test_importing_loads_nothing_heavy(module: str) -> None:
    script = f"import sys, {PACKAGE}.{module}; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
