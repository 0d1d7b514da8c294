"""Takes secrets and keys out of text that leaves the operator's hands.

Three sieves, each for what the others cannot know: secrets of token files and of the environment,
wherever they occur and however they are written; words that by their form or place are secrets
(authorization headers, `password=…`, private keys, user names in URLs, long random strings); and
the keys of objects, which may be derived from prompts.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any

HIDDEN = "***"
_LEAST_SECRET = 8
"""Characters; shorter words are not taken for secrets, or every "client" would be hidden."""
_SECRET_NAMES = r"(?:pass(?:word|wd|phrase)?|secret|token|api[-_]?key|credential|private[-_]?key)"
_KEY_FIELDS = ("key", "keys", "parent", "prefix")
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]*(?:PRIVATE KEY|CERTIFICATE)[A-Z0-9 ]*-----.*?(?:-----END [^-]*-----|\Z)",
    re.DOTALL,
)
_AUTHORIZATION = re.compile(
    r"(?i)\b((?:proxy-)?authorization\"?\s*[:=]\s*\"?|bearer\s+|basic\s+)([^\"\n\r]+)"
)
_URL_USER = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^/\s\"'@]+@")
# name=value, name: value, "name": "value"; a path named auth_token_file is no secret.
_ASSIGNED = re.compile(
    rf"(?i)([\w.-]*{_SECRET_NAMES}[\w.-]*)(\\?[\"']?\s*[:=]\s*)"
    r"(\\?\"(?:[^\"\\\n]|\\.)*\"?|'[^'\n]*'?|\[[^\]]*\]?|(?:[^\s\"'\\]|\\(?!\"))+)"
)
_FILE_NAMES = re.compile(r"(?i)(?:_|-)(?:file|dir|path)$")
_PLAIN = re.compile(r"\"?(?:-?\d{1,12}(?:\.\d+)?|true|false|null|none)\"?[,;)\]}]*", re.IGNORECASE)
_RANDOM = re.compile(r"[A-Za-z0-9+=~-]{24,}")
_TEXT_KEY = re.compile(rf"\b({'|'.join(_KEY_FIELDS)})=(\"(?:[^\"\\]|\\.)*\"|[^\s\"]+)")
_JSON_KEY = re.compile(
    rf"(\"(?:{'|'.join(_KEY_FIELDS)})\"\s*:\s*)(\"(?:[^\"\\]|\\.)*\"|\[[^\]]*\])"
)


class Redactor:
    """Redacts the texts of one bundle."""

    def __init__(self, secrets: Iterable[str], salt: bytes, show_keys: bool = False) -> None:
        """Prepare for the secrets that are known.

        Args:
            secrets: of token files and of the environment.
            salt: random; equal keys of a bundle stay equal, and cannot be guessed by hashing.
            show_keys: leave the keys of objects as they are.
        """
        forms = {form for secret in secrets for form in _forms(secret)}
        alternatives = "|".join(map(re.escape, sorted(forms, key=len, reverse=True)))
        self._known = re.compile(alternatives) if alternatives else None
        self._salt = salt
        self._show_keys = show_keys

    def text(self, text: str) -> str:
        """Return a text without secrets, and with hashes in place of keys."""
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        text = _PRIVATE_KEY.sub(HIDDEN, text)
        text = _AUTHORIZATION.sub(rf"\1{HIDDEN}", text)
        text = _URL_USER.sub(rf"\1{HIDDEN}@", text)
        text = _ASSIGNED.sub(_hide_assigned, text)
        text = _RANDOM.sub(_hide_random, text)
        if self._show_keys:
            return text
        text = _TEXT_KEY.sub(lambda found: f"{found[1]}={self.hashed(found[2])}", text)
        return _JSON_KEY.sub(lambda found: f'{found[1]}"{self.hashed(found[2])}"', text)

    def hashed(self, key: str) -> str:
        """Return a name for a key that is the same wherever it occurs in the bundle."""
        digest = hashlib.blake2b(key.strip('"').encode(errors="replace"), key=self._salt)
        return f"key-{digest.hexdigest()[:12]}"

    def config(self, values: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
        """Return a configuration without what may be secret.

        Args:
            values: as in the file.
            known: names of the keys that a server has; values of others are hidden.
        """
        names = set(known)
        shown = {self.text(name): HIDDEN for name in values if name not in names}
        for name in values.keys() & names:
            shown[name] = self._value(values[name])
        return dict(sorted(shown.items()))

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):  # labels, settings: anybody's names
            return {
                self.text(name): HIDDEN
                if re.search(_SECRET_NAMES, name, re.IGNORECASE)
                else self._value(one)
                for name, one in value.items()
            }
        if isinstance(value, list):
            return [self._value(one) for one in value]
        return value


def secrets_in(text: str) -> list[str]:
    """Return the secrets of a token file: the last word of each line."""
    lines = [line.split() for line in text.splitlines() if not line.lstrip().startswith("#")]
    return [words[-1] for words in lines if words and len(words[-1]) >= _LEAST_SECRET]


def secrets_of(environment: Mapping[str, str]) -> list[str]:
    """Return the values of variables whose names say that they are secret."""
    return [
        value
        for name, value in environment.items()
        if re.search(_SECRET_NAMES, name, re.IGNORECASE)
        and not _FILE_NAMES.search(name)
        and len(value) >= _LEAST_SECRET
    ]


def _forms(secret: str) -> set[str]:
    """Return how a secret may stand in a text."""
    if len(secret) < _LEAST_SECRET:
        return set()
    raw = secret.encode(errors="surrogatepass")
    return {
        secret,
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        urllib.parse.quote(secret, safe="", errors="replace"),
        urllib.parse.quote(secret, errors="replace"),
        base64.b64encode(raw).decode().rstrip("="),
        base64.urlsafe_b64encode(raw).decode().rstrip("="),
        raw.hex(),
    }


def _hide_assigned(found: re.Match[str]) -> str:
    name, between, value = found.groups()
    if _FILE_NAMES.search(name) or _PLAIN.fullmatch(value):
        return found[0]  # where a token lies, or how many tokens there are
    quote = next((q for q in ('\\"', '"', "'") if value.startswith(q)), "")
    if value.startswith("["):
        quote = '"'
    return f"{name}{between}{quote}{HIDDEN}{quote}"


def _hide_random(found: re.Match[str]) -> str:
    word = found[0]
    mixed = all(any(test(c) for c in word) for test in (str.isupper, str.islower, str.isdigit))
    return HIDDEN if mixed else word
