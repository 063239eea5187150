"""`medplat doctor`: what is installed, what the machine has, which kernels there are."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

from medplat import __version__, paths, registry
from medplat.commands import Outcome


def run(*, project: Path) -> Outcome:
    """Look at the installation; changes nothing and opens no connection."""
    summary: dict[str, Any] = {
        "medplat": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": _packages(),
        "device": _device(),
        "operators": _operators(),
        "plugins": {kind: list(registry.found(kind)) for kind in registry.PACKAGES},
        "clashes": registry.clashes(),
        "project": str(project),
        "tracking": _tracking(project),
    }
    return Outcome(0, summary, "\n".join(_lines(summary)))


def _packages() -> dict[str, dict[str, str | None]]:
    """Every extra of medplat with its packages and their versions, None where absent."""
    found: dict[str, dict[str, str | None]] = {}
    for line in importlib.metadata.requires("medplat") or []:
        name = re.match(r"[A-Za-z0-9._-]+", line)
        extra = re.search(r"""extra\s*==\s*['"]([^'"]+)""", line)
        if name and name[0] != "editables":  # an editable install adds it
            group = found.setdefault(extra[1] if extra else "core", {})
            group[name[0]] = _version(name[0])
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device() -> dict[str, Any]:
    """What torch would compute on."""
    if importlib.util.find_spec("torch") is None:
        return {"name": "none", "why": "torch is not installed: pip install 'medplat[ml]'"}
    import torch

    if not torch.cuda.is_available():
        why = (
            "no CUDA device was found"
            if torch.version.cuda
            else "this torch was built without CUDA"
        )
        return {"name": "cpu", "why": why, "threads": torch.get_num_threads()}
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "why": f"CUDA {torch.version.cuda}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "count": torch.cuda.device_count(),
    }


def _operators() -> dict[str, dict[str, Any]]:
    """For each operator of our own, the backend that would run it here, and what each one says."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    from medplat_kernels import explain

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        operator: {
            "backend": next((name for name, why in said.items() if why.startswith("yes")), None),
            "why": said,
        }
        for operator, said in explain(device).items()
    }


def _tracking(project: Path) -> str:
    named = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if named:
        return re.sub(r"//[^/@]*@", "//", named) + " (MLFLOW_TRACKING_URI)"
    file = project / paths.STATE / "tracking" / "mlflow.db"
    return str(file) + ("" if file.exists() else " (made at first use)")


def _lines(summary: dict[str, Any]) -> list[str]:
    lines = [
        f"medplat {summary['medplat']}, Python {summary['python']} ({summary['executable']})",
        f"{summary['platform']}, {summary['cpus']} CPUs",
        f"device: {summary['device']['name']}: {summary['device']['why']}",
    ]
    for extra, packages in summary["packages"].items():
        absent = [name for name, version in packages.items() if version is None]
        there = [f"{name} {version}" for name, version in packages.items() if version]
        lines.append(f"{extra}: {', '.join(there) or 'nothing installed'}")
        if absent:
            extras = "" if extra == "core" else f"[{extra}]"
            lines.append(f"  absent: {', '.join(absent)}: pip install 'medplat{extras}'")
    if not summary["operators"]:
        lines.append("operators: none without torch")
    for operator, found in summary["operators"].items():
        why = "; ".join(f"{name}: {said}" for name, said in found["why"].items())
        lines.append(f"operator {operator}: {found['backend'] or 'no backend'} ({why})")
    for kind, names in summary["plugins"].items():
        lines.append(f"{kind} plugins: {', '.join(names) or 'none'}")
    lines += [f"clash: {one}" for one in summary["clashes"]]
    return [*lines, f"project: {summary['project']}", f"tracking: {summary['tracking']}"]
