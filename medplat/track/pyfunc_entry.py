"""What `mlflow models serve` loads: the same inference as `medplat infer`, asked over HTTP.

Input is a table with the column `uri`, a path on the serving machine for each row, and an optional
column `prompt`. Volumes never travel as JSON. Give the server time for a whole case (its
`--timeout` is 60 s unless set). Output is the rows of `results.csv` and where the
files lie. A model's artifact holds no code: MLflow finds this module by its name.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medplat import paths
from medplat.errors import MedplatError
from medplat.track import model_folder

if TYPE_CHECKING:
    import pandas as pd


def _load_pyfunc(data_path: str, model_config: Mapping[str, Any] | None = None) -> Served:
    """Called by MLflow with the model folder.

    Args:
        data_path: The model folder.
        model_config: `out`: folder of the outputs; default `.medplat/served` of the project.
    """
    return Served(Path(data_path), dict(model_config or {}))


class Served:
    """One model folder, run over whatever each row names."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._folder = model_folder.find(folder)
        self._project = paths.project()
        self._out = Path(config.get("out") or paths.state(self._project) / "served")
        self._sha256 = model_folder.read_card(self._folder)["weights_sha256"]

    def predict(self, table: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Run the model over each row's `uri`.

        Returns:
            A row a case: `uri`, `out` (its folder) and the columns of `results.csv`; a row whose
            `status` is "failed" has a `message` instead.
        """
        import pandas as pd

        rows: list[dict[str, str]] = []
        for asked in table.to_dict("records"):
            rows += self._row(str(asked["uri"]), str(asked.get("prompt") or ""))
        return pd.DataFrame(rows).fillna("")

    def _row(self, uri: str, prompt: str) -> list[dict[str, str]]:
        name = hashlib.sha256(f"{self._sha256}\n{uri}\n{prompt}".encode()).hexdigest()[:16]
        out = self._out / name
        # By name, since the command stands above this package.
        infer = importlib.import_module("medplat.commands.infer")
        try:
            infer.run(
                str(self._folder),
                Path(uri.removeprefix("file://")),
                out,
                prompts=(prompt,) if prompt else (),
                seg="labelmap",
                workers=1,
                executor="local",
                shard=None,
                timeout=1800.0,
                dry_run=False,
                project=self._project,
            )
        except MedplatError as error:
            return [{"uri": uri, "out": str(out), "status": "failed", "message": str(error)}]
        with (out / "results.csv").open(encoding="utf-8", newline="") as file:
            return [
                {"uri": uri, "out": str(out / row["case"]), **row} for row in csv.DictReader(file)
            ]
