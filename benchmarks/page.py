"""Screenshots of the chat page for README.md: a real question to a real server, answered with heads and plainly.

    python benchmarks/page.py      (on an idle machine: the speeds in the pictures are measured while they are taken)

Serves runs/quickstart/cascade (after `make quickstart`), drives its page in Chromium through the package playwright, and
writes docs/page.png (1280x800, light) and docs/page-phone.png (375x812, dark).
"""

import re
import signal
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Browser, expect, sync_playwright

ROOT = Path(__file__).parents[1]
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
EARLIER = "Write a thank-you letter from Luis to Leo. It is for the teddy bear."
QUESTION = "Python: `select_it(words)` should return a list of the words longer than 5 letters. Use a loop. Type hints, please."


def main() -> None:
    command = [sys.executable, "run.py", "serve", "--checkpoint", "runs/quickstart/cascade", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8") as server:
        try:
            line = server.stdout.readline()
            address = re.search(r"http://\S+?/(?=,)", line)
            assert address, f"the server did not start: {line}"
            with sync_playwright() as driver:
                browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
                screenshot(browser, address[0], ROOT / "docs/page.png", "light", 1280, 800)
                screenshot(browser, address[0], ROOT / "docs/page-phone.png", "dark", 375, 812)
                browser.close()
        finally:
            server.send_signal(signal.SIGINT)


def screenshot(browser: Browser, url: str, path: Path, scheme: str, width: int, height: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.goto(url)
    expect(page.locator("#heads")).not_to_be_empty()
    ask(page, EARLIER, "heads")
    if width > height:
        page.get_by_role("button", name="New chat").click()
    ask(page, QUESTION, "both")
    if width <= height:  # from the question on, as a reader would scroll
        page.locator(".question").last.evaluate("question => question.scrollIntoView()")
    page.screenshot(path=path)
    context.close()
    print(path)


def ask(page, question: str, mode: str) -> None:
    page.locator(f"#mode input[value={mode}]").check()
    page.get_by_label("Your question").fill(question)
    page.keyboard.press("Enter")
    expect(page.locator(".turn").last.locator(".actions")).to_be_visible(timeout=60_000)


if __name__ == "__main__":
    main()
