"""Copy a message without one of its fields, and lose nothing else of it."""

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def copy_fields(source: Message, target: Message, skip: str) -> None:
    """Copy all fields but `skip` (the large one, which the caller writes anew) into an empty message.

    Fields that this version of onnx does not know are copied as well.
    """
    for field, value in source.ListFields():
        if field.name == skip:
            continue
        if hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        elif isinstance(value, Message):
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)
    copy_unknown_fields(source, target)


def copy_unknown_fields(source: Message, target: Message) -> None:
    """Fields that this version of onnx does not know, back into wire format (except groups, long dead)."""
    out = b""
    unknown = UnknownFieldSet(source)
    for field in (unknown[i] for i in range(len(unknown))):
        kind, value = field.wire_type, field.data
        tag = _varint(field.field_number << 3 | kind)
        if kind == _VARINT:
            out += tag + _varint(value)
        elif kind == _FIXED64:
            out += tag + value.to_bytes(8, "little")
        elif kind == _FIXED32:
            out += tag + value.to_bytes(4, "little")
        elif kind == _BYTES:
            out += tag + _varint(len(value)) + value
    if out:
        target.MergeFromString(out)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
