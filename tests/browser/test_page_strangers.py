"""Nobody sees another's conversations, and nothing that is said, stored or named becomes code in somebody's browser."""

import json
import re

from playwright.sync_api import expect
from support.chat_page import Chat
from support.playground import Playground

from browser.conftest import OpenBrowser

HOSTILE = [
    "<script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    "<img src='https://evil.example/pixel.png'>",
    "![pixel](https://evil.example/pixel.png)",
    "<svg onload='window.pwned = 1'><animate onbegin='window.pwned = 1' attributeName=x dur=1s></svg>",
    "<svg><style><img src=x onerror='window.pwned = 1'></style></svg>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=x onerror=window.pwned=1&gt;'>",
    "<iframe srcdoc='<script>parent.pwned = 1</script>'></iframe><iframe src='https://evil.example/'></iframe>",
    "<object data='https://evil.example/'></object><embed src='https://evil.example/'>",
    "<a href='javascript:window.pwned = 1'>a link</a> [another](javascript:window.pwned=1)",
    "[a third](data:text/html,<script>window.pwned=1</script>) <a href='&#106;avascript:window.pwned=1'>a fourth</a>",
    "<form action='https://evil.example/'><input name=q><button>send</button></form>",
    "<base href='https://evil.example/'><meta http-equiv=refresh content='0; url=https://evil.example/'>",
    "<link rel=stylesheet href='https://evil.example/x.css'><style>* { display: none !important }</style>",
    "<p style='position: fixed; inset: 0; background: url(https://evil.example/x)'>over everything</p>",
    "<div data-testid=send id=chat-panel class=hidden name=body>in disguise</div>",
    "<video src='https://evil.example/x.mp4' autoplay onplay='window.pwned = 1'></video>",
    "<audio src=x onerror='alert(1)'></audio><keygen autofocus onfocus='alert(1)'>",
    "<details open ontoggle='window.pwned = 1'>toggled</details><body onload='window.pwned = 1'>",
    "```html\n<script>window.pwned = 1</script>\n```",
    "`<img src=x onerror=alert(1)>` <a href='https://evil.example/' target=_top ping='https://evil.example/'>out</a>",
    "\"><script>alert(1)</script> ' onmouseover='window.pwned = 1",
]
ALL_OF_IT = "\n\n".join(HOSTILE)

# Whatever could run, load, send, cover the page or pass for a part of it.
HARM = """root => [...root.querySelectorAll('*')].flatMap(element => {
    const tag = element.tagName.toLowerCase()
    const found = []
    if (/^(script|iframe|frame|object|embed|base|meta|link|style|img|video|audio|source|math|foreignobject)$/.test(tag))
        found.push(`<${tag}>`)
    for (const {name, value} of element.attributes) {
        if (/^on/i.test(name) || /^(srcdoc|style|ping|formaction|action|target)$/i.test(name) && value !== '_blank')
            found.push(`${tag} ${name}=${value}`)
        if (/^(href|src|xlink:href)$/i.test(name) && /^\\s*(javascript|data|vbscript):/i.test(value))
            found.push(`${tag} ${name}=${value}`)
        if (name === 'src' && !value.startsWith('/') && new URL(value, location).origin !== location.origin)
            found.push(`${tag} ${name}=${value}`)
    }
    if (tag === 'form' && element.closest('[data-testid=message]')) found.push('<form>')
    return found
})"""
# Within what is rendered from Markdown: what would make it pass for a part of the page.
DISGUISE = """root => [...root.querySelectorAll('[id], [name], [data-testid], input, button')]
    .filter(element => !element.matches('[data-testid=copy-code], [data-testid=tool-call]'))
    .map(element => element.outerHTML)"""


def assert_inert(chat: Chat) -> None:
    assert chat.page.evaluate("window.pwned") is None
    assert chat.page.evaluate(HARM, chat.page.locator("body").element_handle()) == []
    for text in chat.get("message-text").all():
        assert text.evaluate(DISGUISE) == []
    # What Watch collects besides: dialogs, requests to elsewhere, violations of the content security policy.
    assert chat.watch.problems == []


def test_what_the_model_and_the_user_say_stays_text(chat: Chat) -> None:
    for hostile in (HOSTILE[0], ALL_OF_IT):
        answer = chat.ask(f"repeat: {hostile}")
        expect(answer).to_be_visible()
        assert_inert(chat)
    for shown in ("a link", "over everything", "in disguise", "toggled", "out"):
        expect(chat.answer()).to_contain_text(shown)
    # The user's own words are shown as they were typed.
    expect(chat.messages("user").last).to_contain_text("<script>window.pwned = 1</script>")
    for link in chat.answer().get_by_role("link").all():
        assert re.match("https?://", link.get_attribute("href") or "")
        assert "noopener" in (link.get_attribute("rel") or "")
    chat.reload()
    expect(chat.messages()).to_have_count(4)
    assert_inert(chat)
    expect(chat.get("send")).to_have_count(1)


def test_every_way_to_be_hostile_stays_inert_while_it_streams(chat: Chat) -> None:
    """Cut at every sixth character, a harmless whole can have a harmful beginning, and the other way round."""
    watched = """() => {
        window.harm = []
        const look = HARM
        new MutationObserver(() => window.harm.push(...look(document.body)))
            .observe(document.body, {subtree: true, childList: true, attributes: true})
    }""".replace("HARM", HARM)
    chat.page.evaluate(watched)
    chat.ask(f"repeat: {ALL_OF_IT}")
    assert chat.page.evaluate("window.harm") == []
    assert_inert(chat)


def test_markdown_that_is_nested_too_deeply_to_be_read_is_shown_as_it_came(chat: Chat) -> None:
    deep = ">" * 7_000
    expect(chat.ask(f"repeat: {deep} at the end")).to_contain_text("at the end")
    chat.reload()
    expect(chat.answer()).to_contain_text("at the end")
    expect(chat.ask("repeat: **and** on")).to_have_text("and on")


def test_titles_tool_results_state_and_metadata_stay_text(chat: Chat, playground: Playground) -> None:
    hostile = HOSTILE[1] + HOSTILE[0]
    chat.ask(f"Note: {ALL_OF_IT}")  # the tool's input, the agent's state and the conversation's title
    chat.ask("List my notes")  # the tool's result
    playground.sessions.update_one(
        {"_id": playground.stored(chat.conversation_id)["_id"]},
        {"$set": {"metadata": {"title": hostile, hostile.replace(".", "_"): [hostile]}}},
    )
    chat.reload()
    expect(chat.get("tool-call")).to_have_count(2)
    for call in chat.get("tool-call").all():
        if call.get_attribute("open") is None:
            call.locator("summary").first.click()
    chat.get("conversations-toggle").click()
    expect(chat.get("conversation").first).to_contain_text(hostile)
    assert_inert(chat)
    chat.get("conversation-search").fill("pwned")
    expect(chat.get("conversation")).to_have_count(1)
    assert_inert(chat)
    chat.page.keyboard.press("Escape")
    with chat.details():
        expect(chat.get("metadata-editor")).to_have_value(re.compile("onerror"))
        expect(chat.get("state-editor")).to_have_value(re.compile("onerror"))
        assert_inert(chat)


def test_two_browsers_know_nothing_of_each_other(open_browser: OpenBrowser) -> None:
    first, second = open_browser(), open_browser()
    second.watch.expect("status of 404")
    first.ask("repeat: an unrepeatable secret")
    second.ask("repeat: harmless")
    theirs = first.conversation_id

    second.get("conversations-toggle").click()
    expect(second.get("conversation")).to_have_count(1)
    second.get("conversation-search").fill("unrepeatable")
    expect(second.get("conversation")).to_have_count(0)
    second.get("conversation-search").fill("harmless")
    expect(second.get("conversation")).to_have_count(1)
    second.page.keyboard.press("Escape")

    # All that the first browser's page knows, its session id too, in the second browser.
    second.page.evaluate(
        "stored => { for (const name in stored) Object.assign(window[name], stored[name]) }",
        first.stored_in_the_browser(),
    )
    second.reload()
    with second.details() as details:
        expect(details.get_by_test_id("session-id")).to_contain_text(theirs)
    expect(second.get("input")).to_be_editable()
    expect(second.page.locator("body")).not_to_contain_text("unrepeatable")

    # What a page could ask with that id, and what it is answered, `programs/test_playground_backend.py` shows.
    first.reload()
    expect(first.messages()).to_have_count(2)
    expect(first.answer()).to_have_text("an unrepeatable secret")


def test_the_identity_is_out_of_reach_of_scripts(chat: Chat, playground: Playground) -> None:
    chat.ask("repeat: hello")
    assert chat.page.evaluate("document.cookie") == ""
    (cookie,) = chat.page.context.cookies(playground.backend_url)
    assert cookie["httpOnly"]
    assert cookie["sameSite"] in ("Strict", "Lax")
    owner, _, _ = playground.stored(chat.conversation_id)["_id"].partition(".")
    assert len(owner) >= 22
    assert owner not in chat.page.content()
    assert owner not in json.dumps(chat.stored_in_the_browser())


def test_the_frontend_serves_the_page_only(chat: Chat) -> None:
    inside = ("Makefile", "package.json", "frontend.py", "styles/chat.css", "widget/", "%2e%2e/%2e%2e/pyproject.toml")
    for path in inside:
        assert chat.page.request.get(f"{chat.url}/{path}").status == 404, path
