"""Statements that others read: complete, the same again, and signed so that others can check it without sculpt."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sculpt.fusion.errors import CheckpointError, MethodError
from sculpt.fusion.methods import METHODS
from sculpt.fusion.record.signing import attest, verify_signature
from sculpt.fusion.record.verify import verify
from sculpt.fusion.run.fuse import execute
from sculpt.fusion.run.prepared import prepare


@pytest.fixture
def output(make_pair: Callable[..., tuple[Path, Path]], tmp_path: Path) -> Path:
    base, tuned = make_pair()
    execute(prepare(base, [tuned], output=tmp_path / "out", method=METHODS["ties"]()))
    return tmp_path / "out"


def test_statements_that_a_power_cut_damaged_are_written_again(output: Path) -> None:
    before = [file.read_bytes() for file in attest(output)]
    (output / "sculpt-sbom.json").write_bytes(bytes(9))
    (output / "sculpt-provenance.json").unlink()
    with pytest.raises(CheckpointError, match="does not describe the files of the folder"):
        verify(output)
    assert [file.read_bytes() for file in attest(output)] == before
    verify(output)
    assert not list(output.parent.glob("*.partial"))


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private and a public key, as `openssl ecparam -genkey` makes them."""
    pytest.importorskip("model_signing")
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    secret = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    public = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    found = tmp_path / "key.pem", tmp_path / "key.pub"
    for file, content in zip(found, (secret, public), strict=True):
        file.write_bytes(content)
    return found


def test_the_statement_names_every_file_by_its_sha256(output: Path) -> None:
    attest(output)
    statement = json.loads((output / "sculpt-provenance.json").read_text())
    named = {subject["name"]: subject["digest"]["sha256"] for subject in statement["subject"]}
    files = [
        file
        for file in output.rglob("*")
        if file.is_file() and not file.name.startswith(("sculpt-sbom", "sculpt-prov"))
    ]
    assert named == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    bill = json.loads((output / "sculpt-sbom.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert {part["name"] for part in bill["components"] if part["type"] == "file"} == set(named)
    assert "numpy" in {part["name"] for part in bill["components"]}
    assert [a["name"] for a in bill["metadata"]["component"]["pedigree"]["ancestors"]] == ["base", "sft"]


def test_statements_are_the_same_again_and_checked(output: Path) -> None:
    attest(output)
    verify(output)
    before = {file.name: file.read_bytes() for file in output.iterdir()}
    attest(output)
    assert before == {file.name: file.read_bytes() for file in output.iterdir()}
    file = output / "sculpt-provenance.json"
    file.write_text(file.read_text().replace("ties", "dare"))
    with pytest.raises(CheckpointError, match=r"sculpt-provenance\.json` does not describe the files"):
        verify(output)


def test_nothing_is_attested_of_what_was_tampered_with(output: Path) -> None:
    (output / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="config"):
        attest(output)
    assert not (output / "sculpt-sbom.json").exists()


def test_a_signature_is_checked_by_us_and_by_the_library_alone(output: Path, keys: tuple[Path, Path]) -> None:
    secret, public = keys
    assert [file.name for file in attest(output, secret)][-1] == "model.sig"
    verify(output)
    verify_signature(output, public)
    command = [
        sys.executable,
        "-m",
        "model_signing",
        "verify",
        "key",
        str(output),
        "--signature",
        str(output / "model.sig"),
    ]
    done = subprocess.run([*command, "--public_key", str(public)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


CHANGES: dict[str, Callable[[Path], Any]] = {
    "the manifest": lambda folder: (folder / "sculpt-manifest.json").write_text("{}"),
    "the weights": lambda folder: (folder / "model-00001-of-00002.safetensors").write_bytes(b"x"),
    "a new file": lambda folder: (folder / "evil.py").write_text("x"),
    "a file less": lambda folder: (folder / "config.json").unlink(),
    "no signature": lambda folder: (folder / "model.sig").unlink(),
    "another signature": lambda folder: (folder / "model.sig").write_text("{}"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_after_it_was_signed_is_noticed(change: str, output: Path, keys: tuple[Path, Path]) -> None:
    attest(output, keys[0])
    CHANGES[change](output)
    with pytest.raises(CheckpointError, match="sign"):
        verify_signature(output, keys[1])


def test_a_key_that_is_none_is_a_sentence(output: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "none.pem").write_text("no key")
    with pytest.raises(MethodError, match="cannot sign"):
        attest(output, tmp_path / "none.pem")
    attest(output, keys[0])
    with pytest.raises(CheckpointError, match="is not a signature"):
        verify_signature(output, tmp_path / "none.pem")
