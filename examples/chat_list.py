"""The list of conversations, and the search in them."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from mongodb_session_manager import MongoDBSessionError, MongoDBSessionManagerFactory, SessionHeader

SEARCHED_SESSIONS = 1_000
SEARCHED_MESSAGES = 1_000  # Many, so that one long conversation does not hide the others.
EXCERPT_CHARACTERS = 160

Document = dict[str, Any]


def uuid_of(session_id: str) -> str:
    """Return the UUID by which the frontend knows a conversation."""
    return session_id.rpartition(".")[2]


def summary_of(header: SessionHeader, excerpt: str | None = None) -> Document:
    """Return a conversation as the list shows it."""
    return {
        "id": uuid_of(header.session_id),
        "title": header.title or "New conversation",
        "created_at": header.created_at.isoformat(),
        "updated_at": header.updated_at.isoformat(),
        "messages": header.message_count,
        "input_tokens": header.input_tokens,
        "output_tokens": header.output_tokens,
        "excerpt": excerpt,
    }


def conversations_with(factory: MongoDBSessionManagerFactory, application: str, words: list[str]) -> list[Document]:
    """Return the conversations with all of these words in the title or in one message, the newest first."""
    phrases = " ".join(f'"{word}"' for word in (word.replace('"', "") for word in words) if word)
    excerpts: dict[str, str] = {}
    with suppress(MongoDBSessionError):  # Nothing has been indexed yet.
        searched = {"application_name": application, "limit": SEARCHED_MESSAGES}
        for hit in factory.search_messages(phrases, **searched) if phrases else []:
            excerpts.setdefault(hit.session_id, excerpt(hit.text, words))
    result = []
    for header in all_headers(factory, application):
        title = (header.title or "").casefold()
        if header.session_id in excerpts or all(word.casefold() in title for word in words):
            result.append(summary_of(header, excerpts.get(header.session_id)))
    return result


def all_headers(factory: MongoDBSessionManagerFactory, application: str) -> Iterator[SessionHeader]:
    """Yield the newest sessions of an application."""
    cursor = None
    for _ in range(SEARCHED_SESSIONS // 100):
        page = factory.list_sessions(application_name=application, sort_by="updated_at", limit=100, cursor=cursor)
        yield from page.sessions
        cursor = page.cursor
        if cursor is None:
            return


def excerpt(text: str, words: list[str]) -> str:
    """Return the part of a text around the first of these words."""
    line = " ".join(text.split())
    at = min((at for at in (line.casefold().find(word.casefold()) for word in words) if at >= 0), default=0)
    start = max(0, at - EXCERPT_CHARACTERS // 3)
    cut = line[start : start + EXCERPT_CHARACTERS]
    return ("…" if start else "") + cut + ("…" if start + len(cut) < len(line) else "")
