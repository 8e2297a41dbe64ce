"""Random conversations: whatever may happen to a live one, step by step, by a seed.

From the repository's root, for many seeds:

    PYTHONPATH=examples:tests .venv/bin/python -m support.random_conversations --seeds 0:2000
    PYTHONPATH=examples:tests .venv/bin/python -m support.random_conversations --seeds 0:500 --two-writers
"""

import argparse
import copy
import itertools
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import strands.interventions as interventions
from offline_model import OfflineScriptedModel, ToolCall
from pymongo import MongoClient
from strands import Agent, tool
from strands.agent.conversation_manager import (
    NullConversationManager,
    SlidingWindowConversationManager,
    SummarizingConversationManager,
)
from strands.agent.conversation_manager.compression.pin_message import pin_message, unpin_message

from mongodb_session_manager import MongoDBSessionManager
from support.equality import differences
from support.flows import picture
from support.histories import SMALL, manager_of, repository_of

MANAGERS: dict[str, Callable[[], dict[str, Any]]] = {
    "window of 4": lambda: {"conversation_manager": SlidingWindowConversationManager(window_size=4)},
    "window of 6, per turn": lambda: {
        "conversation_manager": SlidingWindowConversationManager(window_size=6, per_turn=True)
    },
    "window of 40": lambda: {"conversation_manager": SlidingWindowConversationManager(window_size=40)},
    "pinned": lambda: {"conversation_manager": SlidingWindowConversationManager(window_size=6, pin_first=2)},
    "none": lambda: {"conversation_manager": NullConversationManager()},
    "summarizing": lambda: {
        "conversation_manager": SummarizingConversationManager(summary_ratio=0.5, preserve_recent_messages=2)
    },
    "auto": lambda: {"context_manager": "auto"},
}


class Guide(interventions.InterventionHandler):
    """Guides some model calls: a message that Strands appends, and tells of by no event."""

    name = "guide"

    def before_model_call(self, event: Any, **_: Any) -> Any:
        if "guide me" in str(event.agent.messages[-1]):
            return interventions.Guide(feedback="Be brief.")
        return interventions.Proceed()


@tool
def report(words: int) -> str:
    """Write a report."""
    return "word " * words


def reply(messages: Any) -> Any:
    """The answer of the model: a summary where one is asked for, a tool where the user wants one."""
    last = messages[-1]["content"][0]
    text = last.get("text", "")
    if "ummar" in text:
        return "A summary."
    if text.startswith("report"):
        return ToolCall("report", {"words": int(text.split()[1])})
    return f"Re: {text[:20]} " + "blah " * 40


def agent_of(manager: MongoDBSessionManager, name: str, report: Any) -> Agent:
    """The agent with this conversation manager and this tool, as a process builds it."""
    return Agent(
        agent_id="a",
        model=OfflineScriptedModel(reply, context_window_limit=2_000),
        tools=[report],
        interventions=[Guide()],
        session_manager=manager,
        callback_handler=None,
        **MANAGERS[name](),
    )


class RandomConversation:
    """One session, whose agent lives through random steps.

    Args:
        seed: Decides the conversation manager, the options and all steps.
        client: The database's.
        database_name: An empty one, or one with other sessions.
    """

    def __init__(self, seed: int, client: MongoClient[Any], database_name: str) -> None:
        self.chance = random.Random(seed)
        self.client, self.database_name, self.session_id = client, database_name, f"seed {seed}"
        self.name = self.chance.choice(list(MANAGERS))
        self.options = {
            "durability": self.chance.choice(["message", "turn"]),
            **self.chance.choice([SMALL, {"archive_after_bytes": 2_000}, {}]),
        }
        self.stack = ExitStack()
        self.prompts = [[{"role": "user", "content": [{"text": f"again {number}"}]}] for number in range(2)]
        self.snapshots: list[Any] = []
        self.done: list[str] = []
        self.count = 0
        self.agent = self.open()

    def open(self) -> Agent:
        """The agent, as a fresh process builds it."""
        self.manager = self.stack.enter_context(
            manager_of(self.client, self.database_name, self.session_id, **self.options)
        )
        return agent_of(self.manager, self.name, report)

    def steps(self, count: int) -> Iterator[str]:
        """Take so many steps; yield after each what differs in a fresh process, or an empty text."""
        for _ in range(count):
            step = self.chance.choice(STEPS)
            self.count += 1
            self.done.append(step.__name__)
            step(self)
            if step not in TURNS or self.chance.random() < 0.5:  # What a turn leaves is stored when it ends.
                self.manager.sync_agent(self.agent)
                self.manager.flush()
            yield self.difference()

    def difference(self) -> str:
        """What a fresh process restores otherwise than what is live; an empty text if nothing is."""
        live, manager = picture(self.agent), self.manager
        restored = picture(self.open())
        self.manager = manager
        found = [str(one) for one in differences(restored["messages"], live["messages"])]
        state = "conversation_manager_state"
        found += [str(one) for one in differences(restored[state], live[state])]
        return "\n".join(found[:6])

    def close(self) -> None:
        self.stack.close()

    # --- what may happen

    def turns(self) -> list[int]:
        """Where turns begin: a plain prompt of the user."""
        messages = self.agent.messages
        return [
            index
            for index, message in enumerate(messages)
            if message["role"] == "user" and all("text" in block for block in message["content"])
        ]

    def says(self) -> None:
        self.agent(f"prompt {self.count}")

    def uses_a_tool(self) -> None:
        self.agent(f"report {self.chance.choice([3, 300])}")

    def repeats_a_prompt(self) -> None:
        self.agent(self.chance.choice(self.prompts))

    def is_guided(self) -> None:
        self.agent(f"guide me {self.count}")

    def undoes_a_turn(self) -> None:
        if turns := self.turns():
            del self.agent.messages[turns[-1] :]

    def clears(self) -> None:
        if self.chance.random() < 0.3:
            self.agent.messages.clear()

    def takes_a_snapshot(self) -> None:
        self.snapshots.append(self.agent.take_snapshot(preset="session"))

    def loads_a_snapshot(self) -> None:
        if self.snapshots:
            self.agent.load_snapshot(copy.deepcopy(self.chance.choice(self.snapshots)))

    def appends(self) -> None:
        for role in ("user", "assistant"):
            self.agent.messages.append({"role": role, "content": [{"text": f"appended {self.count}"}]})

    def cuts_a_hole(self) -> None:
        turns = self.turns()
        if len(turns) > 2:
            first = self.chance.randrange(len(turns) - 1)
            del self.agent.messages[turns[first] : turns[first + 1]]

    def edits(self) -> None:
        if self.agent.messages:
            message = self.chance.choice(self.agent.messages)
            message["content"] = [*message["content"], {"text": f"edited {self.count}"}]

    def pins(self) -> None:
        if self.agent.messages:
            index = self.chance.randrange(len(self.agent.messages))
            self.chance.choice([pin_message, pin_message, unpin_message])(self.agent.messages, index)

    def reduces(self) -> None:
        if len(self.agent.messages) > 6:
            self.agent.conversation_manager.reduce_context(self.agent)

    def is_opened_again(self) -> None:
        self.manager.close()
        self.agent = self.open()


TURNS = [
    *[RandomConversation.says] * 5,
    *[RandomConversation.uses_a_tool] * 3,
    *[RandomConversation.repeats_a_prompt] * 2,
    *[RandomConversation.is_guided] * 2,
]
STEPS = [
    *TURNS,
    RandomConversation.undoes_a_turn,
    RandomConversation.clears,
    RandomConversation.takes_a_snapshot,
    RandomConversation.loads_a_snapshot,
    RandomConversation.appends,
    RandomConversation.cuts_a_hole,
    RandomConversation.edits,
    RandomConversation.pins,
    RandomConversation.reduces,
    *[RandomConversation.is_opened_again] * 3,
]


class TwoWriters:
    """Two processes whose turns on one session interleave: one speaks while the other's tool runs.

    Args:
        seed: Decides the conversation manager, the options and all steps.
        client: The database's.
        database_name: An empty one, or one with other sessions.
    """

    def __init__(self, seed: int, client: MongoClient[Any], database_name: str) -> None:
        self.chance = random.Random(seed)
        self.name = self.chance.choice(["window of 4", "window of 6, per turn", "window of 40", "none"])
        durability = self.chance.choice(["message", "turn"])
        self.options: dict[str, Any] = {
            "durability": durability,
            **self.chance.choice([SMALL, {}]),
        }
        self.client, self.database_name, self.session_id = client, database_name, f"two, seed {seed}"
        self.stack = ExitStack()
        self.said: list[str] = []
        self.done: list[str] = []
        self.agents = [self.open(), self.open()]

    def open(self) -> Agent:
        """The agent, as a fresh process builds it."""
        manager = manager_of(self.client, self.database_name, self.session_id, **self.options)
        self.stack.enter_context(manager)

        @tool
        def report(words: int) -> str:
            """Write a report; while it is written, the other process may take a turn."""
            if words == 3 and (other := self.agents[1 - self.speaker]) is not None:
                self.says(other, "meanwhile")
            return "word " * words

        return agent_of(manager, self.name, report)

    def says(self, agent: Agent, prompt: str) -> None:
        """A turn whose prompt is told from all others."""
        self.said.append(f"{prompt} {len(self.said)}")
        agent(self.said[-1])

    def steps(self, count: int) -> Iterator[str]:
        """Take so many steps; yield after each what is wrong with what is stored, or an empty text."""
        for _ in range(count):
            self.speaker = self.chance.randrange(2)
            prompt = self.chance.choice(["prompt", "report 3", "report 30", "guide me", "opened"])
            self.done.append(f"{self.speaker}: {prompt}")
            if prompt == "opened":
                self.agents[self.speaker] = self.open()
            else:
                self.says(self.agents[self.speaker], prompt)
            yield self.fault()

    def fault(self) -> str:
        """What is lost, doubled, without its number, or torn from what it belongs to."""
        stored = repository_of(self.client, self.database_name).list_messages(self.session_id, "a")
        texts = ["".join(block.get("text", "") for block in one.message["content"]) for one in stored]
        for said in self.said:
            if texts.count(said) != 1:
                return f"{said!r} is stored {texts.count(said)} times"
        if [one.message_id for one in stored] != list(range(len(stored))):
            return f"ids: {[one.message_id for one in stored]}"
        live = self.open().messages
        for message, behind in itertools.zip_longest(live, live[1:]):
            asked = {block["toolUse"]["toolUseId"] for block in message["content"] if "toolUse" in block}
            results = [] if behind is None else [block.get("toolResult") for block in behind["content"]]
            if asked != {result["toolUseId"] for result in results if result} or "interrupted" in str(results):
                return f"torn: {message} {behind}"
        return ""

    def close(self) -> None:
        self.stack.close()


Kind = type[RandomConversation] | type[TwoWriters]


def failure(kind: Kind, seed: int, client: MongoClient[Any], database_name: str, steps: int = 25) -> str:
    """What went wrong with the conversation of this seed, and after which steps; an empty text if nothing did."""
    conversation = kind(seed, client, database_name)
    try:
        for difference in conversation.steps(steps):
            if difference:
                told = f"{conversation.name}, {conversation.options}, {', '.join(conversation.done)}"
                return f"seed {seed}: {told}:\n{difference}"
    finally:
        conversation.close()
    return ""


def main() -> None:
    from mongodb_session_manager.local import LocalMongoDB

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0:100", help="first:behind")
    parser.add_argument("--two-writers", action="store_true", help="two processes on one session")
    arguments = parser.parse_args()
    kind: Kind = TwoWriters if arguments.two_writers else RandomConversation
    first, behind = map(int, arguments.seeds.split(":"))
    failed = 0
    with LocalMongoDB() as server, MongoClient(server.uri) as client:
        for seed in range(first, behind):
            if found := failure(kind, seed, client, "random"):
                failed += 1
                print(found, flush=True)
            client.drop_database("random")
    print(f"{behind - first} seeds, {failed} with a difference")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
