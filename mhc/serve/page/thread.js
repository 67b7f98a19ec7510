// How a turn looks: the question, one answer or two side by side, their speed, and how they compare.

import { copyText, el, showMarkdown } from "./markdown.js";

export const textOf = (answer) => answer.tokens.map((pair) => pair[0]).join("");
const perSecond = (answer) => (answer.seconds > 0 ? answer.completion_tokens / answer.seconds : 0);
const ENDS = { length: "cut at the token limit", stopped: "stopped" };

// running: of the two answers of a turn one is running and the other waits. last: can be asked again.
export function turnView(turn, { last, again }) {
  const views = turn.answers.map((answer) => answerView(answer, again));
  const compared = el("div", { className: "compared", hidden: true });
  const copy = el("button", { type: "button", className: "link", textContent: "Copy" });
  copy.addEventListener("click", () => copyText(textOf(turn.answers[0]), copy));
  const more = el("button", { type: "button", className: "link", textContent: "Regenerate", hidden: !last });
  more.addEventListener("click", again);
  const actions = el("div", { className: "actions" }, copy, more);
  const cards = el("div", { className: `answers${views.length > 1 ? " both" : ""}` }, ...views.map((view) => view.root));
  const root = el("article", { className: "turn" }, el("div", { className: "question" }, turn.question), compared, cards, actions);
  const paint = (look, running) => {
    views.forEach((view, i) => view.paint(look, running === turn.answers[i] ? "running" : running ? "waiting" : "over"));
    actions.hidden = Boolean(running);
    const whole = turn.answers.length === 2 && turn.answers.every((answer) => ["stop", "length"].includes(answer.finish));
    compared.hidden = !whole;
    if (whole && !compared.firstChild) compare(compared, ...turn.answers);
  };
  return { root, paint };
}

function answerView(answer, again) {
  const rate = el("span", { className: "rate" });
  const body = el("div", { className: "body" });
  const told = el("span");
  const problem = el("div", { className: "problem", hidden: true });
  const root = el("section", { className: `answer${answer.plain ? "" : " guessing"}` });
  root.append(el("h2", {}, answer.plain ? "Plain" : "With heads", rate), body, problem, el("div", { className: "meta" }, told));
  root.setAttribute("aria-label", answer.plain ? "Plain answer" : "Answer with heads");
  let shown = null;
  const paint = (look, state) => {
    const raw = look === "tokens";
    if (shown !== raw) body.replaceChildren(...(raw ? [el("pre", { className: "tokens" })] : []));
    shown = raw;
    if (raw) showTokens(body.firstChild, answer.tokens);
    else if (answer.tokens.length) showMarkdown(body, textOf(answer), flagsOf(answer));
    const silent = state !== "over" && !answer.tokens.length && !answer.finish;
    if (silent) body.replaceChildren(el("p", { className: state === "running" ? "waits" : "waits second" }, state === "running" ? "Reading" : "Its turn is next"));
    if (silent) shown = null;
    root.setAttribute("aria-busy", String(state === "running"));
    rate.textContent = perSecond(answer) ? `${perSecond(answer).toFixed(perSecond(answer) < 10 ? 1 : 0)} tokens/s` : "";
    told.textContent = described(answer);
    const interrupted = state === "over" && !answer.finish && !answer.problem ? "This answer was interrupted." : "";
    const line = answer.problem || interrupted;
    problem.hidden = !line;
    if (line && problem.dataset.line !== line) {
      const retry = el("button", { type: "button", className: "retry", textContent: "Try again" });
      retry.addEventListener("click", again);
      problem.replaceChildren(`${line} `, retry);
      problem.dataset.line = line;
    }
  };
  return { root, paint };
}

function described(answer) {
  const parts = [];
  if (answer.steps) {
    parts.push(`${(answer.completion_tokens / answer.steps).toFixed(2)} tokens per step`);
    parts.push(`${answer.completion_tokens} tokens in ${answer.steps} steps, ${answer.seconds.toFixed(2)} s`);
  }
  if (ENDS[answer.finish]) parts.push(ENDS[answer.finish]);
  return parts.join(" · ");
}

function flagsOf(answer) {
  const flags = [];
  for (const [text, guessed] of answer.tokens) for (let i = 0; i < text.length; i++) flags.push(guessed);
  return flags;
}

function showTokens(pre, tokens) {
  for (const [text, guessed] of tokens.slice(pre.children.length)) {
    pre.append(el("span", { className: `${guessed ? "guessed" : ""}${text.includes("\n") ? " break" : ""}` }, text));
  }
}

function compare(root, heads, plain) {
  const ratio = perSecond(heads) / perSecond(plain) || 0;
  const same = textOf(heads) === textOf(plain);
  const longest = Math.max(heads.seconds, plain.seconds) || 1;
  const bar = (answer, name) => {
    const length = el("i", { className: answer.plain ? "" : "fast" });
    length.style.width = `${(100 * answer.seconds) / longest}%`;
    return [el("span", {}, name), el("span", {}, length), el("span", {}, `${answer.seconds.toFixed(2)} s`)];
  };
  root.classList.toggle("slower", ratio < 1);
  root.append(
    el("div", {}, el("strong", {}, `${ratio.toFixed(2)}×`), el("div", { className: "quiet" }, `${ratio < 1 ? "the speed" : "as fast"} with heads`)),
    el("div", {}, el("div", { className: "bars" }, ...bar(heads, "With heads"), ...bar(plain, "Plain")),
      el("div", { className: "same" }, same ? "✓ identical texts" : "The texts differ.")),
  );
}
