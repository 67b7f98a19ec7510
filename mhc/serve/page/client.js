// What the page asks the server.

export class Problem extends Error {
  constructor(message, status = 0, wait = 0) {
    super(message);
    Object.assign(this, { status, wait });
  }
}

async function ask(path, options, key) {
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new Problem("The server cannot be reached: is it still running?");
  }
  if (response.ok) return response;
  const said = (await response.json().catch(() => null))?.error?.message;
  const wait = Math.ceil(Number(response.headers.get("Retry-After"))) || 0;
  if (response.status === 401) throw new Problem("The server wants its API key.", 401);
  if (response.status === 429) throw new Problem(`The server is busy${wait ? ` and asks to wait ${wait} s` : ""}.`, 429, wait);
  throw new Problem(said || `The server answered ${response.status} without a reason.`, response.status, wait);
}

export async function firstModel(key) {
  const models = await (await ask("v1/models", {}, key)).json().catch(() => null);
  if (typeof models?.data?.[0]?.id !== "string") throw new Problem("The server names no model.");
  return models.data[0];
}

// Stream an answer: yields {tokens: [[text, guessed], ...], counts: {steps, completion_tokens, seconds} or null, finish}.
export async function* answer(request, key, signal) {
  const options = { stream: true, stream_options: { include_usage: true }, details: true };
  const response = await ask("v1/chat/completions", { method: "POST", body: JSON.stringify({ ...request, ...options }), signal }, key);
  let finished = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    let chunk;
    try {
      chunk = JSON.parse(data);
    } catch {
      throw new Problem("The server sent what is no JSON.");
    }
    if (chunk?.error) throw new Problem(chunk.error.message || "The server broke off.");
    const choice = chunk?.choices?.[0];
    const text = choice?.delta?.content ?? "";
    const { tokens, ...counts } = chunk?.mhc ?? {};
    const told = Array.isArray(tokens) && tokens.map((pair) => pair[0]).join("") === text ? tokens : text ? [[text, false]] : [];
    finished ||= Boolean(choice?.finish_reason);
    yield { tokens: told, counts: chunk?.mhc ? counts : null, finish: choice?.finish_reason ?? null };
  }
  if (!finished) throw new Problem("The connection was cut in the middle of the answer.");
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new Problem("The connection was cut in the middle of the answer.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
