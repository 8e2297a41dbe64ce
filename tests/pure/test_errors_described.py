"""An error is described by what cannot hold a conversation."""

import pytest
from pymongo.errors import (
    BulkWriteError,
    DuplicateKeyError,
    NotPrimaryError,
    OperationFailure,
    ServerSelectionTimeoutError,
    WriteError,
)

from mongodb_session_manager import (
    SessionExistsError,
    SessionNotFoundError,
)
from mongodb_session_manager.errors import described


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (WriteError("said", 121, {"code": 121, "errmsg": "said"}), "WriteError code=121 (DocumentValidationFailure)"),
        (
            OperationFailure("said", 13, {"code": 13, "codeName": "Unauthorized"}),
            "OperationFailure code=13 (Unauthorized)",
        ),
        (OperationFailure("said"), "OperationFailure"),
        (DuplicateKeyError("said", 11000, {"keyValue": "said"}), "DuplicateKeyError code=11000 (DuplicateKey)"),
        (
            BulkWriteError({"writeErrors": [{"code": 121, "errmsg": "said"}]}),
            "BulkWriteError code=121 (DocumentValidationFailure)",
        ),
        (
            NotPrimaryError("said", {"code": 189, "codeName": "PrimarySteppedDown"}),
            "NotPrimaryError code=189 (PrimarySteppedDown)",
        ),
        (ServerSelectionTimeoutError("said"), "ServerSelectionTimeoutError"),
        (ValueError("said"), "ValueError"),
        (SessionNotFoundError("session_id='s' was deleted"), "SessionNotFoundError: session_id='s' was deleted"),
        (SessionExistsError("session_id='s' exists"), "SessionExistsError: session_id='s' exists"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_described_by_what_cannot_hold_a_conversation(error: Exception, says: str) -> None:
    assert described(error) == says
