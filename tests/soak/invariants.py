"""What must be true at the end. Each check yields a sentence for each thing that is not."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from soak import allowed, plan
from soak.journal import NUMBERS_PER_PROCESS, tokens_in
from soak.stored import blobs_in
from soak.visit import texts

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from soak.journal import Said, Told
    from soak.stored import Place, Stored

_MAX_EACH = 10


def findings(stored: Stored, told: Told, kind: str = "replica_set", sent_in_vain: Collection[str] = ()) -> list[str]:
    """All that is not as it must be.

    Args:
        stored: what is stored, after two sweeps.
        told: what the writers were told.
        kind: the kind of server.
        sent_in_vain: lives whose beginning was sent and not answered.
    """
    found: list[str] = []
    checks: list[tuple[str, Iterator[str]]] = [
        ("stored once", _stored_once(stored, told)),
        ("order", _order(stored, told)),
        ("alone", _alone(stored, told)),
        ("lives", _lives(stored, told, kind, sent_in_vain)),
        ("numbers", _numbers(stored)),
        ("segments", _segments(stored)),
        ("totals", _totals(stored)),
        ("blobs", _blobs(stored, told)),
        ("orphans", _orphans(stored)),
        ("expiry", _expiry(stored)),
        ("search", _search(stored, told)),
        ("redacted", _redacted(stored, told)),
        ("feedbacks", _feedbacks(stored, told)),
        ("values", _values(stored, told)),
    ]
    for name, check in checks:
        these = list(check)
        found += [f"{name}: {what}" for what in these[:_MAX_EACH]]
        if len(these) > _MAX_EACH:
            found.append(f"{name}: and {len(these) - _MAX_EACH} more")
    return found


# --- what was told --------------------------------------------------------------------------------------------------


def _present(stored: Stored, said: Said) -> bool | None:
    """Whether the life is there to which something was said; None if the writer did not know which it was."""
    session = stored.sessions.get(said.session)
    if session is None:
        return False
    return None if said.life is None else str(session["incarnation"]) == said.life


def _standing(stored: Stored, said: Said) -> list[Place]:
    """Where a message stands, as it was said or as it was redacted."""
    places = list(stored.places.get(said.token, []))
    if said.replacement is not None:
        places += stored.places.get(said.replacement, [])
    return places


def _stored_once(stored: Stored, told: Told) -> Iterator[str]:
    for said in told.messages.values():
        places, present = _standing(stored, said), _present(stored, said)
        if len(places) > 1:
            yield f"{said} is stored {len(places)} times: {places}"
        for place in places:
            if (place.session, place.agent) != (said.session, said.agent):
                yield f"{said} stands elsewhere: {place}"
            if said.life is not None and place.life != said.life:
                yield f"{said} of one life stands in another: {place}"
        if said.acknowledged and not places and (present or plan.by_id(said.session).lasts):
            why = "" if present else f"; the session's life is {_life_of(stored, said.session)}"
            yield f"{said} was acknowledged and is lost{why}"
    for name in stored.places.keys() - told.messages.keys() - told.feedbacks.keys():
        if name[-1] != "x":
            yield f"{name} is stored and nobody has said it"


def _life_of(stored: Stored, session_id: str) -> str:
    return str(stored.sessions.get(session_id, {}).get("incarnation", "over"))


def _order(stored: Stored, told: Told) -> Iterator[str]:
    last: dict[tuple[str, str, str, int], tuple[int, str]] = {}
    for said in told.messages.values():
        for place in _standing(stored, said)[:1]:
            where = (place.session, place.life, place.agent, said.writer)
            position, before = last.get(where, (-1, ""))
            if place.position < position:
                yield f"{said.token} stands at {place}, behind it {before}, which its writer said before"
            last[where] = max((position, before), (place.position, said.token))


def _alone(stored: Stored, told: Told) -> Iterator[str]:
    for session, life, agent, names in told.alone:
        if _life_of(stored, session) != life:
            continue
        places = [_standing(stored, told.messages[name]) for name in names]
        positions = [place[0].position for place in places if place]
        if positions and positions != list(range(positions[0], positions[0] + len(names))):
            yield f"a turn within a lease of {session}, {agent} is not in one piece: {names} at {positions}"


def _lives(stored: Stored, told: Told, kind: str, sent_in_vain: Collection[str]) -> Iterator[str]:
    for session_id, session in stored.sessions.items():
        life = str(session["incarnation"])
        known = told.lives.get((session_id, life))
        deletions = [began for deleted, began in told.deleted if deleted == session_id]
        if known is None or not deletions or known >= max(deletions):
            continue
        if not allowed.may_be_back(life, kind, sent_in_vain):
            yield f"{session_id} of life {life}, known at {known:.3f}, was deleted from {max(deletions):.3f} on"
    for session_id in {session_id for session_id, _ in told.lives}:
        lives = [life for other, life in told.lives if other == session_id]
        if plan.by_id(session_id).lasts and len(lives) > 1:
            yield f"{session_id} was never deleted and had the lives {lives}"


def _feedbacks(stored: Stored, told: Told) -> Iterator[str]:
    for said in told.feedbacks.values():
        places, present = stored.places.get(said.token, []), _present(stored, said)
        if len(places) > 1:
            yield f"feedback {said} is stored {len(places)} times"
        if said.acknowledged and not places and (present or plan.by_id(said.session).lasts):
            yield f"feedback {said} was acknowledged and is lost"
        if any(place.session != said.session or said.life not in (None, place.life) for place in places):
            yield f"feedback {said} stands elsewhere: {places}"


def _values(stored: Stored, told: Told) -> Iterator[str]:
    for (what, session_id, agent, key), values in told.values.items():
        session = stored.sessions.get(session_id)
        if session is None:
            continue
        life = str(session["incarnation"])
        mine = [value for value in values if value.life in (None, life)]
        if what == "metadata":
            found = session.get("metadata", {}).get(key)
        else:
            found = session["agents"].get(agent, {}).get("agent_data", {}).get("state", {}).get(key)
        possible = allowed.possible_values(mine, NUMBERS_PER_PROCESS)
        if found not in possible:
            yield f"{what} {key} of {session_id} {agent} is {found}, not one of {possible}; {mine[-6:]}"


def _redacted(stored: Stored, told: Told) -> Iterator[str]:
    for said in told.messages.values():
        if said.redacted and said.token in stored.anywhere:
            yield f"{said} was redacted and is in {sorted(stored.anywhere[said.token])}"


# --- what is stored -------------------------------------------------------------------------------------------------


def _numbers(stored: Stored) -> Iterator[str]:
    for found in stored.conversations:
        ids = [message.get("message_id") for message in found.messages]
        if ids != list(range(int(found.record["message_count"]))):
            gaps = [(index, one) for index, one in enumerate(ids) if index != one][:3]
            count = found.record["message_count"]
            yield f"{found.name}: message_count {count}, {len(ids)} messages, not in place {gaps}"


def _segments(stored: Stored) -> Iterator[str]:
    for found in stored.conversations + stored.feedbacks:
        position = 0
        for segment in found.segments:
            if segment["_id"]["first"] != position:
                yield f"{found.name}: a segment begins at {segment['_id']['first']} instead of {position}"
            if segment["count"] != len(segment["messages"]):
                yield f"{found.name}: a segment of {segment['count']} has {len(segment['messages'])} messages"
            position = segment["_id"]["first"] + len(segment["messages"])
        if position != found.archived:
            yield f"{found.name}: {found.archived} are archived, the segments end at {position}"


def _totals(stored: Stored) -> Iterator[str]:
    for found in stored.conversations:
        usage = found.record.get("usage", {})
        wanted: dict[str, float] = {}
        for message in found.messages:
            _add(wanted, "messages", 1)
            for block in message["content"]:
                if "toolResult" in block:
                    _add(wanted, "tools.calls", 1)
            metrics = message.get("event_loop_metrics")
            if metrics is None:
                continue
            _add(wanted, "calls", 1)
            for name, amount in metrics["accumulated_usage"].items():
                _add(wanted, name, amount)
            if (latency := metrics["accumulated_metrics"].get("latencyMs", 0)) > 0:
                _add(wanted, "latency.count", 1)
                _add(wanted, "latency.sum", latency)
                wanted["latency.max"] = max(latency, wanted.get("latency.max", 0))
        stands = {"messages": usage.get("messages", 0)}
        for tool in usage.get("tools", {}).values():
            _add(stands, "tools.calls", tool.get("calls", 0))
        for model in usage.get("models", {}).values():
            latency = model.get("latency", {})
            _add(stands, "latency.count", latency.get("count", 0))
            _add(stands, "latency.sum", latency.get("sum", 0))
            stands["latency.max"] = max(latency.get("max", 0), stands.get("latency.max", 0))
            if sum(latency.get("buckets", {}).values()) != latency.get("count", 0):
                yield f"{found.name}: the buckets of the latency are not as many as were counted"
            for name, amount in model.items():
                if name != "latency":
                    _add(stands, name, amount)
        for name in sorted(wanted.keys() | stands.keys()):
            if wanted.get(name, 0) != stands.get(name, 0):
                yield f"{found.name}: usage has {name} {stands.get(name, 0)}, its messages {wanted.get(name, 0)}"


def _add(totals: dict[str, float], name: str, amount: float) -> None:
    totals[name] = totals.get(name, 0) + amount


def _blobs(stored: Stored, told: Told) -> Iterator[str]:
    for found in stored.conversations:
        for message in found.messages:
            names = tokens_in(texts(message))
            said = told.messages.get(names[0]) if names else None
            named = blobs_in(message["content"])
            if said is not None and said.blob and len(named) != 1:
                yield f"{found.name}: message {message['message_id']} of {said} names {len(named)} blobs"
            for file_id, length in named:
                content = stored.content(file_id)
                if file_id not in stored.files or length != len(content):
                    yield f"{found.name}: blob {file_id} of {names} has {len(content)} of {length} bytes"
                elif said is not None and content != plan.blob(said.token, said.blob):
                    yield f"{found.name}: blob {file_id} of {said} has other bytes"


def _orphans(stored: Stored) -> Iterator[str]:
    lives = {(session_id, session["incarnation"]) for session_id, session in stored.sessions.items()}
    for name, documents in (("segment", stored.history), ("search document", stored.search)):
        for document in documents:
            if (document["_id"]["session"], document["_id"]["incarnation"]) not in lives:
                yield f"{name} {document['_id']} belongs to no session"
    for found in stored.conversations + stored.feedbacks:
        for segment in found.beyond:
            # One at `archived_count` is on its way, or will be finished by the next who archives.
            if segment["_id"]["first"] != found.archived:
                yield f"{found.name}: a segment at {segment['_id']['first']} of {found.archived} archived"
    counts = {(one.session["_id"], one.agent): int(one.record["message_count"]) for one in stored.conversations}
    for document in stored.search:
        key = document["_id"]["session"], document["_id"]["agent"]
        if document["_id"]["message"] >= counts.get(key, 0):
            yield f"search document {document['_id']} of {counts.get(key, 0)} messages"
    named = {file_id for owner in (*stored.sessions.values(), *stored.history) for file_id, _ in blobs_in(owner)}
    for file_id, file in stored.files.items():
        if file_id not in named:
            yield f"nothing names the blob {file_id} of {file['metadata']}"
    for file_id in stored.chunks.keys() - stored.files.keys():
        yield f"there are chunks of {file_id}, which is no file"


def _expiry(stored: Stored) -> Iterator[str]:
    """A part lives as long as its session; that of a session without an end has none either."""
    ends = {(name, session["incarnation"]): session.get("expires_at") for name, session in stored.sessions.items()}
    parts: list[tuple[str, Any, Any]] = []
    for document in itertools.chain(stored.history, stored.search):
        parts.append((str(document["_id"]), document["_id"], document))
    for file in stored.files.values():
        parts.append((f"blob {file['_id']}", file["metadata"], file))
    for chunk in stored.chunk_documents:
        if chunk["files_id"] in stored.files:
            parts.append((f"chunk of {chunk['files_id']}", stored.files[chunk["files_id"]]["metadata"], chunk))
    for name, owner, part in parts:
        life = owner["session"], owner["incarnation"]
        if life not in ends:
            continue
        session_ends, part_ends = ends[life], part.get("expires_at")
        if (session_ends is None) != (part_ends is None) or (session_ends is not None and part_ends < session_ends):
            yield f"{name} of {owner['session']} expires at {part_ends}, its session at {session_ends}"


def _search(stored: Stored, told: Told) -> Iterator[str]:
    documents = {tuple(document["_id"].values()): document for document in stored.search}
    for found in stored.conversations:
        session_id, life = found.session["_id"], found.session["incarnation"]
        for message in found.messages:
            wanted = "\n".join(block["text"] for block in message["content"] if isinstance(block.get("text"), str))
            document = documents.get((session_id, life, found.agent, message["message_id"]), {})
            if document.get("text", "") == wanted:
                continue
            if any(allowed.may_say_either(said) for said in _said_in(message, told)):
                continue
            text = document.get("text", "")
            yield f"{found.name}: message {message['message_id']} is {wanted[:40]!r}, found as {text[:40]!r}"
    for found in stored.conversations:
        indexed = found.record.get("indexed", {})
        if indexed.get("count", 0) != found.record["message_count"]:
            yield f"{found.name}: {indexed} of {found.record['message_count']} messages are indexed"


def _said_in(message: dict[str, Any], told: Told) -> list[Said]:
    """Whose message it is, also where it has been redacted."""
    names = [name for name in tokens_in(texts(message)) for name in _originals(name)]
    return [told.messages[name] for name in names if name in told.messages]


def _originals(name: str) -> list[str]:
    return [name[:-1] + part for part in "uah"] if name[-1] == "x" else [name]
