"""Lists and headings: bulleted, numbered, nested, checked off; tables of contents, outlines, agendas, menus."""

from __future__ import annotations

from words import (
    ADJECTIVES,
    ANIMALS,
    CITIES,
    COLOURS,
    DAYS,
    FIRST,
    FOODS,
    INSTRUMENTS,
    JOBS,
    LAST,
    MATERIALS,
    MONTHS,
    PLACES,
    PLANTS,
    PRODUCTS,
    SERVICES,
    TOOLS,
    TOPICS,
    VERBS,
    Hand,
)

GROUPS = {
    "animals": ANIMALS, "plants": PLANTS, "foods": FOODS, "tools": TOOLS, "trades": JOBS, "instruments": INSTRUMENTS, "colours": COLOURS,
    "cities": CITIES, "materials": MATERIALS, "months": MONTHS, "days": DAYS, "first names": FIRST, "surnames": LAST, "places": PLACES,
    "things to buy": PRODUCTS, "verbs": VERBS, "adjectives": ADJECTIVES, "services": SERVICES, "subjects": TOPICS,
}  # fmt: skip


def roman(number: int) -> str:
    text = ""
    for value, sign in ((10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")):
        while number >= value:
            text, number = text + sign, number - value
    return text


def bulleted(h: Hand, items: list[str]) -> str:
    mark = h.pick(("- ", "* ", "• ", "+ ", "– ", "  - ", "1", "1)", "a", "I", "[ ] ", "- [x] ", "\t", "", "#"))
    marks = {"1": lambda k: f"{k + 1}. ", "1)": lambda k: f"{k + 1}) ", "a": lambda k: f"({chr(97 + k)}) ", "I": lambda k: f"{roman(k + 1)}. ", "#": lambda k: f"#{k + 1} "}  # fmt: skip
    return "\n".join(marks.get(mark, lambda _: mark)(k) + item for k, item in enumerate(items))


def words(h: Hand) -> str:
    name = h.pick([*GROUPS])
    items = h.some(GROUPS[name], 3, min(18, len(GROUPS[name])))
    if h.chance(0.3):
        return h.pick((", ", "; ", " ", " / ", ",", "\n")).join(items)
    title = h.pick(("", "", f"{name.capitalize()}:\n", f"Some {name}\n\n", f"# {name.title()}\n\n"))
    return title + bulleted(h, items)


def to_do(h: Hand) -> str:
    items = [h.pick((f"{h.pick(VERBS)} the {h.pick(PLACES)}", f"call {h.name()}", f"buy {h.pick(FOODS)} and {h.pick(FOODS)}", f"{h.pick(VERBS)} {h.phrase()}", f"pay {h.price()}", f"read about {h.pick(TOPICS)}")) for _ in range(h.number(3, 9))]  # fmt: skip
    return h.pick(("To do\n", "", f"{h.pick(DAYS)}:\n", "TODO:\n")) + "\n".join(
        f"{h.pick(('[ ]', '[x]', '-', '-'))} {item}" for item in items
    )


def shopping(h: Hand) -> str:
    return bulleted(
        h, [f"{h.number(1, 12)} {h.pick(('', 'kg ', 'bags of ', 'tins of '))}{food}" for food in h.some(FOODS, 4, 12)]
    )


def nested(h: Hand) -> str:
    lines = []
    for name in h.some([*GROUPS], 2, 4):
        lines.append(f"- {name}")
        for item in h.some(GROUPS[name], 2, 4):
            lines.append(f"  - {item}")
            if h.chance(0.15):
                lines.append(f"    - {h.pick(ADJECTIVES)}")
    return "\n".join(lines)


def steps(h: Hand) -> str:
    acts = [f"{h.pick(VERBS).capitalize()} the {h.pick((*TOOLS, *FOODS, *PRODUCTS))}{h.pick(('', ' carefully', f' for {h.number(2, 40)} minutes', ' and let it rest', ' until it is dry'))}." for _ in range(h.number(3, 8))]  # fmt: skip
    return "\n".join(h.pick(("Step {0}: {1}", "{0}. {1}", "{0}) {1}")).format(k + 1, act) for k, act in enumerate(acts))


def index(h: Hand) -> str:
    return "\n".join(f"{entry}, {', '.join(map(str, sorted(h.sample(range(1, 400), h.number(1, 4)))))}" for entry in sorted(h.some([*ANIMALS, *PLANTS, *TOPICS, *PLACES], 5, 14)))  # fmt: skip


def sources(h: Hand) -> str:
    return "\n".join(h.pick((f"[{k + 1}] {h.name()}. {h.pick(TOPICS).capitalize()}. {h.pick(CITIES)}, {h.number(1920, 2024)}.", f"{h.pick(LAST)}, {h.pick('ABCDEFGHJKLM')}. ({h.number(1920, 2024)}). {h.pick(TOPICS).capitalize()}, pp. {h.number(1, 90)}–{h.number(91, 300)}.")) for k in range(h.number(2, 7)))  # fmt: skip


def lists(h: Hand, count: int) -> list[str]:
    kinds = (words, words, words, to_do, shopping, nested, steps, index, sources)
    return [h.pick(kinds)(h) for _ in range(count)]


PARTS = ("Introduction", "Background", "Materials", "Methods", "Results", "Discussion", "Summary", "Outlook", "Appendix", "Glossary", "Getting started", "Installation", "Configuration", "Usage", "Examples", "Frequently asked questions", "Troubleshooting", "Reference", "Changes", "Licence", "Opening hours", "How to find us", "Prices", "Contact", "Our team", "Terms of use")  # fmt: skip


def title(h: Hand) -> str:
    topic, place, city = h.pick(TOPICS), h.pick(PLACES), h.pick(CITIES)
    return h.pick((
        topic.capitalize(), topic.title(), f"{h.pick(ADJECTIVES).capitalize()} {h.pick(ANIMALS)}s of {city}", f"Chapter {h.number(1, 30)}. {topic.capitalize()}",
        f"{city}: {place} reopens after {h.number(2, 30)} years", f"Why {h.pick(ANIMALS)}s {h.pick(VERBS)}", f"How to {h.pick(VERBS)} a {h.pick(PRODUCTS)}", f"{h.pick(PARTS)} and {h.pick(PARTS).lower()}",
        f"Five ways to {h.pick(VERBS)} your {place}", f"{h.name()} ({h.number(1820, 1930)}–{h.number(1931, 2020)})", f"The {h.pick(COLOURS)} {place}", f"§ {h.number(1, 90)} {h.pick(PARTS)}",
    ))  # fmt: skip


def contents(h: Hand) -> str:
    page, lines = 1, []
    for k, part in enumerate(h.some(PARTS, 4, 9)):
        lines.append(f"{k + 1} {part} {'.' * (50 - len(part))} {page}")
        for m in range(h.number(0, 2)):
            lines.append(f"  {k + 1}.{m + 1} {h.pick(TOPICS).capitalize()} ... {page + m + 1}")
        page += h.number(2, 30)
    return "\n".join(lines)


def outline(h: Hand) -> str:
    lines = []
    for k, part in enumerate(h.some(PARTS, 3, 7)):
        mark = h.pick(("## ", "= ", "")) if k == 0 else mark  # noqa: F821 (one mark for all)
        lines += [f"{mark}{part}", ""] if mark else [part, h.pick("-=~") * len(part), ""]
        if h.chance(0.5):
            lines += [h.sentence(), ""]
        if h.chance(0.4):
            lines += [f"{'#' + mark if mark.startswith('#') else mark}{title(h)}", ""]
    return "\n".join([f"# {title(h)}\n", *lines] if h.chance(0.4) else lines).strip()


def agenda(h: Hand) -> str:
    return f"{h.pick(('Agenda', 'Programme', 'Order of the day'))}, {h.date()}\n\n" + "\n".join(f"{8 + k}:{h.pick(('00', '15', '30'))}  {h.pick((title(h), h.pick(PARTS), 'Break', 'Lunch'))}" for k in range(h.number(3, 8)))  # fmt: skip


def menu(h: Hand) -> str:
    return "\n".join(
        f"{h.pick(ADJECTIVES).capitalize()} {h.pick(FOODS)} with {h.pick(FOODS)} {'.' * h.number(3, 20)} {h.price(3, 30)}"
        for _ in range(h.number(3, 8))
    )


def headings(h: Hand, count: int) -> list[str]:
    kinds = (title, title, title, contents, outline, outline, outline, agenda, menu)
    return [h.pick(kinds)(h) for _ in range(count)]
