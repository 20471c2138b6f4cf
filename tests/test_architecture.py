"""The house keeps its shape: imports point down, torch stays in its rooms."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path

import persam_video

PACKAGE = Path(persam_video.__file__).parent

# From the ground up. A module or room imports what stands on a lower line, and within its own room.
LAYERS = (
    ("errors",),
    ("types",),
    ("config",),
    ("geometry",),
    ("files",),
    ("label_maps",),
    ("rle",),
    ("channel",),
    ("sources", "sam", "sinks", "evaluation", "references"),
    ("personalize",),
    ("tracking",),
    ("writing",),
    ("pipeline",),
    ("batch", "live", "benchmark"),
    ("cli",),
    ("__init__", "__main__"),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}

TORCH_ROOMS = {"sam", "personalize", "tracking", "pipeline"}
TORCH_PACKAGES = {"torch", "torchvision", "segment_anything"}
BINS = {"utils", "util", "common", "helpers", "helper", "misc"}

MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def room_of(module: Path) -> str:
    return module.parts[0] if len(module.parts) > 1 else module.stem


def imported(tree: ast.AST, *, at_run_time: bool = False) -> Iterator[str]:
    """Dotted names of all imports, those inside functions included."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide the room"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (at_run_time and isinstance(node, ast.If) and is_type_checking(node)):
            yield from imported(node, at_run_time=at_run_time)


def is_type_checking(node: ast.If) -> bool:
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def parse(module: Path) -> ast.Module:
    return ast.parse((PACKAGE / module).read_text(encoding="utf-8"))


def test_imports_of_every_module_point_down_only() -> None:
    upward = [
        f"{module} (level {LEVEL[room]}) imports {name}"
        for module in MODULES
        for room in [room_of(module)]
        for name in imported(parse(module))
        if name.split(".")[0] == "persam_video"
        and (other := [*name.split("."), "__init__"][1]) != room
        and LEVEL.get(other, 99) >= LEVEL[room]
    ]
    assert not upward, "\n".join(upward)


def test_imports_of_torch_stay_in_its_rooms() -> None:
    outside = [
        f"{module} imports {name}"
        for module in MODULES
        if room_of(module) not in TORCH_ROOMS
        for name in imported(parse(module), at_run_time=True)
        if name.split(".")[0] in TORCH_PACKAGES
    ]
    assert not outside, "\n".join(outside)


def test_names_of_modules_say_what_is_in_them() -> None:
    assert not [str(m) for m in MODULES if BINS & {*m.parent.parts, m.stem}]


def test_folders_of_modules_are_packages_that_a_wheel_takes_along() -> None:
    assert {m.parent for m in MODULES} == {m.parent for m in MODULES if m.name == "__init__.py"}


def test_imports_of_package_form_no_cycle() -> None:
    edges = {
        module: {
            target
            for name in imported(parse(module), at_run_time=True)
            if (target := file_of(name)) not in (None, module)
        }
        for module in MODULES
        if module.name != "__init__.py"
    }
    while leaves := [module for module, targets in edges.items() if not targets & edges.keys()]:
        for module in leaves:
            del edges[module]
    assert not edges, f"in a cycle, or above one: {', '.join(map(str, edges))}"


def file_of(name: str) -> Path | None:
    """The module that a dotted import means; None outside the package."""
    parts = name.split(".")[1:] if name.startswith("persam_video.") else []
    for end in (len(parts), len(parts) - 1):
        if end > 0 and (module := Path(*parts[:end]).with_suffix(".py")) in MODULES:
            return module
    return None


def test_layers_name_every_room_once() -> None:
    rooms = list(itertools.chain.from_iterable(LAYERS))
    assert len(rooms) == len(set(rooms))
    missing = {room_of(module) for module in MODULES} - set(rooms)
    assert not missing, f"{missing}: the layers above are the floor plan; give them a place there"
