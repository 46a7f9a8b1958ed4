"""Headless Chromium for tests, driven over its DevTools socket: what a page looks like, and what it complains of."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

COMMAND = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"),
    *("--disable-dev-shm-usage", "--remote-debugging-port=0"),
)
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@dataclass(frozen=True)
class Mouse:
    """Over the middle of what a selector names, scrolled into view; with `click`, pressed there."""

    selector: str
    click: bool = False


@dataclass
class Seen:
    """`values` of the steps (None for the mouse), `complaints` of the console, `requested` URLs, a screenshot (PNG)."""

    values: list[Any] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    requested: list[str] = field(default_factory=list)
    screenshot: bytes = b""


Steps = Sequence[str | Mouse]


def look(page: Path, steps: Steps, *, width: int, dark: bool = False, shot: bool = False, scripts: bool = True) -> Seen:
    """Open a file at a width in CSS pixels, evaluate JavaScript in it and move the mouse; the screenshot is of all.

    Without `scripts` those of the page do not run.
    """
    return asyncio.run(_look(page.resolve().as_uri(), steps, width, dark, shot, scripts))


async def _look(page: str, steps: Steps, width: int, dark: bool, shot: bool, scripts: bool) -> Seen:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            str(COMMAND),
            *_FLAGS,
            f"--user-data-dir={profile}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            port = await _port(Path(profile) / "DevToolsActivePort")
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    url = next(one["webSocketDebuggerUrl"] for one in await answer.json() if one["type"] == "page")
                async with session.ws_connect(url, max_msg_size=0) as socket:
                    return await _ask(socket, page, steps, width, dark, shot, scripts)
        finally:
            process.terminate()
            await process.wait()


async def _port(file: Path) -> int:
    while True:
        with contextlib.suppress(FileNotFoundError, IndexError):
            return int(file.read_text().split("\n")[:-1][0])  # noqa: ASYNC240 - a few bytes
        await asyncio.sleep(0.05)


async def _ask(socket: Any, page: str, steps: Steps, width: int, dark: bool, shot: bool, scripts: bool) -> Seen:
    seen, answers, sent = Seen(), dict[int, Any](), 0

    async def call(method: str, until: str = "", **params: Any) -> Any:
        nonlocal sent
        sent, waiting = sent + 1, until
        number = sent
        await socket.send_json({"id": number, "method": method, "params": params})
        while number not in answers or waiting:
            message = await socket.receive_json()
            if "id" in message:
                answers[message["id"]] = message.get("result", message)
            told, about = message.get("method"), message.get("params", {})
            waiting = "" if told == waiting else waiting
            if told == "Log.entryAdded":
                seen.complaints.append(about["entry"]["text"])
            if told in {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Page.javascriptDialogOpening"}:
                seen.complaints.append(str(about))
            if told == "Network.requestWillBeSent":
                seen.requested.append(about["request"]["url"])
        return answers[number]

    for domain in ("Page", "Log", "Runtime", "Network"):
        await call(f"{domain}.enable")
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    await call("Emulation.setDeviceMetricsOverride", **metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    await call("Emulation.setEmulatedMedia", features=[scheme])
    await call("Emulation.setScriptExecutionDisabled", value=not scripts)
    await call("Page.navigate", until="Page.loadEventFired", url=page)
    for step in steps:
        if isinstance(step, str):
            result = await call("Runtime.evaluate", expression=step, returnByValue=True)
            seen.values.append(result["result"].get("value", result.get("exceptionDetails")))
            continue
        find = "(e => { e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect(); "
        find += (
            f"return [b.x + b.width / 2, b.y + b.height / 2] }})(document.querySelector({json.dumps(step.selector)}))"
        )
        x, y = (await call("Runtime.evaluate", expression=find, returnByValue=True))["result"]["value"]
        for kind in ("mouseMoved", *(("mousePressed", "mouseReleased") if step.click else ())):
            await call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=int(step.click))
        seen.values.append(None)
    if shot:
        image = await call("Page.captureScreenshot", captureBeyondViewport=True)
        seen.screenshot = base64.b64decode(image["data"])
    return seen
