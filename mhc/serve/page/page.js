// The page: what is asked, what is running, what is kept. One answer runs at a time, so that its speed is its own.

import { answer as ask, firstModel } from "./client.js";
import { el } from "./markdown.js";
import { dropChat, loadChats, loadSettings, readChat, saveChat, saveSettings } from "./store.js";
import { textOf, turnView } from "./thread.js";

const $ = (id) => document.getElementById(id);
const EXAMPLES = [
  "Python: `select_it(words)` should return a list of the words longer than 5 letters. Use a loop. Type hints, please.",
  "Write a thank-you letter from Luis to Leo. It is for the teddy bear.",
  "How can Sara tidy a room? Four tips, please. Tell me like a poet.",
];
const settings = loadSettings();
const { chats, unreadable } = loadChats();
let model = null;
let key = sessionStorageKey();
let run = null; // {chat, turn, answer, controller} of the answer that is running
let views = [];

const newest = () => [...chats.values()].sort((one, other) => other.changed - one.changed);
const fresh = () => ({ id: `${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 10)}`, title: "New chat", changed: Date.now(), turns: [] });
let chat = newest()[0] ?? fresh();

// Asking

async function answerTurn(asked, turn) {
  const mode = model.heads ? settings.mode : "plain";
  const before = turn.answers;
  const messages = history(asked, turn);
  const seed = settings.seed === "" ? Math.floor(Math.random() * 2 ** 31) : Number(settings.seed);
  const request = { model: model.id, messages, temperature: settings.temperature, top_p: settings.top_p, seed };
  if (settings.max_tokens !== "") request.max_tokens = Number(settings.max_tokens);
  turn.answers = (mode === "both" ? [false, true] : [mode === "plain"]).map((plain) => (
    { plain, tokens: [], steps: 0, completion_tokens: 0, seconds: 0, finish: null, problem: "" }));
  run = { chat: asked, turn, answer: null, controller: new AbortController() };
  asked.changed = Date.now();
  draw();
  $("thread").scrollTop = $("thread").scrollHeight;
  for (const [index, answer] of turn.answers.entries()) {
    run.answer = answer;
    await fill(answer, { ...request, plain: answer.plain });
    if (answer.problem || answer.finish === "stopped") turn.answers.length = index + 1;
  }
  const [first] = turn.answers;
  if (first.problem && !first.tokens.length && before.some((answer) => answer.tokens.length)) {
    turn.answers = before; // nothing came in its place
    notice(first.problem, "Try again", () => again(asked, turn));
  }
  run = null;
  keep(asked);
  draw();
  if (asked === chat) $("said").textContent = first.problem || textOf(first);
}

async function fill(answer, request) {
  let saved = 0;
  try {
    for await (const { tokens, counts, finish } of ask(request, key, run.controller.signal)) {
      answer.tokens.push(...tokens);
      Object.assign(answer, counts);
      answer.finish = finish ?? answer.finish;
      paintSoon();
      if (Date.now() - saved < 500) continue;
      keep(run.chat);
      saved = Date.now();
    }
    answer.finish ??= "stop";
  } catch (problem) {
    if (problem.name === "AbortError") answer.finish = "stopped";
    else answer.problem = problem.message;
    if (problem.status === 401) askForKey();
  }
}

function history(asked, turn) {
  const messages = settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
  for (const { question, answers } of asked.turns.slice(0, asked.turns.indexOf(turn))) {
    const said = answers.map(textOf).find(Boolean); // a question that was never answered is none
    if (said) messages.push({ role: "user", content: question }, { role: "assistant", content: said });
  }
  return [...messages, { role: "user", content: turn.question }];
}

async function send(question) {
  if (run || !question.trim()) return;
  notice("");
  if (!model && !(await meetModel())) return;
  if (!chat.turns.length) chat.title = question.trim().replace(/\s+/g, " ").slice(0, 60);
  const turn = { question: question.trim(), answers: [] };
  chat.turns.push(turn);
  chats.set(chat.id, chat);
  $("question").value = "";
  await answerTurn(chat, turn);
}

async function again(asked, turn) {
  if (run) return;
  notice("");
  if (model || (await meetModel())) await answerTurn(asked, turn);
}

const stop = () => run?.controller.abort();

async function meetModel() {
  try {
    model = await firstModel(key);
  } catch (problem) {
    notice(problem.message, "Try again", meetModel);
    if (problem.status === 401) askForKey();
    return false;
  }
  notice("");
  $("model").textContent = model.id;
  document.title = `${model.id} · mhc`;
  $("heads").textContent = model.heads ? `${model.heads.family}, ${model.heads.heads} heads` : "no heads";
  if (model.heads) $("heads").append(el("span", { className: "guessed" }, "guessed ahead and confirmed"));
  for (const input of $("mode").querySelectorAll("input")) {
    input.disabled = !model.heads && input.value !== "plain";
    input.checked = input.value === (model.heads ? settings.mode : "plain");
  }
  return true;
}

// Showing

let due = false;
function paintSoon() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    if (run?.chat === chat) atBottom(() => views.at(-1)?.paint(settings.view, run.answer));
  });
}

// Whoever reads at the bottom stays there, whoever scrolled up is left alone.
function atBottom(change) {
  const thread = $("thread");
  const follows = thread.scrollHeight - thread.scrollTop - thread.clientHeight < 60;
  change();
  if (follows) thread.scrollTop = thread.scrollHeight;
}

function draw() {
  const { turns } = chat;
  views = turns.map((turn, i) => turnView(turn, { last: i === turns.length - 1, again: () => again(chat, turn) }));
  const shown = turns.length ? views.map((view) => view.root) : [hello()];
  atBottom(() => {
    $("thread").replaceChildren(...shown);
    views.forEach((view, i) => view.paint(settings.view, run?.turn === turns[i] ? run.answer ?? turns[i].answers[0] : null));
  });
  $("send").textContent = run ? "Stop" : "Send";
  $("send").classList.toggle("stop", Boolean(run));
  drawList();
}

function hello() {
  const tries = EXAMPLES.map((text) => {
    const button = el("button", { type: "button", textContent: text });
    button.addEventListener("click", () => send(text));
    return button;
  });
  return el("div", { className: "hello" }, el("h2", {}, "Several tokens per step, the same text"),
    el("p", {}, "What is ", el("span", { className: "guessed" }, "green"), " was guessed ahead by the heads and confirmed by the model. Ask side by side to see what that saves."),
    el("div", { className: "tries" }, ...tries));
}

const ICONS = { Rename: "M4 16l1-4 8.5-8.5 3 3L8 15z", Delete: "M4 6h12M8 6V4h4v2m-6 0 .7 10h6.6L14 6" };
function iconButton(name, title, act) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = svg.appendChild(document.createElementNS(svg.namespaceURI, "path"));
  svg.setAttribute("viewBox", "0 0 20 20");
  path.setAttribute("d", ICONS[name]);
  const button = el("button", { type: "button", className: "icon", title: name, "aria-label": `${name}: ${title}` }, svg);
  button.addEventListener("click", act);
  return button;
}

function drawList() {
  $("chats").replaceChildren(...newest().map((one) => {
    const title = el("button", { type: "button", className: `title${run?.chat === one ? " running" : ""}`, textContent: one.title });
    if (one === chat) title.setAttribute("aria-current", "true");
    title.addEventListener("click", () => open(one));
    const item = el("li", { className: one === chat ? "open" : "" }, title);
    item.append(iconButton("Rename", one.title, () => rename(one, title)), iconButton("Delete", one.title, () => remove(one)));
    return item;
  }));
}

function open(one) {
  chat = one;
  if ($("side").matches(":popover-open")) $("side").hidePopover();
  draw();
  $("thread").scrollTop = $("thread").scrollHeight;
  if (matchMedia("(pointer: fine)").matches) $("question").focus(); // on a phone the keyboard would cover what was opened
}

function rename(one, title) {
  const input = el("input", { value: one.title, maxLength: 80, "aria-label": "New title" });
  const done = (event) => {
    if (event.key && !["Enter", "Escape"].includes(event.key)) return;
    event.preventDefault();
    event.stopPropagation(); // this Esc stops no answer
    input.removeEventListener("blur", done);
    if (event.key !== "Escape" && input.value.trim()) one.title = input.value.trim();
    keep(one);
    drawList();
  };
  input.addEventListener("keydown", done);
  input.addEventListener("blur", done);
  title.replaceWith(input);
  input.select();
  input.focus();
}

function remove(one) {
  if (run?.chat === one) stop();
  chats.delete(one.id);
  dropChat(one);
  open(one === chat ? newest()[0] ?? fresh() : chat);
  notice(`Deleted “${one.title}”.`, "Undo", () => {
    chats.set(one.id, one);
    keep(one);
    notice("");
    open(one);
  });
}

function notice(text, label, act) {
  $("notice").hidden = !text;
  $("notice").replaceChildren(text);
  if (!label) return;
  const button = el("button", { type: "button", textContent: label });
  button.addEventListener("click", act);
  $("notice").append(button);
}

// Keeping

let full = false;
function keep(one) {
  if (!chats.has(one.id)) return; // deleted meanwhile
  const kept = saveChat(one);
  if (!kept && !full) notice("This browser has no room left for conversations: this one will be gone after a reload. Delete old ones.");
  full = !kept;
}

function sessionStorageKey() {
  try {
    return sessionStorage.getItem("mhc.key") ?? "";
  } catch {
    return "";
  }
}

function askForKey() {
  $("key-field").hidden = false;
  if (!$("settings").open) openSettings();
  $("key").focus();
}

const FIELDS = ["temperature", "top_p", "seed", "max_tokens", "system"];
function openSettings() {
  for (const name of FIELDS) $(name).value = settings[name];
  $("key").value = key;
  $("temperature-shown").textContent = settings.temperature;
  $("settings").showModal();
}

function closeSettings() {
  for (const name of FIELDS) {
    const number = typeof settings[name] === "number";
    if ($(name).validity.valid) settings[name] = number ? Number($(name).value) : $(name).value;
  }
  saveSettings(settings);
  if (key === $("key").value.trim()) return;
  key = $("key").value.trim();
  try {
    sessionStorage.setItem("mhc.key", key);
  } catch {
    // it is asked for again after a reload
  }
  meetModel();
}

// Listening

$("compose").addEventListener("submit", (event) => {
  event.preventDefault();
  if (run) stop();
  else send($("question").value);
});
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send($("question").value);
});
document.addEventListener("keydown", (event) => event.key === "Escape" && !$("settings").open && stop());
$("new").addEventListener("click", () => open(fresh()));
$("open-settings").addEventListener("click", openSettings);
$("settings").addEventListener("close", closeSettings);
$("temperature").addEventListener("input", () => ($("temperature-shown").textContent = $("temperature").value));
$("mode").addEventListener("change", (event) => saveSettings(Object.assign(settings, { mode: event.target.value })));
$("view").addEventListener("change", (event) => {
  saveSettings(Object.assign(settings, { view: event.target.value }));
  document.body.dataset.view = settings.view;
  draw();
});
$("theme").addEventListener("click", () => {
  const dark = settings.theme ? settings.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  settings.theme = document.documentElement.dataset.theme = dark ? "light" : "dark";
  saveSettings(settings);
});
addEventListener("pagehide", () => run && keep(run.chat));
addEventListener("storage", (event) => {
  const other = readChat(event.key, event.newValue); // another tab wrote
  if (!other || other.id === run?.chat.id) return;
  if (other.chat) chats.set(other.id, other.chat);
  else chats.delete(other.id);
  if (chat.id === other.id) chat = other.chat ?? fresh();
  draw();
});

if (settings.theme) document.documentElement.dataset.theme = settings.theme;
document.body.dataset.view = settings.view;
for (const [name, id] of [["view", settings.view], ["mode", settings.mode]]) {
  const input = document.querySelector(`input[name="${name}"][value="${CSS.escape(id)}"]`);
  if (input) input.checked = true;
}
draw();
$("thread").scrollTop = $("thread").scrollHeight;
if (await meetModel() && unreadable) notice(`${unreadable} conversation${unreadable > 1 ? "s" : ""} in this browser could not be read and ${unreadable > 1 ? "are" : "is"} left out.`);
