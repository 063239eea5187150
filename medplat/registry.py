"""Plugins and shipped workflows by name: found by listing files and entry points, without import.

Ours are the files of `medplat/models` and `medplat_datasets`; third parties' are the entry points
`medplat.models` and `medplat.datasets`. One name means one plugin: a clash is an error.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from medplat import paths
from medplat.errors import MissingExtra, PluginError, UsageError

Kind = Literal["model", "dataset"]
PACKAGES: dict[Kind, str] = {"model": "medplat.models", "dataset": "medplat_datasets"}
GROUPS: dict[Kind, str] = {"model": "medplat.models", "dataset": "medplat.datasets"}
REQUIRED: dict[Kind, tuple[str, ...]] = {
    "model": ("CARD", "Config", "build", "TINY", "TWIN"),
    "dataset": ("Config", "cases"),
}
RESERVED: dict[Kind, set[str]] = {"model": {"name"}, "dataset": {"name", "split"}}
ML_PACKAGES = frozenset(
    ("einops", "lightning", "matplotlib", "mlflow", "monai", "numba", "pandas", "psutil",
     "safetensors", "scipy", "sklearn", "torch")
)  # fmt: skip


@dataclass(frozen=True)
class Plugin:
    """Where a plugin is, before it is imported.

    Attributes:
        name: The name in workflows and lists.
        module: The module that will be imported.
        origin: "medplat", or the distribution whose entry point brings it.
        path: Its file, for ours.
    """

    name: str
    module: str
    origin: str
    path: Path | None = None


def nearest(word: str, known: Iterable[str]) -> str:
    """`. Did you mean 'x'?` with the nearest of the known words, or nothing."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f". Did you mean '{found[0]}'?" if found else ""


def found(kind: Kind) -> dict[str, list[Plugin]]:
    """Every plugin of a kind by name; a name with two plugins is a clash."""
    plugins = _ours(PACKAGES[kind])
    for entry in importlib.metadata.entry_points(group=GROUPS[kind]):
        origin = entry.dist.name if entry.dist else "another package"
        plugins.append(Plugin(entry.name, entry.value.partition(":")[0].strip(), origin))
    names: dict[str, list[Plugin]] = {}
    for plugin in sorted(set(plugins), key=lambda one: (one.name, one.origin)):
        names.setdefault(plugin.name, []).append(plugin)
    return names


def clashes() -> list[str]:
    """One sentence for each name that two plugins claim."""
    return [
        _clash(kind, name, plugins)
        for kind in PACKAGES
        for name, plugins in found(kind).items()
        if len(plugins) > 1
    ]


def model_names() -> list[str]:
    """Names of the model plugins, sorted; nothing is imported."""
    return list(found("model"))


def dataset_names() -> list[str]:
    """Names of the dataset plugins, sorted; nothing is imported."""
    return list(found("dataset"))


def model(name: str) -> ModuleType:
    """The module of a model plugin.

    Raises:
        PluginError: The name is unknown or claimed twice, or the module breaks the contract.
        MissingExtra: The module needs a package that is not installed.
    """
    return _load("model", name)


def dataset(name: str) -> ModuleType:
    """The module of a dataset plugin; raises as `model` does."""
    return _load("dataset", name)


def unknown(kind: Kind, name: str) -> str:
    """The sentence for a plugin name that is not known."""
    names = list(found(kind))
    return f"unknown {kind} '{name}'; known are {', '.join(names) or 'none'}{nearest(name, names)}"


def title(path: Path) -> str:
    """First line of a file's docstring, or of a workflow's header comment; nothing is imported."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        try:
            return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
        except SyntaxError:
            return "(this file does not parse)"
    first = text.partition("\n")[0]
    return first.lstrip("# ").rstrip() if first.startswith("#") else ""


def workflows() -> dict[str, Path]:
    """Shipped workflows: "train/unet_phantom" to its file."""
    root = paths.workflows()
    files = sorted(root.rglob("*.yaml"))
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in files}


def workflow(name: str) -> Path:
    """A shipped workflow by "verb/name", or by "name" where only one verb has it.

    Raises:
        UsageError: The name is unknown or stands for several workflows.
    """
    known = workflows()
    wanted = name.removesuffix(".yaml")
    matches = [key for key in known if wanted == key or key.endswith(f"/{wanted}")]
    if len(matches) > 1:
        raise UsageError(f"several workflows are called '{name}': {', '.join(matches)}")
    if not matches:
        short = [key.rpartition("/")[2] for key in known]
        raise UsageError(f"unknown workflow '{name}'{nearest(wanted, [*known, *short])}")
    return known[matches[0]]


def _ours(package: str) -> list[Plugin]:
    """The plugin files of one of our packages; names that begin with `_` are private."""
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [path for folder in folders for path in sorted(Path(folder).glob("*.py"))]
    return [
        Plugin(path.stem, f"{package}.{path.stem}", "medplat", path)
        for path in files
        if not path.stem.startswith("_")
    ]


def _clash(kind: Kind, name: str, plugins: list[Plugin]) -> str:
    origins = " and ".join(plugin.origin for plugin in plugins)
    return f"two {kind} plugins are called '{name}', from {origins}: uninstall or rename one"


def _load(kind: Kind, name: str) -> ModuleType:
    plugins = found(kind).get(name, [])
    if not plugins:
        raise PluginError(unknown(kind, name))
    if len(plugins) > 1:
        raise PluginError(_clash(kind, name, plugins))
    module = _import(kind, plugins[0])
    lacking = [part for part in REQUIRED[kind] if not hasattr(module, part)]
    if lacking:
        raise PluginError(
            f"{kind} plugin '{name}' ({plugins[0].module}) lacks {', '.join(lacking)}"
        )
    if taken := RESERVED[kind] & set(module.Config.model_fields):
        raise PluginError(
            f"{kind} plugin '{name}': its Config may not hold {', '.join(sorted(taken))}, "
            f"which every {kind} section has"
        )
    return module


def _import(kind: Kind, plugin: Plugin) -> ModuleType:
    try:
        return importlib.import_module(plugin.module)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ML_PACKAGES:
            raise MissingExtra(f"{kind} '{plugin.name}'", package) from error
        if package in ("", "medplat", "medplat_datasets", "medplat_kernels"):
            raise PluginError(
                f"{kind} plugin '{plugin.name}' cannot be imported: {error}"
            ) from error
        raise PluginError(
            f"{kind} '{plugin.name}' needs {package}, which is not installed: pip install {package}"
        ) from error
    except Exception as error:
        if plugin.origin == "medplat":
            raise
        raise PluginError(
            f"{kind} plugin '{plugin.name}' of {plugin.origin} cannot be imported "
            f"({type(error).__name__}): ask its authors"
        ) from error
