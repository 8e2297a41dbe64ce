"""Uses the chat's server as the page does."""

import time
import uuid

import httpx


def talk(browser: httpx.Client) -> None:
    """Take two turns, read what is stored, and count commands and connections."""
    browser.get("/conversations")  # The answer sets the cookie that identifies this browser.
    browser.headers["X-Session-ID"] = str(uuid.uuid4())
    for prompt in ("My name is Alice.", "What is my name?"):
        print(f"\nPOST /chat: {prompt}")
        with browser.stream("POST", "/chat", json={"prompt": prompt}) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    print(f"  {line.removeprefix('data: ')}")

    print("\nGET /conversations")
    for conversation in browser.get("/conversations").json()["conversations"]:
        print(f"  {conversation['title']}  ({conversation['messages']} messages)")
    print("GET /conversation/details")
    details = browser.get("/conversation/details").json()
    print(f"  state {details['state']}, {details['summary']['turns']} turns")
    print("GET /health/ready")
    print(f"  {browser.get('/health/ready').json()}")

    begin = time.perf_counter()
    for _ in range(50):
        browser.get("/conversation")
    milliseconds = (time.perf_counter() - begin) * 1000 / 50
    pool = browser.get("/metrics", headers={"Accept": "application/json"}).json()["pool"]
    print("GET /conversation 50 times, and GET /metrics: all requests share the factory's connections")
    print(f"  {milliseconds:.1f} ms each, {pool['check_outs']} commands over {pool['created']} connections")
