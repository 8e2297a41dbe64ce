"""What tests give to a repository: sessions, agents, messages and graphs; and what a message that comes back says."""

from typing import Any

from strands.types.session import Session, SessionAgent, SessionMessage

from mongodb_session_manager import MongoDBSessionRepository


def a_session(session_id: str = "s") -> Session:
    return Session(session_id=session_id, session_type="chat")  # type: ignore[arg-type]


def an_agent(agent_id: str = "a", state: dict[Any, Any] | None = None) -> SessionAgent:
    return SessionAgent(agent_id=agent_id, state=state or {}, conversation_manager_state={})


def a_message(message_id: Any = 0, text: str = "Hello!", role: str = "user", **of_message: Any) -> SessionMessage:
    message = {"role": role, "content": [{"text": text}], **of_message}
    return SessionMessage(message=message, message_id=message_id)  # type: ignore[arg-type]


class MultiAgent:
    """The two things a repository asks of a graph or a swarm."""

    def __init__(self, multi_agent_id: Any, state: dict[str, Any]) -> None:
        self.id = multi_agent_id
        self.state = state

    def serialize_state(self) -> dict[str, Any]:
        return self.state


def begin(repository: MongoDBSessionRepository, session_id: str = "s", agent_id: str = "a") -> None:
    """Begin a session with an agent that has no messages yet."""
    repository.create_session(a_session(session_id))
    repository.create_agent(session_id, an_agent(agent_id))


def message_of(repository: MongoDBSessionRepository, message_id: int = 0, agent_id: str = "a") -> Any:
    """A message of the session `s` that must be there."""
    message = repository.read_message("s", agent_id, message_id)
    assert message is not None
    return message


def agent_of(repository: MongoDBSessionRepository, agent_id: str = "a") -> Any:
    """An agent of the session `s` that must be there."""
    agent = repository.read_agent("s", agent_id)
    assert agent is not None
    return agent


def text_of(message: Any) -> str:
    """What the first block of a message says, after a redaction."""
    text: str = message.to_message()["content"][0]["text"]
    return text
