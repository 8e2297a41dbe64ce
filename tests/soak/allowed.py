"""What is no finding, though it looks like one: each exception with its reason, as narrow as it can be."""

from collections.abc import Collection

from pymongo.errors import OperationFailure

from soak.journal import Said, Value

_ILLEGAL_OPERATION = 20


def is_the_drivers(error: OperationFailure) -> bool:
    """PyMongo 4.20 gives a write a transaction number on a standalone, if the connection for it could not be made.

    Such an error has the labels of an overloaded server; the write is tried again, and PyMongo forgets to look whether
    the server takes such numbers. Nothing was written, and the caller has the driver's error, as is promised.
    """
    return error.code == _ILLEGAL_OPERATION and "Transaction numbers are only allowed" in str(error)


def may_be_back(life: str, kind: str, sent_in_vain: Collection[str]) -> bool:
    """A life that was deleted may be back, on a standalone, where its beginning was sent and not answered.

    The upsert that begins a session has no transaction number there. If it arrives long after, or is sent again because
    its answer was lost, and others have deleted the session in between, it begins the very same life once more.
    """
    return kind == "standalone" and life in sent_in_vain


def may_say_either(said: Said) -> bool:
    """Where a redaction was interrupted, the search may say what the message said before.

    `docs/search.md`: until the redaction is done again, unless an indexer has gone through the conversation in between.
    """
    return said.replacement is not None and not said.redacted


def possible_values(values: list[Value], numbers_per_process: int) -> set[int | None]:
    """What may be stored of a key that one writer writes, given all that it wanted to write, in its order.

    The last value that was acknowledged, or one that was wanted after that and of which nobody knows. And what another
    process of this writer has wanted that was killed before it was told: its command may be under way long after the
    process is dead, and nobody who writes later can know of it.
    """
    last = max((index for index, value in enumerate(values) if value.acknowledged), default=None)
    possible = {value.value for value in values[last or 0 :]}
    if last is None:
        possible.add(None)
        return possible
    process = values[last].number // numbers_per_process
    unknown = [value for value in values[:last] if not value.acknowledged]
    return possible | {value.value for value in unknown if value.number // numbers_per_process < process}
