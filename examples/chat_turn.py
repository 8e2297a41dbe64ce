"""A turn of the chat: the request, and its events (Server-Sent Events).

- `text`: a piece of the answer
- `tool_use`, `tool_result`: the agent calls a tool; the tool's result
- `done`: the ids of the stored messages, their tokens and times, and why the model stopped
- `failed`: a status, and a text for the user
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any

from chat_guard import MAX_PROMPT_CHARACTERS
from chat_identity import own_session_id
from chat_json import to_json
from chat_list import uuid_of
from chat_messages import is_prompt, metrics_of, newest_turns, text_of, tool_result, tool_use
from fastapi import Depends
from pydantic import BaseModel, Field
from sse_starlette import ServerSentEvent
from strands import Agent

from mongodb_session_manager import MongoDBSessionManager
from mongodb_session_manager.fastapi import status_of, stream_turn

logger = logging.getLogger("chat")


class Turn(BaseModel):
    """The body of a request for a turn."""

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS)]
    retry: bool = False


async def session_id_of(
    turn: Turn,  # noqa: ARG001 - so that an invalid body is refused before a session is created
    session_id: Annotated[str, Depends(own_session_id)],
) -> str:
    """Return the id of the session of a turn."""
    return session_id


async def events_of(session: MongoDBSessionManager, agent: Agent, turn: Turn) -> AsyncIterator[ServerSentEvent]:
    """Take a turn and yield its events."""
    # A retried prompt that is already stored is not stored again: the agent continues from there.
    goes_on = turn.retry and is_unanswered(agent, turn.prompt)
    try:
        stop_reason = "end_turn"
        async for event in stream_turn(session, agent, None if goes_on else turn.prompt):
            if "data" in event:
                yield sse("text", {"text": event["data"]})
            elif "message" in event:
                for block in event["message"]["content"]:
                    if "toolUse" in block:
                        yield sse("tool_use", tool_use(block["toolUse"]))
                    elif "toolResult" in block:
                        yield sse("tool_result", tool_result(block["toolResult"]))
            elif "result" in event:
                stop_reason = event["result"].stop_reason
        yield sse("done", {**await asyncio.to_thread(stored_turn, session, agent.agent_id), "stop_reason": stop_reason})
    except Exception as error:  # The status of the response was already sent, so an event reports the error.
        logger.warning("session_id=<%s> | the turn failed", session.session_id, exc_info=error)
        status, detail = status_of(error) or (502, "The model does not answer.")
        # The stored id contains the identity, which no script of the page may know.
        detail = detail.replace(session.session_id, uuid_of(session.session_id))
        yield sse("failed", {"status": status, "detail": detail})


def is_unanswered(agent: Agent, prompt: str) -> bool:
    """Return whether this is the newest prompt of the conversation, without a final answer."""
    for message in reversed(agent.messages):
        if is_prompt(message):
            return text_of(message) == prompt
        if message["role"] == "assistant" and not any("toolUse" in block for block in message["content"]):
            return False
    return False


def stored_turn(session: MongoDBSessionManager, agent_id: str) -> dict[str, Any]:
    """Return the stored ids of the newest turn's question and answer, and the turn's tokens and times."""
    turn = next(iter(newest_turns(session, agent_id, 1)), [])
    ids = {message["role"]: message["message_id"] for message in [*turn[-1:], *turn[:1]]}
    return {
        "message_ids": {"user": ids.get("user"), "assistant": ids.get("assistant")},
        "metrics": metrics_of(turn),
    }


def sse(event: str, data: dict[str, Any]) -> ServerSentEvent:
    """Return an event whose data is JSON."""
    return ServerSentEvent(to_json(data), event=event)
