"""Who may import whom. The order of the layers and of the engine's modules is written down here, lowest
first; an import that goes up, or an outside library in other hands than its owner's, fails with its line.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent / "src" / "hilum"

# Imports go to the left only; inside a layer, but for the engine, any way that is no circle.
LAYERS = (
    "errors", "dicom", "engine", "pixels", "api", "settings", "transfer", "web", "dimse", "remote", "cli",
)  # fmt: skip
COMPILED = {  # whose they are
    "_fastparse": "engine",
    "_fastio": "engine",
    "_fastpack": "engine",
    "_fastread": "engine",
    "_dicomjson": "engine",
    "_multipart": "web",
}

# Inside the engine each module imports from those before it only: bytes on disk, then what they mean, then
# the changes of state and who enters them, then the store, then what works on many.
ENGINE = (
    "index", "packs", "record", "original", "frametable", "header", "keys", "folder", "prepare", "frames",
    "catalog", "ledger", "replay", "writer", "elements", "question", "query", "document", "resources",
    "store", "importer", "verify", "rebuild", "compact",
)  # fmt: skip

# library → (modules or packages that may import it, only inside functions)
OWNERS: dict[str, tuple[tuple[str, ...], bool]] = {
    "lmdb": (("engine.index",), False),
    "blake3": (("engine", "transfer.arriving"), False),
    "isal": (("engine", "cli.export"), False),
    "click": (("cli",), False),
    "rich": (("cli.common",), True),
    "orjson": (("cli.common", "dimse", "remote", "web"), False),
    "msgspec": (("settings",), False),
    "starlette": (("web",), False),
    "uvicorn": (("web.server",), False),
    "pynetdicom": (("dimse",), False),
    "argon2": (("web.security",), True),
    "prometheus_client": (("web.metrics",), False),
    "lxml": (("dicom.xml",), True),
    "numpy": (("pixels",), False),
    "pydicom": (("engine.header", "engine.original", "pixels", "api", "cli"), True),
    "PIL": (("pixels",), True),
    "imagecodecs": (("pixels",), True),
    "openjpeg": (("pixels",), True),
    "rle": (("pixels",), True),
    "libjpeg": (("pixels",), True),
}


class Import(NamedTuple):
    """One import of one module."""

    importer: str  # below hilum: "engine.store"
    line: int
    name: str  # in full: "hilum.engine.index", "lmdb"
    late: bool  # inside a function
    for_types: bool  # under TYPE_CHECKING: never runs


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts)


MODULES = {
    module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))
}


def imports_of(module: str) -> Iterator[Import]:
    tree = MODULES[module]
    late, for_types = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            late.update(ast.walk(node))
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for_types.update(found for inner in node.body for found in ast.walk(inner))
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: name modules in full"
            source = node.module or ""
            for alias in node.names:
                inner = f"{source}.{alias.name}".removeprefix("hilum.")
                known = source.startswith("hilum") and (inner in MODULES or inner in COMPILED)
                names.append(f"hilum.{inner}" if known else source)
        for name in names:
            yield Import(module, node.lineno, name, node in late, node in for_types)


IMPORTS = [found for module in MODULES for found in imports_of(module)]


def layer_of(module: str) -> int:
    """Where a module stands, from 0; the package itself and its __main__ stand above all."""
    first = module.split(".")[0]
    return LAYERS.index(COMPILED.get(first, first)) if first in (*LAYERS, *COMPILED) else len(LAYERS)


def ours() -> list[Import]:
    return [found for found in IMPORTS if found.name.split(".")[0] == "hilum" and not found.for_types]


def test_every_module_stands_in_a_layer_and_every_engine_module_in_the_order():
    assert {module.split(".")[0] for module in MODULES} == {*LAYERS, "__init__", "__main__"}
    engine = {module.removeprefix("engine.") for module in MODULES if module.startswith("engine.")}
    assert engine - {"__init__"} == set(ENGINE)
    assert len(set(ENGINE)) == len(ENGINE)


def test_imports_between_layers_go_down_only():
    wrong = []
    for found in ours():
        target = found.name.removeprefix("hilum").removeprefix(".")
        if not target:  # the package: its name and version, for those at the top
            target = "cli"
        if layer_of(target) > layer_of(found.importer):
            wrong.append(f"{found.importer}:{found.line} imports {found.name}, which stands above it")
    assert wrong == []


def test_the_services_and_the_client_know_nothing_of_each_other_and_nothing_of_what_the_engine_stands_on():
    hidden = ("hilum.engine.index", "hilum.engine.packs")
    wrong = []
    for found in ours():
        service = found.importer.split(".")[0]
        apart = ("web", "dimse", "remote")
        if service in apart and (
            found.name.split(".")[1] in set(apart) - {service} or found.name.startswith(hidden)
        ):
            wrong.append(f"{found.importer}:{found.line} imports {found.name}")
    assert wrong == []


def test_imports_inside_the_engine_go_down_only():
    wrong = []
    for found in ours():
        _, _, importer = found.importer.partition("engine.")
        _, _, target = found.name.partition("hilum.engine.")
        target = target.split(".")[0]
        if importer in ENGINE and target and ENGINE.index(target) >= ENGINE.index(importer):
            wrong.append(f"engine.{importer}:{found.line} imports {target}, which stands above it")
    assert wrong == []


def test_no_two_modules_import_each_other_round_a_circle():
    below: dict[str, set[str]] = {module: set() for module in MODULES}
    for found in ours():
        target = found.name.removeprefix("hilum.")
        if target in MODULES:
            below[found.importer].add(target)

    def reach(module: str, seen: set[str]) -> set[str]:
        for target in below[module] - seen:
            seen.add(target)
            reach(target, seen)
        return seen

    # The package hands api out by name, and only when it is asked.
    circles = [module for module in MODULES if module != "__init__" and module in reach(module, set())]
    assert circles == []


def test_each_outside_library_has_its_one_owner():
    wrong = []
    for found in IMPORTS:
        library = found.name.split(".")[0]
        if library == "hilum" or library in sys.stdlib_module_names or found.for_types:
            continue
        if library not in OWNERS:
            wrong.append(f"{found.importer}:{found.line} imports {library}, which has no owner")
            continue
        owners, only_late = OWNERS[library]
        if not any(found.importer == owner or found.importer.startswith(f"{owner}.") for owner in owners):
            wrong.append(
                f"{found.importer}:{found.line} imports {library}, which belongs to {', '.join(owners)}"
            )
        if only_late and not found.late:
            wrong.append(
                f"{found.importer}:{found.line} imports {library} at its top; import it where it is used"
            )
    assert wrong == []


def test_every_library_that_is_declared_is_imported_and_every_one_imported_is_declared():
    import tomllib

    project = tomllib.loads((ROOT.parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    package_of = {
        "PIL": "pillow",
        "argon2": "argon2-cffi",
        "openjpeg": "pylibjpeg-openjpeg",
        "prometheus_client": "prometheus-client",
        "rle": "pylibjpeg-rle",
    }
    by_name = {"httptools", "pylibjpeg-openjpeg", "pylibjpeg-rle", "uvloop"}
    declared = {name.split(">")[0].split("=")[0].strip() for name in project["dependencies"]}
    imported = {found.name.split(".")[0] for found in IMPORTS if not found.for_types}
    used = {package_of.get(name, name) for name in imported - {"hilum"} - set(sys.stdlib_module_names)}
    assert used <= declared
    assert declared - used <= by_name  # others load them


@pytest.mark.parametrize("module", [name for name in MODULES if MODULES[name].body])
def test_a_module_begins_with_a_line_that_says_what_it_is(module):
    text = ast.get_docstring(MODULES[module])

    assert text, f"{module} has no docstring"
    first = text.split("\n\n")[0]
    assert first[0].isupper() or first.startswith(("hilum ", "python "))
    assert len(first) > 20
    assert first.rstrip().endswith((".", ":"))


def test_no_setting_is_a_global_that_functions_change():
    wrong = [
        f"{module}:{node.lineno}: global {', '.join(node.names)}"
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Global)
    ]
    assert wrong == []


def test_nothing_but_the_web_is_async_and_nothing_but_the_command_line_prints():
    wrong = []
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.AsyncFunctionDef | ast.Await) and not module.startswith("web."):
                wrong.append(f"{module}:{node.lineno}: async")
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "print"
                and not module.startswith("cli")
            ):
                wrong.append(f"{module}:{node.lineno}: print")
    assert wrong == []


def test_input_from_outside_is_never_refused_by_an_assertion_or_a_bare_error():
    wrong = []
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Raise) or node.exc is None:
                continue
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if isinstance(raised, ast.Name) and raised.id in (
                "ValueError",
                "KeyError",
                "TypeError",
                "Exception",
            ):
                wrong.append(f"{module}:{node.lineno}: raise {raised.id}")
    assert wrong == []
