"""No secret leaves in a support bundle, wherever and however it is written."""

from __future__ import annotations

import base64
import json
import tarfile
import urllib.parse
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.errors import InvalidArgumentError
from kvstore.support.bundle import Part, write
from kvstore.support.redact import HIDDEN, Redactor, secrets_in, secrets_of

SECRET = 'correct"horse battery\\staple'.replace(" ", "_")
SALT = b"0123456789abcdef"


def redact(text: str, **options: bool) -> str:
    return Redactor([SECRET], SALT, **options).text(text)


FORMS = {
    "plain": SECRET,
    "JSON": json.dumps(SECRET),
    "URL": urllib.parse.quote(SECRET, safe=""),
    "base64": base64.b64encode(SECRET.encode()).decode(),
    "urlsafe base64": base64.urlsafe_b64encode(SECRET.encode()).decode(),
    "hex": SECRET.encode().hex(),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("around", ["{}", "x{}y", "user {} refused\n", '{{"a": ["{}"]}}'])
def test_a_known_secret_is_found_in_every_form(form: str, around: str) -> None:
    assert form.strip('"') not in redact(around.format(form))


@given(st.text(max_size=40), st.text(max_size=40))
def test_a_known_secret_is_found_in_any_surrounding(before: str, after: str) -> None:
    assert SECRET not in redact(before + SECRET + after)


@pytest.mark.parametrize(
    "text",
    [
        "authorization: Bearer alice:hunter2secret",
        'headers {"Authorization": "Bearer alice:hunter2secret"}',
        "Proxy-Authorization=Basic hunter2secret",
        "bearer hunter2secret",
        "password=hunter2secret",
        'db_password = "hunter2secret"',
        '{"api_key": "hunter2secret"}',
        '{\\"secret\\": \\"hunter2secret\\"}',
        "--token hunter2secret".replace(" ", "="),
        "KVSTORE_TOKEN=hunter2secret",
        "passphrase: hunter2secret",
        "password=ab,hunter2secret;x",
        "password='ab hunter2secret'",
        '{"tokens": ["ab", "hunter2secret"]}',
        "tcp://alice:hunter2secret@10.0.0.1:50051",
        "https://hunter2secret@example.org/x",
        "-----BEGIN EC PRIVATE KEY-----\nhunter2secret\n-----END EC PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nhunter2secret",
        "session hunter2secretHUNTER2SECRETxx9 ended",
    ],
)
def test_a_secret_that_nobody_knows_is_found_by_its_form(text: str) -> None:
    shown = redact(f"before {text} ")
    assert "hunter2secret" not in shown
    assert HIDDEN in shown
    assert shown.startswith("before ")


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-29T22:00:00.123Z INFO node.agent registered master=10.0.0.1:50051 node_epoch=3",
        '{"auth_token_file": "/etc/kvstore/tokens"}',
        "cluster_id=0123456789abcdef0123456789abcdef",
        'kvstore_saved_tokens{node="a"} 12',
        '"saved_tokens": 12345,',
        "kvstore_cluster_namespace_lookups_total 5",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "value",
    [
        {"a": "x password=hunter2", "n": 1},
        {"a": "Bearer x:hunter2", "n": 1},
        {"tokens": ["hunter2", "b"], "has_token": True, "token_count": 5, "n": 1},
        {"secret": None, "token": 'a"hunter2', "n": 1},
        {"a": {"api_key": "hunter2"}, "text": "-----BEGIN PRIVATE KEY-----\nhunter2", "n": 1},
    ],
)
def test_json_stays_json(value: dict[str, object]) -> None:
    for indent in (None, 2):
        shown = redact(json.dumps(value, indent=indent))
        assert "hunter2" not in shown
        if "text" not in value:  # a key without its end takes everything behind it
            assert json.loads(shown)["n"] == 1


def test_keys_become_the_same_hash_wherever_they_are() -> None:
    lines = 'removed key=chat/42 x=1\nput key="chat/42"\n{"key": "chat/42", "n": 1}\nparent=chat/42'
    shown = redact(lines)
    assert "chat/42" not in shown
    assert shown.count(Redactor([], SALT).hashed("chat/42")) == 4
    assert Redactor([], b"another salt....").hashed("chat/42") not in shown
    assert json.loads(shown.splitlines()[2])["n"] == 1
    assert "chat/42" in redact(lines, show_keys=True)


def test_a_configuration_keeps_what_a_server_has() -> None:
    shown = Redactor([SECRET], SALT).config(
        {
            "node_id": "a",
            "segment_size": "4gb",
            "passwd_of_somebody": "x",
            "hunter2": {"deep": ["hunter2"]},
            "labels": {"host": "a", "vault_token": "hunter2", "rack": SECRET},
            "shm_write": [SECRET, "default"],
            "master_address": "u:hunter2@h:1",
        },
        known=["node_id", "segment_size", "labels", "shm_write", "master_address"],
    )
    assert shown["node_id"] == "a"
    assert shown["passwd_of_somebody"] == HIDDEN
    assert shown["labels"] == {"host": "a", "vault_token": HIDDEN, "rack": HIDDEN}
    assert shown["shm_write"] == [HIDDEN, "default"]
    assert shown["hunter2"] == HIDDEN


def test_which_secrets_are_known() -> None:
    assert secrets_in(
        "# comment secretsecret\nalice client a,b  s3cret-one\n\nbob node * short\n"
    ) == ["s3cret-one"]
    environment = {
        "DB_PASSWORD": "hunter2hunter2",
        "KVSTORE_TOKEN_FILE": "/etc/kvstore/tokens",
        "HOME": "/root/home",
        "API_KEY": "short",
    }
    assert secrets_of(environment) == ["hunter2hunter2"]


def bundle(path: Path, *parts: Part) -> dict[str, str]:
    write(path, parts, Redactor([SECRET], SALT), "now", lambda name: None)
    with tarfile.open(path) as archive:
        return {
            member.name: archive.extractfile(member).read().decode()  # type: ignore[union-attr]
            for member in archive
        }


def fail() -> str:
    raise RuntimeError(f"cannot {SECRET}")


def test_a_part_that_fails_is_missing_and_the_manifest_says_why(tmp_path: Path) -> None:
    path = tmp_path / "b.tar.gz"
    found = bundle(path, Part("a.txt", SECRET, lambda: f"a {SECRET}"), Part("b.txt", "b", fail))
    assert set(found) == {"kvstore-support/a.txt", "kvstore-support/manifest.json"}
    assert SECRET not in "".join(found.values())
    rows = json.loads(found["kvstore-support/manifest.json"])["parts"]
    assert [row["error"] for row in rows] == ["", f"RuntimeError: cannot {HIDDEN}"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_there_stays_and_no_half_one_is_left(tmp_path: Path) -> None:
    path = tmp_path / "b.tar.gz"
    path.write_text("mine")
    with pytest.raises(InvalidArgumentError, match="exists"):
        bundle(path)
    assert path.read_text() == "mine"

    def interrupt() -> str:
        raise KeyboardInterrupt

    other = tmp_path / "c.tar.gz"
    with pytest.raises(KeyboardInterrupt):
        bundle(other, Part("a", "a", interrupt))
    assert not other.exists()
