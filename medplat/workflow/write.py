"""A workflow as YAML text with every default written out, and its digest."""

from __future__ import annotations

import hashlib
import io

from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter

from medplat.workflow.schema import Workflow

# Text for YAML 1.2, a boolean for readers of YAML 1.1: written in quotes for both.
_QUOTED = frozenset(("y", "n", "yes", "no", "on", "off"))


class _Representer(SafeRepresenter):
    """Writes words and numbers so that readers of YAML 1.1 take them for the same."""

    def represent_str(self, data: str) -> ScalarNode:
        style = "'" if data.lower() in _QUOTED else None
        if not all(" " <= char <= "~" or char >= "\xa0" for char in data):
            style = '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    def represent_float(self, data: float) -> ScalarNode:
        node = super().represent_float(data)
        digits, e, exponent = str(node.value).partition("e")
        if e and "." not in digits:
            node.value = f"{digits}.0e{exponent}"
        return node


_Representer.add_representer(float, _Representer.represent_float)
_Representer.add_representer(str, _Representer.represent_str)


def dump(workflow: Workflow) -> str:
    """Resolved YAML: keys in the schema's order, defaults included, the same text each time."""
    writer = YAML(typ="safe", pure=True)
    writer.Representer = _Representer
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.allow_unicode = True
    writer.width = 100
    text = io.StringIO()
    writer.dump(workflow.model_dump(mode="json", by_alias=True), text)
    return text.getvalue()


def digest(workflow: Workflow) -> str:
    """Sha256, as hex, of the resolved YAML."""
    return hashlib.sha256(dump(workflow).encode()).hexdigest()
