"""The messages of the rendezvous: strict schemas, a size limit, and signatures with a shared secret.

chief -> worker     ssd-dist NONCE                          on every new connection
worker -> chief     SIGNATURE {description, own nonce}      one line of JSON
chief -> worker     SIGNATURE {problem}                     after all workers have connected, or a refusal

A signature is the HMAC-SHA256 of the message and of the nonce that the receiver has chosen for this connection, so a
recorded message is not valid on another connection. Without SSD_DIST_SECRET the key is empty: then signatures detect
workers with a secret among workers without one, but anyone can create them.
"""

import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

SECRET_VARIABLE = "SSD_DIST_SECRET"
MAX_MESSAGE_BYTES = 1 << 20
_SIGNATURE_LENGTH = hashlib.sha256().digest_size * 2
_NONCE_PATTERN = "[0-9a-f]{32}"
_GREETING = "ssd-dist"
# The answer to a description with a wrong signature. Its own signature is never valid, so the worker reports that the
# secrets differ.
REFUSAL = b"0" * _SIGNATURE_LENGTH + b" \n"


@dataclass(frozen=True)
class WorkerDescription:
    """What a worker sends to the chief.

    Attributes:
      index: index of the worker in the cluster.
      addresses: host:port of all workers, according to this worker.
      facts: values that must be equal on all workers, by name, e.g. the hash of the config.
      report: text for the chief; may differ between workers.
      skew: seconds by which the worker's clock is ahead of the chief's; the chief computes it on receipt.
    """

    index: int
    addresses: tuple[str, ...]
    facts: Mapping[str, str]
    report: str = ""
    skew: float = 0.0


class SignatureError(ValueError):
    """A message that is not signed with this worker's secret for this connection."""


class _Message(BaseModel):
    # Strict: no conversions between types. Pydantic's parser rejects deep nesting, lone surrogates and invalid UTF-8.
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


M = TypeVar("M", bound=_Message)


class _DescriptionMessage(_Message):
    index: Annotated[int, Field(ge=0)]
    addresses: tuple[str, ...]
    facts: dict[str, str]
    report: str
    time: float
    nonce: Annotated[str, Field(pattern=f"^{_NONCE_PATTERN}$")]


class _AnswerMessage(_Message):
    problem: str


def read_secret(environment: Mapping[str, str] | None = None) -> bytes:
    """Returns the value of SSD_DIST_SECRET, which all workers of a job share; empty if it is not set.

    Args:
      environment: environment variables; `os.environ` by default.
    """
    # Files from which such variables are set often end with a line break.
    return os.fsencode((os.environ if environment is None else environment).get(SECRET_VARIABLE, "").strip())


def create_nonce() -> str:
    """Returns a random number, as text, that is used for one connection only."""
    return secrets.token_hex(16)


def encode_greeting(nonce: str) -> bytes:
    """Encodes the first message of the chief on a connection."""
    return f"{_GREETING} {nonce}\n".encode()


def decode_greeting(line: bytes) -> str:
    """Returns the chief's nonce.

    Raises:
      ValueError: if the line is not a greeting; another program listens on the port.
    """
    found = re.fullmatch(f"{_GREETING} ({_NONCE_PATTERN})\n", line.decode("ascii", "replace"))
    if found is None:
        raise ValueError("it is not a worker of ssd-dist")
    return found[1]


def encode_description(own: WorkerDescription, nonce: str, chief_nonce: str, secret: bytes) -> bytes:
    """Encodes the description with the current time, because the chief may start minutes after the other workers."""
    values = {**vars(own), "facts": dict(own.facts), "time": time.time(), "nonce": nonce}
    del values["skew"]
    message = _DescriptionMessage(**values)
    return _sign(message, b"worker", chief_nonce, secret)


def decode_description(line: bytes, chief_nonce: str, secret: bytes) -> tuple[WorkerDescription, str]:
    """Returns the description and the worker's nonce.

    Raises:
      ValueError: if the line is not a description; its subclass `SignatureError`, if it is not signed with `secret`.
    """
    message = _parse(_DescriptionMessage, _verify(line, b"worker", chief_nonce, secret))
    skew = message.time - time.time()
    return WorkerDescription(message.index, message.addresses, message.facts, message.report, skew), message.nonce


def encode_answer(problem: str, worker_nonce: str, secret: bytes) -> bytes:
    """Encodes the chief's answer; an empty problem means that training can start."""
    return _sign(_AnswerMessage(problem=problem), b"chief", worker_nonce, secret)


def decode_answer(line: bytes, worker_nonce: str, secret: bytes) -> str:
    """Returns the problem that the chief has found, or an empty string.

    Raises:
      ValueError: if the line is not an answer; its subclass `SignatureError`, if it is not signed with `secret`.
    """
    return _parse(_AnswerMessage, _verify(line, b"chief", worker_nonce, secret)).problem


def _parse(kind: type[M], content: bytes) -> M:
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise ValueError(f"the message is not valid: {error.errors()[0]['msg']}") from None


def _sign(message: _Message, sender: bytes, nonce: str, secret: bytes) -> bytes:
    content = message.model_dump_json().encode()
    return _compute_signature(content, sender, nonce, secret) + b" " + content + b"\n"


def _verify(line: bytes, sender: bytes, nonce: str, secret: bytes) -> bytes:
    """Returns the content of a message whose signature is valid."""
    signature, space, content = line[:_SIGNATURE_LENGTH], line[_SIGNATURE_LENGTH:][:1], line[_SIGNATURE_LENGTH + 1 :]
    if space != b" " or not content.endswith(b"\n") or not re.fullmatch(rb"[0-9a-f]+", signature):
        raise ValueError("the message is not signed")
    # The comparison takes the same time wherever the signatures differ.
    if not hmac.compare_digest(signature, _compute_signature(content[:-1], sender, nonce, secret)):
        raise SignatureError(f"the message is signed with another {SECRET_VARIABLE}")
    return content


def _compute_signature(content: bytes, sender: bytes, nonce: str, secret: bytes) -> bytes:
    # The sender is part of it, so that no description is a valid answer. Nonces have a fixed length.
    return hmac.new(secret, sender + b" " + nonce.encode() + b" " + content, hashlib.sha256).hexdigest().encode()
