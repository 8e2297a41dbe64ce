"""What is kept of a guardrail's intervention: which policies fired, never what they matched. Pure.

A trace of Amazon Bedrock repeats what it was made for: the matched words, the personal data that was found, the model's
own output. So nothing is copied from it but what is named here, and of that only what looks as it should.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Literal

from bson import ObjectId

from .documents import Document
from .foreign import mapping, mappings
from .limits import MAX_GUARDRAIL_POLICIES, MAX_GUARDRAIL_TEXT_CHARACTERS

INTERVENED = "guardrail_intervened"
"""Why a model stopped, in Strands' words, where a guardrail has blocked or masked something."""


# Policy, its list in an assessment, the field that only those who configured the guardrail fill, a type of our own.
_LISTS = (
    ("topicPolicy", "topics", "name", None),
    ("contentPolicy", "filters", None, None),
    ("wordPolicy", "customWords", None, "CUSTOM"),
    ("wordPolicy", "managedWordLists", None, None),
    ("sensitiveInformationPolicy", "piiEntities", None, None),
    ("sensitiveInformationPolicy", "regexes", "name", "REGEX"),
    ("contextualGroundingPolicy", "filters", None, None),
)
_SOURCES = (("input", "inputAssessment"), ("output", "outputAssessments"))
_CONSTANT = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_STOP_REASON = re.compile(r"[a-z][a-z_]{0,63}")


def guardrail_event(
    action: Literal["redacted", "intervened"], role: str, moment: datetime, facts: Document
) -> Document:
    """Return what is stored with a message that a guardrail has changed, or whose model call it has stopped.

    Args:
        action: ``"redacted"``: the message's content was replaced. ``"intervened"``: it is the answer of a model call
            in which a guardrail intervened.
        role: The message's role.
        moment: When.
        facts: What is known besides, as ``facts_of_*`` return it.
    """
    return {"id": ObjectId(), "action": action, "role": role, "created_at": moment, "policies": [], **facts}


def facts_of_trace(trace: Any) -> Document:
    """Return ``{"policies": […]}``, which policies fired, of a trace of Amazon Bedrock.

    Args:
        trace: ``{"guardrail": {"inputAssessment": …, "outputAssessments": …}}``, as it stands in a stream's
            ``metadata``; or its inner part. Whatever has another form has no policies.
    """
    guardrail = mapping(trace)
    guardrail = mapping(guardrail.get("guardrail", guardrail))
    # By content: ten addresses that were found make one entry.
    fired = {
        tuple(policy.items()): policy
        for source, name in _SOURCES
        for assessment in _assessments(guardrail.get(name))
        for policy in _fired(assessment, source)
    }
    return {"policies": list(fired.values())[:MAX_GUARDRAIL_POLICIES]}


def facts_of_config(config: Any) -> Document:
    """Return ``{"guardrail_id": …, "guardrail_version": …}`` of a model's configuration; ``{}`` if it names none."""
    texts = {name: _text(mapping(config).get(name)) for name in ("guardrail_id", "guardrail_version")}
    return {name: text for name, text in texts.items() if text is not None}


def facts_of_stop_reason(stop_reason: Any) -> Document:
    """Return ``{"stop_reason": …}``, or ``{}`` if it is none."""
    known = isinstance(stop_reason, str) and _STOP_REASON.fullmatch(stop_reason)
    return {"stop_reason": known[0]} if known else {}


def facts_in_stream(event: Any) -> Document:
    """Return what an event of a model's stream says about a guardrail: its stop reason, or what its trace holds."""
    chunk = mapping(mapping(event).get("event"))
    if "messageStop" in chunk:
        return facts_of_stop_reason(mapping(chunk["messageStop"]).get("stopReason"))
    trace = mapping(mapping(chunk.get("metadata")).get("trace"))
    return facts_of_trace(trace) if "guardrail" in trace else {}


def is_redaction(event: Any) -> bool:
    """Return whether an event of a model's stream says that what was said is to be replaced."""
    return "redactContent" in mapping(mapping(event).get("event"))


def redacted_prompt(event: Any) -> str | None:
    """Return what such an event puts in the place of the prompt, if it does."""
    text = mapping(mapping(mapping(event).get("event")).get("redactContent")).get("redactUserContentMessage")
    return text if isinstance(text, str) and text else None


def _assessments(found: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the assessments of the input, one for each guardrail, or of the output, a list for each."""
    for one in mapping(found).values():
        yield from mappings(one if isinstance(one, list) else [one])


def _fired(assessment: Mapping[str, Any], source: str) -> Iterator[Document]:
    for policy, name, naming, kind in _LISTS:
        found = mapping(assessment.get(policy)).get(name)
        for one in mappings(found):
            detected, action = one.get("detected"), _constant(one.get("action"))
            # A trace may list what was looked for and not found.
            if detected is False or (detected is not True and action in (None, "NONE")):
                continue
            fields = {
                "policy": policy,
                "type": kind or _constant(one.get("type")),
                "name": _text(one.get(naming)) if naming else None,
                "action": action,
                "confidence": _constant(one.get("confidence")),
                "score": _share(one.get("score")),
                "threshold": _share(one.get("threshold")),
                "source": source,
            }
            yield {field: value for field, value in fields.items() if value is not None}


def _constant(value: Any) -> str | None:
    known = isinstance(value, str) and _CONSTANT.fullmatch(value)
    return known[0] if known else None


def _text(value: Any) -> str | None:
    return value[:MAX_GUARDRAIL_TEXT_CHARACTERS] if isinstance(value, str) and value and value.isprintable() else None


def _share(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1 else None
