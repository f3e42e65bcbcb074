"""Walks the messages inside a protobuf message."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)


def within(model: Message) -> Iterator[Message]:
    """A message and all those inside it, whatever their depth."""
    pending = [model]
    while pending:
        message = pending.pop()
        yield message
        for field, value in message.ListFields():
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                pending.extend([value] if isinstance(value, Message) else value)


def all_of(model: Message, kind: type[M]) -> Iterator[M]:
    """Those of one kind."""
    return (message for message in within(model) if isinstance(message, kind))
