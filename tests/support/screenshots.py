"""The playground's pictures in docs/pictures: the real page, on a conversation that is the same at every run."""

import datetime
import io
from pathlib import Path
from typing import Any

from offline_model import OfflineScriptedModel, Reply, ScriptedReply, ToolCall
from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright
from pymongo import MongoClient

from mongodb_session_manager.local import LocalMongoDB
from support.chat_page import Chat, Watch
from support.chromium import launch
from support.playground import Playground, served_playground
from support.waiting import eventually

ROOT = Path(__file__).parent.parent.parent
PICTURES = ROOT / "docs" / "pictures"
NOW = datetime.datetime(2026, 5, 4, 10, 30, tzinfo=datetime.timezone.utc)


def answer(text: str, tokens: tuple[int, int], latency_ms: int, *calls: ToolCall) -> ScriptedReply:
    """Return what the model says, and what it says that it took."""
    read, written = tokens
    usage = {"inputTokens": read, "outputTokens": written, "totalTokens": read + written}
    return ScriptedReply(text=text, tool_calls=calls, usage=usage, latency_ms=latency_ms)


CODE = """Yes. The session's id is all that another process needs:

```python
with create_mongodb_session_manager(
    "trip-42", uri, database_name="trips"
) as manager:
    agent = Agent(session_manager=manager)
    agent("Where were we?")
```
"""
PLAN = """Three days along the river, within **400\u00a0€**:

| Day | Where | Budget |
|:----|:------|-------:|
| Friday | Alfama, the castle at dusk | 90\u00a0€ |
| Saturday | Belém by tram, the tiles museum | 140\u00a0€ |
| Sunday | Sintra by train | 120\u00a0€ |

- Book the train's seats the day before.
- The museum is *closed on Mondays*.
"""
# Each: how long ago, and what is asked with the replies of the model's calls.
CONVERSATIONS: list[tuple[datetime.timedelta, list[tuple[str, list[Reply]]]]] = [
    (
        datetime.timedelta(days=6),
        [("A packing list for a week of rain?", [answer("Wool, not cotton, and two pairs of shoes.", (64, 31), 640)])],
    ),
    (
        datetime.timedelta(days=1, hours=4),
        [("Explain a lease as to a child", [answer("Whoever holds the ball speaks.", (58, 22), 510)])],
    ),
    (
        datetime.timedelta(hours=3),
        [("Draft a note to the landlord", [answer("Dear Mr Costa, the heating has been off…", (71, 118), 1310)])],
    ),
    (
        datetime.timedelta(minutes=31),
        [
            (
                "I'm Ada, and I have three days in Lisbon.",
                [
                    answer("", (96, 24), 420, ToolCall("remember", {"fact": "name", "value": "Ada"})),
                    answer("Welcome, Ada! I have put your name into my state. What do you like?", (131, 18), 380),
                ],
            ),
            ("Old streets and trains.", [answer("Alfama, then, and the line to Sintra.", (168, 35), 610)]),
            ("Is May too warm?", [answer("No: 22 degrees, and the jacarandas begin.", (221, 27), 540)]),
            ("Does all this survive when your server is restarted?", [answer(CODE, (274, 88), 1120)]),
            (
                "Good. Then a plan, please, not above 400\u00a0€.",
                [
                    answer("", (388, 31), 460, ToolCall("add_note", {"note": "at most 400 € for three days"})),
                    answer(PLAN, (431, 142), 1180),
                ],
            ),
        ],
    ),
]
SHOWN_MESSAGES = 10


def main() -> None:
    """Make the pictures."""
    PICTURES.mkdir(exist_ok=True)
    model = OfflineScriptedModel(
        [reply for _, turns in CONVERSATIONS for _, replies in turns for reply in replies], chunk_characters=200
    )
    with (
        LocalMongoDB() as server,
        MongoClient(server.uri) as client,
        served_playground(server.uri, client["pictures"], model) as playground,
        sync_playwright() as playwright,
    ):
        browser = launch(playwright)
        state = talk(browser, playground)
        take_pictures(browser, playground, state)
        browser.close()


def talk(browser: Browser, playground: Playground) -> Any:
    """Have the conversations; return what the browser keeps of them."""
    context = browser.new_context()
    # The ids that the page gives to conversations, in this order.
    context.add_init_script(
        "let last = 0; crypto.randomUUID = () => '7d9f3c1e-4b52-4a68-9c07-' + `${++last}`.padStart(12, '1e8f26a40b5')"
    )
    chat = Chat(context.new_page(), playground.url, Watch(context, set())).open()
    for at, (ago, turns) in enumerate(CONVERSATIONS):
        if at:
            chat.get("new-chat").click()
            expect(chat.messages()).to_have_count(0)
        for prompt, _ in turns:
            chat.ask(prompt)
        chat.messages("assistant").last.get_by_test_id("thumb-up").click()
        session_id = playground.stored(chat.conversation_id)["_id"]
        eventually(lambda session_id=session_id: playground.sessions.find_one({"_id": session_id})["feedbacks"])
        date_back(playground, session_id, ago)
    state = context.storage_state()
    context.close()
    return state


def date_back(playground: Playground, session_id: str, ago: datetime.timedelta) -> None:
    """Have a conversation happen some time before `NOW`, a minute for each message."""
    count = len(playground.sessions.find_one({"_id": session_id})["agents"]["assistant"]["messages"])
    begin = NOW - ago - datetime.timedelta(minutes=count)
    dates = {
        f"agents.assistant.messages.{at}.created_at": begin + datetime.timedelta(minutes=at) for at in range(count)
    }
    dates.update(created_at=begin, updated_at=begin + datetime.timedelta(minutes=count))
    playground.sessions.update_one({"_id": session_id}, {"$set": dates})


def take_pictures(browser: Browser, playground: Playground, state: Any) -> None:
    """Open the newest conversation in each way that is shown."""

    def opened(**options: Any) -> Chat:
        context = browser.new_context(
            storage_state=state, locale="en-GB", timezone_id="UTC", reduced_motion="reduce", **options
        )
        page = context.new_page()
        page.clock.set_fixed_time(NOW)
        chat = Chat(page, playground.url, Watch(context, set())).open()
        expect(chat.messages()).to_have_count(SHOWN_MESSAGES)
        return chat

    desktop = {"viewport": {"width": 1280, "height": 800}}
    light = opened(color_scheme="light", **desktop)
    light.get("details-toggle").click()
    expect(light.get("chart-tokens").get_by_test_id("bar")).to_have_count(10)
    light.get("tool-call").last.locator("summary").click()
    light.get("messages").evaluate("log => log.scrollTo(0, log.scrollHeight)")
    expect(light.get("jump-to-latest")).to_be_hidden()
    save(light, "playground-light")

    dark = opened(color_scheme="dark", **desktop)
    dark.get("conversations-toggle").click()
    expect(dark.get("conversation")).to_have_count(len(CONVERSATIONS))
    dark.messages("user").nth(2).evaluate("message => message.scrollIntoView({block: 'start'})")
    save(dark, "playground-dark")

    phone = opened(
        color_scheme="light",
        viewport={"width": 390, "height": 780},
        device_scale_factor=1.5,
        is_mobile=True,
        has_touch=True,
    )
    expect(phone.get("jump-to-latest")).to_be_hidden()
    save(phone, "playground-phone")


def save(chat: Chat, name: str) -> None:
    """Write what the page shows, in few colours, for a README is loaded often."""
    chat.page.mouse.move(2, 2)
    chat.page.evaluate("document.activeElement?.blur()")
    picture = Image.open(io.BytesIO(chat.page.screenshot(animations="disabled", caret="hide")))
    path = PICTURES / f"{name}.png"
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {picture.width} × {picture.height}, {path.stat().st_size // 1024} KB")
    chat.page.context.close()


if __name__ == "__main__":
    main()
