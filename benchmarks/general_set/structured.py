"""Tables, CSV, JSON and XML over one kind of content: small data sets of made-up people, goods and measurements."""

from __future__ import annotations

import csv
import io
import json
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from words import (
    ANIMALS,
    CITIES,
    COLOURS,
    COMPANIES,
    DAYS,
    FOODS,
    JOBS,
    MATERIALS,
    MONTHS,
    PLANTS,
    PRODUCTS,
    SERVICES,
    TOPICS,
    Hand,
)

Table = tuple[list[str], list[list[Any]]]  # names of the columns, rows


def staff(h: Hand) -> Table:
    return ["name", "job", "city", "since", "salary"], [[h.name(), h.pick(JOBS), h.pick(CITIES), h.number(1990, 2025), h.number(20, 95) * 1000] for _ in range(h.number(3, 14))]  # fmt: skip


def stock(h: Hand) -> Table:
    return ["id", "article", "colour", "qty", "price"], [[h.number(1000, 9999), what, h.pick(COLOURS), h.number(0, 400), h.number(99, 19999) / 100] for what in h.some(PRODUCTS, 3, 14)]  # fmt: skip


def temperatures(h: Hand) -> Table:
    return ["month", "mean °C", "rain mm", "days of frost"], [[month, h.number(-80, 240) / 10, h.number(5, 190), h.number(0, 25)] for month in MONTHS[: h.number(4, 12)]]  # fmt: skip


def timetable(h: Hand) -> Table:
    stops, minute = h.some(CITIES, 4, 9), h.number(300, 900)
    rows = []
    for number, stop in enumerate(stops):
        minute += h.number(6, 70) if number else 0
        rows.append([stop, f"{minute // 60 % 24:02}:{minute % 60:02}", h.number(1, 14), h.pick(("", "", "request stop", "not Sundays"))])  # fmt: skip
    return ["stop", "time", "platform", "note"], rows


def sightings(h: Hand) -> Table:
    return ["date", "species", "count", "observer"], [[h.day().isoformat(), h.pick(ANIMALS), h.number(1, 90), h.pick((h.name(), None))] for _ in range(h.number(4, 16))]  # fmt: skip


def nutrition(h: Hand) -> Table:
    return ["food", "kcal", "protein g", "fat g", "sugar g"], [[food, h.number(12, 700), *(h.number(0, 400) / 10 for _ in range(3))] for food in h.some(FOODS, 4, 12)]  # fmt: skip


def latency(h: Hand) -> Table:
    return ["service", "p50_ms", "p99_ms", "errors", "healthy"], [[name, h.number(1, 60), h.number(60, 2400), h.number(0, 80), h.chance(0.8)] for name in h.some(SERVICES, 3, 10)]  # fmt: skip


def results(h: Hand) -> Table:
    return ["rank", "team", "won", "drawn", "lost", "points"], [[k + 1, f"{city} {h.pick(('United', 'Rovers', 'SK', 'FC'))}", *(h.number(0, 20) for _ in range(3)), h.number(4, 80)] for k, city in enumerate(h.some(CITIES, 4, 10))]  # fmt: skip


def budget(h: Hand) -> Table:
    return ["item", "planned", "spent", "left"], [[item, a, b, a - b] for item, a, b in ((h.pick(("rent", "travel", "paper", "postage", "repairs", "training", "tea", "licences")), h.number(10, 900), h.number(10, 900)) for _ in range(h.number(3, 9)))]  # fmt: skip


def garden(h: Hand) -> Table:
    return ["plant", "sown", "height cm", "soil"], [[plant, h.pick(MONTHS)[:3], h.number(4, 260), h.pick(("clay", "loam", "sand", "peat"))] for plant in h.some(PLANTS, 4, 12)]  # fmt: skip


def rota(h: Hand) -> Table:
    return ["", *DAYS[:5]], [[slot, *(h.pick((h.name().split()[0], "–", h.pick(SERVICES))) for _ in range(5))] for slot in h.some(["early", "late", "night", "desk", "door", "phone"], 2, 5)]  # fmt: skip


CONTENTS = (staff, stock, temperatures, timetable, sightings, nutrition, latency, results, budget, garden, rota)


def shown(value: Any) -> str:
    return "" if value is None else ("yes" if value else "no") if isinstance(value, bool) else str(value)


def grid(names: list[str], rows: list[list[Any]]) -> list[list[str]]:
    return [[str(name) for name in names], *([shown(value) for value in row] for row in rows)]


def markdown(h: Hand, names: list[str], rows: list[list[Any]]) -> str:
    head, *body = grid(names, rows)
    lines = [head, [h.pick(("---", ":--", "--:")) for _ in head], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def aligned(h: Hand, names: list[str], rows: list[list[Any]]) -> str:
    cells = grid(names, rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        h.pick(("  ", " | ")).join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
    rule = h.pick(("-", "=")) * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:]])


def boxed(_: Hand, names: list[str], rows: list[list[Any]]) -> str:
    cells = grid(names, rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    edge = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    lines = [
        "|" + "|".join(f" {cell:<{width}} " for cell, width in zip(line, widths, strict=True)) + "|" for line in cells
    ]
    return "\n".join([edge, lines[0], edge, *lines[1:], edge])


def restructured(_: Hand, names: list[str], rows: list[list[Any]]) -> str:
    cells = grid(names, rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    edge = "  ".join("=" * width for width in widths)
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([edge, lines[0], edge, *lines[1:], edge])


def latex(_: Hand, names: list[str], rows: list[list[Any]]) -> str:
    head, *body = [[cell.replace("_", r"\_").replace("&", r"\&") for cell in line] for line in grid(names, rows)]
    lines = [" & ".join(line) + r" \\" for line in body]
    return "\n".join([rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\hline", " & ".join(head) + r" \\", r"\hline", *lines, r"\hline", r"\end{tabular}"])  # fmt: skip


def html(_: Hand, names: list[str], rows: list[list[Any]]) -> str:
    head, *body = [[escape(cell) for cell in line] for line in grid(names, rows)]
    lines = ["  <tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in body]
    return "\n".join(["<table>", "  <tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>", *lines, "</table>"])


def tables(h: Hand, count: int) -> list[str]:
    found = []
    for _ in range(count):
        content = h.pick(CONTENTS)
        table = h.pick((markdown, markdown, aligned, aligned, boxed, restructured, latex, html))(h, *content(h))
        title = h.pick(("", "", "", f"Table {h.number(1, 9)}: {content.__name__}\n\n", f"{content.__name__.title()}\n", f"{h.sentence()}\n\n"))  # fmt: skip
        found.append(title + table)
    return found


def csv_of(h: Hand, count: int) -> list[str]:
    found = []
    for _ in range(count):
        names, rows = h.pick(CONTENTS)(h)
        stream = io.StringIO()
        quoting = h.pick((csv.QUOTE_MINIMAL, csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC))
        writer = csv.writer(stream, delimiter=h.pick(",,,;\t|"), quoting=quoting, lineterminator="\n")
        if h.chance(0.9):
            writer.writerow(names)
        writer.writerows([["" if value is None else value for value in row] for row in rows])
        found.append(stream.getvalue().strip("\n"))
    return found


def keyed(names: list[str], rows: list[list[Any]]) -> list[dict[str, Any]]:
    keys = [name.replace(" ", "_").replace("°", "deg") or "slot" for name in names]
    return [dict(zip(keys, row, strict=True)) for row in rows]


def document(h: Hand) -> Any:
    """Return a nested value of some sort."""
    names, rows = h.pick(CONTENTS)(h)
    entries = keyed(names, rows)
    person = h.name()
    return h.pick((
        entries,
        {"count": len(entries), "next": h.pick((None, f"/v1/items?page={h.number(2, 40)}")), "items": entries[:4]},
        {"user": {"id": h.number(1, 9999), "name": person, "email": h.email(person), "tags": h.some(COLOURS, 0, 4)}, "active": h.chance(0.7)},
        {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": {"type": "Point", "coordinates": [h.number(-1800, 1800) / 10, h.number(-900, 900) / 10]}, "properties": {"name": city}} for city in h.some(CITIES, 1, 3)]},
        {"name": h.pick(SERVICES), "version": f"{h.number(0, 9)}.{h.number(0, 30)}.0", "scripts": {"test": "run-tests --all", "lint": "check ."}, "dependencies": {f"lib{name}": f"^{h.number(1, 9)}.{h.number(0, 9)}.0" for name in h.some(SERVICES, 1, 5)}},
        {"error": {"code": h.pick((400, 401, 404, 409, 422, 500)), "message": h.sentence(), "details": []}, "request_id": h.hex(16)},
        {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "required": ["id"], "properties": {name: {"type": h.pick(("string", "integer", "boolean"))} for name in h.some(["id", "title", "size", "owner", "done", "start", "end"], 2, 5)}},
        {"order": h.number(10000, 99999), "date": h.day().isoformat(), "lines": [{"sku": h.hex(6).upper(), "article": what, "material": h.pick(MATERIALS), "qty": h.number(1, 9)} for what in h.some(PRODUCTS, 1, 4)], "total": h.number(100, 90000) / 100, "paid": h.chance(0.6)},
        [h.number(-99, 999) for _ in range(h.number(3, 16))],
        {city: h.number(1000, 900000) for city in h.some(CITIES, 2, 7)},
        {"matrix": [[h.number(0, 9) for _ in range(4)] for _ in range(h.number(2, 4))], "title": h.pick(TOPICS)},
    ))  # fmt: skip


def json_of(h: Hand, count: int) -> list[str]:
    found = []
    for _ in range(count):
        value = document(h)
        if isinstance(value, list) and value and isinstance(value[0], dict) and h.chance(0.4):
            found.append("\n".join(json.dumps(entry, ensure_ascii=False) for entry in value))  # JSON lines
            continue
        indent = h.pick((None, 2, 2, 4))
        separators = (",", ":") if indent is None and h.chance(0.5) else None
        found.append(json.dumps(value, ensure_ascii=h.chance(0.1), indent=indent, separators=separators))
    return found


def element(name: str, value: Any, depth: int = 0) -> str:
    tag, pad = name.replace(" ", "_").replace("°", "") or "slot", "  " * depth
    if isinstance(value, dict):
        inner = "\n".join(element(key, part, depth + 1) for key, part in value.items())
        return f"{pad}<{tag}>\n{inner}\n{pad}</{tag}>"
    if isinstance(value, list):
        return "\n".join(element(name, part, depth) for part in value)
    return f"{pad}<{tag}/>" if value is None else f"{pad}<{tag}>{escape(shown(value))}</{tag}>"


def feed(h: Hand) -> str:
    items = "".join(f"  <item>\n    <title>{escape(topic.capitalize())}</title>\n    <link>https://news.example.org/{h.number(1, 9999)}</link>\n    <pubDate>{h.moment():%a, %d %b %Y %H:%M:%S} GMT</pubDate>\n  </item>\n" for topic in h.some(TOPICS, 1, 4))  # fmt: skip
    return f'<rss version="2.0">\n<channel>\n  <title>{escape(h.pick(COMPANIES))}</title>\n{items}</channel>\n</rss>'


def drawing(h: Hand) -> str:
    shapes = "\n".join(h.pick((f'  <rect x="{h.number(0, 90)}" y="{h.number(0, 90)}" width="{h.number(4, 40)}" height="{h.number(4, 40)}" fill="{h.pick(COLOURS)}"/>', f'  <circle cx="{h.number(0, 99)}" cy="{h.number(0, 99)}" r="{h.number(2, 30)}" stroke="{h.pick(COLOURS)}" fill="none"/>', f'  <path d="M{h.number(0, 99)} {h.number(0, 99)} L{h.number(0, 99)} {h.number(0, 99)} h{h.number(1, 20)} v-{h.number(1, 20)} z"/>')) for _ in range(h.number(1, 6)))  # fmt: skip
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100">\n{shapes}\n</svg>'


def attributed(h: Hand) -> str:
    names, rows = h.pick(CONTENTS)(h)
    lines = ["  <row " + " ".join(f"{key.replace('_', '-')}={quoteattr(shown(value))}" for key, value in entry.items()) + "/>" for entry in keyed(names, rows)]  # fmt: skip
    return "\n".join(['<?xml version="1.0" encoding="UTF-8"?>', "<rows>", *lines, "</rows>"])


def nested(h: Hand) -> str:
    names, rows = h.pick(CONTENTS)(h)
    head = '<?xml version="1.0"?>\n' if h.chance(0.5) else ""
    return head + element("list", {"entry": keyed(names, rows)[:5]})


def settings(h: Hand) -> str:
    inner = "\n".join(f'  <property name="{name}.{h.pick(("host", "port", "timeout", "retries"))}" value="{h.number(1, 9000)}"/>' for name in h.some(SERVICES, 1, 6))  # fmt: skip
    return f"<configuration>\n  <!-- {h.sentence()} -->\n{inner}\n</configuration>"


def xml_of(h: Hand, count: int) -> list[str]:
    return [h.pick((feed, drawing, attributed, nested, nested, settings))(h) for _ in range(count)]
