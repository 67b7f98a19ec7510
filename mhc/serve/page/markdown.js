// Markdown to elements. markdown-it parses, and DOMPurify lets only the elements of Markdown into the page: HTML in an answer
// is shown as text, no picture is fetched, and a link leads to http, https or mail. Every character remembers whether the
// heads guessed it, so that colours survive the drawing: `flags[i]` belongs to `source[i]`.

import "./vendor/markdown-it.min.js"; // both set a global, as they are no modules
import "./vendor/purify.min.js";

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
  const blocks = htmlOfBlocks(source.replaceAll("\r", " "), flags); // markdown-it would drop \r, and move every flag behind it
  blocks.forEach((html, index) => {
    const shown = root.children[index];
    if (shown?.html === html) return;
    const element = Object.assign(elementOf(html), { html });
    if (shown) shown.replaceWith(element);
    else root.append(element);
  });
  while (root.children.length > blocks.length) root.lastChild.remove();
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

// Underlined headings and indented code are off, as a half-streamed list or an indented line would look like them; entities
// are shown as written. The other rules join texts, which would lose where each came from.
const parser = markdownit({ linkify: true, maxNesting: 40 }).disable(["lheading", "code", "entity"]);
parser.core.ruler.disable(["linkify", "text_join"]);
parser.inline.ruler2.disable("fragments_join");
parser.validateLink = (address) => /^(https?:\/\/|mailto:)/i.test(address);
parser.normalizeLinkText = (text) => text;

const ALLOWED = {
  ALLOWED_TAGS: "a blockquote code del div em h3 h4 h5 h6 hr li ol p pre s span strong table tbody td th thead tr ul #text".split(" "),
  ALLOWED_ATTR: ["class", "href", "start", "tabindex"],
  ADD_URI_SAFE_ATTR: ["start", "tabindex"], // are not tested as addresses
  ALLOWED_URI_REGEXP: /^(https?:\/\/|mailto:)/i,
  RETURN_DOM_FRAGMENT: true,
};

function elementOf(html) {
  const element = DOMPurify.sanitize(html, ALLOWED).firstElementChild;
  for (const link of element.querySelectorAll("a")) Object.assign(link, { target: "_blank", rel: "noopener noreferrer" });
  for (const bar of [element, ...element.querySelectorAll("*")].filter((each) => each.className === "bar")) {
    const copy = el("button", { type: "button", className: "copy", textContent: "Copy" });
    copy.addEventListener("click", () => copyText(bar.nextElementSibling.textContent, copy));
    bar.append(copy);
  }
  return element;
}

function htmlOfBlocks(source, flags) {
  const env = { flags };
  const blocks = [];
  let open = [];
  for (const token of parser.parse(source, env)) {
    open.push(token);
    if (token.level > 0 || token.nesting === 1) continue;
    blocks.push(parser.renderer.render(open, parser.options, env));
    open = [];
  }
  return blocks;
}

// Where tokens come from. markdown-it knows the lines of a block, but not the place of a text in its line: so before any other
// rule this one notes the place that parsing has reached, for the token that will be the next (a text may be pending before it).
parser.inline.ruler.before("text", "places", (state, silent) => {
  if (!silent) (state.tokens.places ??= [])[state.tokens.length + (state.pending ? 1 : 0)] = state.pos;
  return false;
});

// Give every token that shows text its flags, one a character, as token.meta.
parser.core.ruler.after("inline", "flags", ({ src, tokens, env }) => {
  const lines = [];
  for (const text of src.split("\n")) lines.push({ text, start: lines.length ? lines.at(-1).start + lines.at(-1).text.length + 1 : 0 });
  // A block's content is the end of each of its lines, behind marks and indents.
  const flagsOfLines = (content, first) =>
    content.split("\n").flatMap((text, i) => {
      const line = lines[first + i] ?? lines.at(-1);
      const start = line.start + Math.max(0, line.text.lastIndexOf(text));
      return Array.from({ length: text.length + 1 }, (_, place) => env.flags[start + place]);
    });
  let row; // of a table
  let column;
  for (const token of tokens) {
    if (token.tag[0] === "h" && token.markup[0] === "#") token.tag = `h${Math.min(6, token.markup.length + 2)}`;
    else if (token.type === "fence") token.meta = flagsOfLines(token.content, token.map[0] + 1);
    else if (token.type === "tr_open") [row, column] = [lines[token.map[0]], 0];
    else if (["th_open", "td_open"].includes(token.type)) token.attrs = null; // a style, which the policy of the page forbids
    else if (token.type === "inline" && token.map) flagChildren(token, flagsOfLines(token.content, token.map[0]));
    else if (token.type === "inline") {
      const next = (letter) => (column = row.text.indexOf(letter, column) + 1); // one by one, as \| has become |
      flagChildren(token, token.content.split("").map((letter) => env.flags[row.start + next(letter) - 1]));
    }
  }
});

function flagChildren({ content, children }, flags) {
  const line = content.replaceAll("\n", " "); // as code has it
  let place = 0;
  children.forEach((child, i) => {
    if (!child.content) return;
    place = Math.max(place, children.places?.[i] ?? 0);
    place = Math.max(place, line.indexOf(child.content.replaceAll("\n", " "), place));
    child.meta = flags.slice(place, (place += child.content.length));
  });
}

// Text as runs of one colour.
function coloured({ content, meta }) {
  let html = "";
  for (let start = 0, end = 1; end <= content.length; end++) {
    if (end < content.length && !meta?.[end] === !meta?.[start]) continue;
    const run = parser.utils.escapeHtml(content.slice(start, end));
    html += meta?.[start] ? `<span class="guessed">${run}</span>` : run;
    start = end;
  }
  return html;
}

const rule = (draw) => (tokens, i) => draw(tokens[i]);
Object.assign(parser.renderer.rules, {
  text: rule(coloured),
  text_special: rule(coloured),
  softbreak: () => "\n",
  hardbreak: () => "\n",
  code_inline: rule((token) => `<code>${coloured(token)}</code>`),
  image: rule((token) => `<a href="${parser.utils.escapeHtml(token.attrGet("src"))}">${coloured(token)}</a>`),
  paragraph_open: rule((token) => (token.hidden ? "<span>" : "<p>")), // hidden: in a list without blank lines
  paragraph_close: rule((token) => (token.hidden ? "</span>" : "</p>")),
  table_open: () => '<div class="scroll" tabindex="0"><table>',
  table_close: () => "</table></div>",
  fence: rule((token) => {
    const language = parser.utils.escapeHtml(token.info.trim().split(/\s+/)[0] || "code");
    return `<div class="code"><div class="bar"><span>${language}</span></div><pre tabindex="0"><code>${coloured(token)}</code></pre></div>`;
  }),
});
