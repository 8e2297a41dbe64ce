"""The answers of the offline model in the examples: it remembers the user's name."""

import re

from strands.types.content import Messages


def small_talk(messages: Messages, known: str = "Your name is {}.") -> str:
    """Answer the newest message. The model knows a name only if it is in these messages."""
    said = [block["text"] for message in messages for block in message["content"] if "text" in block]
    names = re.findall(r"my name is (\w+)", "\n".join(said), re.IGNORECASE)
    if "what is my name" in said[-1].lower():
        return known.format(names[-1]) if names else "I do not know your name."
    return f"Nice to meet you, {names[-1]}." if names else "Hello!"
