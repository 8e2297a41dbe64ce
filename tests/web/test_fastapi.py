"""The FastAPI integration, as a browser sees it: a real web server, a real MongoDB."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Path, Query, Request, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from offline_model import OfflineScriptedModel, ScriptedReply, ToolCall
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from pymongo import MongoClient
from pymongo.errors import (
    AutoReconnect,
    ExecutionTimeout,
    NetworkTimeout,
    NotPrimaryError,
    OperationFailure,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
)
from strands import Agent, tool
from strands.types.exceptions import EventLoopException
from support.baton import REPLY, WORDS, Baton, BatonModel
from support.failpoints import fail_command
from support.waiting import eventually
from support.web import figure, served
from support.wire_proxy import Cut, WireProxy

from mongodb_session_manager import (
    AgentNotFoundError,
    InvalidIdentifierError,
    MessageNotFoundError,
    MongoDBSessionManager,
    SessionBusyError,
    SessionConflictError,
    SessionExistsError,
    SessionNotFoundError,
    UnstorableValueError,
    get_global_factory,
)
from mongodb_session_manager.fastapi import (
    SessionMetrics,
    add_exception_handlers,
    create_router,
    open_session,
    session_lifespan,
    status_of,
    stream_turn,
)
from mongodb_session_manager.fastapi.router import asks_for_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from mongodb_session_manager.local import LocalMongoDB

COLLECTION = "sessions"
APP_NAME = "the web service"
SESSION = {"X-Session-ID": "s"}

OneSession = Annotated[MongoDBSessionManager, open_session(agent_id="a")]
LeasedSession = Annotated[MongoDBSessionManager, open_session(agent_id="a", lease=30)]


@tool
def look_up(what: str) -> str:
    """Look something up."""
    return f"{what}: 42"


def build_agent(session: Any, model: Any, **options: Any) -> Agent:
    return Agent(model=model, agent_id="a", session_manager=session, callback_handler=None, **options)


async def texts(events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    async for event in events:
        if "data" in event:
            yield event["data"]


class Service:
    """A chat service with everything of the module, and what the test knows of its inside."""

    def __init__(self, uri: str, database_name: str, *, ping_timeout: float = 1.0, **options: Any) -> None:
        self.baton = Baton()
        self.replies: list[Any] = [REPLY]
        self.tasks: set[asyncio.Task[Any]] = set()
        options = {"appName": APP_NAME, "minPoolSize": 0, **options}
        self.app = FastAPI(lifespan=session_lifespan(uri, database_name, COLLECTION, **options))
        add_exception_handlers(self.app)
        self.app.include_router(create_router(ping_timeout=ping_timeout))

        @self.app.post("/stream")
        async def stream(session: OneSession, prompt: str) -> StreamingResponse:
            agent = build_agent(session, BatonModel(self.baton, self.replies), tools=[look_up])
            return StreamingResponse(texts(stream_turn(session, agent, prompt)), media_type="text/plain")

        @self.app.post("/leased")
        async def leased(session: LeasedSession, prompt: str) -> StreamingResponse:
            agent = build_agent(session, BatonModel(self.baton))
            return StreamingResponse(texts(stream_turn(session, agent, prompt)), media_type="text/plain")

        @self.app.post("/plain")
        async def plain(session: OneSession, prompt: str) -> dict[str, Any]:
            agent = build_agent(session, OfflineScriptedModel(["An answer."]))
            result = await agent.invoke_async(prompt)
            return {"answer": str(result).strip(), "messages": len(agent.messages)}

        @self.app.post("/synchronous")
        def synchronous(session: OneSession, prompt: str) -> str:
            agent = build_agent(session, OfflineScriptedModel(["An answer."]))
            answer = str(agent(prompt)).strip()
            agent.state.set("after", "the turn")
            return answer

        @self.app.get("/tasks")
        async def tasks() -> int:
            return len(asyncio.all_tasks())


@pytest.fixture
def service(server: LocalMongoDB, database_name: str) -> Service:
    return Service(server.uri, database_name, ping_timeout=30.0)


@pytest.fixture
def browser(service: Service) -> Iterator[httpx.Client]:
    with served(service.app) as browser:
        yield browser


def conversation(client: MongoClient[dict[str, Any]], database_name: str, session_id: str = "s") -> list[Any]:
    document = client[database_name][COLLECTION].find_one({"_id": session_id})
    if document is None or "a" not in document["agents"]:
        return []
    messages = document["agents"]["a"]["messages"]
    return [(m["role"], "".join(block.get("text", "") for block in m["content"])) for m in messages]


# --- the lifespan


@pytest.mark.slow
def test_the_factory_is_found_by_both_ways_of_the_specification(server: LocalMongoDB, database_name: str) -> None:
    app = FastAPI(lifespan=session_lifespan(server.uri, database_name, COLLECTION))

    @app.get("/same")
    async def same(request: Request) -> bool:
        return request.app.state.session_factory is get_global_factory()

    @app.post("/chat")
    async def chat(request: Request, session_id: str) -> int:
        manager = request.app.state.session_factory.create_session_manager(session_id)
        agent = await asyncio.to_thread(build_agent, manager, OfflineScriptedModel(["Hello."]))
        await agent.invoke_async("I am Alice.")
        return len(agent.messages)

    @app.get("/figures")
    async def figures() -> dict[str, Any]:
        return {"pool": get_global_factory().get_connection_stats()}

    with served(app) as browser:
        assert browser.get("/same").json() is True
        assert browser.post("/chat", params={"session_id": "s"}).json() == 2
        assert browser.get("/figures").json()["pool"]["open"] >= 1
        factory = app.state.session_factory
    assert factory.closed
    with pytest.raises(RuntimeError, match="no global factory"):
        get_global_factory()


@pytest.mark.slow
def test_ones_own_lifespan_runs_inside(server: LocalMongoDB, database_name: str) -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        assert not app.state.session_factory.closed
        seen.append("begins")
        yield {"greeting": "Hello"}
        assert not app.state.session_factory.closed
        seen.append("ends")

    app = FastAPI(lifespan=session_lifespan(server.uri, database_name, COLLECTION, lifespan=own))

    @app.get("/greeting")
    async def greeting(request: Request) -> str:
        return str(request.state.greeting)

    with served(app) as browser:
        assert browser.get("/greeting").json() == "Hello"
    assert seen == ["begins", "ends"]


def test_a_lifespan_that_fails_leaves_no_factory_open(server: LocalMongoDB, database_name: str) -> None:
    made: list[Any] = []

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[None]:
        made.append(app.state.session_factory)
        raise LookupError("no configuration")
        yield

    app = FastAPI(lifespan=session_lifespan(server.uri, database_name, COLLECTION, lifespan=own))
    with pytest.raises(LookupError), TestClient(app):
        pass
    assert made[0].closed


@pytest.mark.slow
def test_an_application_starts_again_after_its_end(service: Service) -> None:
    for _ in range(2):
        with TestClient(service.app) as browser:
            assert browser.post("/plain", params={"prompt": "Hello"}, headers=SESSION).status_code == 200
            assert b"mongodb_session_pool_connections{" in browser.get("/metrics").content


def test_a_client_of_ones_own_is_not_closed_and_its_commands_are_counted(
    server: LocalMongoDB, database_name: str
) -> None:
    metrics = SessionMetrics()
    client: MongoClient[dict[str, Any]]
    with MongoClient(server.uri, event_listeners=[metrics]) as client:
        app = FastAPI(lifespan=session_lifespan(client=client, database_name=database_name))
        app.include_router(create_router(metrics=metrics))
        with TestClient(app) as browser:
            assert browser.get("/health/ready").status_code == 200
            assert 'command="ping"' in browser.get("/metrics").text
        client.admin.command("ping")


# --- the request's session


@pytest.mark.parametrize("path", ["/plain", "/stream", "/synchronous", "/leased"])
def test_a_session_goes_on_in_the_next_request(
    service: Service, browser: httpx.Client, client: Any, database_name: str, path: str
) -> None:
    service.baton.allowed = len(WORDS)
    for _ in range(2):
        assert browser.post(path, params={"prompt": "Hello"}, headers=SESSION).status_code == 200
    stored = eventually(lambda: len(found := conversation(client, database_name)) == 4 and found)
    assert [role for role, _ in stored] == ["user", "assistant"] * 2


def test_what_changed_after_the_turn_is_stored_at_the_end_of_the_request(
    browser: httpx.Client, client: Any, database_name: str
) -> None:
    browser.post("/synchronous", params={"prompt": "Hello"}, headers=SESSION)

    def stored() -> bool:
        document = client[database_name][COLLECTION].find_one({"_id": "s"})
        return bool(document["agents"]["a"]["agent_data"]["state"] == {"after": "the turn"})

    eventually(stored)


@pytest.mark.parametrize(
    ("source", "path", "url"),
    [
        (Query(), "/chat", "/chat?session_id=s"),
        (Query(alias="sid"), "/chat", "/chat?sid=s"),
        (Path(), "/chat/{session_id}", "/chat/s"),
    ],
)
def test_the_id_may_come_from_elsewhere(
    server: LocalMongoDB, database_name: str, source: Any, path: str, url: str
) -> None:
    app = FastAPI(lifespan=session_lifespan(server.uri, database_name, COLLECTION))

    found = open_session(session_id=source)

    @app.get(path)
    async def chat(session: Any = found) -> str:
        return str(session.session_id)

    with TestClient(app) as browser:
        assert browser.get(url).json() == "s"


def test_the_id_and_the_options_may_come_from_a_function_of_ones_own(
    server: LocalMongoDB, database_name: str, client: Any
) -> None:
    app = FastAPI(lifespan=session_lifespan(server.uri, database_name, COLLECTION, application_name="of all"))
    add_exception_handlers(app)

    async def of_the_user(user: Annotated[str, Query()], session_id: Annotated[str, Query()]) -> str:
        return f"{user}.{session_id}"

    def of_the_tenant(user: Annotated[str, Query()]) -> dict[str, str]:
        return {"application_name": user, "collection_name": f"of_{user}"}

    found = open_session(
        session_id=Depends(of_the_user), request_options=Depends(of_the_tenant), agent_id="a", session_type="chat"
    )

    @app.post("/chat")
    async def chat(session: Any = found) -> str:
        await build_agent(session, OfflineScriptedModel(["Hello."])).invoke_async("Hello")
        return str(session.session_id)

    with served(app) as browser:
        for user in ("alice", "bob"):
            assert browser.post("/chat", params={"user": user, "session_id": "s"}).json() == f"{user}.s"
        assert browser.post("/chat", params={"user": "a/b", "session_id": "s"}).status_code == 422
    for user in ("alice", "bob"):
        stored = list(client[database_name][f"of_{user}"].find())
        kept = [(session["_id"], session["application_name"], session["session_type"]) for session in stored]
        assert kept == [(f"{user}.s", user, "chat")]
    assert client[database_name][COLLECTION].count_documents({}) == 0


@pytest.mark.parametrize("wrong", [{"no_such": 1}, {"maxPoolSize": 5}])
def test_an_option_of_a_request_that_no_manager_has_is_told(
    server: LocalMongoDB, database_name: str, wrong: dict[str, int]
) -> None:
    app = FastAPI(lifespan=session_lifespan(server.uri, database_name, COLLECTION))
    found = open_session(request_options=Depends(lambda: wrong))

    @app.post("/chat")
    async def chat(session: Any = found) -> None: ...

    with TestClient(app) as browser, pytest.raises(TypeError, match=next(iter(wrong))):
        browser.post("/chat", headers=SESSION)


def test_building_the_agent_sends_nothing_on_the_event_loop(service: Service, client: Any, database_name: str) -> None:
    sent: list[tuple[str, threading.Thread]] = []
    loops: list[threading.Thread] = []

    class Listener(SessionMetrics):
        def started(self, event: Any) -> None:
            if event.command_name != "ping":
                sent.append((event.command_name, threading.current_thread()))

    service = Service(client_uri(client), database_name, event_listeners=[Listener()])

    @service.app.get("/loop")
    async def loop() -> None:
        loops.append(threading.current_thread())

    service.baton.allowed = len(WORDS)
    with served(service.app) as browser:
        browser.get("/loop")
        for path in ("/stream", "/plain", "/leased"):
            assert browser.post(path, params={"prompt": "Hello"}, headers=SESSION).status_code == 200
    assert sent
    assert loops[0] not in [thread for _, thread in sent]


def client_uri(client: MongoClient[dict[str, Any]]) -> str:
    hosts = ",".join(f"{host}:{port}" for host, port in client.nodes)
    name = client.topology_description.replica_set_name
    return f"mongodb://{hosts}/" + (f"?replicaSet={name}" if name else "")


def test_a_failure_at_the_end_becomes_the_response_where_that_is_asked_for(
    server: LocalMongoDB, client: Any, database_name: str
) -> None:
    app = FastAPI(lifespan=session_lifespan(server.uri, database_name, COLLECTION))
    add_exception_handlers(app)

    @app.post("/chat")
    async def chat(session: Annotated[Any, open_session(agent_id="a", scope="function", durability="turn")]) -> str:
        agent = build_agent(session, OfflineScriptedModel(["Hello."]))
        await agent.invoke_async("Hello")
        await asyncio.to_thread(client[database_name][COLLECTION].delete_one, {"_id": "s"})
        agent.state.set("never", "stored")
        return "stored"

    with TestClient(app) as browser:
        assert browser.post("/chat", headers=SESSION).status_code == 404


def test_an_error_of_the_endpoint_is_not_replaced(service: Service) -> None:
    @service.app.post("/fails")
    async def fails(session: OneSession) -> None:
        raise LookupError("the endpoint's own")

    with TestClient(service.app) as browser, pytest.raises(LookupError, match="the endpoint's own"):
        browser.post("/fails", headers=SESSION)


def test_a_turn_outside_of_a_request_says_what_is_missing(server: LocalMongoDB, database_name: str) -> None:
    with MongoDBSessionManager("s", server.uri, database_name, COLLECTION) as session:
        agent = build_agent(session, OfflineScriptedModel(["Hello."]))
        with pytest.raises(RuntimeError, match="open_session"):
            asyncio.run(anext(stream_turn(session, agent, "Hello")))  # type: ignore[arg-type]


# --- streams


@pytest.mark.slow
def test_words_arrive_one_by_one_and_the_session_stays_open_until_the_last(
    service: Service, browser: httpx.Client, client: Any, database_name: str
) -> None:
    with browser.stream("POST", "/stream", params={"prompt": "Hello"}, headers=SESSION) as answer:
        words = answer.iter_text(len(WORDS[0]))
        for number, word in enumerate(WORDS):
            service.baton.allowed = number + 1
            assert next(words) == word
            if number == 0:
                assert conversation(client, database_name) == [("user", "Hello")]
        assert next(words, None) is None
    eventually(lambda: conversation(client, database_name) == [("user", "Hello"), ("assistant", REPLY)])
    opened, closed = figure(browser, "mongodb_session_opened_total"), "mongodb_session_closed_total"
    assert opened == 1
    eventually(lambda: figure(browser, closed) == 1)


def test_a_turn_with_tools_streams_and_is_stored_as_without_a_web_server(
    service: Service, browser: httpx.Client, client: Any, database_name: str
) -> None:
    service.baton.allowed = len(WORDS)
    service.replies = [ScriptedReply(text="Let me see.", tool_calls=(ToolCall("look_up", {"what": "it"}),)), REPLY]
    answer = browser.post("/stream", params={"prompt": "Hello"}, headers=SESSION)
    assert answer.text == "Let me see." + REPLY
    roles = [role for role, _ in conversation(client, database_name)]
    assert roles == ["user", "assistant", "user", "assistant"]


@pytest.mark.parametrize("durability", ["message", "turn"])
@pytest.mark.parametrize("words", [1, 7])
def test_what_was_streamed_is_stored_when_the_client_goes_away(
    server: LocalMongoDB, client: Any, database_name: str, durability: str, words: int
) -> None:
    service = Service(server.uri, database_name, durability=durability)
    with served(service.app) as browser:
        tasks = browser.get("/tasks").json()
        service.baton.allowed = words
        with browser.stream("POST", "/stream", params={"prompt": "Hello"}, headers=SESSION) as answer:
            heard = answer.iter_text(len(WORDS[0]))
            assert [next(heard) for _ in range(words)] == WORDS[:words]
        partial = ("assistant", "".join(WORDS[:words]))
        eventually(lambda: conversation(client, database_name) == [("user", "Hello"), partial])
        assert service.baton.cancelled == 1
        eventually(lambda: browser.get("/tasks").json() <= tasks, message="no task is left")
        eventually(lambda: figure(browser, "mongodb_session_closed_total") == 1)

        service.baton.allowed = len(WORDS)
        assert browser.post("/stream", params={"prompt": "Go on"}, headers=SESSION).text == REPLY
        expected = [("user", "Hello"), partial, ("user", "Go on"), ("assistant", REPLY)]
        eventually(lambda: conversation(client, database_name) == expected)


def test_a_client_that_goes_away_before_the_first_word_leaves_its_question(
    service: Service, browser: httpx.Client, client: Any, database_name: str
) -> None:
    with browser.stream("POST", "/stream", params={"prompt": "Hello"}, headers=SESSION):
        eventually(lambda: conversation(client, database_name) == [("user", "Hello")])
    eventually(lambda: figure(browser, "mongodb_session_closed_total") == 1)
    assert conversation(client, database_name) == [("user", "Hello")]


@pytest.mark.slow
def test_what_was_streamed_is_stored_also_when_the_database_is_slow(
    service: Service, browser: httpx.Client, client: Any, database_name: str
) -> None:
    service.baton.allowed = 3
    with browser.stream("POST", "/stream", params={"prompt": "Hello"}, headers=SESSION) as answer:
        heard = answer.iter_text(len(WORDS[0]))
        assert [next(heard) for _ in range(3)] == WORDS[:3]
        with fail_command(client, "update", app_name=APP_NAME, block_ms=1000):
            answer.close()
            assert browser.get("/health").status_code == 200
            eventually(lambda: len(conversation(client, database_name)) == 2)
    assert conversation(client, database_name)[-1] == ("assistant", "".join(WORDS[:3]))


@pytest.mark.slow
@pytest.mark.parametrize("block_ms", [0, 300])
def test_what_was_streamed_is_stored_when_the_server_is_told_to_end(
    service: Service, client: Any, database_name: str, block_ms: int
) -> None:
    service.baton.allowed = 3
    with contextlib.ExitStack() as longer:
        with served(service.app, timeout_graceful_shutdown=1) as browser:
            reader = longer.enter_context(httpx.Client(base_url=browser.base_url, timeout=30, trust_env=False))
            answer = longer.enter_context(reader.stream("POST", "/stream", params={"prompt": "Hello"}, headers=SESSION))
            heard = answer.iter_text(len(WORDS[0]))
            assert [next(heard) for _ in range(3)] == WORDS[:3]
            if block_ms:
                longer.enter_context(fail_command(client, "update", app_name=APP_NAME, block_ms=block_ms))
        with pytest.raises(httpx.HTTPError):
            next(heard)
        assert conversation(client, database_name) == [("user", "Hello"), ("assistant", "".join(WORDS[:3]))]


@pytest.mark.slow
def test_an_answer_that_is_just_being_stored_when_the_client_goes_away_is_stored_once(
    service: Service, browser: httpx.Client, client: Any, database_name: str
) -> None:
    service.baton.allowed = 1
    with browser.stream("POST", "/stream", params={"prompt": "Hello"}, headers=SESSION) as answer:
        heard = answer.iter_text(len(WORDS[0]))
        next(heard)
        with fail_command(client, "update", app_name=APP_NAME, block_ms=700, times=1):
            service.baton.allowed = len(WORDS)
            assert [next(heard) for _ in WORDS[1:]] == WORDS[1:]
            answer.close()
            eventually(lambda: figure(browser, "mongodb_session_closed_total") == 1)
    assert conversation(client, database_name) == [("user", "Hello"), ("assistant", REPLY)]


def test_a_reader_that_stops_in_the_middle_is_as_good_as_gone(
    server: LocalMongoDB, client: Any, database_name: str
) -> None:
    app = FastAPI(lifespan=session_lifespan(server.uri, database_name, COLLECTION))

    @app.post("/first-word")
    async def first_word(session: OneSession) -> str:
        agent = build_agent(session, OfflineScriptedModel([REPLY], chunk_characters=7))
        async for event in stream_turn(session, agent, "Hello"):
            if "data" in event:
                return str(event["data"])
        return "nothing"

    with TestClient(app) as browser:
        assert browser.post("/first-word", headers=SESSION).json() == WORDS[0]
    assert conversation(client, database_name) == [("user", "Hello"), ("assistant", WORDS[0])]


def test_an_error_of_the_model_ends_the_stream_and_leaves_the_session_usable(
    service: Service, browser: httpx.Client, client: Any, database_name: str
) -> None:
    service.baton.allowed = len(WORDS)
    service.replies = [ScriptedReply(text=WORDS[0], error=ConnectionError("the model is gone"))]
    with pytest.raises(httpx.RemoteProtocolError):
        browser.post("/stream", params={"prompt": "Hello"}, headers=SESSION)
    service.replies = [REPLY]
    assert browser.post("/stream", params={"prompt": "Again"}, headers=SESSION).text == REPLY
    assert conversation(client, database_name)[-2:] == [("user", "Again"), ("assistant", REPLY)]


def test_two_requests_at_once_on_one_session_lose_nothing(
    service: Service, browser: httpx.Client, client: Any, database_name: str
) -> None:
    with contextlib.ExitStack() as stack:
        answers = [
            stack.enter_context(browser.stream("POST", "/stream", params={"prompt": prompt}, headers=SESSION))
            for prompt in ("One", "Two")
        ]
        eventually(lambda: len(conversation(client, database_name)) == 2)
        service.baton.allowed = len(WORDS)
        assert ["".join(answer.iter_text()) for answer in answers] == [REPLY, REPLY]
    stored = eventually(lambda: len(found := conversation(client, database_name)) == 4 and found)
    assert sorted(stored) == [("assistant", REPLY), ("assistant", REPLY), ("user", "One"), ("user", "Two")]


@pytest.mark.slow
def test_a_second_request_meets_the_lease_of_the_first(
    service: Service, browser: httpx.Client, client: Any, database_name: str
) -> None:
    service.baton.allowed = 1
    with browser.stream("POST", "/leased", params={"prompt": "One"}, headers=SESSION) as first:
        words = first.iter_text(len(WORDS[0]))
        next(words)
        second = browser.post("/leased", params={"prompt": "Two"}, headers=SESSION)
        assert second.status_code == 409
        assert 1 <= int(second.headers["Retry-After"]) <= 30
        assert "leased" in second.json()["detail"]
        service.baton.allowed = len(WORDS)
        assert "".join(words) == "".join(WORDS[1:])
    assert browser.post("/leased", params={"prompt": "Three"}, headers=SESSION).status_code == 200


@contextlib.contextmanager
def held_in_a_lease(
    server: LocalMongoDB, database_name: str, client: Any, seconds: float
) -> Iterator[tuple[Callable[[], Any], Callable[[], None]]]:
    """A request that has a lease and waits after its first word; when its lease ends, and what lets it say the rest."""
    service = Service(server.uri, database_name)
    leased = open_session(agent_id="a", lease=seconds)

    @service.app.post("/briefly-leased")
    async def briefly_leased(session: Any = leased) -> StreamingResponse:
        agent = build_agent(session, BatonModel(service.baton))
        return StreamingResponse(texts(stream_turn(session, agent, "One")), media_type="text/plain")

    def expires_at() -> Any:
        return client[database_name][COLLECTION].find_one({"_id": "s"}).get("lease", {}).get("expires_at")

    def finish() -> None:
        service.baton.allowed = len(WORDS)
        assert "".join(words) == "".join(WORDS[1:])

    service.baton.allowed = 1
    with served(service.app) as browser, browser.stream("POST", "/briefly-leased", headers=SESSION) as answer:
        words = answer.iter_text(len(WORDS[0]))
        next(words)
        yield expires_at, finish


@pytest.mark.slow
def test_a_lease_lasts_as_long_as_the_request_and_ends_with_it(
    server: LocalMongoDB, database_name: str, client: Any
) -> None:
    with held_in_a_lease(server, database_name, client, 5) as (expires_at, finish):
        first = expires_at()
        # Longer than it was taken for.
        eventually(lambda: (expires_at() - first).total_seconds() > 5)
        finish()
        eventually(lambda: expires_at() is None)
        assert conversation(client, database_name) == [("user", "One"), ("assistant", REPLY)]


@pytest.mark.slow
def test_a_lease_that_could_not_be_renewed_for_a_while_goes_on(
    server: LocalMongoDB, database_name: str, client: Any
) -> None:
    with held_in_a_lease(server, database_name, client, 6) as (expires_at, finish):
        first = expires_at()
        with fail_command(client, "update", app_name=APP_NAME, error_code=8000, times=1):
            eventually(lambda: expires_at() > first)
        finish()
        eventually(lambda: conversation(client, database_name) == [("user", "One"), ("assistant", REPLY)])


# --- errors


RAISED: list[tuple[Callable[[], Exception], int]] = [
    (lambda: SessionNotFoundError("session_id='s' does not exist"), 404),
    (lambda: AgentNotFoundError("no such agent"), 404),
    (lambda: MessageNotFoundError("no such message"), 404),
    (lambda: SessionBusyError("leased", 2.1), 409),
    (lambda: SessionBusyError("leased"), 409),
    (lambda: SessionConflictError("somebody else wrote"), 409),
    (lambda: SessionExistsError("it exists"), 409),
    (lambda: InvalidIdentifierError("an id"), 422),
    (lambda: UnstorableValueError("a value"), 422),
    (lambda: AutoReconnect("secret.example.org:27017 closed"), 503),
    (lambda: NetworkTimeout("secret.example.org:27017"), 503),
    (lambda: NotPrimaryError("secret.example.org:27017"), 503),
    (lambda: ServerSelectionTimeoutError("secret.example.org:27017"), 503),
    (lambda: WaitQueueTimeoutError("secret.example.org:27017"), 503),
    (lambda: ExecutionTimeout("secret.example.org:27017"), 503),
    (lambda: EventLoopException(AutoReconnect("secret.example.org:27017")), 503),
    (lambda: EventLoopException(SessionConflictError("somebody else wrote")), 409),
    (lambda: OperationFailure("secret.example.org:27017: not authorized"), 500),
    (lambda: EventLoopException(LookupError("secret.example.org")), 500),
]


@pytest.mark.parametrize(("error", "status"), RAISED, ids=lambda it: repr(it()) if callable(it) else str(it))
def test_an_error_has_its_status_and_tells_no_secret(error: Callable[[], Exception], status: int) -> None:
    app = FastAPI()
    add_exception_handlers(app)

    @app.get("/")
    async def fails() -> None:
        raise error()

    answer = TestClient(app, raise_server_exceptions=False).get("/")
    assert answer.status_code == status
    assert "secret" not in answer.text
    if status != 500:
        assert answer.json().keys() == {"detail"}
        assert answer.json()["detail"]
    if isinstance(error(), SessionBusyError):
        assert answer.headers["Retry-After"] == ("3" if error().retry_after else "1")  # type: ignore[attr-defined]
    assert ("Retry-After" in answer.headers) == (status == 503 or isinstance(error(), SessionBusyError))
    assert status_of(error()) == (None if status == 500 else (status, answer.json()["detail"]))


def test_an_error_on_a_web_socket_stays_one() -> None:
    app = FastAPI()
    add_exception_handlers(app)

    @app.websocket("/")
    async def fails(socket: WebSocket) -> None:
        raise SessionNotFoundError("gone")

    with pytest.raises(SessionNotFoundError), TestClient(app).websocket_connect("/"):
        pass


@pytest.mark.parametrize("session_id", ["a/b", "a\0b", ""])
def test_an_id_that_cannot_be_used_is_the_clients_error(service: Service, session_id: str) -> None:
    @service.app.post("/query")
    async def query(session: Annotated[Any, open_session(session_id=Query())]) -> None: ...

    with TestClient(service.app) as browser:
        answer = browser.post("/query", params={"session_id": session_id})
        assert answer.status_code == 422
        assert browser.post("/plain", params={"prompt": "Hello"}).status_code == 422  # Without the header.


@pytest.mark.slow
def test_a_database_that_is_down_is_told_without_its_name(database_name: str) -> None:
    service = Service("mongodb://alice:hunter2@127.0.0.1:1/", database_name, serverSelectionTimeoutMS=200)
    with served(service.app) as browser:
        answer = browser.post("/plain", params={"prompt": "Hello"}, headers=SESSION)
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.json() == {"detail": "The database does not answer at the moment."}

        ready = browser.get("/health/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": "unavailable"})
        assert browser.get("/health").status_code == 200
        for accept in ("text/plain", "application/json"):
            assert "hunter2" not in browser.get("/metrics", headers={"Accept": accept}).text


@pytest.mark.slow
def test_a_database_that_goes_away_and_comes_back(server: LocalMongoDB, database_name: str) -> None:
    host, _, port = server.uri.partition("://")[2].partition("/")[0].partition(":")
    with WireProxy(host, int(port)) as proxy:
        service = Service(proxy.uri, database_name, retryReads=False, retryWrites=False)
        with served(service.app) as browser:
            turn = {"params": {"prompt": "Hello"}, "headers": SESSION}
            assert browser.post("/plain", **turn).status_code == 200
            proxy.cut(Cut(("find", "update", "ping"), "before it is run", times=None))
            assert browser.post("/plain", **turn).status_code == 503
            assert browser.get("/health?ready").status_code == 503
            proxy.heal()
            eventually(lambda: browser.get("/health?ready").status_code == 200)
            answer = browser.post("/plain", **turn)
            assert (answer.status_code, answer.json()["messages"]) == (200, 4)


# --- health and metrics


@pytest.mark.slow
def test_readiness_gives_up_on_a_database_that_hangs_while_liveness_answers(
    server: LocalMongoDB, client: Any, database_name: str
) -> None:
    app = FastAPI(lifespan=session_lifespan(server.uri, database_name, COLLECTION, appName=APP_NAME))
    app.include_router(create_router(ping_timeout=0.5), prefix="/operations")
    with served(app) as browser:
        eventually(lambda: browser.get("/operations/health/ready").json() == {"status": "ok"})
        with fail_command(client, "ping", app_name=APP_NAME, block_ms=5000):
            assert browser.get("/operations/health?ready").status_code == 503
            assert browser.get("/operations/health").json() == {"status": "ok"}


@pytest.mark.slow
def test_health_answers_while_many_streams_are_under_way(
    service: Service, browser: httpx.Client, client: Any, database_name: str
) -> None:
    async def main() -> list[str]:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=browser.base_url, timeout=60, limits=limits, trust_env=False) as many:

            async def chat(number: int) -> str:
                headers = {"X-Session-ID": f"s{number}"}
                return (await many.post("/stream", params={"prompt": "Hello"}, headers=headers)).text

            chats = [asyncio.create_task(chat(number)) for number in range(60)]
            with fail_command(client, ("update", "find"), app_name=APP_NAME, block_ms=50):
                while service.baton.allowed < len(WORDS):
                    service.baton.allowed += 1
                    assert (await many.get("/health")).json() == {"status": "ok"}
                    assert (await many.get("/health?ready")).status_code == 200
                assert not any(chat.done() for chat in chats) or service.baton.allowed == len(WORDS)
                return await asyncio.gather(*chats)

    assert asyncio.run(main()) == [REPLY] * 60


def test_the_figures_are_what_happened(service: Service, browser: httpx.Client) -> None:
    service.baton.allowed = len(WORDS)
    browser.post("/stream", params={"prompt": "x" * 400}, headers=SESSION)
    assert figure(browser, "mongodb_session_opened_total") == 1
    eventually(lambda: figure(browser, "mongodb_session_closed_total") == 1)
    assert figure(browser, "mongodb_session_tokens_total", direction="input") == 100
    assert figure(browser, "mongodb_session_tokens_total", direction="output") == len(REPLY) // 4
    assert figure(browser, "mongodb_session_tokens_total", direction="cache_read") == 0
    count = "mongodb_session_command_duration_seconds_count"
    assert figure(browser, count, command="update", outcome="ok") >= 2
    assert figure(browser, "mongodb_session_command_duration_seconds_sum", command="update", outcome="ok") < 60
    assert figure(browser, "mongodb_session_pool_connections") >= 1
    assert figure(browser, "mongodb_session_pool_limit") % 100 == 0
    assert figure(browser, "mongodb_session_pool_check_outs_total") >= 3


def test_commands_that_fail_are_counted_as_such(browser: httpx.Client, client: Any) -> None:
    with fail_command(client, "ping", app_name=APP_NAME, error_code=8000):
        assert browser.get("/health/ready").status_code == 503
    count = "mongodb_session_command_duration_seconds_count"
    assert figure(browser, count, command="ping", outcome="failed") == 1


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("application/json", "application/json"),
        ("application/json;q=0.9, text/plain;q=0.5", "application/json"),
        ("*/*", "text/plain"),
        ("", "text/plain"),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1", "openmetrics"),
    ],
)
def test_metrics_come_in_the_form_that_is_asked_for(browser: httpx.Client, accept: str, media_type: str) -> None:
    answer = browser.get("/metrics", headers={"Accept": accept})
    assert media_type in answer.headers["Content-Type"]
    if media_type == "application/json":
        pool = json.loads(answer.text)["pool"]
        assert pool["configuration"]["max_pool_size"] == 100
        assert pool["open"] >= 0
    else:
        families = list((parse_openmetrics if media_type == "openmetrics" else parse_text)(answer.text))
        assert "mongodb_session_opened" in {family.name for family in families}


@pytest.mark.parametrize(
    ("accept", "json_wins"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", True),
        ("Application/JSON ; q=0.2", True),
        ("application/json, text/plain, */*", True),
        ("application/json, */*;q=0.1", True),
        ("text/plain, application/json", False),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", False),
    ],
)
def test_json_is_told_to_those_who_name_it_first(accept: str, json_wins: bool) -> None:
    assert asks_for_json(accept) is json_wins


def test_the_router_serves_an_application_with_a_lifespan_of_its_own(server: LocalMongoDB, database_name: str) -> None:
    from mongodb_session_manager import close_global_factory, initialize_global_factory

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        initialize_global_factory(server.uri, database_name)
        yield
        close_global_factory()

    app = FastAPI(lifespan=lifespan)
    app.include_router(create_router())

    @app.get("/session")
    async def session(found: Annotated[Any, Depends(open_session(session_id=Query()).dependency)]) -> str:
        return str(found.session_id)

    with TestClient(app) as browser:
        browser.get("/metrics")
        assert browser.get("/session", params={"session_id": "s"}).json() == "s"
        assert figure(browser, "mongodb_session_opened_total") == 1


def test_a_ping_that_may_take_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match="ping_timeout"):
        create_router(ping_timeout=0)


@pytest.mark.slow
def test_without_the_extra_the_core_is_imported_and_the_module_names_it() -> None:
    script = """
import sys
for missing in ("fastapi", "prometheus_client", "starlette", "opentelemetry.instrumentation.pymongo"):
    sys.modules[missing] = None
import mongodb_session_manager
try:
    import mongodb_session_manager.fastapi
except ImportError as error:
    assert "mongodb-session-manager[fastapi]" in str(error), error
else:
    raise AssertionError("it was imported")
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
