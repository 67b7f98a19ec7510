"""What the server must bear: fuzzed bodies, its own published schema turned against it, 200 streams at once, being ended."""

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import psutil
import pytest

from mhc.corpus import dialogues
from mhc.engine import Engine
from mhc.text.encoding import prompt_ids

CHAT = "/v1/chat/completions"
BODIES = 10_000
STREAMS, SECONDS = 200, float(os.environ.get("MHC_LOAD_SECONDS", "60"))
JSON = {"Content-Type": "application/json"}
PIECES = [
    None,
    True,
    False,
    0,
    -1,
    1,
    0.5,
    1e308,
    10**30,
    "",
    "x",
    "\ud800",
    "\x00",
    "<|im_end|>",
    [],
    {},
    [[]],
    "system",
    "user",
    "text",
]
GOOD = {
    "messages": [{"role": "user", "content": "Hi"}],
    "max_tokens": 2,
    "temperature": 0.5,
    "seed": 1,
    "stream": False,
}
FIELDS = [
    *GOOD,
    "model",
    "n",
    "stop",
    "top_p",
    "top_k",
    "logprobs",
    "top_logprobs",
    "stream_options",
    "logit_bias",
    "tools",
    "prompt",
]
FIELDS += [
    "input",
    "echo",
    "suffix",
    "response_format",
    "max_completion_tokens",
    "plain",
    "details",
    "encoding_format",
    "user",
]


def odd(dice: random.Random, depth: int = 0):
    """Some value of JSON."""
    kind = dice.random()
    if kind < 0.7 or depth > 3:
        return dice.choice(PIECES)
    if kind < 0.85:
        return [odd(dice, depth + 1) for _ in range(dice.randrange(4))]
    return {
        dice.choice(["role", "content", "type", "text", "include_usage", "x"]): odd(dice, depth + 1) for _ in range(3)
    }


def fuzzed(dice: random.Random, path: str) -> bytes:
    """A body that is right for this path but for a field or two, or only nearly JSON, or noise."""
    body = dict(GOOD)
    if path != CHAT:
        del body["messages"]
        body |= {"prompt": "x"} if path == "/v1/completions" else {"input": "x"}
    if path == "/v1/embeddings":
        body = {"input": "x"}
    for _ in range(dice.randrange(1, 4)):
        body[dice.choice(FIELDS)] = odd(dice)
    if isinstance(body.get("n"), int) and body["n"] > 2:
        body["n"] = 2
    if path != "/v1/embeddings" and body.get("max_tokens") not in (1, 2):
        body["max_completion_tokens" if path == CHAT else "max_tokens"] = 2
    raw = json.dumps(body, allow_nan=True).encode()
    way = dice.random()
    if way < 0.1:
        raw = raw[: dice.randrange(len(raw))]
    elif way < 0.2:
        at = dice.randrange(len(raw))
        raw = raw[:at] + bytes([dice.randrange(256)]) + raw[at + 1 :]
    elif way < 0.22:
        raw = b"[" * dice.randrange(100_000)
    elif way < 0.24:
        raw = dice.randbytes(dice.randrange(300))
    elif way < 0.26:
        raw = raw.replace(b'"seed": 1', b'"seed": ' + b"9" * 5000)
    return raw


def test_ten_thousand_fuzzed_bodies(live):
    """None gives a 5xx, every refusal has OpenAI's shape, and the server answers as before afterwards."""
    dice, statuses = random.Random(0), Counter()
    paths = [CHAT] * 6 + ["/v1/completions"] * 3 + ["/v1/embeddings"]

    async def storm() -> None:
        async with httpx.AsyncClient(base_url=live.url, timeout=120) as client:

            async def send(path: str, body: bytes) -> None:
                async with client.stream("POST", path, content=body, headers=JSON) as response:
                    text = await response.aread()
                statuses[response.status_code] += 1
                assert response.status_code < 500, body
                if response.status_code >= 400:
                    assert set(json.loads(text)["error"]) == {"message", "type", "param", "code"}, body

            for _ in range(BODIES // 20):
                chosen = dice.choices(paths, k=20)
                await asyncio.gather(*(send(path, fuzzed(dice, path)) for path in chosen))

    asyncio.run(storm())
    assert sum(statuses.values()) == BODIES and set(statuses) <= {200, 400, 404, 413, 429}
    assert min(statuses[200], statuses[400]) > BODIES / 20, statuses
    with httpx.Client(base_url=live.url, timeout=60) as http:
        body = {"messages": [{"role": "user", "content": "Hello!"}], "temperature": 0, "max_tokens": 16}
        text = http.post(CHAT, json=body).json()["choices"][0]["message"]["content"]
    ids = prompt_ids(live.engine.backbone.tokenizer, body["messages"])
    assert text == live.engine.generate(ids, 16, plain=True).text


def test_the_published_schema_holds(live, tmp_path):
    """schemathesis reads /openapi.json, makes requests that fit and that do not, and holds every answer against it."""
    command = [Path(sys.executable).parent / "schemathesis", "run", f"{live.url}/openapi.json", "--checks", "all"]
    command += ["--phases", "examples,coverage,fuzzing", "--max-examples", "40", "--seed", "1", "--no-color"]
    command += ["--request-timeout", "120"]
    command += ["--exclude-checks", "positive_data_acceptance"]  # what fits the schema may not fit the context
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]


def questions(count: int) -> list[str]:
    return [row["messages"][0]["content"] for row in dialogues(count, seed=99)]


@pytest.mark.timeout(900)
def test_two_hundred_streams_for_a_minute(process, heads):
    """Every answer is the offline engine's, whoever was decoded beside; memory stays flat; nothing is a 5xx."""
    server = process("--checkpoint", str(heads), "--rows", "32", "--context", "512", "--waiting", "300")
    told = psutil.Process(server.process.pid)
    asked = questions(40)
    answers: list[tuple[int, int, str]] = []
    statuses: Counter = Counter()
    memory: list[int] = []
    until = time.monotonic() + SECONDS

    async def stream(client: httpx.AsyncClient, dice: random.Random) -> None:
        while time.monotonic() < until:
            number, seed = dice.randrange(len(asked)), dice.randrange(4)
            body = {
                "messages": [{"role": "user", "content": asked[number]}],
                "stream": True,
                "max_tokens": 48,
                "seed": seed,
            }
            body["temperature"] = 0.0 if seed == 0 else 0.8
            async with client.stream("POST", CHAT, json=body) as response:
                statuses[response.status_code] += 1
                lines = [line async for line in response.aiter_lines() if line.startswith("data: ")]
            assert lines[-1] == "data: [DONE]"
            chunks = [json.loads(line[6:]) for line in lines[:-1]]
            answers.append((number, seed, "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)))

    async def watch() -> None:
        while time.monotonic() < until:
            memory.append(told.memory_info().rss)
            await asyncio.sleep(1)

    async def storm() -> None:
        limits = httpx.Limits(max_connections=STREAMS)
        async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as client:
            await asyncio.gather(watch(), *(stream(client, random.Random(i)) for i in range(STREAMS)))

    asyncio.run(storm())
    assert set(statuses) == {200} and len(answers) >= STREAMS
    _assert_offline(heads, asked, answers)
    settled = memory[len(memory) // 3 :]
    assert max(settled) < 1.05 * settled[0], [size >> 20 for size in memory]
    assert httpx.get(f"{server.url}/health").status_code == 200
    status, errors = server.stop()
    assert status == 0 and not errors


def _assert_offline(heads: Path, asked: list[str], answers: list[tuple[int, int, str]]) -> None:
    """Each text is what the engine gives, alone and plain, for this question and seed."""
    import torch

    from mhc.sampling import Sampling

    engine = Engine.from_checkpoint(str(heads), device="cpu", dtype=torch.float32)
    wanted = sorted({(number, seed) for number, seed, _ in answers})
    tokenizer = engine.backbone.tokenizer
    prompts = [prompt_ids(tokenizer, [{"role": "user", "content": asked[number]}]) for number, _ in wanted]
    settings = [Sampling(0.8 if seed else 0.0, seed=seed) for _, seed in wanted]
    offline = {}
    for number, (prompt, sampling) in enumerate(zip(prompts, settings)):
        (_, answer), *_ = engine.generate_ids([prompt], 48, plain=True, sampling=sampling)
        offline[wanted[number]] = answer.text
    different = [(number, seed) for number, seed, text in answers if text != offline[number, seed]]
    assert not different, f"{len(different)} of {len(answers)} answers differ"


def test_it_ends_in_good_order(process, heads):
    """Ctrl-C lets answers under way come to their end, and the status says that all went well."""
    server = process("--checkpoint", str(heads), "--rows", "2", "--context", "256")
    body = {
        "messages": [{"role": "user", "content": "Write a thank-you letter."}],
        "stream": True,
        "temperature": 1.5,
        "n": 4,
    }
    with httpx.stream("POST", f"{server.url}{CHAT}", json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        server.process.send_signal(2)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    server.process.wait(timeout=60)  # a second signal would not be graceful
    status, errors = server.stop()
    assert (status, errors) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give --checkpoint DIR"),
        (["--backbone", "pocket", "--port", "99999999"], "--port is 99999999"),
        (["--backbone", "pocket", "--host", "nowhere.invalid"], "cannot listen on nowhere.invalid"),
        (["--backbone", "pocket", "--rows", "0"], "--rows is 0"),
        (["--checkpoint", "nothing"], "no heads in 'nothing'"),
    ],
)
def test_wrong_arguments(arguments, told, capsys):
    import run

    assert run.main(["serve", *arguments]) == 2
    errors = capsys.readouterr().err
    assert told in errors and errors.count("\n") == 1


def test_a_taken_port(live, capsys):
    import run

    port = live.url.rpartition(":")[2]
    assert run.main(["serve", "--backbone", "pocket", "--port", port]) == 2
    assert f"cannot listen on 127.0.0.1, port {port}" in capsys.readouterr().err
