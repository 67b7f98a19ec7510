// Markdown to elements. Text of a model is only ever text here: nothing is parsed as HTML, no picture is fetched, and a
// link leads to http, https or mail or is no link. Every character remembers whether the heads guessed it, so that colours
// survive: `flags[i]` belongs to `source[i]`, and a line is a run of the source, its text and where that starts.

export function el(tag, properties = {}, ...children) {
  const { dataset, ...rest } = properties;
  const element = Object.assign(document.createElement(tag), rest);
  Object.assign(element.dataset, dataset);
  for (const [name, value] of Object.entries(rest)) if (name.startsWith("aria-")) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Show `source` in `root`; blocks that did not change keep their elements (and what the reader has selected in them).
export function showMarkdown(root, source, flags) {
  let at = 0;
  const lines = source.split("\n").map((text) => ({ text, from: (at += text.length + 1) - text.length - 1 }));
  const found = blocks(lines);
  found.forEach((block, index) => {
    const key = `${block.kind} ${block.lines.map((line) => line.text).join("\n")}`;
    const there = root.children[index];
    if (there?.key === key) return;
    const element = Object.assign(drawBlock(block, flags), { key });
    if (there) there.replaceWith(element);
    else root.append(element);
  });
  while (root.children.length > found.length) root.lastChild.remove();
}

const FENCE = /^\s{0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^\s{0,3}(#{1,6})\s+/;
const RULE = /^\s{0,3}([-*_])(\s*\1){2,}\s*$/;
const QUOTE = /^\s{0,3}>\s?/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(?=\S)/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

const cut = (line, count) => ({ text: line.text.slice(count), from: line.from + Math.min(count, line.text.length) });
const isTable = (line, next) => line.text.includes("|") && next?.text.includes("|") && DIVIDER.test(next.text);
const startsBlock = (line, next) =>
  [FENCE, HEADING, RULE, QUOTE, ITEM].some((start) => start.test(line.text)) || isTable(line, next);

function blocks(lines) {
  const found = [];
  for (let i = 0; i < lines.length; ) {
    const first = lines[i];
    const take = (kind, more, extra) => {
      const start = i++;
      while (i < lines.length && more(lines[i], lines[i + 1])) i++;
      found.push({ kind, lines: lines.slice(start, i), ...extra });
    };
    const fence = first.text.match(FENCE);
    if (!first.text.trim()) i++;
    else if (fence) {
      take("code", (line) => !(line.text.trim().startsWith(fence[1]) && /^[`~]+$/.test(line.text.trim())));
      i++; // the closing fence
    } else if (HEADING.test(first.text)) take("heading", () => false);
    else if (RULE.test(first.text)) take("rule", () => false);
    else if (QUOTE.test(first.text)) take("quote", (line) => QUOTE.test(line.text));
    else if (ITEM.test(first.text)) {
      const ordered = /^\s*\d/.test(first.text);
      const indent = first.text.match(ITEM)[1].length;
      take(ordered ? "ol" : "ul", (line, next) => {
        const item = line.text.match(ITEM);
        if (item && item[1].length <= indent + 1) return /\d/.test(item[2]) === ordered;
        if (!line.text.trim()) return next && (/^\s{2,}\S/.test(next.text) || ITEM.test(next.text));
        return item || /^\s{2,}/.test(line.text) || !startsBlock(line, next);
      });
    } else if (isTable(first, lines[i + 1])) take("table", (line) => line.text.includes("|"));
    else take("paragraph", (line, next) => line.text.trim() && !startsBlock(line, next));
  }
  return found;
}

function drawBlock({ kind, lines }, flags) {
  const first = lines[0].text;
  if (kind === "code") return drawCode(lines.slice(1), first.match(FENCE)[2], flags);
  if (kind === "rule") return el("hr");
  if (kind === "heading") {
    const mark = first.match(HEADING);
    return inline(el(`h${Math.min(6, mark[1].length + 2)}`), [cut(lines[0], mark[0].length)], flags);
  }
  if (kind === "quote") {
    const inner = blocks(lines.map((line) => cut(line, line.text.match(QUOTE)[0].length)));
    return el("blockquote", {}, ...inner.map((block) => drawBlock(block, flags)));
  }
  if (kind === "ol" || kind === "ul") return drawList(kind, lines, flags);
  if (kind === "table") return drawTable(lines, flags);
  return inline(el("p"), lines, flags);
}

function drawList(kind, lines, flags) {
  const list = el(kind, kind === "ol" ? { start: parseInt(lines[0].text, 10) } : {});
  const indent = lines[0].text.match(ITEM)[1].length;
  const items = [];
  let width = 0;
  for (const line of lines) {
    const mark = line.text.match(ITEM);
    if (mark && mark[1].length <= indent + 1) items.push([cut(line, (width = mark[0].length))]);
    else items.at(-1).push(cut(line, Math.min(width, line.text.match(/^\s*/)[0].length)));
  }
  for (const item of items) {
    const inner = blocks(item);
    const tight = inner[0]?.kind === "paragraph" ? inline(el("span"), inner.shift().lines, flags) : "";
    list.append(el("li", {}, tight, ...inner.map((block) => drawBlock(block, flags))));
  }
  return list;
}

function drawTable(lines, flags) {
  const row = (tag) => (line) => {
    const cells = [...line.text.matchAll(/(?:\\.|`[^`]*`|[^|])+/g)].filter((cell, i, all) => cell[0].trim() || (i && i < all.length - 1));
    return el("tr", {}, ...cells.map((cell) => inline(el(tag), [{ text: cell[0].trimEnd(), from: line.from + cell.index }], flags)));
  };
  const body = lines.slice(2).map(row("td"));
  return el("div", { className: "scroll", tabIndex: 0 }, el("table", {}, el("thead", {}, row("th")(lines[0])), el("tbody", {}, ...body)));
}

function drawCode(lines, language, flags) {
  const code = el("code");
  lines.forEach((line) => put(code, `${line.text}\n`, (i) => flags[line.from + i]));
  const copy = el("button", { type: "button", className: "copy", textContent: "Copy" });
  copy.addEventListener("click", () => copyText(code.textContent, copy));
  return el("div", { className: "code" }, el("div", { className: "bar" }, el("span", {}, language || "code"), copy), el("pre", { tabIndex: 0 }, code));
}

export async function copyText(text, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed here"; // a page that came over plain http from another machine
  }
  setTimeout(() => (button.textContent = label), 1500);
}

// Text as runs of one colour.
function put(parent, text, flag) {
  for (let start = 0, i = 1; i <= text.length; i++) {
    if (i < text.length && !flag(i) === !flag(start)) continue;
    const run = text.slice(start, i);
    parent.append(flag(start) ? el("span", { className: "guessed" }, run) : run);
    start = i;
  }
}

const INLINE = new RegExp(
  [
    /\\(?<escaped>[\\`*_{}[\]()#+.!|~>-])/,
    /(?<ticks>`+)(?<code>[^`]|[^`].*?[^`])\k<ticks>(?!`)/,
    /!?\[(?<label>[^[\]]*)\]\((?<address>[^\s()]+)[^()\n]*\)/,
    /(?<bare>https?:\/\/[^\s<>"'`*)\]]*[^\s<>"'`*)\].,:;!?])/,
    /(?<two>\*\*|__|~~)(?=\S)(?<loud>.+?)(?<=\S)\k<two>/,
    /(?<![\w*])(?<one>[*_])(?![\s*_])(?<soft>[^*_]+?)(?<=\S)\k<one>(?![\w*])/,
  ].map((part) => part.source).join("|"),
  "dgs",
);

function inline(parent, lines, flags) {
  const text = lines.map((line) => line.text).join("\n");
  const places = lines.flatMap((line) => Array.from({ length: line.text.length + 1 }, (_, i) => line.from + i));
  span(parent, text, (i) => flags[places[i]]);
  return parent;
}

function span(parent, text, flag) {
  let done = 0;
  for (const found of text.matchAll(INLINE)) {
    const { groups } = found;
    const inner = (name, tag, properties) => {
      const [start, end] = found.indices.groups[name];
      const element = el(tag, properties);
      (name === "code" || name === "bare" ? put : span)(element, text.slice(start, end), (i) => flag(start + i));
      return element;
    };
    const before = done;
    put(parent, text.slice(done, found.index), (i) => flag(before + i));
    done = found.index + found[0].length;
    if (groups.escaped) put(parent, groups.escaped, () => flag(found.index + 1));
    else if (groups.code) parent.append(inner("code", "code"));
    else if (groups.loud) parent.append(inner("loud", groups.two === "~~" ? "del" : "strong"));
    else if (groups.soft) parent.append(inner("soft", "em"));
    else if (groups.bare || /^(https?:\/\/|mailto:)/i.test(groups.address))
      parent.append(inner(groups.bare ? "bare" : "label", "a", { href: groups.bare ?? groups.address, target: "_blank", rel: "noopener noreferrer" }));
    else put(parent, found[0], (i) => flag(found.index + i));
  }
  put(parent, text.slice(done), (i) => flag(done + i));
}
