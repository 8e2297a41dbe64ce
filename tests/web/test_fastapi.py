"""The FastAPI integration, as a browser sees it: a real web server, a real MongoDB."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Path, Query, Request, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from offline_model import OfflineScriptedModel, ScriptedReply, ToolCall
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import (
    AutoReconnect,
    ExecutionTimeout,
    NetworkTimeout,
    NotPrimaryError,
    OperationFailure,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
)
from strands import Agent
from strands.types.exceptions import EventLoopException
from support.application import dialogue, look_up
from support.baton import REPLY, WORDS, Baton, BatonModel
from support.failpoints import fail_command
from support.histories import SESSIONS
from support.running import run_script
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
    close_global_factory,
    get_global_factory,
    initialize_global_factory,
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
from mongodb_session_manager.local import LocalMongoDB

APP_NAME = "the web service"
SESSION = {"X-Session-ID": "s"}

OneSession = Annotated[MongoDBSessionManager, open_session(agent_id="a")]
LeasedSession = Annotated[MongoDBSessionManager, open_session(agent_id="a", lease=30)]


def build_agent(session: Any, model: Any, **options: Any) -> Agent:
    return Agent(model=model, agent_id="a", session_manager=session, callback_handler=None, **options)


async def texts(events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    async for event in events:
        if "data" in event:
            yield event["data"]


class Service:
    """A chat service with everything of the module, and what the test knows of its inside."""

    def __init__(self, uri: str, database: Database[Any], *, ping_timeout: float = 1.0, **options: Any) -> None:
        self.sessions = database[SESSIONS]
        self.baton = Baton()
        self.replies: list[Any] = [REPLY]
        options = {"appName": APP_NAME, "minPoolSize": 0, **options}
        self.app = FastAPI(lifespan=session_lifespan(uri, database.name, SESSIONS, **options))
        add_exception_handlers(self.app)
        self.app.include_router(create_router(ping_timeout=ping_timeout))

        @self.app.post("/stream")
        async def stream(session: OneSession, prompt: str) -> StreamingResponse:
            return self.stream(session, prompt)

        @self.app.post("/leased")
        async def leased(session: LeasedSession, prompt: str) -> StreamingResponse:
            return self.stream(session, prompt)

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

    def stream(self, session: MongoDBSessionManager, prompt: str) -> StreamingResponse:
        agent = build_agent(session, BatonModel(self.baton, self.replies), tools=[look_up])
        return StreamingResponse(texts(stream_turn(session, agent, prompt)), media_type="text/plain")

    @property
    def conversation(self) -> list[tuple[str, str]]:
        """Role and text of the stored messages."""
        document = self.sessions.find_one({"_id": "s"})
        return dialogue(document["agents"]["a"]["messages"]) if document and "a" in document["agents"] else []


@pytest.fixture
def service(server: LocalMongoDB, database: Database[Any]) -> Service:
    return Service(server.uri, database, ping_timeout=30.0)


@pytest.fixture
def browser(service: Service) -> Iterator[httpx.Client]:
    with served(service.app) as browser:
        yield browser


@pytest.fixture
def new_app(server: LocalMongoDB, database_name: str) -> Callable[..., FastAPI]:
    """Makes applications with a lifespan on this test's database, without any route."""

    def make(**options: Any) -> FastAPI:
        app = FastAPI(lifespan=session_lifespan(server.uri, database_name, SESSIONS, **options))
        add_exception_handlers(app)
        return app

    return make


def ask(browser: httpx.Client, path: str = "/stream", prompt: str = "Hello") -> httpx.Response:
    return browser.post(path, params={"prompt": prompt}, headers=SESSION)


@contextlib.contextmanager
def asking(
    browser: httpx.Client, path: str = "/stream", prompt: str = "Hello"
) -> Iterator[tuple[httpx.Response, Iterator[str]]]:
    """An answer that is under way, and its words."""
    with browser.stream("POST", path, params={"prompt": prompt}, headers=SESSION) as answer:
        yield answer, answer.iter_text(len(WORDS[0]))


# --- the lifespan


@pytest.mark.slow
def test_the_factory_is_found_by_both_ways_of_the_specification(new_app: Callable[..., FastAPI]) -> None:
    app = new_app()

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
def test_ones_own_lifespan_runs_inside(new_app: Callable[..., FastAPI]) -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        assert not app.state.session_factory.closed
        seen.append("begins")
        yield {"greeting": "Hello"}
        assert not app.state.session_factory.closed
        seen.append("ends")

    app = new_app(lifespan=own)

    @app.get("/greeting")
    async def greeting(request: Request) -> str:
        return str(request.state.greeting)

    with served(app) as browser:
        assert browser.get("/greeting").json() == "Hello"
    assert seen == ["begins", "ends"]


@pytest.mark.slow
def test_a_lifespan_that_fails_leaves_no_factory_open(new_app: Callable[..., FastAPI]) -> None:
    made: list[Any] = []

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[None]:
        made.append(app.state.session_factory)
        raise LookupError("no configuration")
        yield

    app = new_app(lifespan=own)
    with pytest.raises(LookupError), TestClient(app):
        pass
    assert made[0].closed


@pytest.mark.slow
def test_an_application_starts_again_after_its_end(service: Service) -> None:
    for _ in range(2):
        with TestClient(service.app) as browser:
            assert ask(browser, "/plain").status_code == 200
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


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/plain", "/stream", "/synchronous", "/leased"])
def test_a_session_goes_on_in_the_next_request(service: Service, browser: httpx.Client, path: str) -> None:
    service.baton.allowed = len(WORDS)
    for _ in range(2):
        assert ask(browser, path).status_code == 200
    stored = eventually(lambda: len(found := service.conversation) == 4 and found)
    assert [role for role, _ in stored] == ["user", "assistant"] * 2


@pytest.mark.slow
def test_what_changed_after_the_turn_is_stored_at_the_end_of_the_request(
    service: Service, browser: httpx.Client
) -> None:
    ask(browser, "/synchronous")
    eventually(lambda: service.sessions.count_documents({"agents.a.agent_data.state": {"after": "the turn"}}))


@pytest.mark.parametrize(
    ("source", "path", "url"),
    [
        (Query(), "/chat", "/chat?session_id=s"),
        (Query(alias="sid"), "/chat", "/chat?sid=s"),
        (Path(), "/chat/{session_id}", "/chat/s"),
    ],
)
def test_the_id_may_come_from_elsewhere(new_app: Callable[..., FastAPI], source: Any, path: str, url: str) -> None:
    app = new_app()
    found = open_session(session_id=source)

    @app.get(path)
    async def chat(session: Any = found) -> str:
        return str(session.session_id)

    with TestClient(app) as browser:
        assert browser.get(url).json() == "s"


@pytest.mark.slow
def test_the_id_and_the_options_may_come_from_a_function_of_ones_own(
    new_app: Callable[..., FastAPI], database: Database[Any]
) -> None:
    app = new_app(application_name="of all")

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
        stored = database[f"of_{user}"].find()
        kept = [(session["_id"], session["application_name"], session["session_type"]) for session in stored]
        assert kept == [(f"{user}.s", user, "chat")]
    assert database[SESSIONS].count_documents({}) == 0


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [{"no_such": 1}, {"maxPoolSize": 5}])
def test_an_option_of_a_request_that_no_manager_has_is_told(
    new_app: Callable[..., FastAPI], wrong: dict[str, int]
) -> None:
    app = new_app()
    found = open_session(request_options=Depends(lambda: wrong))

    @app.post("/chat")
    async def chat(session: Any = found) -> None: ...

    with TestClient(app) as browser, pytest.raises(TypeError, match=next(iter(wrong))):
        browser.post("/chat", headers=SESSION)


@pytest.mark.slow
def test_building_the_agent_sends_nothing_on_the_event_loop(server: LocalMongoDB, database: Database[Any]) -> None:
    sent: list[tuple[str, threading.Thread]] = []
    loops: list[threading.Thread] = []

    class Listener(SessionMetrics):
        def started(self, event: Any) -> None:
            if event.command_name != "ping":
                sent.append((event.command_name, threading.current_thread()))

    service = Service(server.uri, database, event_listeners=[Listener()])

    @service.app.get("/loop")
    async def loop() -> None:
        loops.append(threading.current_thread())

    service.baton.allowed = len(WORDS)
    with served(service.app) as browser:
        browser.get("/loop")
        for path in ("/stream", "/plain", "/leased"):
            assert ask(browser, path).status_code == 200
    assert sent
    assert loops[0] not in [thread for _, thread in sent]


def test_a_failure_at_the_end_becomes_the_response_where_that_is_asked_for(
    new_app: Callable[..., FastAPI], database: Database[Any]
) -> None:
    app = new_app()

    @app.post("/chat")
    async def chat(session: Annotated[Any, open_session(agent_id="a", scope="function", durability="turn")]) -> str:
        agent = build_agent(session, OfflineScriptedModel(["Hello."]))
        await agent.invoke_async("Hello")
        await asyncio.to_thread(database[SESSIONS].delete_one, {"_id": "s"})
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
    with MongoDBSessionManager("s", server.uri, database_name, SESSIONS) as session:
        agent = build_agent(session, OfflineScriptedModel(["Hello."]))
        with pytest.raises(RuntimeError, match="open_session"):
            asyncio.run(anext(stream_turn(session, agent, "Hello")))  # type: ignore[arg-type]


# --- streams


@pytest.mark.slow
def test_words_arrive_one_by_one_and_the_session_stays_open_until_the_last(
    service: Service, browser: httpx.Client
) -> None:
    with asking(browser) as (_, words):
        for number, word in enumerate(WORDS):
            service.baton.allowed = number + 1
            assert next(words) == word
            if number == 0:
                assert service.conversation == [("user", "Hello")]
        assert next(words, None) is None
    eventually(lambda: service.conversation == [("user", "Hello"), ("assistant", REPLY)])
    opened, closed = figure(browser, "mongodb_session_opened_total"), "mongodb_session_closed_total"
    assert opened == 1
    eventually(lambda: figure(browser, closed) == 1)


@pytest.mark.slow
def test_a_turn_with_tools_streams_and_is_stored_as_without_a_web_server(
    service: Service, browser: httpx.Client
) -> None:
    service.baton.allowed = len(WORDS)
    service.replies = [ScriptedReply(text="Let me see.", tool_calls=(ToolCall("look_up", {"what": "it"}),)), REPLY]
    assert ask(browser).text == "Let me see." + REPLY
    roles = [role for role, _ in service.conversation]
    assert roles == ["user", "assistant", "user", "assistant"]


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["message", "turn"])
@pytest.mark.parametrize("words", [1, 7])
def test_what_was_streamed_is_stored_when_the_client_goes_away(
    server: LocalMongoDB, database: Database[Any], durability: str, words: int
) -> None:
    service = Service(server.uri, database, durability=durability)
    with served(service.app) as browser:
        tasks = browser.get("/tasks").json()
        service.baton.allowed = words
        with asking(browser) as (_, heard):
            assert [next(heard) for _ in range(words)] == WORDS[:words]
        partial = ("assistant", "".join(WORDS[:words]))
        eventually(lambda: service.conversation == [("user", "Hello"), partial])
        assert service.baton.cancelled == 1
        eventually(lambda: browser.get("/tasks").json() <= tasks, message="no task is left")
        eventually(lambda: figure(browser, "mongodb_session_closed_total") == 1)

        service.baton.allowed = len(WORDS)
        assert ask(browser, prompt="Go on").text == REPLY
        expected = [("user", "Hello"), partial, ("user", "Go on"), ("assistant", REPLY)]
        eventually(lambda: service.conversation == expected)


@pytest.mark.slow
def test_a_client_that_goes_away_before_the_first_word_leaves_its_question(
    service: Service, browser: httpx.Client
) -> None:
    with asking(browser):
        eventually(lambda: service.conversation == [("user", "Hello")])
    eventually(lambda: figure(browser, "mongodb_session_closed_total") == 1)
    assert service.conversation == [("user", "Hello")]


@pytest.mark.slow
def test_what_was_streamed_is_stored_also_when_the_database_is_slow(
    service: Service, browser: httpx.Client, client: Any
) -> None:
    service.baton.allowed = 3
    with asking(browser) as (answer, heard):
        assert [next(heard) for _ in range(3)] == WORDS[:3]
        with fail_command(client, "update", app_name=APP_NAME, block_ms=1000):
            answer.close()
            assert browser.get("/health").status_code == 200
            eventually(lambda: len(service.conversation) == 2)
    assert service.conversation[-1] == ("assistant", "".join(WORDS[:3]))


@pytest.mark.slow
@pytest.mark.parametrize("block_ms", [0, 300])
def test_what_was_streamed_is_stored_when_the_server_is_told_to_end(
    service: Service, client: Any, block_ms: int
) -> None:
    service.baton.allowed = 3
    with contextlib.ExitStack() as longer:
        with served(service.app, timeout_graceful_shutdown=1) as browser:
            reader = longer.enter_context(httpx.Client(base_url=browser.base_url, timeout=30, trust_env=False))
            _, heard = longer.enter_context(asking(reader))
            assert [next(heard) for _ in range(3)] == WORDS[:3]
            if block_ms:
                longer.enter_context(fail_command(client, "update", app_name=APP_NAME, block_ms=block_ms))
        with pytest.raises(httpx.HTTPError):
            next(heard)
        assert service.conversation == [("user", "Hello"), ("assistant", "".join(WORDS[:3]))]


@pytest.mark.slow
def test_an_answer_that_is_just_being_stored_when_the_client_goes_away_is_stored_once(
    service: Service, browser: httpx.Client, client: Any
) -> None:
    service.baton.allowed = 1
    with asking(browser) as (answer, heard):
        next(heard)
        with fail_command(client, "update", app_name=APP_NAME, block_ms=700, times=1):
            service.baton.allowed = len(WORDS)
            assert [next(heard) for _ in WORDS[1:]] == WORDS[1:]
            answer.close()
            eventually(lambda: figure(browser, "mongodb_session_closed_total") == 1)
    assert service.conversation == [("user", "Hello"), ("assistant", REPLY)]


def test_a_reader_that_stops_in_the_middle_is_as_good_as_gone(service: Service) -> None:
    @service.app.post("/first-word")
    async def first_word(session: OneSession) -> str:
        agent = build_agent(session, OfflineScriptedModel([REPLY], chunk_characters=7))
        async for event in stream_turn(session, agent, "Hello"):
            if "data" in event:
                return str(event["data"])
        return "nothing"

    with TestClient(service.app) as browser:
        assert browser.post("/first-word", headers=SESSION).json() == WORDS[0]
    assert service.conversation == [("user", "Hello"), ("assistant", WORDS[0])]


@pytest.mark.slow
def test_an_error_of_the_model_ends_the_stream_and_leaves_the_session_usable(
    service: Service, browser: httpx.Client
) -> None:
    service.baton.allowed = len(WORDS)
    service.replies = [ScriptedReply(text=WORDS[0], error=ConnectionError("the model is gone"))]
    with pytest.raises(httpx.RemoteProtocolError):
        ask(browser)
    service.replies = [REPLY]
    assert ask(browser, prompt="Again").text == REPLY
    assert service.conversation[-2:] == [("user", "Again"), ("assistant", REPLY)]


@pytest.mark.slow
def test_two_requests_at_once_on_one_session_lose_nothing(service: Service, browser: httpx.Client) -> None:
    with contextlib.ExitStack() as stack:
        answers = [stack.enter_context(asking(browser, prompt=prompt)) for prompt in ("One", "Two")]
        eventually(lambda: len(service.conversation) == 2)
        service.baton.allowed = len(WORDS)
        assert ["".join(words) for _, words in answers] == [REPLY, REPLY]
    stored = eventually(lambda: len(found := service.conversation) == 4 and found)
    assert sorted(stored) == [("assistant", REPLY), ("assistant", REPLY), ("user", "One"), ("user", "Two")]


@pytest.mark.slow
def test_a_second_request_meets_the_lease_of_the_first(service: Service, browser: httpx.Client) -> None:
    service.baton.allowed = 1
    with asking(browser, "/leased", "One") as (_, words):
        next(words)
        second = ask(browser, "/leased", "Two")
        assert second.status_code == 409
        assert 1 <= int(second.headers["Retry-After"]) <= 30
        assert "leased" in second.json()["detail"]
        service.baton.allowed = len(WORDS)
        assert "".join(words) == "".join(WORDS[1:])
    assert ask(browser, "/leased", "Three").status_code == 200


@contextlib.contextmanager
def held_in_a_lease(service: Service, seconds: float) -> Iterator[tuple[Callable[[], Any], Callable[[], None]]]:
    """A request that has a lease and waits after its first word; when its lease ends, and what lets it say the rest."""
    leased = open_session(agent_id="a", lease=seconds)

    @service.app.post("/briefly-leased")
    async def briefly_leased(prompt: str, session: Any = leased) -> StreamingResponse:
        return service.stream(session, prompt)

    def expires_at() -> Any:
        return (service.sessions.find_one({"_id": "s"}) or {}).get("lease", {}).get("expires_at")

    def finish() -> None:
        service.baton.allowed = len(WORDS)
        assert "".join(words) == "".join(WORDS[1:])

    service.baton.allowed = 1
    with served(service.app) as browser, asking(browser, "/briefly-leased") as (_, words):
        next(words)
        yield expires_at, finish


@pytest.mark.slow
def test_a_lease_lasts_as_long_as_the_request_and_ends_with_it(service: Service) -> None:
    with held_in_a_lease(service, 5) as (expires_at, finish):
        first = expires_at()
        # Longer than it was taken for.
        eventually(lambda: (expires_at() - first).total_seconds() > 5)
        finish()
        eventually(lambda: expires_at() is None)
        assert service.conversation == [("user", "Hello"), ("assistant", REPLY)]


@pytest.mark.slow
def test_a_lease_that_could_not_be_renewed_for_a_while_goes_on(service: Service, client: Any) -> None:
    with held_in_a_lease(service, 6) as (expires_at, finish):
        first = expires_at()
        with fail_command(client, "update", app_name=APP_NAME, error_code=8000, times=1):
            eventually(lambda: expires_at() > first)
        finish()
        eventually(lambda: service.conversation == [("user", "Hello"), ("assistant", REPLY)])


# --- errors


NOT_FOUND = (SessionNotFoundError, AgentNotFoundError, MessageNotFoundError)
DOWN = (
    AutoReconnect,
    NetworkTimeout,
    NotPrimaryError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
    ExecutionTimeout,
)
SECRET = "secret.example.org:27017"
RAISED: list[tuple[Exception, int]] = [
    *((error("there is no such thing"), 404) for error in NOT_FOUND),
    (SessionBusyError("leased", 2.1), 409),
    (SessionBusyError("leased"), 409),
    (SessionConflictError("somebody else wrote"), 409),
    (SessionExistsError("it exists"), 409),
    (InvalidIdentifierError("an id"), 422),
    (UnstorableValueError("a value"), 422),
    *((error(SECRET), 503) for error in DOWN),
    (EventLoopException(AutoReconnect(SECRET)), 503),
    (EventLoopException(SessionConflictError("somebody else wrote")), 409),
    (OperationFailure(f"{SECRET}: not authorized"), 500),
    (EventLoopException(LookupError(SECRET)), 500),
]


@pytest.mark.parametrize(("error", "status"), RAISED, ids=repr)
def test_an_error_has_its_status_and_tells_no_secret(error: Exception, status: int) -> None:
    app = FastAPI()
    add_exception_handlers(app)

    @app.get("/")
    async def fails() -> None:
        raise error

    answer = TestClient(app, raise_server_exceptions=False).get("/")
    assert answer.status_code == status
    assert "secret" not in answer.text
    if status != 500:
        assert answer.json().keys() == {"detail"}
        assert answer.json()["detail"]
    if isinstance(error, SessionBusyError):
        assert answer.headers["Retry-After"] == ("3" if error.retry_after else "1")
    assert ("Retry-After" in answer.headers) == (status == 503 or isinstance(error, SessionBusyError))
    assert status_of(error) == (None if status == 500 else (status, answer.json()["detail"]))


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
def test_a_database_that_is_down_is_told_without_its_name(database: Database[Any]) -> None:
    service = Service("mongodb://alice:hunter2@127.0.0.1:1/", database, serverSelectionTimeoutMS=200)
    with served(service.app) as browser:
        answer = ask(browser, "/plain")
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.json() == {"detail": "The database does not answer at the moment."}

        ready = browser.get("/health/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": "unavailable"})
        assert browser.get("/health").status_code == 200
        for accept in ("text/plain", "application/json"):
            assert "hunter2" not in browser.get("/metrics", headers={"Accept": accept}).text


@pytest.mark.slow
def test_a_database_that_goes_away_and_comes_back(proxies: Callable[[], WireProxy], database: Database[Any]) -> None:
    proxy = proxies()
    service = Service(proxy.uri, database, retryReads=False, retryWrites=False)
    with served(service.app) as browser:
        assert ask(browser, "/plain").status_code == 200
        proxy.cut(Cut(("find", "update", "ping"), "before it is run", times=None))
        assert ask(browser, "/plain").status_code == 503
        assert browser.get("/health?ready").status_code == 503
        proxy.heal()
        eventually(lambda: browser.get("/health?ready").status_code == 200)
        answer = ask(browser, "/plain")
        assert (answer.status_code, answer.json()["messages"]) == (200, 4)


# --- health and metrics


@pytest.mark.slow
def test_readiness_gives_up_on_a_database_that_hangs_while_liveness_answers(
    new_app: Callable[..., FastAPI], client: Any
) -> None:
    app = new_app(appName=APP_NAME)
    app.include_router(create_router(ping_timeout=0.5), prefix="/operations")
    with served(app) as browser:
        eventually(lambda: browser.get("/operations/health/ready").json() == {"status": "ok"})
        with fail_command(client, "ping", app_name=APP_NAME, block_ms=5000):
            assert browser.get("/operations/health?ready").status_code == 503
            assert browser.get("/operations/health").json() == {"status": "ok"}


@pytest.mark.slow
def test_health_answers_while_many_streams_are_under_way(service: Service, browser: httpx.Client, client: Any) -> None:
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


@pytest.mark.slow
def test_the_figures_are_what_happened(service: Service, browser: httpx.Client) -> None:
    service.baton.allowed = len(WORDS)
    ask(browser, prompt="x" * 400)
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


@pytest.mark.slow
def test_commands_that_fail_are_counted_as_such(browser: httpx.Client, client: Any) -> None:
    with fail_command(client, "ping", app_name=APP_NAME, error_code=8000):
        assert browser.get("/health/ready").status_code == 503
    count = "mongodb_session_command_duration_seconds_count"
    assert figure(browser, count, command="ping", outcome="failed") == 1


@pytest.mark.slow
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
    run_script(script)
