"""What must be true at the end. Each check yields a sentence for each thing that is not."""

from collections.abc import Collection, Iterator

from soak import allowed, plan, shape
from soak.journal import NUMBERS_PER_PROCESS, Said, Told
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
        ("numbers", shape.numbers(stored)),
        ("segments", shape.segments(stored)),
        ("totals", shape.totals(stored)),
        ("blobs", shape.blobs(stored, told)),
        ("orphans", shape.orphans(stored)),
        ("expiry", shape.expiry(stored)),
        ("search", shape.search(stored, told)),
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
