"""What a page is made of: a look that a phone can show, light or dark as the reader's system is, and escaped pieces."""

from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --quiet: #5c6670; --paper: #f6f7f9; --card: #ffffff; --rule: #d5dae0;
        --accent: #1a7f37; --warn: #9a6700; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --quiet: #9aa4af; --paper: #0f1216; --card: #181c22;
        --rule: #333a43; --accent: #4ac26b; --warn: #d9a520; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 16px 56px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 12px; }
h3 { font-size: .95rem; margin: 0 0 6px; }
p { margin: 10px 0; }
.quiet, figcaption, dt { color: var(--quiet); font-size: .875rem; overflow-wrap: anywhere; }
.note { color: var(--warn); font-weight: 600; }
section, .tiles > div { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
section { padding: 18px; margin-top: 16px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-top: 18px; }
.tiles > div { padding: 12px 14px; }
.tiles strong { display: block; font-size: 1.6rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tiles > div:first-child strong { color: var(--accent); }
.tiles span { color: var(--quiet); font-size: .8125rem; line-height: 1.35; display: block; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); gap: 18px; }
.grid.small { grid-template-columns: repeat(auto-fill, minmax(min(290px, 100%), 1fr)); gap: 18px 32px; }
.grid > div { min-width: 0; }
.scroll, figure > div { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 7px 10px; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--quiet); font-weight: 500; font-size: .875rem; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tbody tr:last-child td { border-bottom: 0; }
.text th, .text td { text-align: left; white-space: pre-wrap; overflow-wrap: anywhere; vertical-align: top; }
figure { margin: 0; min-width: 0; }
figure svg { display: block; width: 100%; max-width: 520px; height: auto; }
figure.wide svg { max-width: 760px; min-width: 480px; }
dl { display: grid; grid-template-columns: fit-content(75%) 1fr; gap: 2px 14px; margin: 0; font-size: .9rem; }
dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
details { margin-top: 16px; }
summary { cursor: pointer; color: var(--quiet); }
pre, code { font: .8125rem/1.45 ui-monospace, monospace; }
pre { overflow-x: auto; border: 1px solid var(--rule); border-radius: 8px; padding: 12px; }
@media (max-width: 600px) { main { padding: 18px 10px 40px; } section { padding: 14px; } table { font-size: .875rem; }
        th, td { padding: 6px; } .tiles { grid-template-columns: 1fr 1fr; gap: 8px; } .tiles strong { font-size: 1.3rem; } }
"""


def section(title: str, inner: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inner}</section>\n"


def figure(svg: str, caption: str, kind: str = "") -> str:
    told = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="{kind}"><div>{svg}</div>{told}</figure>'


def table(columns: list[str], rows: list[list[str]], kind: str = "") -> str:
    """kind: "text" where cells hold sentences, which are folded and keep their lines."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def pairs(pairs: dict[str, Any]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in pairs.items()) + "</dl>"


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level, without those that are not set."""
    found: dict[str, Any] = {}
    for key, one in value.items():
        if isinstance(one, dict):
            found |= flat(one, "" if key == "init_args" else f"{prefix}{key}.")
        elif one is not None:
            found[f"{prefix}{key}".replace("class_path", "class")] = last_name(one) if key == "class_path" else one
    return found


def last_name(path: str) -> str:
    return path.rpartition(".")[2]


def duration(seconds: float) -> str:
    """In its two largest units: "3 d 1 h", "2 h 5 min", "1 min 40 s", "8.2 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    counts = {"d": days, "h": hours, "min": minutes, "s": rest}
    told = [f"{count} {unit}" for unit, count in counts.items()]
    largest = next((at for at, count in enumerate(counts.values()) if count), 3)
    return " ".join(told[largest : largest + 2]) if largest < 3 else f"{seconds:.1f} s"
