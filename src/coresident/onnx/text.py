"""Checks that the names in a model are text: protobuf hands over what is not UTF-8 as bytes, without a
word."""

from __future__ import annotations

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from coresident.errors import InvalidModel

UNREAD = frozenset(("doc_string", "metadata_props", "producer_name", "producer_version"))
"""Fields that mean nothing here, and that old exporters filled with anything."""


def lenient(value: str | bytes) -> str:
    """What is meant to be text, with signs of what is not in its place."""
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def check(model: Message) -> None:
    """Check all strings of a message and of those inside it.

    Raises:
        InvalidModel: one is not UTF-8; names its field.
    """
    messages = [model]
    while messages:
        message = messages.pop()
        for field in message.DESCRIPTOR.fields:
            if field.name in UNREAD or field.type not in (
                FieldDescriptor.TYPE_STRING,
                FieldDescriptor.TYPE_MESSAGE,
            ):
                continue
            value = getattr(message, field.name)
            if isinstance(value, Message):
                messages.extend([value] if message.HasField(field.name) else [])
            elif field.type == FieldDescriptor.TYPE_MESSAGE:
                messages.extend(value)
            elif isinstance(value, bytes) or (
                not isinstance(value, str) and any(isinstance(t, bytes) for t in value)
            ):
                raise InvalidModel(f"the field {field.full_name} is not UTF-8 text: {value!r}")
