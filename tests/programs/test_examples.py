"""The examples run as a stranger runs them: as programs, on a machine without network, keys and colours."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from example_calculator_tool import AssistantService, calculator
from example_stream_async import StreamFigures, StreamingService
from model_from_environment import describe, model_from_environment
from pymongo import MongoClient
from support.failpoints import fail_command

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def run_example(server: Any) -> Callable[..., str]:
    """Runs an example to its end, which is a good one and without complaint; what it has said.

    Its only server is the test's: anything else ends at a proxy that is not there.
    """
    proxies = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "VIRTUAL_ENV") if name in os.environ}
    environment = {**kept, **dict.fromkeys(proxies, "http://127.0.0.1:9"), "PYTHONIOENCODING": "utf-8"}

    def run(name: str, *arguments: str, **settings: str) -> str:
        finished = subprocess.run(
            [sys.executable, str(EXAMPLES / name), *arguments],
            env={**environment, "MONGODB_URI": server.uri, **settings},
            capture_output=True,
            encoding="utf-8",
            timeout=120,
            check=False,
        )
        assert (finished.returncode, finished.stderr) == (0, "")
        return finished.stdout

    return run


@pytest.fixture(scope="session")
def demo(run_example: Callable[..., str]) -> str:
    """The demo, run once."""
    return run_example("example_calculator_tool.py")


def test_the_demo_answers_from_what_another_process_stored(demo: str) -> None:
    assert "offline: a script answers, not a language model" in demo
    first, second = re.findall(r"^process (\d+) ·", demo, re.MULTILINE)
    assert first != second
    _, _, of_the_second = demo.partition(f"process {second}")
    assert "6 messages restored from MongoDB" in of_the_second
    assert "What is my name?" in of_the_second
    assert "Your name is Alice." in of_the_second.partition("──")[0]

    for said in ("calculator({'expression': '(17 + 4) * 2'})", "That is 42.", "accumulated_usage", "Your name is Bob."):
        assert said in demo


def test_the_demo_is_readable_in_a_narrow_window_and_in_a_log(demo: str) -> None:
    assert max(map(len, demo.splitlines())) <= 100
    assert "\x1b" not in demo


def test_the_demo_does_not_know_a_name_that_it_was_not_told(run_example: Callable[..., str]) -> None:
    output = run_example("example_calculator_tool.py", "--resume", "nobody-was-here")
    assert "0 messages restored" in output
    assert "I do not know your name." in output


def test_the_fastapi_example_streams_resumes_and_tells_its_figures(run_example: Callable[..., str]) -> None:
    output = run_example("example_fastapi.py")
    assert "offline: a script answers, not a language model" in output
    assert "Nice to meet you, Alice." in output
    assert re.search(r"Your name is Alice, .*  \(2 messages restored\)", output)
    assert "\n  422\n" in output
    assert "{'status': 'ok'}" in output
    created, check_outs = map(int, re.search(r'"created": (\d+),.* "check_outs": (\d+)', output).groups())
    assert created < 50 < check_outs, "fifty requests at once share a few connections"
    assert "mongodb_session_opened_total 52.0" in output


def test_the_performance_example_counts_what_pooling_saves_and_draws_it(
    run_example: Callable[..., str], tmp_path: Path
) -> None:
    plot = tmp_path / "pooling.svg"
    output = run_example("example_performance.py", "--requests", "12", "--plot", str(plot))
    # Of each way: commands for one request, and connections.
    counts = re.findall(r"^  (\S.*?) {2,}[\d. ]+ (\d\.\d) +(\d+)$", output, re.MULTILINE)
    ways = ["a client per session manager", "one factory", 'one factory, durability="turn"']
    assert [name for name, _, _ in counts] == ways * 4
    assert [commands for _, commands, _ in counts] == ["1.0"] * 3 + ["3.0", "3.0", "2.0"] * 3
    own, pooled = ([int(made) for name, _, made in counts if name == way] for way in ways[:2])
    assert min(own) >= 24, "each request makes one that sends, and at least one that watches"
    assert max(pooled) < min(own)
    assert len(re.findall(r"→ pooled: \d+\.\d times as many per second", output)) == 4
    assert max(map(len, output.splitlines())) <= 100

    drawn = plot.read_text("utf-8")
    assert drawn.startswith("<?xml")
    for text in (*ways, "requests at once", "requests per second", "milliseconds, median"):
        assert f"<!-- {text} -->" in drawn


def test_the_streaming_example_streams_survives_a_failure_and_goes_on_elsewhere(
    run_example: Callable[..., str],
) -> None:
    parts = re.split(r"^── \d · .*\n", run_example("example_stream_async.py"), flags=re.MULTILINE)
    assert len(parts) == 7
    basic, many, metrics, failure, elsewhere, by_hand = parts[1:]

    assert "Nice to ·meet you·, Alice.·" in basic
    assert re.search(r"first piece after \d+ ms, 9 in \d\.\d\d s, \d+ tokens, \d+ a second", basic)

    # Told three times a second, so while they speak; and at the end.
    assert re.search(r"\d+ streams, (?!20 )\d+ ended · first piece after \d+ ms · \d+ pieces a second", many)
    assert re.search(r"20 streams, 20 ended · .*\n.* all of them in", many)

    assert "of one session: 1 turn, 15 tokens out" in metrics
    # The pieces come 50 ms apart, and this is measured.
    first, last = map(int, re.search(r"of all: 20 answers, 300 tokens out, .* (\d+) ms .* (\d+) ms", metrics).groups())
    assert 40 <= first < last

    broken, _, recovered = failure.partition("ConnectionError: the model's connection broke")
    assert "Your nam·e is Ali·ce. You ·\n" in broken
    assert "3 messages are stored, the last one is the question" in recovered
    assert "all.·\n" in recovered
    assert "4 messages are stored" in recovered

    processes = [re.search(r"process (\d+), session (\S+): (\d+) messages", part) for part in (basic, elsewhere)]
    (first_process, session, begun), (second_process, same, restored) = (found.groups() for found in processes if found)
    assert first_process != second_process
    assert session == same
    assert (begun, restored) == ("0", "4")
    assert "Your nam·e is Ali·ce." in elsewhere

    assert "1 turns by hand: 2 messages" in by_hand
    assert "2 turns by hand: 4 messages" in by_hand


def test_a_service_of_the_examples_says_so_when_the_database_fails(server: Any, client: MongoClient[Any]) -> None:
    async def streamed() -> str:
        return "".join([piece async for piece in streaming.answer("s", "Hello", StreamFigures())])

    uri = f"{server.uri}{'&' if '?' in server.uri else '?'}appName=failing-example"
    assistant, streaming = AssistantService(uri), StreamingService(uri)
    with fail_command(client, "find", app_name="failing-example", error_code=1):
        answers = [assistant.answer("u", "Hello"), asyncio.run(streamed())]
    assistant.close()
    asyncio.run(streaming.close())
    for answer in answers:
        assert answer.strip() == "I cannot reach my memory just now. Please try again."


def test_the_readme_of_the_examples_names_each_of_them() -> None:
    readme = (EXAMPLES / "README.md").read_text("utf-8")
    for example in EXAMPLES.glob("example_*.py"):
        assert f"`{example.name}`" in readme, example.name


def test_the_streaming_example_tells_a_turn_in_events_and_its_conversation_is_found_by_other_programs(
    run_example: Callable[..., str],
) -> None:
    output = run_example("example_fastapi_streaming.py", OFFLINE_PACE_MS="0")
    assert "offline: a script answers, not a language model" in output
    assert '"name":"remember","input":{"fact":"name","value":"Alice"}' in output
    told = "".join(re.findall(r'^  {"text":"(.*)"}$', output, re.MULTILINE))
    assert "Nice to meet you, Alice." in told
    assert "Your name is Alice." in told
    assert '"message_ids":{"user":4,"assistant":7}' in output
    assert "state {'name': 'Alice'}, 2 turns" in output
    assert re.search(r"ms each, \d+ commands over \d connections", output)
    assert "8 messages restored, state {'name': 'Alice'}" in output


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("(17 + 4) * 2", "42"),
        ("7 // 2 - 1.5", "1.5"),
        ("-2 ** 10", "-1024"),
        ("7 % 4", "3"),
        ("1 / 4", "0.25"),
    ],
)
def test_the_calculator_calculates(expression: str, value: str) -> None:
    assert calculator(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').getcwd()",
        "9 ** 9 ** 9",
        "'a' * 10",
        "True + 1",
        "[1][0]",
        "abs(1)",
        "a",
        "1 if 1 else 2",
        "2 +",
    ],
)
def test_the_calculator_evaluates_nothing_but_arithmetic(expression: str) -> None:
    with pytest.raises((ValueError, SyntaxError)):
        calculator(expression)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"MODEL_PROVIDER": "no-such"}, "MODEL_PROVIDER=no-such is unknown; choose offline, bedrock"),
        ({"MODEL_PROVIDER": "openai"}, "MODEL_PROVIDER=openai needs MODEL_ID"),
        ({"MODEL_PROVIDER": "llamacpp", "MODEL_MAX_TOKENS": "many"}, "MODEL_MAX_TOKENS=many is no number"),
    ],
)
def test_a_wrong_choice_of_a_model_says_what_is_right(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MODEL_PROVIDER", "MODEL_ID", "MODEL_MAX_TOKENS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=message):
        model_from_environment(lambda _: "never said")


def test_a_local_server_can_be_chosen_as_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_PROVIDER", "llamacpp")
    monkeypatch.setenv("MODEL_ID", "local-model")
    monkeypatch.setenv("MODEL_BASE_URL", "http://127.0.0.1:9")
    model = model_from_environment(lambda _: "never said")
    assert type(model).__name__ == "LlamaCppModel"
    assert describe(model) == "local-model"
