"""Values exactly as they were: what BSON cannot hold, and how it is held anyway.

Almost everything in a message or in agent state is stored as itself, so that it can be read and queried. A few values
are not what they seem to BSON or to PyMongo; those, and only those, are stored as a small document with the key
``__encoded__``:

==========================================  ========================================================================
value                                       stored as
==========================================  ========================================================================
integer beyond 64 bits                      ``{"__encoded__": "int", "value": "0x20000000000000000"}``
text with a lone surrogate                  ``{"__encoded__": "str", "value": <its UTF-8 bytes, surrogates passed>}``
tuple                                       ``{"__encoded__": "tuple", "value": […]}``
dict with a key that is no string, has a    ``{"__encoded__": "dict", "value": [[key, value], …]}``
NUL or a lone surrogate, is ``__encoded__``
or one of ``$ref``, ``$id``, ``$db``
(PyMongo would return a ``DBRef``)
whatever lies 80 levels deep                ``{"__encoded__": "bson", "value": <{"value": …} as BSON bytes>}``
(MongoDB ends at 180)
bytes over a threshold, kept in GridFS      ``{"__encoded__": "blob", "value": {"file": <ObjectId>, "length": n}}``
(n bytes)
text over a threshold, kept in GridFS as    ``{"__encoded__": "text", "value": {"file": <ObjectId>, "length": n}}``
its UTF-8 bytes, surrogates passed
==========================================  ========================================================================

Other ``bytes`` are BSON Binary, and so is whatever lies inside a ``bson`` value, however large. Integers are always
decoded to plain ``int`` and documents to plain ``dict``.
"""

from __future__ import annotations

import marshal
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import bson
from bson import ObjectId
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion, TypeDecoder, TypeRegistry
from bson.errors import BSONError
from bson.int64 import Int64

from ..errors import UnstorableValueError, shown
from . import limits
from .keys import exact_text

MARKER = "__encoded__"
"""The key that says that a stored document stands for another value."""

_MARKER = MARKER.encode()

_DBREF_KEYS = frozenset(("$ref", "$id", "$db"))
_STORED_AS_THEY_ARE = frozenset((type(None), bool, float))
_ANY_LENGTH = sys.maxsize

# Its later versions write equal values in several ways, by which objects they share.
_CANONICAL_MARSHAL = 2


class _Int64AsInt(TypeDecoder):
    """PyMongo returns 64-bit integers as ``Int64``, a subclass of ``int``; users store and expect ``int``."""

    bson_type = Int64

    def transform_bson(self, value: Any) -> Any:
        return int(value)


CODEC_OPTIONS: CodecOptions[dict[str, Any]] = CodecOptions(
    document_class=dict,
    tz_aware=True,
    uuid_representation=UuidRepresentation.STANDARD,
    # A date outside Python's years must not make a session unreadable.
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
    type_registry=TypeRegistry([_Int64AsInt()]),
)
"""How every command of this library reads and writes BSON, whatever the options of a borrowed client."""

PLAIN_CODEC_OPTIONS: CodecOptions[dict[str, Any]] = CODEC_OPTIONS.with_options(type_registry=TypeRegistry())
"""The same without decoders, for commands whose answer is not decoded by PyMongo.

With decoders it reads each answer twice: 35 µs of a ``find`` of 290 µs, 15 µs of an ``update``.
"""


@dataclass
class Blob:
    """A binary or a text that is to be uploaded.

    Attributes:
        marker: The document that stands for it in the encoded value; the very same, not a copy.
        data: Its content. A text is encoded when it is uploaded: megabytes take milliseconds.
        uploaded_at: When its last upload began, in seconds of ``clock()``; None: it is not uploaded.
    """

    marker: dict[str, Any]
    data: bytes | str = field(repr=False)
    uploaded_at: float | None = None

    @property
    def content(self) -> bytes:
        """The bytes of its file."""
        return self.data if isinstance(self.data, bytes) else self.data.encode("utf-8", "surrogatepass")


@dataclass
class PendingBlobs:
    """Takes the large parts of one value out of it while it is encoded, and keeps them until they are committed.

    Attributes:
        threshold: From how many bytes on a binary becomes a blob.
        text_threshold: From how many characters on a text becomes a blob.
        blobs: What was taken out, in the order of the value.
    """

    threshold: int
    text_threshold: int = limits.TEXT_BLOB_THRESHOLD_CHARACTERS
    blobs: list[Blob] = field(default_factory=list)

    def only(self, markers: Iterable[dict[str, Any]]) -> PendingBlobs:
        """Return those of them for which one of these markers stands."""
        kept = {id(marker) for marker in markers}
        return replace(self, blobs=[blob for blob in self.blobs if id(blob.marker) in kept])

    @property
    def uploaded(self) -> set[ObjectId]:
        """The files of those that were uploaded."""
        return {blob.marker["value"]["file"] for blob in self.blobs if blob.uploaded_at is not None}

    @property
    def contents(self) -> dict[ObjectId, bytes]:
        """What ``BlobStore.fetch`` returns once they are uploaded."""
        return {blob.marker["value"]["file"]: blob.content for blob in self.blobs}

    @property
    def total_bytes(self) -> int:
        """How much memory they hold, in bytes; a character counts as one."""
        return sum(len(blob.data) for blob in self.blobs)


def encode(value: Any, where: str = "value", blobs: PendingBlobs | None = None) -> Any:
    """Return a copy of ``value`` that BSON stores exactly.

    The copy shares no list or dictionary with the original, so later changes to the original do not reach it.

    Args:
        value: A message, a part of one, or agent state: None, bool, int, float, str, bytes, list, tuple, dict.
        where: What the value is, for the error.
        blobs: Takes the bytes and texts that reach its thresholds; the copy has markers in their places. None: they
            stay in the copy.

    Raises:
        UnstorableValueError: A part of the value is of another type, or the nesting is too deep for Python. Nothing
            was added to ``blobs``.
    """
    before = 0 if blobs is None else len(blobs.blobs)
    try:
        return _encode(value, 0, blobs)
    except (_Unstorable, RecursionError) as error:
        if blobs is not None:
            del blobs.blobs[before:]
        if isinstance(error, RecursionError):
            error = _Unstorable("it is nested too deeply")
        raise UnstorableValueError(f"{where}{error.path} cannot be stored: {error}") from None


def decode(value: Any, blobs: Mapping[ObjectId, bytes] | None = None) -> Any:
    """Return what ``encode`` was given. Values that were stored as themselves come back as they are.

    Args:
        value: What is stored.
        blobs: The content of the files that markers in it name. The marker of any other file stays a document.
    """
    if type(value) is dict:
        if len(value) == 2 and MARKER in value and "value" in value:
            return _decode_marked(value[MARKER], value, blobs)
        decoded = {}
        for key, inner in value.items():  # A comprehension would cost a second frame per level before Python 3.12.
            decoded[key] = decode(inner, blobs)
        return decoded
    if type(value) is list:
        items: list[Any] = []
        for item in value:
            items.append(decode(item, blobs))
        return items
    return value


def decode_document(content: bytes, fetch: Callable[[dict[ObjectId, int]], Mapping[ObjectId, bytes]]) -> dict[str, Any]:
    """Return a document, given as BSON, with its values as they were before they were encoded.

    Args:
        content: The document.
        fetch: Returns the content of the files that its markers name.
    """
    document = from_bson(content)
    # The walk through all of it is only made where its bytes hold an encoded value.
    # (From behind: `bytes.rfind` takes half as long as `in`, which was half of a regular expression.)
    if content.rfind(_MARKER) < 0:
        return document
    decoded: dict[str, Any] = decode(document, fetch(blob_files(document)))
    return decoded


def blob_files(value: Any) -> dict[ObjectId, int]:
    """Return the files that the markers in a stored value name, in its order, each with its length in bytes.

    Nothing a user stores is taken for a marker: ``encode`` leaves no dictionary with the key ``__encoded__`` as it is.
    """
    return {marker["value"]["file"]: marker["value"]["length"] for marker in blob_markers(value)}


def blob_markers(value: Any) -> list[dict[str, Any]]:
    """Return the markers of blobs in a stored value, in its order; the very documents, not copies."""
    if type(value) is dict:
        if _names_a_file(value):
            return [value]
        value = value.values()
    elif type(value) is not list:
        return []
    return [marker for inner in value for marker in blob_markers(inner)]


def fingerprint(value: Any, where: str = "value") -> bytes:
    """Return what two values share if they are stored alike: types and the order of keys count, 1, 1.0 and true differ.

    It is made without a line of Python per part of the value: agents are compared with what is stored at each event.

    Raises:
        UnstorableValueError: The value cannot be stored; but not every such value is noticed here.
    """
    try:
        return marshal.dumps(value, _CANONICAL_MARSHAL)
    except ValueError:  # A part of it is of a subclass, or it is nested very deeply.
        return marshal.dumps(encode(value, where), _CANONICAL_MARSHAL)


def fingerprints(fields: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the fingerprint of each of these values, by its name.

    Raises:
        UnstorableValueError: As for ``fingerprint``.
    """
    return {name: fingerprint(value, name) for name, value in fields.items()}


def to_bson(document: Mapping[str, Any]) -> bytes:
    """Return ``document`` (encoded) as BSON bytes: to compare it, types included, or to know its size."""
    return bson.encode(document, codec_options=CODEC_OPTIONS)


def from_bson(content: bytes | memoryview) -> dict[str, Any]:
    """Return the document (encoded) that these BSON bytes are, as it is read from the server."""
    document: dict[str, Any] = bson.decode(content, CODEC_OPTIONS)
    return document


def size_in_bson(document: Mapping[str, Any]) -> int:
    """Return how many bytes ``document`` (encoded) has as BSON; where that is little, about as many.

    Texts are right to a few percent, short values in lists count for less. Every message is measured when it is added,
    and to make BSON for that takes as long as to encode it.
    """
    try:
        size = len(marshal.dumps(document, _CANONICAL_MARSHAL))  # type: ignore[arg-type]
    except ValueError:  # It names a blob.
        size = limits.EXACTLY_MEASURED_BYTES
    return size if size < limits.EXACTLY_MEASURED_BYTES else len(to_bson(document))


class _Unstorable(Exception):
    """Says why a part of a value cannot be stored; ``path`` says where that part is."""

    path = ""


def _encode(value: Any, depth: int, blobs: PendingBlobs | None) -> Any:
    # One Python frame per level of nesting, so that whatever Strands could copy can be encoded, too.
    kind = type(value)
    if kind is str:
        if blobs is not None and len(value) >= blobs.text_threshold:
            size = 4 * len(value)  # At most; it is only measured where that is too much.
            if size > limits.MAX_TEXT_BYTES:
                size = len(value.encode("utf-8", "surrogatepass"))
            if size > limits.MAX_TEXT_BYTES:
                raise _Unstorable(f"it has {size} bytes; at most {limits.MAX_TEXT_BYTES} can be stored")
            return _marker("text", value, 0, blobs)
        return value if value.isascii() else _encode_text(value)
    if depth >= limits.MAX_ENCODED_DEPTH and (kind is dict or kind is list):
        return {MARKER: "bson", "value": to_bson({"value": _encode(value, 0, None)})}
    if kind is dict:
        encoded: dict[Any, Any] = {}
        short = _ANY_LENGTH if blobs is None else blobs.text_threshold
        for key, inner in value.items():
            # Nearly every key is an identifier and every value a scalar: for those, nothing is called.
            if (type(key) is not str or key == MARKER or not key.isidentifier()) and not _plain_key(key):
                if blobs is not None:  # What was taken out so far is taken out again, of the pairs.
                    del blobs.blobs[len(blobs.blobs) - len(blob_files(encoded)) :]
                return {MARKER: "dict", "value": _encode([list(item) for item in value.items()], depth + 1, blobs)}
            kind = type(inner)
            if kind is str:
                plain = len(inner) < short and inner.isascii()
            elif kind is int:
                plain = limits.INT64_MIN <= inner <= limits.INT64_MAX
            else:
                plain = kind in _STORED_AS_THEY_ARE
            if plain:
                encoded[key] = inner
                continue
            try:
                encoded[key] = _encode(inner, depth + 1, blobs)
            except _Unstorable as error:
                error.path = f"[{shown(key)}]{error.path}"
                raise
        return encoded
    if kind is list:
        items = []
        for item in value:
            try:
                items.append(_encode(item, depth + 1, blobs))
            except _Unstorable as error:
                error.path = f"[{len(items)}]{error.path}"
                raise
        return items
    if kind in _STORED_AS_THEY_ARE:
        return value
    if kind is int:
        if limits.INT64_MIN <= value <= limits.INT64_MAX:
            return value
        return {MARKER: "int", "value": hex(value)}
    if kind is bytes:
        if blobs is not None and len(value) >= blobs.threshold:
            return _marker("blob", value, len(value), blobs)
        return value
    if kind is tuple:
        return {MARKER: "tuple", "value": _encode(list(value), depth + 1, blobs)}
    return _encode(_as_builtin(value), depth, blobs)


def _marker(kind: str, data: bytes | str, length: int, blobs: PendingBlobs) -> dict[str, Any]:
    """Return what stands for ``data`` in a stored value. The upload fills in the file, and the length of a text."""
    marker = {MARKER: kind, "value": {"file": ObjectId(), "length": length}}
    blobs.blobs.append(Blob(marker, data))
    return marker


def _as_builtin(value: Any) -> Any:
    """Return a subclass of a storable type as that type."""
    if isinstance(value, str):
        return exact_text(value)
    bases: tuple[Callable[[Any], Any], ...] = (int, float, bytes, dict, list, tuple)
    for base in bases:
        if isinstance(value, base):  # type: ignore[arg-type]
            return base(value)
    if isinstance(value, bytearray):
        return bytes(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise _Unstorable(
        "None, bool, int, float, str, bytes, list, tuple and dict can be stored, "
        f"not {type(value).__module__}.{type(value).__qualname__}"
    )


def _plain_key(key: Any) -> bool:
    if type(key) is not str or key == MARKER or key in _DBREF_KEYS or "\0" in key:
        return False
    return key.isascii() or _encode_text(key) is key


def _encode_text(text: str) -> Any:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return {MARKER: "str", "value": text.encode("utf-8", "surrogatepass")}
    return text


def _decode_marked(kind: Any, document: dict[str, Any], blobs: Mapping[ObjectId, bytes] | None) -> Any:
    stored = decode(document["value"], blobs)
    try:
        if kind == "int" and isinstance(stored, str):
            return int(stored, 16)
        if kind == "str" and isinstance(stored, bytes):
            return stored.decode("utf-8", "surrogatepass")
        if kind == "tuple" and isinstance(stored, list):
            return tuple(stored)
        if kind == "dict" and isinstance(stored, list):
            return dict(stored)
        if kind == "bson" and isinstance(stored, bytes):
            return decode(bson.decode(stored, codec_options=CODEC_OPTIONS)["value"])
        if blobs and _names_a_file(document) and stored["file"] in blobs:
            content = blobs[stored["file"]]
            return content if kind == "blob" else content.decode("utf-8", "surrogatepass")
    except (ValueError, TypeError, KeyError, BSONError):
        pass
    # Not ours: somebody else's document that has these keys. It is kept as it is, and never an error.
    return {MARKER: kind, "value": stored}


def _names_a_file(document: dict[str, Any]) -> bool:
    """Return whether a stored document is the marker of a blob, in exactly the shape that is written."""
    if len(document) != 2 or document.get(MARKER) not in ("blob", "text"):
        return False
    value = document.get("value")
    return (
        type(value) is dict
        and len(value) == 2
        and type(value.get("file")) is ObjectId
        and isinstance(value.get("length"), int)
    )
