"""Frames of `Key: value`, of many sorts: cards, records, headers, and short tasks with their results."""

from __future__ import annotations

from collections.abc import Callable

from words import (
    ADJECTIVES,
    ANIMALS,
    CITIES,
    COLOURS,
    COMPANIES,
    DAYS,
    FOODS,
    INSTRUMENTS,
    JOBS,
    MATERIALS,
    MONTHS,
    PLACES,
    PLANTS,
    PRODUCTS,
    SERVICES,
    TOPICS,
    VERBS,
    Hand,
)

Frame = Callable[[Hand], list[tuple[str, str]]]


def card(h: Hand) -> list[tuple[str, str]]:
    name = h.name()
    return [("Name", name), ("Job", h.pick(JOBS)), ("Phone", f"+{h.number(1, 98)} {h.number(100, 999)} {h.number(10000, 99999)}"),
            ("E-mail", h.email(name)), ("Address", h.address())]  # fmt: skip


def weather(h: Hand) -> list[tuple[str, str]]:
    low = h.number(-12, 18)
    return [("Place", h.pick(CITIES)), ("Date", h.date()), ("Low", f"{low} °C"), ("High", f"{low + h.number(2, 14)} °C"),
            ("Wind", f"{h.number(1, 14)} m/s {h.pick(('N', 'NE', 'E', 'SE', 'S', 'SW', 'W', 'NW'))}"),
            ("Sky", h.pick(("clear", "overcast", "broken clouds", "fog", "light snow", "showers")))]  # fmt: skip


def recipe(h: Hand) -> list[tuple[str, str]]:
    first, second = h.some(FOODS, 2)
    return [("Dish", f"{h.pick(('Baked', 'Braised', 'Cold', 'Pickled', 'Roast'))} {first} with {second}"),
            ("Serves", str(h.number(2, 8))), ("Preparation", f"{h.number(5, 40)} min"), ("Cooking", f"{h.number(10, 120)} min"),
            ("Ingredients", ", ".join(f"{h.number(1, 9) * 50} g {food}" for food in h.some(FOODS, 3, 6)))]  # fmt: skip


def book(h: Hand) -> list[tuple[str, str]]:
    return [("Author", f"{h.name()}"), ("Title", h.pick(TOPICS).title()), ("Publisher", h.pick(COMPANIES)),
            ("Year", str(h.number(1890, 2024))), ("Pages", str(h.number(80, 700))), ("Shelf", f"{h.pick('ABCDEFG')}{h.number(1, 60)}.{h.number(1, 9)}")]  # fmt: skip


def request(h: Hand) -> list[tuple[str, str]]:
    return [("Host", h.pick(("www.example.org", "api.example.com", "static.example.net"))), ("Accept", h.pick(("text/html", "application/json", "*/*", "image/webp"))),
            ("Accept-Language", h.pick(("en-GB,en;q=0.9", "de-DE", "sv, en;q=0.5"))), ("Content-Length", str(h.number(0, 90000))),
            ("If-None-Match", f'"{h.hex(12)}"'), ("Connection", h.pick(("keep-alive", "close")))]  # fmt: skip


def commit(h: Hand) -> list[tuple[str, str]]:
    name = h.name()
    return [("commit", h.hex(40)), ("Author", f"{name} <{h.email(name)}>"), ("Date", h.moment().strftime("%a %b %d %H:%M:%S %Y +0100"))]  # fmt: skip


def plant(h: Hand) -> list[tuple[str, str]]:
    return [("Plant", h.pick(PLANTS)), ("Sow in", h.pick(MONTHS)), ("Light", h.pick(("full sun", "half shade", "shade"))), ("Spacing", f"{h.number(5, 80)} cm"),
            ("Water", h.pick(("daily", "weekly", "seldom", "keep moist")))]  # fmt: skip


def ticket(h: Hand) -> list[tuple[str, str]]:
    start, end = h.some(CITIES, 2)
    return [("Passenger", h.name()), ("From", start), ("To", end), ("Departure", f"{h.date()} {h.clock()}"), ("Seat", f"{h.number(1, 80)}{h.pick('ABCDEF')}"),
            ("Class", h.pick(("1", "2", "economy", "business"))), ("Fare", h.price(20, 500))]  # fmt: skip


def bug(h: Hand) -> list[tuple[str, str]]:
    return [("Summary", f"{h.pick(SERVICES)} {h.pick(('crashes', 'hangs', 'returns an empty page', 'loses its settings', 'shows the wrong total'))} after {h.pick(('an update', 'midnight', 'the second login', 'a restart', 'a large upload'))}"),
            ("Version", f"{h.number(0, 9)}.{h.number(0, 30)}.{h.number(0, 12)}"), ("Severity", h.pick(("minor", "major", "critical", "cosmetic"))),
            ("Steps", f"1. open {h.pick(SERVICES)} 2. {h.pick(VERBS)} an entry 3. wait"), ("Expected", "no error"), ("Actual", h.pick(("error 500", "a blank window", "timeout", "segmentation fault")))]  # fmt: skip


def product(h: Hand) -> list[tuple[str, str]]:
    return [("Article", h.pick(PRODUCTS)), ("SKU", f"{h.pick('KLMNPQ')}-{h.number(1000, 99999)}"), ("Colour", h.pick(COLOURS)), ("Material", h.pick(MATERIALS)),
            ("Weight", f"{h.number(20, 4000)} g"), ("Price", h.price()), ("In stock", h.pick(("yes", "no", str(h.number(1, 300)))))]  # fmt: skip


def event(h: Hand) -> list[tuple[str, str]]:
    return [("What", f"Talk: {h.pick(TOPICS)}"), ("When", f"{h.pick(DAYS)}, {h.date()}, {h.clock()}"), ("Where", f"{h.pick(PLACES).title()}, {h.address()}"),
            ("Speaker", h.name()), ("Entry", h.pick(("free", h.price(3, 30))))]  # fmt: skip


def vacancy(h: Hand) -> list[tuple[str, str]]:
    return [("Position", h.pick(JOBS)), ("Employer", h.pick(COMPANIES)), ("Location", h.pick(CITIES)), ("Hours", f"{h.number(16, 40)} a week"),
            ("Start", h.date()), ("Apply to", h.email())]  # fmt: skip


def exercise(h: Hand) -> list[tuple[str, str]]:
    return [("Session", h.pick(("run", "swim", "rowing", "cycling", "walk"))), ("Distance", f"{h.number(10, 400) / 10:.1f} km"), ("Time", f"{h.number(0, 3)}:{h.number(10, 59)}:{h.number(10, 59)}"),
            ("Pulse", f"{h.number(98, 175)} bpm"), ("Notes", h.sentence())]  # fmt: skip


def track(h: Hand) -> list[tuple[str, str]]:
    return [("Track", f"{h.number(1, 18):02}"), ("Artist", f"{h.name()} Trio"), ("Album", h.phrase().title()), ("Instrument", h.pick(INSTRUMENTS)),
            ("Length", f"{h.number(1, 9)}:{h.number(10, 59)}"), ("Key", h.pick(("C major", "A minor", "E♭ major", "F♯ minor", "D major")))]  # fmt: skip


def package(h: Hand) -> list[tuple[str, str]]:
    service = h.pick(SERVICES)
    return [("Package", f"lib{service}{h.number(1, 9)}"), ("Architecture", h.pick(("amd64", "arm64", "all"))), ("Version", f"{h.number(0, 6)}.{h.number(0, 40)}-{h.number(1, 4)}"), ("Maintainer", f"{h.name()} <{h.email()}>"),
            ("Depends", ", ".join(f"lib{name}" for name in h.some(SERVICES, 2, 4))), ("Description", f"{h.pick(ADJECTIVES)} library for {service}")]  # fmt: skip


def measurement(h: Hand) -> list[tuple[str, str]]:
    return [("Sample", f"S{h.number(100, 999)}"), ("Taken at", h.moment().isoformat(timespec="minutes")), ("pH", f"{h.number(40, 95) / 10}"), ("Conductivity", f"{h.number(50, 1900)} µS/cm"),
            ("Turbidity", f"{h.number(1, 400) / 10} NTU"), ("Operator", h.name())]  # fmt: skip


def house(h: Hand) -> list[tuple[str, str]]:
    return [("Rooms", str(h.number(1, 7))), ("Area", f"{h.number(24, 240)} m²"), ("Built", str(h.number(1870, 2022))), ("Heating", h.pick(("gas", "heat pump", "district heating", "wood stove"))),
            ("Rent", f"{h.price(300, 2500)} a month"), ("Free from", h.date())]  # fmt: skip


def animal(h: Hand) -> list[tuple[str, str]]:
    return [("Species", h.pick(ANIMALS)), ("Number seen", str(h.number(1, 120))), ("Habitat", h.pick(PLACES)), ("Observer", h.name()), ("Remarks", h.sentence())]  # fmt: skip


def song(h: Hand) -> list[tuple[str, str]]:
    return [("T", h.phrase().title()), ("C", h.pick(("trad.", h.name()))), ("M", h.pick(("4/4", "3/4", "6/8"))), ("L", "1/8"), ("K", h.pick(("G", "D", "Am", "Em")))]  # fmt: skip


def shortcut(h: Hand) -> list[tuple[str, str]]:
    name = h.pick(SERVICES)
    return [("Type", "Application"), ("Name", name.title()), ("Exec", f"/usr/bin/{name} %U"), ("Icon", name), ("Terminal", h.pick(("true", "false"))), ("Categories", "Utility;")]  # fmt: skip


def minutes(h: Hand) -> list[tuple[str, str]]:
    return [("Meeting", f"{h.pick(SERVICES)} team"), ("Present", ", ".join(h.name() for _ in range(h.number(2, 5)))), ("Decided", h.sentence()),
            ("Open", f"who will {h.pick(VERBS)} the {h.pick(PLACES)}"), ("Next", f"{h.pick(DAYS)} {h.clock()}")]  # fmt: skip


def letterhead(h: Hand) -> list[tuple[str, str]]:
    return [("Our ref", f"{h.hex(4).upper()}/{h.number(10, 99)}"), ("Your ref", h.date()), ("Subject", h.pick(TOPICS)), ("Attachments", str(h.number(0, 4)))]  # fmt: skip


RECORDS: tuple[Frame, ...] = (
    card, weather, recipe, book, request, commit, plant, ticket, bug, product, event, vacancy, exercise, track, package,
    measurement, house, animal, song, shortcut, minutes, letterhead,
)  # fmt: skip

UNITS = (
    ("km", "m", 1000),
    ("kg", "g", 1000),
    ("hours", "minutes", 60),
    ("weeks", "days", 7),
    ("m", "cm", 100),
    ("litres", "ml", 1000),
    ("dozen", "pieces", 12),
)
OPPOSITES = """hot/cold early/late near/far heavy/light wet/dry open/closed loud/quiet sweet/bitter empty/full rough/smooth
arrive/leave buy/sell remember/forget begin/end rise/fall accept/refuse win/lose always/never above/below inside/outside
thick/thin cheap/expensive ancient/modern brave/timid narrow/wide shallow/deep""".split()
PLURALS = """mouse/mice child/children leaf/leaves city/cities box/boxes foot/feet sheep/sheep wolf/wolves tooth/teeth
knife/knives goose/geese hero/heroes piano/pianos berry/berries ox/oxen datum/data crisis/crises wife/wives""".split()
PASTS = """go/went bring/brought swim/swam think/thought write/wrote catch/caught sing/sang drive/drove fly/flew keep/kept
eat/ate build/built choose/chose fall/fell lend/lent speak/spoke teach/taught freeze/froze hold/held leave/left""".split()
COMPARED = "fast/faster/fastest good/better/best far/farther/farthest happy/happier/happiest thin/thinner/thinnest little/less/least".split()


def converted(h: Hand) -> tuple[str, str]:
    large, small, factor = h.pick(UNITS)
    number = h.number(2, 40)
    return f"{number} {large} in {small}", str(number * factor)


def paired(pairs: list[str]) -> Callable[[Hand], tuple[str, str]]:
    def one(h: Hand) -> tuple[str, str]:
        first, _, second = h.pick(pairs).partition("/")
        return first, second.replace("/", ", ")

    return one


def reversed_list(h: Hand) -> tuple[str, str]:
    items = h.some([*ANIMALS, *PLANTS, *FOODS], 3, 5)
    return ", ".join(items), ", ".join(reversed(items))


def sorted_list(h: Hand) -> tuple[str, str]:
    items = h.some([*ANIMALS, *PLANTS, *FOODS], 3, 6)
    return ", ".join(items), ", ".join(sorted(items))


def sorted_numbers(h: Hand) -> tuple[str, str]:
    items = [h.number(1, 99) for _ in range(h.number(4, 7))]
    return " ".join(map(str, items)), " ".join(map(str, sorted(items)))


def counted(h: Hand) -> tuple[str, str]:
    text = h.sentence()
    return text, str(len(text.split()))


def initials(h: Hand) -> tuple[str, str]:
    name = h.name()
    return name, ".".join(part[0] for part in name.split()) + "."


def capitals(h: Hand) -> tuple[str, str]:
    text = h.sentence()
    return text, text.upper()


def slug(h: Hand) -> tuple[str, str]:
    text = h.pick(TOPICS)
    return text.title(), text.lower().replace(" ", "-")


def short_date(h: Hand) -> tuple[str, str]:
    day = h.day()
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}", day.isoformat()


def subject_of(h: Hand) -> tuple[str, str]:
    who, place = h.name(), h.pick(PLACES)
    verb = h.pick(VERBS)
    return f"{who} will {verb} the {h.pick(ADJECTIVES)} {place} on {h.pick(DAYS)}.", f"{who} ({place})"


def completed(h: Hand) -> tuple[str, str]:
    start = h.number(1, 20)
    step = h.number(2, 12)
    return ", ".join(str(start + k * step) for k in range(4)) + ", …", str(start + 4 * step)


# What is asked for, the names of its two sides in several frames, and how one is made.
TASKS: tuple[tuple[str, tuple[tuple[str, str], ...], Callable[[Hand], tuple[str, str]]], ...] = (
    ("Give the opposite.", (("Adjective or verb", "Opposite"), ("Given", "Reverse")), paired(OPPOSITES)),
    ("Form the plural.", (("Singular", "Plural"), ("One", "Many")), paired(PLURALS)),
    ("Form the past tense.", (("Present", "Past"), ("Today", "Yesterday")), paired(PASTS)),
    ("Compare.", (("Positive", "Degrees"), ("Base form", "Then")), paired(COMPARED)),
    ("Convert the units.", (("Quantity", "Result"), ("Convert", "Into")), converted),
    ("Reverse the list.", (("In", "Out"), ("List", "Reversed")), reversed_list),
    ("Sort alphabetically.", (("Unsorted", "Sorted"), ("Items", "In order")), sorted_list),
    ("Sort the numbers.", (("Numbers", "Ascending"), ("before", "after")), sorted_numbers),
    ("Count the words.", (("Line", "Count"), ("String", "Words")), counted),
    ("Write the initials.", (("Full name", "Initials"), ("Person", "Short")), initials),
    ("Write in capitals.", (("Plain", "Capitals"), ("lower", "UPPER")), capitals),
    ("Make a file name of the title.", (("Heading", "File"), ("Page", "Slug")), slug),
    ("Write the date in ISO form.", (("Long date", "ISO"), ("Written", "Numeric")), short_date),
    ("Who, and where?", (("Report", "Who (where)"), ("Notice", "Entry")), subject_of),
    ("Go on with the series.", (("Series", "Next"), ("Sequence", "Continues")), completed),
)
LAYOUTS = ("{}: {}", "{} : {}", "{}:\t{}", "{} = {}", "{} – {}", "{}\n    {}", "**{}:** {}", "[{}] {}", "{}={}", "{} -> {}", "- {}: {}", "{}: {}", "{}: {}")  # fmt: skip


def laid_out(h: Hand, fields: list[tuple[str, str]], layout: str) -> str:
    if h.chance(0.15):
        width = max(len(key) for key, _ in fields) + 2
        return "\n".join(f"{key + ':':<{width}}{value}" for key, value in fields)
    return "\n".join(layout.format(key, value) for key, value in fields)


def cased(h: Hand, fields: list[tuple[str, str]]) -> list[tuple[str, str]]:
    case = h.pick((str, str, str, str.lower, str.upper))
    return [(case(key), value) for key, value in fields]


def record(h: Hand) -> str:
    """Return one record of a sort, or several."""
    frame, layout = h.pick(RECORDS), h.pick(LAYOUTS)
    found = []
    for _ in range(h.pick((1, 1, 1, 2, 3))):
        fields = cased(h, frame(h))
        if h.chance(0.3):
            h.shuffle(fields)
        found.append(laid_out(h, fields[: h.number(2, len(fields))], layout))
    return h.pick(("\n\n", "\n---\n", "\n\n")).join(found)


def task(h: Hand) -> str:
    """Return a short task with several examples of its results, as prompts have them."""
    says, frames, make = h.pick(TASKS)
    first, second = h.pick(frames)
    layout = h.pick(("{0}: {1}\n{2}: {3}", "{0}: {1}\n{2}: {3}\n", "{1} -> {3}", "{0} {1}, {2} {3}", "{0}: {1} | {2}: {3}", "<{0}>{1}</{0}> <{2}>{3}</{2}>"))  # fmt: skip
    lines = [
        layout.format(first, given, second, made) for given, made in (make(h) for _ in range(h.pick((1, 2, 3, 4, 6))))
    ]
    head = f"{says}\n\n" if h.chance(0.5) else ""
    return head + "\n".join(lines).strip()


def frames(h: Hand, count: int) -> list[str]:
    return [record(h) if h.chance(0.6) else task(h) for _ in range(count)]
