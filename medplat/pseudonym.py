"""Names that tell nothing: salted hashes of patient, study and series.

The salt is made once for each project and stays in its folder; whoever holds it can link outputs to
patients, so it never leaves the site.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from pathlib import Path

from filelock import FileLock

from medplat import paths
from medplat.errors import UsageError

_SALT = "salt"
_FINGERPRINT = ".medplat-salt"
_BYTES = 32


class Pseudonyms:
    """Pseudonyms under one salt: the same input gives the same name, nothing leads back.

    Args:
        salt: At least 16 secret bytes.

    Raises:
        UsageError: The salt is shorter than that.
    """

    def __init__(self, salt: bytes) -> None:
        if len(salt) < 16:
            raise UsageError(f"the salt has {len(salt)} bytes, at least 16 are needed")
        self._salt = salt

    @property
    def fingerprint(self) -> str:
        """16 characters that name the salt without giving it away."""
        return self._name("fingerprint", 16)

    def patient(self, patient_id: str, issuer: str = "") -> str:
        """Name of the person with this PatientID and IssuerOfPatientID.

        Studies without a PatientID all get one name: visits of one person must never be taken for
        two.
        """
        return "patient-" + self._name("patient", 10, patient_id.strip(), issuer.strip())

    def case(self, study_uid: str) -> str:
        """Name of the study with this StudyInstanceUID."""
        return "case-" + self._name("case", 10, study_uid)

    def series_hash(self, uid: str) -> str:
        """Six characters for this SeriesInstanceUID, for file names."""
        return self._name("series", 6, uid)

    def digest(self, text: str) -> str:
        """64 hexadecimal digits for any text, such as a path that must not be shown."""
        return self._hash("digest", text).hex()

    def _name(self, kind: str, length: int, *parts: str) -> str:
        return base64.b32encode(self._hash(kind, *parts)).decode("ascii").lower()[:length]

    def _hash(self, *parts: str) -> bytes:
        text = b"".join(
            len(part).to_bytes(4, "big") + part
            for part in (one.encode("utf-8", "surrogatepass") for one in parts)
        )
        return hmac.digest(self._salt, text, "sha256")


def load(project: Path) -> Pseudonyms:
    """Read the project's salt; make one on first use.

    Args:
        project: Project folder; the salt is `.medplat/salt` in it.

    Raises:
        UsageError: The salt file cannot be read as one.
    """
    path = paths.state(project) / _SALT
    if not path.exists():
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                _create(path)
    try:
        salt = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except ValueError as error:
        raise UsageError(
            f"{path} is not a salt: restore it, or move it away to start anew"
        ) from error
    return Pseudonyms(salt)


def _create(path: Path) -> None:
    with paths.whole(path) as part:
        part.touch(mode=0o600)
        part.write_text(secrets.token_hex(_BYTES) + "\n", encoding="ascii")


def check_fingerprint(out: Path, pseudonyms: Pseudonyms, *, record: bool = True) -> None:
    """Make sure that OUT was made with this salt, and note the salt's fingerprint in a new one.

    Args:
        out: Output folder; made if absent, unless `record` is False.
        pseudonyms: The project's.
        record: False looks only and writes nothing.

    Raises:
        UsageError: OUT holds outputs that were named with another salt.
    """
    path = out / _FINGERPRINT
    if path.exists():
        if path.read_text(encoding="ascii", errors="replace").strip() != pseudonyms.fingerprint:
            raise UsageError(
                f"{out} was made with another project's salt: use that project (--project), "
                "or another output folder"
            )
    elif record:
        out.mkdir(parents=True, exist_ok=True)
        # A name of its own: the shards of one conversion may begin at the same time.
        part = out / f"{_FINGERPRINT}.{secrets.token_hex(4)}.tmp"
        part.write_text(pseudonyms.fingerprint + "\n", encoding="ascii")
        part.replace(path)
