"""The chat's server as browsers see it: a real web server, a real MongoDB, cookies, streams that break."""

import asyncio
import base64
import contextlib
import json
import signal
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from chat_guard import MAX_BODY_BYTES, MAX_PROMPT_CHARACTERS
from chat_identity import signing_key
from chat_script import chat_model
from example_fastapi_streaming import AGENT_ID, create_app
from itsdangerous import TimestampSigner
from offline_model import ScriptedReply, ToolCall
from pymongo import MongoClient
from pymongo.database import Database
from strands import Agent, tool
from support.baton import REPLY, WORDS, Baton, BatonModel
from support.failpoints import fail_command
from support.playground import BackendProcess
from support.waiting import eventually
from support.web import figure, served

from mongodb_session_manager import MongoDBSessionManager
from mongodb_session_manager.local import LocalMongoDB

COLLECTION = "sessions"
APP_NAME = "the chat"
KEY = "a key that only the tests know"
ORIGIN = "http://localhost:8881"
# What can be asked about one conversation.
OF_A_CONVERSATION: list[tuple[str, str, Any]] = [
    ("GET", "/conversation", None),
    ("GET", "/conversation/details", None),
    ("DELETE", "/conversation", None),
    ("PUT", "/conversation/state", {"set": {"a": 1}}),
    ("PUT", "/conversation/metadata", {"set": {"title": "x"}}),
    ("POST", "/conversation/feedback", {"message_id": 0, "rating": "up"}),
]


class Chat:
    """The service with an agent of the test's own, and what the test knows of its inside."""

    def __init__(self, uri: str, database: Database[Any], **options: Any) -> None:
        self.sessions = database[COLLECTION]
        self.baton = Baton()
        self.baton.allowed = len(WORDS)
        self.replies: Any = [REPLY]
        self.tools: list[Any] = []
        given = {"database_name": database.name, "collection_name": COLLECTION, "appName": APP_NAME, "minPoolSize": 0}
        self.app = create_app(uri, KEY, build_agent=self.build_agent, **{**given, **options})

        @self.app.get("/tasks-under-way")
        async def tasks() -> int:
            return len(asyncio.all_tasks())

    def build_agent(self, session: MongoDBSessionManager) -> Agent:
        return Agent(
            model=BatonModel(self.baton, self.replies),
            agent_id=AGENT_ID,
            tools=self.tools,
            session_manager=session,
            callback_handler=None,
        )

    @property
    def stored(self) -> list[dict[str, Any]]:
        return list(self.sessions.find())


class Page:
    """One browser's page: it has its cookie, its conversation, and says where it comes from."""

    def __init__(self, base_url: httpx.URL | str, session_id: str | None = None, cookies: Any = None) -> None:
        self.id = session_id or str(uuid.uuid4())
        self.http = httpx.Client(base_url=base_url, cookies=cookies, timeout=30, trust_env=False)
        self.http.headers.update({"Origin": ORIGIN, "X-Session-ID": self.id})
        self.get("/conversations")

    def get(self, path: str, **params: Any) -> Any:
        answer = self.http.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return json.loads(answer.text, parse_constant=pytest.fail)

    def status(self, method: str, path: str, **options: Any) -> int:
        return self.http.request(method, path, **options).status_code

    def say(self, prompt: str, *, retry: bool = False) -> list[tuple[str, Any]]:
        with self.streaming(prompt, retry=retry) as answer:
            assert answer.status_code == 200, answer.read()
            return list(events(answer))

    def streaming(self, prompt: str, *, retry: bool = False) -> contextlib.AbstractContextManager[httpx.Response]:
        return self.http.stream("POST", "/chat", json={"prompt": prompt, "retry": retry})

    def conversation(self) -> list[tuple[str, str]]:
        return [(message["role"], message["text"]) for message in self.get("/conversation", limit=200)["messages"]]


def events(answer: httpx.Response) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in answer.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "), parse_constant=pytest.fail)


def texts(found: list[tuple[str, Any]]) -> str:
    return "".join(data["text"] for name, data in found if name == "text")


@pytest.fixture
def chat(server: LocalMongoDB, database: Database[Any]) -> Chat:
    return Chat(server.uri, database)


@pytest.fixture
def base_url(chat: Chat) -> Iterator[httpx.URL]:
    with served(chat.app) as browser:
        yield browser.base_url


@pytest.fixture
def page(base_url: httpx.URL) -> Iterator[Page]:
    page = Page(base_url)
    yield page
    page.http.close()


@pytest.fixture
def assistant(server: LocalMongoDB, database_name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    """A page of the example as it is, with its own agent."""
    monkeypatch.setenv("OFFLINE_PACE_MS", "0")
    with served(create_app(server.uri, KEY, database_name=database_name, minPoolSize=0)) as browser:
        yield Page(browser.base_url)


@pytest.fixture
def other_browser(base_url: httpx.URL, page: Page) -> Iterator[Page]:
    """Somebody else's browser, which has guessed the id of the conversation."""
    other = Page(base_url, page.id)
    yield other
    other.http.close()


@pytest.fixture
def other_tab(base_url: httpx.URL, page: Page) -> Iterator[Page]:
    """The same browser's second tab, with the same conversation."""
    other = Page(base_url, page.id, page.http.cookies)
    yield other
    other.http.close()


# --- a turn


def test_a_turn_arrives_word_by_word_and_ends_with_what_is_stored(page: Page, chat: Chat) -> None:
    chat.baton.allowed = 0
    with page.streaming("Hello") as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        heard = events(answer)
        for number, word in enumerate(WORDS):
            chat.baton.allowed = number + 1
            assert next(heard) == ("text", {"text": word})
        name, done = next(heard)
        assert next(heard, None) is None
    assert name == "done"
    assert done["message_ids"] == {"user": 0, "assistant": 1}
    assert done["stop_reason"] == "end_turn"
    shown = page.get("/conversation")
    assert [message["message_id"] for message in shown["messages"]] == [0, 1]
    assert shown["messages"][0]["metrics"] is None
    assert shown["messages"][1]["metrics"] == done["metrics"]
    assert done["metrics"] == {"input_tokens": 1, "output_tokens": len(REPLY) // 4, "latency_ms": 25}
    assert (shown["id"], shown["title"], shown["more"]) == (page.id, "Hello", False)


def test_tools_are_shown_with_their_input_and_result_and_counted_with_the_turn(assistant: Page) -> None:
    told = assistant.say("Hello, my name is Alice.")
    uses = [data for name, data in told if name == "tool_use"]
    results = [data for name, data in told if name == "tool_result"]
    assert [(use["name"], use["input"]) for use in uses] == [("remember", {"fact": "name", "value": "Alice"})]
    assert results == [{"id": uses[0]["id"], "status": "success", "text": "remembered"}]
    assert told[-1][1]["message_ids"] == {"user": 0, "assistant": 3}

    assert "Your name is Alice." in texts(assistant.say("What is my name?"))
    assistant.http.put("/conversation/state", json={"set": {"name": "Bob"}})
    assert "Your name is Bob." in texts(assistant.say("What is my name?"))
    assistant.say("Note: buy milk")
    assert "- buy milk" in texts(assistant.say("List my notes"))

    details = assistant.get("/conversation/details")
    assert details["state"] == {"name": "Bob", "notes": ["buy milk"]}
    assert (details["summary"]["turns"], details["summary"]["tool_calls"]) == (5, 5)
    first = assistant.get("/conversation")["messages"][:4]
    assert first[1]["tool_uses"] == uses
    assert first[2]["tool_results"] == results
    assert details["turns"][0]["turn"] == 1
    for figure_of in ("input_tokens", "output_tokens", "latency_ms"):
        costs = [message["metrics"][figure_of] for message in first if message["metrics"]]
        assert details["turns"][0][figure_of] == sum(costs) == told[-1][1]["metrics"][figure_of]
        if figure_of != "latency_ms":
            assert details["summary"][figure_of] == sum(turn[figure_of] for turn in details["turns"])


@pytest.mark.parametrize(
    "hostile",
    [
        "<script>alert(1)</script><img src=x onerror=alert(1)>",
        "[a](javascript:alert(1)) \u2028\u2029 data: x\n\nevent: done\ndata: {}\r\rid: 1",
        "\x00\x01 \U0001f600 ]]>",
    ],
)
def test_hostile_text_comes_back_as_it_was_and_breaks_no_stream(assistant: Page, hostile: str) -> None:
    told = assistant.say("Repeat: " + hostile)
    assert texts(told) == hostile.strip()
    assert [name for name, _ in told if name != "text"] == ["done"]
    assert assistant.conversation()[-1][1] == hostile.strip()


def test_a_turn_of_many_tool_calls_ends_with_all_of_what_is_stored(page: Page, chat: Chat) -> None:
    @tool
    def look() -> str:
        """Look."""
        return "nothing"

    chat.tools, chat.replies = [look], [*([ToolCall("look")] * 60), "There is nothing."]
    chat.baton.allowed = 1_000
    done = page.say("Look everywhere")[-1][1]
    assert done["message_ids"] == {"user": 0, "assistant": 121}
    turn = page.get("/conversation/details")["turns"][0]
    assert done["metrics"] == {name: turn[name] for name in done["metrics"]}


def test_half_a_character_in_state_metadata_and_a_tools_input_is_valid_json(page: Page, chat: Chat) -> None:
    @tool
    def look_up(what: str) -> str:
        """Look something up."""
        return f"{what}\ud800"

    chat.tools = [look_up]
    chat.replies = [ScriptedReply(text=WORDS[0], tool_calls=(ToolCall("look_up", {"what": "\udc00"}),)), REPLY]
    told = page.say("Hello")
    assert [data["input"] for name, data in told if name == "tool_use"] == [{"what": "\udc00"}]
    assert [data["text"] for name, data in told if name == "tool_result"] == ["\udc00\ud800"]
    assert page.get("/conversation")["messages"][1]["tool_uses"][0]["input"] == {"what": "\udc00"}
    body = b'{"set": {"half": "\\ud83d"}}'
    answer = page.http.put("/conversation/state", content=body, headers={"Content-Type": "application/json"})
    assert answer.json() == {"half": "\ud83d"} == page.get("/conversation/details")["state"]
    prompt = page.http.post("/chat", content=b'{"prompt": "\\ud800"}', headers={"Content-Type": "application/json"})
    assert prompt.status_code in (200, 422)


# --- streams that break


@pytest.mark.parametrize("words", [0, 1, 7])
def test_a_client_that_goes_away_leaves_what_it_has_read_and_the_next_message_is_not_refused(
    page: Page, chat: Chat, words: int
) -> None:
    page.say("Before")  # What runs once per loop has begun then.
    tasks = page.get("/tasks-under-way")
    chat.baton.allowed = words
    with page.streaming("Hello") as answer:
        heard = events(answer)
        assert [next(heard)[1]["text"] for _ in range(words)] == WORDS[:words]
        eventually(lambda: len(page.conversation()) == 3)
    eventually(lambda: "lease" not in chat.stored[0], 10, message="the lease ends")
    chat.baton.allowed = len(WORDS)
    assert texts(page.say("Go on")) == REPLY
    partial = [("assistant", "".join(WORDS[:words]))] if words else []
    assert page.conversation()[2:] == [("user", "Hello"), *partial, ("user", "Go on"), ("assistant", REPLY)]
    eventually(lambda: page.get("/tasks-under-way") <= tasks, message="no task is left")


@pytest.mark.parametrize("retry", [False, True], ids=["another", "retry"])
@pytest.mark.parametrize("kind", ["async", "sync"])
def test_a_client_that_goes_away_while_a_tool_runs_can_go_on(page: Page, chat: Chat, kind: str, retry: bool) -> None:
    running, go_on = threading.Event(), threading.Event()

    @tool(name="slow")
    async def slow_async() -> str:
        """Take a while."""
        running.set()
        while not go_on.is_set():
            await asyncio.sleep(0.001)
        return "done"

    @tool(name="slow")
    def slow_sync() -> str:
        """Take a while."""
        running.set()
        go_on.wait(30)
        return "done"

    chat.tools = [slow_async if kind == "async" else slow_sync]
    chat.replies = [ScriptedReply(text=WORDS[0], tool_calls=(ToolCall("slow", {}),)), REPLY]
    with page.streaming("Hello") as answer:
        heard = events(answer)
        assert [next(heard)[0] for _ in range(2)] == ["text", "tool_use"]
        assert running.wait(30)
    chat.replies = [REPLY]
    if retry:
        go_on.set()  # The tool is called again.
    try:
        assert texts(page.say("Hello" if retry else "Go on", retry=retry)) == REPLY
    finally:
        go_on.set()
    assert page.conversation()[-1] == ("assistant", REPLY)
    assert page.conversation()[:2] == [("user", "Hello"), ("assistant", WORDS[0])]
    assert sum(text in ("Hello", "Go on") for _, text in page.conversation()) == 1 + (not retry)
    chat.replies = [REPLY]
    assert texts(page.say("And on")) == REPLY


def test_a_model_that_fails_is_told_and_a_retry_stores_the_prompt_once(page: Page, chat: Chat) -> None:
    chat.replies = [ScriptedReply(text=WORDS[0], error=ConnectionError("secret.example.org refused"))]
    told = page.say("Hello")
    assert told == [
        ("text", {"text": WORDS[0]}),
        ("failed", {"status": 502, "detail": "The model does not answer."}),
    ]
    assert page.conversation() == [("user", "Hello")]
    chat.replies = [REPLY]
    told = page.say("Hello", retry=True)
    assert told[-1][1]["message_ids"] == {"user": 0, "assistant": 1}
    assert page.conversation() == [("user", "Hello"), ("assistant", REPLY)]
    turns = page.get("/conversation/details")["turns"]
    assert [turn["turn"] for turn in turns] == [1]


def test_a_retry_after_a_tool_was_used_goes_on_behind_its_result(page: Page, chat: Chat) -> None:
    calls = []

    @tool
    def look_up() -> str:
        """Look something up."""
        calls.append(1)
        return "42"

    chat.tools = [look_up]
    chat.replies = [ScriptedReply(text=WORDS[0], tool_calls=(ToolCall("look_up"),)), ConnectionError("gone")]
    assert page.say("Hello")[-1][0] == "failed"
    chat.replies = [REPLY]
    told = page.say("Hello", retry=True)
    assert told[-1][1]["message_ids"] == {"user": 0, "assistant": 3}
    assert [role for role, _ in page.conversation()] == ["user", "assistant", "user", "assistant"]
    assert calls == [1]


@pytest.mark.parametrize(("before", "prompt"), [([], "Hello"), (["Hello"], "Hello"), (["Something else"], "Hello")])
def test_a_retry_of_what_was_never_stored_or_is_answered_is_a_turn_like_any_other(
    page: Page, before: list[str], prompt: str
) -> None:
    for said in before:
        page.say(said)
    told = page.say(prompt, retry=True)
    assert told[-1][1]["message_ids"] == {"user": 2 * len(before), "assistant": 2 * len(before) + 1}
    expected = [part for said in [*before, prompt] for part in (("user", said), ("assistant", REPLY))]
    assert page.conversation() == expected


def test_a_retry_with_another_prompt_asks_that(page: Page, chat: Chat) -> None:
    chat.replies = [ConnectionError("gone")]
    page.say("Hello")
    chat.replies = [REPLY]
    page.say("Something else", retry=True)
    assert page.conversation() == [("user", "Hello"), ("user", "Something else"), ("assistant", REPLY)]


def test_a_database_that_stops_in_the_middle_is_told_in_the_stream() -> None:
    client: MongoClient[Any]
    with LocalMongoDB() as mongodb, MongoClient(mongodb.uri) as client:
        if mongodb.kind == "external":
            pytest.skip("an external server is not stopped")
        chat = Chat(mongodb.uri, client["database"], serverSelectionTimeoutMS=500)
        chat.baton.allowed = 1
        with served(chat.app) as browser:
            page = Page(browser.base_url)
            with page.streaming("Hello") as answer:
                heard = events(answer)
                assert next(heard)[0] == "text"
                mongodb.nodes[0].kill()
                chat.baton.allowed = len(WORDS)
                name, failed = list(heard)[-1]
            assert (name, failed["status"]) == ("failed", 503)
            assert "127.0.0.1" not in failed["detail"]
            # On connections of their own: that of the stream is closed when its session could not be.
            asked = {"cookies": page.http.cookies, "headers": page.http.headers, "trust_env": False}
            assert httpx.get(f"{browser.base_url}/conversation", **asked).status_code == 503
            assert httpx.get(f"{browser.base_url}/health", trust_env=False).status_code == 200
            mongodb.nodes[0].start()
            eventually(lambda: httpx.get(f"{browser.base_url}/conversation", **asked).status_code == 200)
            page = Page(browser.base_url, page.id, page.http.cookies)
            question, answer = ("user", "Hello"), ("assistant", REPLY)
            # The request's last attempt to store the answer may have met the database that was back already.
            kept = page.conversation()
            assert kept in ([question], [question, answer])
            # Its lease, which could not be given back, is not waited for.
            chat.sessions.update_many({}, {"$unset": {"lease": 1}})
            if kept == [question]:
                assert texts(page.say("Hello", retry=True)) == REPLY
            assert page.conversation() == [question, answer]


def test_a_slow_database_does_not_hold_up_others(page: Page, client: Any) -> None:
    page.say("Hello")
    with (
        httpx.Client(base_url=page.http.base_url, trust_env=False) as monitor,
        fail_command(client, ["find", "aggregate"], app_name=APP_NAME, block_ms=5000, times=4),
    ):
        monitor.get("/health")
        slow = [
            threading.Thread(target=page.http.get, args=(path,))
            for path in ("/conversations", "/conversations?search=word01", "/conversation", "/conversation/details")
        ]
        for thread in slow:
            thread.start()
        for _ in range(3):
            assert monitor.get("/health").status_code == 200
        assert all(thread.is_alive() for thread in slow)
        for thread in slow:
            thread.join()


# --- two tabs


def test_a_second_tab_waits_its_turn_and_may_neither_delete_nor_edit_meanwhile(
    page: Page, other_tab: Page, chat: Chat
) -> None:
    page.say("Before")
    chat.baton.allowed = 1
    with page.streaming("Hello") as answer:
        heard = events(answer)
        next(heard)
        busy = other_tab.http.post("/chat", json={"prompt": "Me too"})
        assert busy.status_code == 409
        assert "another tab" in busy.json()["detail"]
        assert page.id not in busy.text, "the stored id holds the identity"
        assert 1 <= int(busy.headers["Retry-After"]) <= 20
        assert "Retry-After" in busy.headers["Access-Control-Expose-Headers"]
        assert other_tab.status("DELETE", "/conversation") == 409
        assert other_tab.status("PUT", "/conversation/state", json={"set": {"a": 1}}) == 409
        assert [text for _, text in other_tab.conversation()] == ["Before", REPLY, "Hello"]
        chat.baton.allowed = len(WORDS)
        assert list(heard)[-1][0] == "done"
    assert texts(other_tab.say("Me too")) == REPLY
    assert len(page.conversation()) == 6


def test_a_turn_in_a_conversation_that_the_other_tab_has_deleted_begins_it_anew(page: Page, other_tab: Page) -> None:
    page.say("Hello")
    page.http.put("/conversation/state", json={"set": {"a": 1}})
    assert other_tab.status("DELETE", "/conversation") == 204
    for method, path, body in OF_A_CONVERSATION:
        assert page.status(method, path, json=body) == 404, path
    assert page.get("/conversations")["conversations"] == []
    assert page.get("/conversations", search="Hello")["conversations"] == []
    page.say("Again")
    assert page.conversation() == [("user", "Again"), ("assistant", REPLY)]
    assert page.get("/conversation/details")["state"] == {}


# --- whose conversation it is


def test_another_browser_that_knows_the_id_finds_nothing_and_harms_nothing(
    page: Page, other_browser: Page, chat: Chat
) -> None:
    page.say("My secret is a kettle.")
    for method, path, body in OF_A_CONVERSATION:
        answer = other_browser.http.request(method, path, json=body)
        assert answer.status_code == 404, path
        assert "kettle" not in answer.text
    assert len(chat.stored) == 1  # None of these has begun one.
    other_browser.say("Hello")
    assert other_browser.conversation() == [("user", "Hello"), ("assistant", REPLY)]
    assert page.conversation() == [("user", "My secret is a kettle."), ("assistant", REPLY)]
    assert [found["title"] for found in other_browser.get("/conversations")["conversations"]] == ["Hello"]
    assert other_browser.get("/conversations", search="kettle")["conversations"] == []
    assert len(page.get("/conversations", search="kettle")["conversations"]) == 1
    assert len(chat.stored) == 2


@pytest.mark.parametrize("forgery", ["stripped", "other key", "changed", "garbage", "unsigned"])
def test_a_cookie_that_was_not_signed_here_makes_somebody_new(page: Page, base_url: httpx.URL, forgery: str) -> None:
    page.say("Hello")
    cookie = page.http.cookies["chat"]
    data, _, signature = cookie.partition(".")
    forged = {
        "stripped": None,
        "other key": TimestampSigner("another key").sign(data).decode(),
        "changed": base64.b64encode(b'{"identity": "somebody"}').decode() + "." + signature,
        "garbage": "\xe9\"';,",
        "unsigned": data,
    }[forgery]
    headers = {"X-Session-ID": page.id, **({} if forged is None else {"Cookie": f"chat={forged}".encode("latin-1")})}
    with httpx.Client(base_url=base_url, trust_env=False) as stranger:
        answer = stranger.get("/conversations", headers=headers)
        assert answer.json()["conversations"] == []
        assert stranger.get("/conversation", headers=headers).status_code == 404
        new = answer.cookies["chat"]
    assert new != cookie
    set_cookie = answer.headers["Set-Cookie"].lower()
    for word in ("httponly", "samesite=lax", "path=/", "max-age=31536000"):
        assert word in set_cookie


@pytest.mark.parametrize("session_id", ["", "x", "../../etc", "1", "someone.6f1c0f0e-0000-4000-8000-000000000001"])
def test_a_session_id_that_is_no_uuid_is_refused(page: Page, session_id: str) -> None:
    page.http.headers["X-Session-ID"] = session_id
    assert page.status("POST", "/chat", json={"prompt": "Hello"}) == 422
    assert page.status("GET", "/conversation") == 422


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:8882", "http://127.0.0.1:8880"])
def test_another_sites_page_can_change_nothing_and_read_nothing(page: Page, origin: str) -> None:
    page.say("Hello")
    page.http.headers["Origin"] = origin
    answer = page.http.post("/chat", json={"prompt": "Hello"})
    assert (answer.status_code, answer.json().keys()) == (403, {"detail"})
    assert page.status("DELETE", "/conversation") == 403
    assert page.status("PUT", "/conversation/state", json={}) == 403
    assert "Access-Control-Allow-Origin" not in page.http.get("/conversation").headers
    page.http.headers["Origin"] = ORIGIN
    assert len(page.conversation()) == 2


@pytest.mark.parametrize("origin", ["http://localhost:8881", "http://127.0.0.1:8881"])
def test_the_frontend_may_ask_with_its_cookie_and_its_header(page: Page, origin: str) -> None:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "PUT",
        "Access-Control-Request-Headers": "content-type,x-session-id",
    }
    for answer in (
        page.http.options("/conversation/state", headers=asked),
        page.http.get("/conversations", headers={"Origin": origin}),
        page.http.post("/chat", content=b"x" * (MAX_BODY_BYTES + 1), headers={"Origin": origin}),
    ):
        assert answer.headers["Access-Control-Allow-Origin"] == origin
        assert answer.headers["Access-Control-Allow-Credentials"] == "true"
    assert page.http.options("/chat", headers={**asked, "Origin": "https://evil.example"}).status_code == 400


def test_the_frontend_may_read_that_the_server_has_failed(page: Page, chat: Chat) -> None:
    @chat.app.get("/broken")
    def broken() -> None:
        raise ValueError("a secret of the inside")

    answer = page.http.get("/broken")
    assert (answer.status_code, answer.json()) == (500, {"detail": "The server has failed."})
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN


def test_another_host_name_is_refused(page: Page) -> None:
    for host in ("evil.example", "evil.example:8880", "127.0.0.1.evil.example", ""):
        assert page.status("GET", "/conversations", headers={"Host": host}) == 400, host
    assert page.status("GET", "/conversations", headers={"Host": "localhost:8880"}) == 200


# --- what is too much, and what is no JSON


def test_a_body_that_is_too_large_is_refused_however_it_is_sent(page: Page, chat: Chat) -> None:
    large = json.dumps({"prompt": "x" * MAX_BODY_BYTES}).encode()
    as_json = {"Content-Type": "application/json"}
    assert page.status("POST", "/chat", content=large, headers=as_json) == 413
    pieces = (large[at : at + 8192] for at in range(0, len(large), 8192))
    chunked = page.http.post("/chat", content=pieces, headers=as_json)
    assert chunked.request.headers["Transfer-Encoding"] == "chunked"
    assert chunked.status_code == 413
    assert page.status("PUT", "/conversation/state", content=large, headers=as_json) == 413
    pieces = iter([b'{"prompt"', b': "Hello"}'])
    assert page.status("POST", "/chat", content=pieces, headers=as_json) == 200
    assert len(chat.stored) == 1


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "x" * (MAX_PROMPT_CHARACTERS + 1)},
        {"prompt": ""},
        {"prompt": 1},
        {"prompt": None},
        {},
        [],
        {"prompt": "x", "retry": "perhaps"},
    ],
    ids=lambda body: str(body)[:30],
)
def test_a_prompt_that_cannot_be_one_is_refused(page: Page, chat: Chat, body: Any) -> None:
    assert page.status("POST", "/chat", json=body) == 422
    assert chat.stored == []  # No session was begun.


def test_a_prompt_of_the_largest_size_is_taken(page: Page) -> None:
    prompt = "€" * MAX_PROMPT_CHARACTERS
    assert page.say(prompt)[-1][0] == "done"
    assert page.conversation()[0] == ("user", prompt)


STATE = {
    "a.b": 1,
    "$ref": "x",
    "$id": {"$db": None},
    "": "",
    "__encoded__": "int",
    "big": 2**70,
    "deep": [[{"c": [1.5, True, None, "€"]}]],
}


def test_a_state_comes_back_as_it_was_put(page: Page) -> None:
    page.say("Hello")
    answer = page.http.put("/conversation/state", json={"set": STATE})
    assert (answer.status_code, answer.json()) == (200, STATE)
    assert page.get("/conversation/details")["state"] == STATE
    page.say("And the next turn leaves it alone")
    assert page.get("/conversation/details")["state"] == STATE
    assert page.http.put("/conversation/state", json={"delete": list(STATE)}).json() == {}
    assert page.get("/conversation/details")["state"] == {}
    assert len(page.conversation()) == 4


def test_a_changed_state_keeps_what_the_tools_have_put_into_it_meanwhile(assistant: Page) -> None:
    assistant.say("My name is Alice.")
    assistant.say("Note: buy milk")  # after the page has shown the state that is edited there
    answer = assistant.http.put("/conversation/state", json={"set": {"mine": 1}, "delete": ["name", "never there"]})
    assert answer.json() == {"notes": ["buy milk"], "mine": 1} == assistant.get("/conversation/details")["state"]
    assert assistant.status("PUT", "/conversation/state", json={"mine": 2}) == 422


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"null",
        b'"x"',
        b"{",
        b"",
        b'{"a": NaN}',
        b'{"a": [{"b": -Infinity}]}',
        b'{"a": 1e999}',
        b'{"a":' * 100 + b"1" + b"}" * 100,
        b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b'{"a": ' + b"1" * 5_000 + b"}",
        b"\xff\xfe",
    ],
    ids=lambda body: body[:20].decode("latin-1"),
)
def test_what_is_no_json_object_is_refused_and_answered_in_json(page: Page, body: bytes) -> None:
    page.say("Hello")
    for path in ("/conversation/state", "/conversation/metadata"):
        answer = page.http.put(path, content=b'{"set": ' + body + b"}", headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422), answer.text
        assert json.loads(answer.text, parse_constant=pytest.fail).keys() == {"detail"}


def test_what_a_page_of_another_site_can_send_without_asking_is_no_json(page: Page) -> None:
    page.say("Hello")
    for content_type in ("text/plain", "application/x-www-form-urlencoded", None):
        headers = {} if content_type is None else {"Content-Type": content_type}
        assert page.status("POST", "/chat", content=b'{"prompt": "Hello"}', headers=headers) == 422


def test_numbers_that_json_does_not_know_are_told_as_null(page: Page, chat: Chat) -> None:
    page.say("Hello")
    strange = {"a": float("nan"), "b": [float("inf")], "c": b"\xff"}
    change = {f"agents.{AGENT_ID}.agent_data.state": strange, "metadata": strange}
    chat.sessions.update_one({}, {"$set": change})
    details = page.get("/conversation/details")
    assert details["state"] == details["metadata"] == {"a": None, "b": [None], "c": "b'\\xff'"}


# --- lists, pages, metadata, feedback


def test_two_hundred_conversations_are_listed_page_by_page_and_found(page: Page, chat: Chat) -> None:
    ids = []
    for number in range(3):
        page.http.headers["X-Session-ID"] = str(uuid.uuid4())
        ids.append(page.http.headers["X-Session-ID"])
        page.say(f"Number {number} of all")
    example = chat.stored[0]
    owner = example["_id"].partition(".")[0]
    copies = [{**example, "_id": (it := f"{owner}.{uuid.uuid4()}"), "session_id": it} for _ in range(197)]
    chat.sessions.insert_many(copies)

    listed, cursor, pages = [], None, 0
    while pages == 0 or cursor:
        answer = page.get("/conversations", limit=30, **({"cursor": cursor} if cursor else {}))
        listed += answer["conversations"]
        cursor, pages = answer["cursor"], pages + 1
    assert (len(listed), len({found["id"] for found in listed}), pages) == (200, 200, 7)
    assert [found["updated_at"] for found in listed] == sorted((f["updated_at"] for f in listed), reverse=True)
    assert [found["id"] for found in listed[:2]] == [ids[2], ids[1]]
    assert listed[0]["messages"] == 2
    assert listed[0]["excerpt"] is None

    found = page.get("/conversations", search="number 2")
    assert [conversation["id"] for conversation in found["conversations"]] == [ids[2]]
    assert found["conversations"][0]["excerpt"] == "Number 2 of all"
    assert found["cursor"] is None
    for cursor in ("x", "é", "a" * 100):
        assert page.status("GET", "/conversations", params={"cursor": cursor}) == 422
    assert page.status("GET", "/conversations", params={"limit": 101}) == 422


def test_a_long_conversation_about_one_thing_does_not_hide_another(
    page: Page, other_tab: Page, database: Database[Any]
) -> None:
    page.say("kettle")
    other_tab.http.headers["X-Session-ID"] = str(uuid.uuid4())
    other_tab.say("Hello")  # the title, which is searched, too
    other_tab.say("a kettle, among other things")
    index = database[f"{COLLECTION}_search"]
    eventually(lambda: index.count_documents({"text": {"$regex": "kettle"}}) == 2)
    said = index.find_one({"text": "kettle"})
    index.insert_many({**said, "_id": {**said["_id"], "message": number}} for number in range(100, 400))
    assert len(page.get("/conversations", search="kettle")["conversations"]) == 2


@pytest.mark.parametrize("search", ["nothing", '"', "-word01", "$where", "   ", "\u2603", '-- " \\', "\0"])
def test_a_search_for_anything_is_answered(page: Page, search: str) -> None:
    assert page.get("/conversations", search=search) == {"conversations": [], "cursor": None}  # Nothing said yet.
    page.say("Hello")
    answer = page.get("/conversations", search=search)
    assert len(answer["conversations"]) == search.isspace()


def test_a_long_conversation_is_read_page_by_page_and_archived_messages_can_be_rated(
    server: LocalMongoDB, database: Database[Any]
) -> None:
    chat = Chat(server.uri, database, archive_after_messages=50, archive_block=10)
    chat.replies = ["An answer."]
    with served(chat.app) as browser:
        page = Page(browser.base_url)
        for number in range(60):
            page.say(f"Prompt {number}")
        archived = chat.stored[0]["agents"][AGENT_ID]["archived_count"]
        assert archived >= 40
        assert page.status("POST", "/conversation/feedback", json={"message_id": 1, "rating": "up"}) == 201

        pages, before = [], None
        while not pages or pages[0]["more"]:
            params = {"limit": 35, **({} if before is None else {"before": before})}
            pages.insert(0, page.get("/conversation", **params))
            before = pages[0]["messages"][0]["message_id"]
        messages = [message for found in pages for message in found["messages"]]
        assert [message["message_id"] for message in messages] == list(range(120))
        assert [message["text"] for message in messages[::2]] == [f"Prompt {number}" for number in range(60)]
        assert [m["message_id"] for m in messages if m["feedback"]] == [1]
        assert all(message["metrics"] for message in messages[1::2])
        assert page.get("/conversation", before=0) == {**pages[0], "messages": [], "more": False}
        assert page.get("/conversation", before=10**9)["messages"] == page.get("/conversation")["messages"]

        turns = page.get("/conversation/details")["turns"]
        assert [turn["turn"] for turn in turns] == list(range(11, 61))
        assert [turn["created_at"] for turn in turns] == [m["created_at"] for m in messages[20::2]]


def test_a_title_is_given_by_metadata_and_found(page: Page) -> None:
    page.say("Some words of different lengths, more of them than a title has room for, and so it is cut somewhere")
    first = page.get("/conversation")["title"]
    assert first == page.get("/conversations")["conversations"][0]["title"]
    answer = page.http.put("/conversation/metadata", json={"set": {"title": "Holidays", "a.b": 1, "tags": ["x"]}})
    assert (answer.status_code, answer.json()) == (200, {"title": "Holidays", "a": {"b": 1}, "tags": ["x"]})
    assert page.get("/conversation")["title"] == "Holidays" != first
    assert first.endswith("for, and so…")
    assert page.get("/conversations", search="holi")["conversations"][0]["title"] == "Holidays"
    answer = page.http.put("/conversation/metadata", json={"set": {"c": None}, "delete": ["title", "a.b", "no such"]})
    assert answer.json() == {"a": {}, "tags": ["x"], "c": None} == page.get("/conversation/details")["metadata"]
    assert page.get("/conversation")["title"] == first


@pytest.mark.parametrize(
    "change", [{"set": {"$a": 1}}, {"set": {"": 1}}, {"set": {"a": {"b.c": 1}}}, {"delete": ["$a"]}, {"set": []}]
)
def test_metadata_that_cannot_be_kept_is_refused(page: Page, change: Any) -> None:
    page.say("Hello")
    answer = page.http.put("/conversation/metadata", json=change)
    assert (answer.status_code, answer.json().keys()) == (422, {"detail"})


def test_the_newest_rating_of_a_message_counts(page: Page) -> None:
    page.say("Hello")
    page.say("Again")
    for message_id, rating in [(1, "up"), (3, "up"), (1, "down")]:
        given = {"message_id": message_id, "rating": rating, "comment": "<b>"}
        assert page.status("POST", "/conversation/feedback", json=given) == 201
    shown = page.get("/conversation")["messages"]
    assert [message["feedback"] for message in shown] == [None, "down", None, "up"]
    assert page.get("/conversation/details")["summary"]["feedback"] == {"up": 1, "down": 1}


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"message_id": 99, "rating": "up"}, 404),
        ({"message_id": -1, "rating": "up"}, 422),
        ({"message_id": 2**31 - 1, "rating": "up"}, 404),
        ({"message_id": 1, "rating": "great"}, 422),
        ({"message_id": 1, "rating": "up", "comment": "x" * 2_001}, 422),
    ],
)
def test_feedback_about_nothing_or_of_no_meaning_is_refused(page: Page, given: Any, status: int) -> None:
    page.say("Hello")
    assert page.status("POST", "/conversation/feedback", json=given) == status


def test_what_a_refusal_says_does_not_tell_the_identity(page: Page) -> None:
    page.say("Hello")
    page.http.put("/conversation/metadata", json={"set": {"a": [1]}})
    below_a_list = page.http.put("/conversation/metadata", json={"set": {"a.x": 1}})
    no_message = page.http.post("/conversation/feedback", json={"message_id": 99, "rating": "up"})
    assert (below_a_list.status_code, no_message.status_code) == (422, 404)
    for answer in (below_a_list, no_message):
        assert answer.json()["detail"].startswith(f"session_id='{page.id}'")


def test_health_and_metrics_need_no_session(base_url: httpx.URL) -> None:
    with httpx.Client(base_url=base_url, trust_env=False) as monitor:
        assert monitor.get("/health").json() == {"status": "ok"}
        assert monitor.get("/health/ready").json() == {"status": "ok"}
        assert figure(monitor, "mongodb_session_opened_total") == 0
        assert "pool" in monitor.get("/metrics", headers={"Accept": "application/json"}).json()


# --- the program


@pytest.fixture
def program() -> Iterator[BackendProcess]:
    """The example, run as a person runs it, with a server of its own."""
    process = BackendProcess(MONGODB_URI="")
    yield process
    process.end()


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda by: by.name)
def test_a_server_that_ends_in_mid_stream_goes_on_where_it_was(
    tmp_path: Path, program: BackendProcess, by: signal.Signals
) -> None:
    folder = ("--data", str(tmp_path / "data"))
    program.start(*folder, pace_ms=30)
    page = Page(program.url)
    page.say("My name is Alice.")
    heard = ""
    with page.streaming("Tell me a long story") as answer:
        told = events(answer)
        while len(heard) < 60:
            heard += next(told)[1]["text"]
        code, said = program.end(by)
        with contextlib.suppress(httpx.HTTPError):
            for _, data in told:
                heard += data["text"]
    assert code == (-by if by is signal.SIGKILL else 0), said

    program.start(*folder, pace_ms=0)
    again = Page(program.url, page.id, page.http.cookies)
    conversation = again.conversation()
    assert conversation[4] == ("user", "Tell me a long story")
    if by is signal.SIGKILL:
        assert len(conversation) == 5
        eventually(lambda: again.status("POST", "/chat", json={"prompt": "What is my name?"}) == 200)
    else:
        role, answered = conversation[5]
        assert (role, len(conversation)) == ("assistant", 6)
        assert answered.startswith(heard)
        assert len(answered) - len(heard) <= 12  # A piece that was said, but sent no more.
        assert "Your name is Alice." in texts(again.say("What is my name?"))
    assert "Your name is Alice." in again.conversation()[-1][1]
    _, said = program.end(signal.SIGTERM)
    assert "listens on" in said.splitlines()[-1], said


def test_the_signing_key_is_kept_from_others_and_given_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CHAT_SECRET", raising=False)
    key = signing_key(tmp_path / "data")
    assert key == signing_key(tmp_path / "data")
    assert len({key, signing_key(), signing_key(), signing_key(tmp_path / "other")}) == 4
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "data" / "signing-key").stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("CHAT_SECRET", "one that is long enough")
    assert signing_key(tmp_path / "data") == "one that is long enough"
    monkeypatch.setenv("CHAT_SECRET", "short")
    with pytest.raises(SystemExit, match="16 characters"):
        signing_key()


def test_the_offline_model_answers_alike_and_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFLINE_PACE_MS", "0")

    def answer(prompt: str) -> str:
        return str(Agent(model=chat_model("s"), callback_handler=None)(prompt)).strip()

    assert "offline" in answer("Hello")
    assert len(answer("Tell me a long story").split()) > 400
    markdown = answer("Show me Markdown")
    for part in ("# ", "## ", "\n- ", "\n1. ", "```python", "](https://"):
        assert part in markdown
    assert answer("Repeat: <b>x</b>") == "<b>x</b>"
    for prompt in ("Hello", "Show me Markdown", "Tell me a long story"):
        assert answer(prompt) == answer(prompt)
