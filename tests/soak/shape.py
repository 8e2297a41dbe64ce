"""What must be true of the documents themselves; `invariants.py` compares them with what was told."""

import itertools
from collections.abc import Iterator
from typing import Any

from soak import allowed, plan
from soak.journal import Said, Told, texts, tokens_in
from soak.stored import Stored, blobs_in


def numbers(stored: Stored) -> Iterator[str]:
    for found in stored.conversations:
        ids = [message.get("message_id") for message in found.messages]
        if ids != list(range(int(found.record["message_count"]))):
            gaps = [(index, one) for index, one in enumerate(ids) if index != one][:3]
            count = found.record["message_count"]
            yield f"{found.name}: message_count {count}, {len(ids)} messages, not in place {gaps}"


def segments(stored: Stored) -> Iterator[str]:
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


def totals(stored: Stored) -> Iterator[str]:
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


def blobs(stored: Stored, told: Told) -> Iterator[str]:
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


def orphans(stored: Stored) -> Iterator[str]:
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


def expiry(stored: Stored) -> Iterator[str]:
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


def search(stored: Stored, told: Told) -> Iterator[str]:
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
