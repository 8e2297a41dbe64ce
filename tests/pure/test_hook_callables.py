"""What cannot be called as a hook is refused when the application starts."""

import functools
from typing import Any

import pytest
from pymongo import MongoClient

from mongodb_session_manager import (
    MongoDBSessionManager,
    MongoDBSessionManagerFactory,
)

NOWHERE = "mongodb://127.0.0.1:9/"


async def _async_hook(original: Any, action: str, session_id: str, **kwargs: Any) -> Any:
    """A hook that would never run."""


class _AsyncCallable:
    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Likewise."""


@pytest.mark.parametrize(
    "hook",
    ["a name", 1, {}, _async_hook, functools.partial(_async_hook), _AsyncCallable()],
    ids=["text", "number", "dict", "async function", "partial of one", "async callable"],
)
@pytest.mark.parametrize("name", ["metadata_hook", "feedback_hook"])
def test_what_cannot_be_called_as_a_hook_is_refused_when_the_application_starts(name: str, hook: Any) -> None:
    with pytest.raises(TypeError, match=name):
        MongoDBSessionManagerFactory(NOWHERE, **{name: hook})
    client: MongoClient[Any]
    with MongoClient(NOWHERE, connect=False) as client, pytest.raises(TypeError, match=name):
        MongoDBSessionManager("s", client=client, **{name: hook})
