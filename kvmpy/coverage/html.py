"""Coverage as pages: one table of files, and a page for each source file. They ask for no other file, and have no scripts."""

from __future__ import annotations

import os
import re
from html import escape
from pathlib import Path

from kvmpy.coverage.table import common
from kvmpy.coverage.tracefile import SourceFile, Totals, Tracefile
from kvmpy.errors import HostError

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_GOOD, _FAIR = 90, 75
_HEADS = ("Lines", "Functions", "Branches")

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --hit: #2a92; --miss: #d332; --half: #e902; --dim: #888; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } a { color: inherit; }
table { border-collapse: collapse; width: 100%; } th { text-align: left; font-weight: 600; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); } td.n { text-align: right; font-variant-numeric: tabular-nums; }
.bar { display: inline-block; width: 6rem; height: .6rem; background: var(--line); border-radius: .3rem; overflow: hidden; }
.bar i { display: block; height: 100%; } .good { background: #2a9d4a; } .fair { background: #e0a020; } .poor { background: #d04040; }
pre { font: 13px/1.45 ui-monospace, monospace; tab-size: 8; overflow-x: auto; }
pre span { display: block; } .hit { background: var(--hit); } .miss { background: var(--miss); } .half { background: var(--half); }
pre b { font-weight: normal; color: var(--dim); user-select: none; } p.dim { color: var(--dim); }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{head}</h1>
{body}
</body>
</html>
"""


def write_pages(trace: Tracefile, directory: str | os.PathLike[str]) -> Path:
    """Writes index.html and the others into a directory, made where there is none; gives the path of index.html. Raises HostError."""
    top = common(list(trace.files))
    shown = {path: os.path.relpath(path, top) if top else path for path in trace.files}
    names = _page_names(shown)
    target = Path(directory)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for path, file in trace.files.items():
            _write(target / names[path], shown[path], _source(path, file), back=True)
        _write(target / "index.html", "Coverage", _index(trace, shown, names))
    except OSError as error:
        raise HostError(f"write {error.filename or target}", error.errno or 0) from None
    return target / "index.html"


def _write(path: Path, title: str, body: str, *, back: bool = False) -> None:
    head = escape(title)
    if back:
        head = f'<a href="index.html">Coverage</a> / {head}'
    text = _PAGE.format(policy=POLICY, title=escape(title), style=_STYLE, head=head, body=body)
    path.write_bytes(text.encode("utf-8", "replace"))


def _page_names(shown: dict[str, str]) -> dict[str, str]:
    """A file name of harmless letters for each path; no two are the same."""
    used, found = {"index.html"}, {}
    for path, name in sorted(shown.items()):
        base = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[-100:] or "file"
        candidate, number = f"{base}.html", 1
        while candidate.lower() in used:
            number += 1
            candidate = f"{base}-{number}.html"
        used.add(candidate.lower())
        found[path] = candidate
    return found


def _share(hit: int, all: int) -> str:
    if not all:
        return '<td></td><td class="n"></td><td class="n"></td>'
    percent = 100 * hit / all
    kind = "good" if percent >= _GOOD else "fair" if percent >= _FAIR else "poor"
    bar = f'<span class="bar"><i class="{kind}" style="width:{percent:.0f}%"></i></span>'
    return f'<td>{bar}</td><td class="n">{percent:.1f}%</td><td class="n">{hit}/{all}</td>'


def _shares(totals: Totals) -> str:
    n = totals.numbers
    return _share(n[1], n[0]) + _share(n[3], n[2]) + _share(n[5], n[4])


def _heads(first: str) -> str:
    return f"<tr><th>{first}</th>" + "".join(f'<th colspan="3">{head}</th>' for head in _HEADS) + "</tr>"


def _index(trace: Tracefile, shown: dict[str, str], names: dict[str, str]) -> str:
    rows = [
        f'<tr><td><a href="{names[path]}">{escape(shown[path])}</a></td>{_shares(file.totals)}</tr>'
        for path, file in sorted(trace.files.items())
    ]
    return f"<table>\n{_heads('File')}\n" + "\n".join(rows) + f"\n<tr><th>All</th>{_shares(trace.totals)}</tr>\n</table>"


def _source(path: str, file: SourceFile) -> str:
    try:
        text = Path(path).read_bytes().decode("utf-8", "replace").splitlines()
        note = ""
    except OSError as error:
        text = []
        note = f'<p class="dim">{escape(path)}: {escape(error.strerror or "")}; its lines are shown without text.</p>'
    parts = [f"<table>\n{_heads('')}\n<tr><td></td>{_shares(file.totals)}</tr>\n</table>", note]
    if file.functions:
        rows = [
            f'<tr><td><a href="#L{line}">{escape(name)}</a></td><td class="n">{count or "never"}</td></tr>'
            for name, (line, count) in sorted(file.functions.items(), key=lambda one: one[1])
        ]
        summary = f"{sum(1 for _, count in file.functions.values() if count)} of {len(file.functions)} functions"
        parts.append(f"<details><summary>{summary}</summary><table>{''.join(rows)}</table></details>")
    last = max([len(text), *file.lines]) if text or file.lines else 0
    wanted = range(1, last + 1) if text else sorted(file.lines)
    branches: dict[int, list[int | None]] = {}
    for (line, _, _), taken in sorted(file.branches.items()):
        branches.setdefault(line, []).append(taken)
    lines = [_line(number, text[number - 1] if number <= len(text) else "", file, branches.get(number, [])) for number in wanted]
    return "\n".join([*parts, "<pre>" + "".join(lines) + "</pre>"])


def _line(number: int, text: str, file: SourceFile, ways: list[int | None]) -> str:
    count = file.lines.get(number)
    signs = "".join("-" if taken is None else "+" if taken else "!" for taken in ways)
    kind = "" if count is None else "miss" if not count else "half" if "!" in signs else "hit"
    title = "".join(f' title="{signs.count("!")} of {len(ways)} ways of its jumps never gone"' for _ in (1,) if "!" in signs and count)
    shown = "" if count is None else str(count)
    return f'<span id="L{number}" class="{kind}"{title}><b>{number:6} {shown:>5} {signs[:8]:8} </b>{escape(text)}</span>'
