"""The script of the chat's offline model, which shows what the chat can do.

It is not a language model. It answers a few sentences, calls tools, writes Markdown and a long text, fails on demand
and repeats a text, always in the same way. `OFFLINE_PACE_MS` (default 25) is the time between two pieces.
"""

import json
import os
import re
from dataclasses import replace
from functools import partial

from model_from_environment import model_from_environment
from offline_model import Reply, ScriptedReply, ToolCall
from strands.models import Model
from strands.types.content import Messages

HELP = """I am **offline**: a script answers here, no language model. Try

- `My name is Alice.` and later `What is my name?`
- `Note: buy milk` and `List my notes`
- `Show me Markdown` or `Tell me a long story`
- `Repeat: …`, whatever it is
- `Fail`: the first time I do, and on *retry* I answer
"""

MARKDOWN = """# A heading

## A smaller one

Some *emphasis*, some **strength**, some `code` and [a link](https://www.mongodb.com/docs/ "MongoDB").

- a list
- with two items
    - and one inside

1. first
2. second

| what | how long |
|:-----|---------:|
| open a session | 1 command |
| one message | 1 command |

```python
from mongodb_session_manager import create_mongodb_session_manager

with create_mongodb_session_manager("customer-12345", "mongodb://localhost:27017/") as manager:
    print(manager.get_metadata())
```

> A quotation, and that is all.
"""

_CHAPTERS = ("a clerk", "a sailor", "a gardener", "a clockmaker", "a teacher", "a painter", "a baker", "a traveller")
STORY = "\n\n".join(
    f"**Chapter {number}.** Once there was {who} who wrote every conversation down, word by word, as it was said. "
    "When the lamp went out in the middle of a sentence, the page held what had been heard so far, and not a word "
    "more. The next morning somebody else sat at the desk, opened the book where it lay, and went on behind the last "
    "word; and those who came to talk did not notice that it was another hand."
    for number, who in enumerate(_CHAPTERS, 1)
)


def chat_model(session_id: str) -> Model:
    """Return the model that the environment chooses. The offline model has this script, with failures per session."""
    return model_from_environment(partial(scripted_answer, session_id), chunk_characters=6)


def scripted_answer(session_id: str, messages: Messages) -> Reply:
    """Answer a conversation, each piece `OFFLINE_PACE_MS` after the one before."""
    reply = _answer(session_id, messages)
    if isinstance(reply, str):
        reply = ScriptedReply(text=reply)
    elif isinstance(reply, ToolCall):
        reply = ScriptedReply(text="Let me see. ", tool_calls=(reply,))
    pace = float(os.environ.get("OFFLINE_PACE_MS", "25")) / 1000
    return replace(reply, chunk_delay=pace, latency_ms=0)  # It reports no latency, so the manager measures it.


def _answer(session_id: str, messages: Messages) -> str | ToolCall | ScriptedReply:
    last = messages[-1]["content"]
    results = [block["toolResult"] for block in last if "toolResult" in block]
    if results:
        return _answer_to_result(messages, results[-1])
    prompt = "".join(block.get("text", "") for block in last).strip()
    if found := re.match(r"repeat:\s*(.*)", prompt, re.IGNORECASE | re.DOTALL):
        return str(found[1]) or "There is nothing to repeat."
    if found := re.match(r"fail(?P<midway> midway)?\b", prompt, re.IGNORECASE):
        return _fail_once(session_id, len(messages), midway=bool(found["midway"]))
    if found := re.search(r"my name is (\w+)", prompt, re.IGNORECASE):
        return ToolCall("remember", {"fact": "name", "value": found[1]})
    if "what is my name" in prompt.lower():
        return ToolCall("recall", {"fact": "name"})
    if found := re.match(r"note:\s*(.+)", prompt, re.IGNORECASE | re.DOTALL):
        return ToolCall("add_note", {"note": found[1].strip()})
    if "notes" in prompt.lower():
        return ToolCall("list_notes")
    if "markdown" in prompt.lower():
        return MARKDOWN
    if re.search(r"\blong\b", prompt.lower()):
        return STORY
    return HELP


def _answer_to_result(messages: Messages, result: dict[str, object]) -> str:
    """Answer with what a tool has returned."""
    text = "".join(block.get("text", "") for block in result["content"])  # type: ignore[attr-defined]
    if result["status"] != "success":
        return f"The tool failed: {text}"
    use = next(block["toolUse"] for block in messages[-2]["content"] if "toolUse" in block)
    if use["name"] == "remember":
        return f"Nice to meet you, {use['input']['value']}. I have put your name into my state."
    if use["name"] == "recall":
        return f"Your name is {text}." if text else "I do not know your name yet."
    if use["name"] == "add_note":
        return "It is noted."
    notes = json.loads(text)
    return "Your notes:\n\n" + "\n".join(f"- {note}" for note in notes) if notes else "You have no notes yet."


_failed: set[tuple[str, int]] = set()


def _fail_once(session_id: str, position: int, *, midway: bool) -> ScriptedReply:
    """Fail the first time at this place of the conversation."""
    if (session_id, position) in _failed:
        _failed.discard((session_id, position))
        return ScriptedReply(text="This time it worked.")
    _failed.add((session_id, position))
    text = "I begin to answer, and then " if midway else ""
    return ScriptedReply(text=text, error=ConnectionError("the offline model was asked to fail"))
