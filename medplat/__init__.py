"""medplat: from a PACS export to volumes that can be trusted, to trained models, and back."""

__version__ = "0.1.0"
