"""What the offline model of the examples says when it is told a name, and when it is asked for one."""

import re

from strands.types.content import Messages


def small_talk(messages: Messages, known: str = "Your name is {}.") -> str:
    """Answer the newest of these messages; a name that was not restored with them is not known."""
    said = [block["text"] for message in messages for block in message["content"] if "text" in block]
    names = re.findall(r"my name is (\w+)", "\n".join(said), re.IGNORECASE)
    if "what is my name" in said[-1].lower():
        return known.format(names[-1]) if names else "I do not know your name."
    return f"Nice to meet you, {names[-1]}." if names else "Hello!"
