from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from medplat import pseudonym
from medplat.errors import UsageError
from medplat.pseudonym import Pseudonyms

SALT = bytes(range(32))


def test_names_are_stable_short_and_tell_nothing() -> None:
    names = Pseudonyms(SALT)
    patient, case = names.patient("DOE-42", "HOSPITAL"), names.case("1.2.3")
    assert re.fullmatch(r"patient-[a-z2-7]{10}", patient)
    assert re.fullmatch(r"case-[a-z2-7]{10}", case)
    assert re.fullmatch(r"[a-z2-7]{6}", names.series_hash("1.2.3"))
    assert re.fullmatch(r"[0-9a-f]{64}", names.digest("a path"))
    again = Pseudonyms(SALT)
    assert (again.patient("DOE-42", "HOSPITAL"), again.case("1.2.3")) == (patient, case)


def test_another_salt_issuer_or_kind_gives_another_name() -> None:
    names, other = Pseudonyms(SALT), Pseudonyms(SALT[::-1])
    assert names.patient("1") != other.patient("1")
    assert names.fingerprint != other.fingerprint
    assert names.patient("1", "A") != names.patient("1", "B")
    # Parts are kept apart: ("1", "23") is not ("12", "3").
    assert names.patient("1", "23") != names.patient("12", "3")
    assert names.case("1")[-6:] != names.series_hash("1")


def test_padding_of_the_id_does_not_make_another_person() -> None:
    names = Pseudonyms(SALT)
    assert names.patient("42 ", "H") == names.patient("42", "H ")


def test_the_salt_is_made_once_even_by_many_at_a_time(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        prints = {one.fingerprint for one in pool.map(pseudonym.load, [tmp_path] * 16)}
    assert len(prints) == 1
    assert (tmp_path / ".medplat" / "salt").stat().st_mode & 0o077 == 0


def test_a_damaged_salt_is_named(tmp_path: Path) -> None:
    pseudonym.load(tmp_path)
    (tmp_path / ".medplat" / "salt").write_text("not hex")
    with pytest.raises(UsageError, match="is not a salt"):
        pseudonym.load(tmp_path)


def test_short_salts_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 16"):
        Pseudonyms(b"short")


def test_another_salt_on_the_same_out_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    names, other = Pseudonyms(SALT), Pseudonyms(SALT[::-1])
    pseudonym.check_fingerprint(out, names, record=False)
    assert not out.exists()
    pseudonym.check_fingerprint(out, names)
    pseudonym.check_fingerprint(out, names)
    with pytest.raises(UsageError, match="another project's salt"):
        pseudonym.check_fingerprint(out, other)
    assert SALT.hex() not in (out / ".medplat-salt").read_text()
