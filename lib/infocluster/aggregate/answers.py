# SPDX-License-Identifier: Apache-2.0
"""What aggregators give, as it travels: JSON always, protobuf where it is a message; and where answers are published.

Shape: what an aggregator returned becomes
    * bytes of a type that `FORMS` knows: that protobuf message, as protobuf and as JSON (proto3's mapping, names as
      in messages.proto: ``{"files": [{"name": "a.txt", "modtime": 1795384800.0, "data": "aGVsbG8K"}]}``);
    * a protobuf message: likewise;
    * other bytes: ``{"data": "aGVsbG8K"}``, in base64;
    * anything else: itself, as JSON.

    A request is its query: names and values in the order of names, without those that are empty. Its published answer
    is a file named by `answer_name`, such as ``answer-2c26b46b68ffc68ff99b453c.json``, and ``.pb`` beside it.

A hit loads this module for `answer_name`: what else it needs is imported in the functions.

Source: protobuf, ProtoJSON format; RFC 4648.
"""

from infocluster import secrets
from infocluster.errors import BadInputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FORMS = {
    "FileOutput": "Files",
    "FileList": "Files",
    "File": "Files",
    "Counters": "Counters",
    "Health": "Healths",
}
JSON = "application/json"
PROTOBUF = "application/x-protobuf"


def answer_name(query: "dict[str, str]", suffix: str = ".json") -> str:
    """Return the name of the file that the answer to a request is published under."""
    text = "".join(f"{name}={value}\n" for name, value in sorted(query.items()) if value)
    return f"answer-{secrets.sha256(text.encode('utf-8', 'replace')).hex()[:24]}{suffix}"


def encoded(message_type: str, told: "Any") -> "tuple[bytes, bytes | None]":
    """Return what an aggregator gave as JSON, and as protobuf or None.

    Raises:
        BadInputError: it has no form that travels.
    """
    import json

    if isinstance(told, (bytes, bytearray)):
        form = FORMS.get(message_type)
        if form is None:
            import base64

            return json.dumps({"data": base64.b64encode(told).decode("ascii")}).encode("ascii"), bytes(told)
        message = parsed(form, bytes(told))
        return _json(message), bytes(told)
    if hasattr(told, "SerializeToString"):
        return _json(told), told.SerializeToString()
    try:
        return json.dumps(told, allow_nan=False).encode("ascii"), None
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInputError(f"cannot send what {message_type} came to: {error}") from None


def parsed(form: str, content: bytes) -> "Any":
    """Return the protobuf message of a form that bytes are.

    Args:
        form: the message's name in messages.proto.
        content: the bytes.

    Raises:
        BadInputError: they are none.
    """
    from google.protobuf.message import DecodeError

    from infocluster.aggregate import messages_pb2

    message: Any = getattr(messages_pb2, form)()
    try:
        message.ParseFromString(content)
    except DecodeError as error:
        raise BadInputError(f"cannot read a message {form}: {error}") from None
    return message


def _json(message: "Any") -> bytes:
    from google.protobuf import json_format

    text: str = json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None, ensure_ascii=True)
    return text.encode("ascii")
