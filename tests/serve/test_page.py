"""The page in a real Chromium: against the real server where it answers, against one that misbehaves where it must not."""

import json
import re

import pytest

from tests.serve.page_server import ODD, page_server

playwright = pytest.importorskip("playwright.sync_api", reason="the page is driven through the package playwright")
from benchmarks.page import CHROMIUM, FLAGS  # noqa: E402

SIZES = {"desktop": {"width": 1280, "height": 800}, "phone": {"width": 375, "height": 667}}
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no Chromium at {CHROMIUM}")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(params=SIZES)
def opened(request, browser):
    """Opens an address in a new browser profile; at the end nothing was wrong with any page."""
    context = browser.new_context(viewport=SIZES[request.param], color_scheme="light")
    context.set_default_timeout(15_000)
    context.wrong = []

    def watch(page):
        page.on("pageerror", lambda problem: context.wrong.append(str(problem)))
        page.on("console", lambda message: message.type in ("error", "warning") and context.wrong.append(message.text))

    def goto(url: str, met: bool = True):
        def only_here(route):
            if route.request.url.startswith(url):
                route.continue_()
            else:
                context.wrong.append(f"asked for {route.request.url}")
                route.abort()

        context.route("**/*", only_here)
        context.on("page", watch)
        page = context.new_page()
        page.goto(url)
        if met:
            playwright.expect(page.locator("#heads")).not_to_be_empty()
        return page

    goto.size = request.param
    goto.wrong = context.wrong
    yield goto
    for page in context.pages:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the screen"
    refused = [line for line in context.wrong if not line.startswith("Failed to load resource: the server responded")]
    context.close()
    assert not refused


@pytest.fixture
def fake():
    with page_server() as server:
        yield server


def ask(page, question: str, wait: bool = True) -> None:
    page.get_by_label("Your question").fill(question)
    page.keyboard.press("Enter")
    if wait:
        over(page)


def over(page) -> None:
    playwright.expect(page.locator(".turn .actions").last).to_be_visible()
    playwright.expect(page.get_by_role("button", name="Send")).to_be_visible()


def choose(page, group: str, name: str) -> None:
    page.locator(f"#{group} input[value={name}]").check()


def kept(page) -> list[dict]:
    found = page.evaluate("Object.keys(localStorage).filter(k => k.startsWith('mhc.chat.')).map(k => localStorage[k])")
    return [json.loads(chat) for chat in found]


def answers(page) -> list[str]:
    return [text.strip() for text in page.locator(".answer .body").all_inner_texts()]


def test_a_conversation_with_the_real_server(opened, live):
    """Typed, streamed, coloured, side by side, regenerated, shown as tokens, dark, reloaded."""
    page = opened(live.url)
    ask(page, "Hello!")
    assert answers(page)[0]
    assert page.locator(".answer .guessed").count() > 0
    assert "tokens/s" in page.locator(".answer .rate").inner_text()
    assert float(re.match(r"[\d.]+(?= tokens per step)", page.locator(".meta").inner_text())[0]) > 1
    choose(page, "mode", "both")
    ask(page, "Give me three tips for good sleep.")
    _, heads, plain = answers(page)
    assert heads == plain
    compared = page.locator(".compared").last.inner_text()
    assert "identical texts" in compared and re.search(r"[\d.]+×", compared)
    assert page.locator(".answer[aria-label='Plain answer'] .guessed").count() == 0
    assert page.locator(".answer[aria-label='Plain answer'] .meta").inner_text().startswith("1.00 tokens per step")
    columns = [page.locator(".answers.both .answer").nth(index).bounding_box() for index in (0, 1)]
    assert (columns[0]["y"] == columns[1]["y"]) == (opened.size == "desktop")
    choose(page, "mode", "plain")
    page.get_by_role("button", name="Regenerate").last.click()
    over(page)
    assert answers(page)[1:] == [plain]  # greedy: the same again, now alone
    choose(page, "view", "tokens")
    assert page.locator(".tokens").first.locator(".guessed").count() > 0
    before = page.locator(".tokens").all_text_contents()
    assert before[0] == "".join(piece for piece, _ in kept(page)[0]["turns"][0]["answers"][0]["tokens"])
    page.reload()
    playwright.expect(page.locator(".tokens")).to_have_count(2)
    assert page.locator(".tokens").all_text_contents() == before
    choose(page, "view", "colours")
    assert answers(page)[1:] == [plain]
    ask(page, "Hello!")
    assert len(answers(page)) == 3


def test_a_seed_gives_the_same_text_again_with_heads_and_without(opened, live):
    page = opened(live.url)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("1.2")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Most tokens").fill("24")
    page.get_by_role("button", name="Done").click()
    choose(page, "mode", "both")
    ask(page, "Write a thank-you letter.")
    first = answers(page)
    assert first[0] == first[1]
    page.get_by_role("button", name="Regenerate").click()
    over(page)
    assert answers(page) == first


def test_what_is_sent(opened, fake):
    """History without unanswered questions, settings, and one seed for both sides."""
    page = opened(fake.url)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.7")
    page.keyboard.press("Escape")
    ask(page, "bad")
    ask(page, "one")
    choose(page, "mode", "both")
    page.get_by_label("Your question").fill("two")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("lines")
    page.keyboard.press("Enter")
    over(page)
    heads, plain = fake.asked[-2:]
    assert [message["role"] for message in heads["messages"]] == ["system", "user", "assistant", "user"]
    assert [heads["messages"][at]["content"] for at in (0, 1, 3)] == ["Be brief.", "one", "two\nlines"]
    assert (heads["temperature"], heads["plain"], plain["plain"]) == (0.7, False, True)
    assert heads["stream"] and heads["details"] and "max_tokens" not in heads
    assert heads["seed"] == plain["seed"] and heads["messages"] == plain["messages"]
    assert "The texts differ." in page.locator(".compared:visible").inner_text()
    fake.same = True
    page.get_by_role("button", name="Regenerate").click()
    over(page)
    assert "identical texts" in page.locator(".compared:visible").inner_text()
    assert "2.00×" in page.locator(".compared:visible").inner_text()


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_an_answer_is_stopped(opened, fake, way):
    page = opened(fake.url)
    ask(page, "slow", wait=False)
    playwright.expect(page.locator(".body")).to_contain_text("You said slow")
    playwright.expect(page.locator(".rate")).to_contain_text("tokens/s")  # while it streams
    page.keyboard.press("Enter")  # asks nothing and stops nothing
    playwright.expect(page.get_by_role("button", name="Stop")).to_be_visible()
    if way == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    over(page)
    assert "stopped" in page.locator(".meta").inner_text()
    assert fake.left.wait(10), "the server was not told"
    fake.go.set()
    ask(page, "next")
    assert len(fake.asked) == 2 and fake.asked[1]["messages"][1]["content"].startswith("You said slow")


def test_a_reload_in_the_middle_keeps_what_came(opened, fake):
    page = opened(fake.url)
    ask(page, "slow", wait=False)
    playwright.expect(page.locator(".body")).to_contain_text("You said slow")
    page.reload()
    playwright.expect(page.locator(".body")).to_contain_text("You said slow")
    playwright.expect(page.locator(".problem")).to_contain_text(re.compile("interrupted|cut in the middle"))
    fake.go.set()
    page.get_by_role("button", name="Try again").click()
    over(page)
    assert page.locator(".problem:visible").count() == 0
    assert answers(page)[0].endswith("word")


@pytest.mark.parametrize(
    "question, told",
    [
        ("busy", "The server is busy and asks to wait 7 s."),
        ("bad", "the prompt is too long by 12 tokens"),
        ("cut", "The connection was cut in the middle of the answer."),
        ("broken", "the engine has stopped"),
    ],
)
def test_what_goes_wrong_is_one_line_and_can_be_tried_again(opened, fake, question, told):
    page = opened(fake.url)
    ask(page, question)
    problem = page.locator(".problem")
    assert problem.inner_text().splitlines()[0].startswith(told)
    assert answers(page) == [""] or answers(page)[0].startswith(f"You said {question}")
    problem.get_by_role("button", name="Try again").click()
    over(page)
    assert len(fake.asked) == 2
    if question == "busy":
        assert answers(page)[0].startswith("You said busy, number 2") and not problem.is_visible()


def test_a_server_that_is_gone(opened, fake):
    page = opened(fake.url)
    page.route("**/v1/chat/completions", lambda route: route.abort("connectionrefused"))
    ask(page, "Hello")
    assert "cannot be reached" in page.locator(".problem").inner_text()
    opened.wrong[:] = [line for line in opened.wrong if "ERR_CONNECTION_REFUSED" not in line]
    page.unroute("**/v1/chat/completions")
    page.get_by_role("button", name="Try again").click()
    over(page)
    before = answers(page)
    assert before[0].startswith("You said Hello")
    page.route("**/v1/chat/completions", lambda route: route.abort("connectionrefused"))
    page.get_by_role("button", name="Regenerate").click()
    playwright.expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    opened.wrong[:] = [line for line in opened.wrong if "ERR_CONNECTION_REFUSED" not in line]
    assert answers(page) == before  # nothing came in its place


def test_a_key_is_asked_for_and_forgotten_with_the_tab(opened, fake):
    fake.key = "secret"
    page = opened(fake.url, met=False)
    page.get_by_label("API key of the server").fill("wrong")
    page.keyboard.press("Enter")
    playwright.expect(page.get_by_label("API key of the server")).to_be_focused()
    page.get_by_label("API key of the server").fill("secret")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#heads")).to_contain_text("Cascade, 5 heads")
    ask(page, "Hello")
    assert answers(page)[0].startswith("You said Hello")
    assert "secret" not in page.evaluate("JSON.stringify(localStorage)")
    page.reload()
    playwright.expect(page.locator("#heads")).to_contain_text("Cascade, 5 heads")


def test_markdown_is_drawn_and_nothing_in_it_runs(opened, fake):
    page = opened(fake.url)
    ask(page, "odd")
    body = page.locator(".body")
    assert body.locator("script, img, iframe").count() == 0
    assert page.evaluate("window.hacked") is None
    assert [link.get_attribute("href") for link in body.locator("a").all()] == [
        "http://outside.example/p.png",
        "https://outside.example/",
    ]
    assert body.locator("h3").inner_text() == "Heading <script>window.hacked = 1</script>"
    assert body.locator("strong").inner_text() == "bold" and body.locator("em").inner_text() == "soft"
    assert "[click](javascript:window.hacked=1)" in body.inner_text() and "*no*" in body.inner_text()
    assert body.locator("li").count() == 3 and body.locator("li li").inner_text() == "inner"
    assert body.locator("blockquote").inner_text() == "quoted"
    assert body.locator("th, td").all_inner_texts() == ["a", "b", "1", "2"]
    assert body.locator("pre").text_content() == 'def f():\n    return "<b>**not bold**</b>"\n'
    # Markdown takes its marks away and moves no colour: what is left in green is, in order, what was guessed.
    green = "".join("".join(body.locator(".guessed").all_text_contents()).split())
    guessed = iter("".join("".join(ODD[at + 4 : at + 8] for at in range(0, len(ODD), 8)).split()))
    assert green and all(character in guessed for character in green)
    choose(page, "view", "tokens")
    assert page.locator(".tokens").text_content() == ODD


def test_markdown_can_be_drawn_wherever_it_is_cut(opened, fake):
    """While an answer streams any beginning of it is shown: half a link, an address in the middle of a line."""
    page = opened(fake.url)
    more = "\n\nSee https://outside.example/a_b_c, [https://a.example](https://b.example) **https://c.example** > x\n>\n1. \n- \n* * *\n"
    drawn = page.evaluate(
        """async (source) => {
            const { showMarkdown } = await import("/markdown.js");
            const root = document.createElement("div");
            for (let end = 0; end <= source.length; end++) showMarkdown(root, source.slice(0, end), []);
            return [...root.querySelectorAll("a")].map((link) => link.getAttribute("href"));
        }""",
        ODD.removesuffix("```") + "```" + more,
    )
    # An address as the text of a link is no second link: HTML has no link in a link.
    assert drawn[2:] == ["https://outside.example/a_b_c", "https://b.example", "https://c.example"]


COLOURED = """# a **b** #

x [b](http://b.example/) b \\* *x**y <http://b.example> http://b.example/b `` b ` b `` &amp; ![b](http://b/)

> b
> 1. 1 b  \r
>    b ~~b~~
>
>    ```b
>      b
>    ```

| b \\| b | `b` |
|:-:|--:|
| x | b | b"""


@pytest.mark.parametrize("letter", ["b", "1", "x"])
def test_colours_are_those_of_the_source(opened, fake, letter):
    """One letter is green, wherever it is: in the text that is drawn all of it is and nothing else, the marks being left out."""
    page = opened(fake.url)
    green, text = page.evaluate(
        """async ([source, letter]) => {
            const { showMarkdown } = await import("/markdown.js");
            const root = document.createElement("div");
            showMarkdown(root, source, [...source].map((character) => character === letter));
            for (const unflagged of root.querySelectorAll(".bar")) unflagged.remove();
            return [[...root.querySelectorAll(".guessed")].map((run) => run.textContent).join(""), root.textContent];
        }""",
        [COLOURED, letter],
    )
    assert len(green) == text.count(letter) > 0 and set(green) == {letter}


def test_conversations_are_renamed_deleted_and_brought_back(opened, fake):
    page = opened(fake.url)

    def side():
        if opened.size == "phone":
            page.get_by_role("button", name="Conversations").click()

    ask(page, "first question")
    side()
    page.get_by_role("button", name="New chat").click()
    ask(page, "second question")
    side()
    titles = page.locator("#chats .title")
    assert titles.all_inner_texts() == ["second question", "first question"]
    page.get_by_role("button", name="Rename: first question").click()
    page.get_by_label("New title").fill("The first")
    page.keyboard.press("Enter")
    assert titles.all_inner_texts() == ["second question", "The first"]
    page.get_by_role("button", name="The first", exact=True).click()
    assert "first question" in page.locator(".question").inner_text()
    side()
    page.get_by_role("button", name="Delete: The first").click()
    assert len(kept(page)) == 1 and "second question" in page.locator(".question").inner_text()
    page.get_by_role("button", name="Undo").click()
    page.reload()
    assert sorted(chat["title"] for chat in kept(page)) == ["The first", "second question"]
    assert sorted(titles.all_text_contents()) == ["The first", "second question"]


def test_a_browser_that_is_full_or_holds_rubbish(opened, fake):
    page = opened(fake.url)
    page.evaluate(
        "localStorage['mhc.chat.a'] = '{broken'; localStorage['mhc.chat.b'] = JSON.stringify({id: 'b', turns: 3})"
    )
    page.evaluate(
        "localStorage['mhc.settings'] = JSON.stringify({temperature: 'hot', view: 'colours', mode: 'none such'})"
    )
    page.reload()
    playwright.expect(page.get_by_role("alert")).to_contain_text("2 conversations in this browser could not be read")
    assert page.evaluate("localStorage['mhc.unreadable.a']") == "{broken"  # set aside, not lost
    page.evaluate("Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }; 0")
    ask(page, "Hello")
    playwright.expect(page.get_by_role("alert")).to_contain_text("no room left")
    assert answers(page)[0].startswith("You said Hello") and fake.asked[0]["temperature"] == 0


def test_two_tabs_do_not_overwrite_each_other(opened, fake):
    page = opened(fake.url)
    other = opened(fake.url)
    ask(page, "in one tab")
    ask(other, "in the other")
    playwright.expect(page.locator("#chats .title")).to_have_count(2)
    assert len(kept(page)) == 2


def test_dark_and_light(opened, fake):
    page = opened(fake.url)
    shade = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(shade) == "rgb(246, 247, 249)"
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(shade) == "rgb(15, 18, 22)"
    page.get_by_role("button", name="Dark or light").click()
    assert page.evaluate(shade) == "rgb(246, 247, 249)"
    page.reload()
    assert page.evaluate(shade) == "rgb(246, 247, 249)"


def test_a_model_without_heads_is_asked_plainly(opened, fake):
    fake.heads = False
    page = opened(fake.url)
    assert page.locator("#heads").inner_text() == "no heads"
    assert page.locator("#mode input:enabled").count() == 1
    ask(page, "Hello")
    assert fake.asked[0]["plain"] is True and page.locator(".guessed").count() == 0
