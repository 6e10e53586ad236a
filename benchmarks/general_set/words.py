"""Words that written text is made of, and a seeded hand that draws among them."""

from __future__ import annotations

import datetime
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

FIRST = """Amira Anders Beatriz Chen Chidi Clara Dmitri Elena Fatima Farid Grace Hana Henrik Ines Ivan Jamal Joana Kaito
Katarzyna Lars Leila Lucía Malik Marta Mei Nadia Nils Noor Olga Omar Paolo Petra Priya Rafael Ravi Rosa Ruth Samuel Sanne
Sofia Tariq Tomas Uma Viktor Wanjiru Yara Yusuf Zoltán Agnes Bruno Daniel Edith Felix Gareth Helen Imogen Jonas""".split()
LAST = """Abbott Andersson Banerjee Becker Castillo Costa Dubois Eriksen Farouk Ferrari Fischer Fontaine García Haddad
Hansen Hoffmann Ibrahim Ito Jansen Kaya Kim Kowalski Larsen Li Lindqvist Lopes Mbeki Meyer Moreau Murphy Nakamura Novak
Nowak O'Brien Okafor Olsen Patel Pereira Petrov Popescu Rahman Ricci Rossi Sato Schmidt Silva Singh Sokolov Suzuki Tan
Tanaka Varga Virtanen Weber Wood Yılmaz Zhang Zimmermann""".split()
CITIES = """Aarhus Accra Adelaide Antwerp Bergen Bogotá Bologna Brno Cork Cusco Dakar Durban Ghent Graz Hanoi Izmir Kigali
Kraków Kyoto Leeds Lima Lyon Malmö Medellín Montréal Mumbai Nantes Oslo Perth Porto Quito Riga Sapporo Seville Tallinn
Tampere Tbilisi Utrecht Valencia Wellington York Zagreb""".split()
STREETS = """Harbour Mill Station Church Garden Orchard Bridge Market Castle River Linden School Chapel Meadow Forge
Quarry Park Abbey Hill Tower""".split()
COMPANIES = [
    "Northwind Logistics", "Alder & Finch", "Kestrel Software", "Bluewater Ceramics", "Orbis Press", "Halden Optics",
    "Quayside Bakery", "Meridian Rail", "Tallow & Sons", "Pinnacle Outdoor", "Verde Seeds", "Larkspur Hotels",
    "Copperfield Tools", "Ostwind Energie", "Atelier Moreau", "Sable Instruments", "Fjord Seafood", "Juniper Dental",
]  # fmt: skip
PRODUCTS = [
    "desk lamp", "ceramic mug", "rain jacket", "bicycle pump", "wool blanket", "mechanical keyboard", "garden hose",
    "paper notebook", "steel kettle", "folding chair", "head torch", "chess set", "water filter", "oak shelf",
    "sewing kit", "wall clock", "USB hub", "tea strainer", "hiking socks", "bread knife", "watering can", "tape measure",
    "picture frame", "door mat", "pepper mill", "phone stand", "linen apron", "travel pillow", "cutting board", "whistle",
]  # fmt: skip
COLOURS = "amber black blue bronze brown coral cream crimson green grey indigo ivory olive red silver teal white yellow".split()
MATERIALS = (
    "aluminium bamboo brass cardboard ceramic cork cotton glass leather linen oak pine rubber silk steel wool".split()
)
ANIMALS = """badger beaver bison cormorant crane donkey eel falcon ferret gecko goose hedgehog heron ibex jackdaw kestrel
lynx magpie marten mole newt otter owl pelican pike puffin rabbit raven salmon seal shrew sparrow stoat swan tortoise
trout vole walrus wasp wren""".split()
PLANTS = """alder aster basil beech birch borage chestnut clover crocus daisy dill elder fennel fern foxglove hawthorn
hazel heather holly iris ivy juniper larch lavender leek lily maple mint nettle oak oregano parsley pear plum poppy rowan
sage sorrel spruce thistle thyme tulip violet willow yarrow yew""".split()
FOODS = """almonds apricots barley beetroot butter cabbage carrots celery cheese chickpeas cinnamon couscous cream
cucumber dates eggs figs flour garlic ginger honey kale lemons lentils mushrooms mustard noodles olives onions paprika
peas peppers potatoes pumpkin raisins rice saffron spinach squash tofu tomatoes vinegar walnuts yeast yogurt""".split()
TOOLS = (
    "chisel clamp drill file hammer ladder level mallet plane pliers rasp ruler saw screwdriver spanner vice".split()
)
INSTRUMENTS = "accordion bassoon cello clarinet drum flute guitar harp horn lute oboe organ piano trumpet viola".split()
JOBS = """architect baker botanist bricklayer carpenter chemist cook dentist economist editor electrician farmer gardener
geologist glazier historian interpreter joiner judge librarian locksmith mason mechanic midwife nurse optician painter
pharmacist pilot plumber potter printer roofer sailor surveyor tailor teacher translator vet weaver welder""".split()
DOMAINS = ["example.com", "example.org", "example.net", "mail.example", "corp.example", "lab.example", "shop.example"]
SERVICES = """auth billing cache catalog checkout cron gateway geocoder inventory mailer metrics orders payments proxy
queue reports scheduler search sessions storage thumbnails users webhooks worker""".split()
ADJECTIVES = """brief bright calm careful cheap clever cold common cosy damp dark dense dry eager early empty faint fair
famous fine firm flat fresh gentle gloomy grand handy harsh heavy hollow honest huge keen late lively lonely loud mild
narrow neat noisy odd plain proud quick quiet rare rough rusty sharp shy silent slow smooth soft solid steady steep
stiff strange sturdy sunny sweet tall thin tidy tiny vast warm wide wild wise""".split()
VERBS = """admire arrange avoid bake borrow build carry catch chase choose clean climb collect compare count cover cross
deliver describe discover draw escape explain explore feed find fix follow forget gather greet guard guess hide hold
ignore imagine invent join kick lift lose measure mend mix notice offer open order paint plant polish prepare promise
protect pull push question repair rescue return save sell share sketch solve spill study swap teach throw tie touch
translate trust visit wash watch weigh wrap write""".split()
PLACES = """attic balcony barn bay beach bridge canal cave cellar chapel cliff courtyard dam desert farm ferry field
forest garden glacier harbour hill hostel island kitchen lake library lighthouse marsh meadow mill museum orchard palace
pier quarry river school square station stable studio tower tunnel valley village workshop yard""".split()
TOPICS = [
    "the history of paper", "how bees find their way", "repairing a wooden chair", "tides and the moon",
    "the price of bread", "night trains in Europe", "learning to swim as an adult", "the first printed maps",
    "growing tomatoes on a balcony", "how bridges are inspected", "the taste of mineral water", "songs of whales",
    "keeping a travel diary", "the invention of the zip", "why leaves turn red", "choosing a bicycle",
    "making soap at home", "lighthouses and their keepers", "reading the clouds", "the mathematics of knots",
    "restoring old photographs", "the life of a postage stamp", "sourdough for beginners", "how glaciers move",
    "public libraries at night", "the sound of old instruments", "school gardens", "canals and their locks",
]  # fmt: skip
MONTHS = """January February March April May June July August September October November December""".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


class Hand(random.Random):
    """A generator of random numbers that draws words."""

    def pick(self, among: Sequence[T]) -> T:
        return among[int(self.random() * len(among))]

    def some(self, among: Sequence[T], low: int, high: int | None = None) -> list[T]:
        """Return `low`, or from `low` to `high`, different ones, or all that there are."""
        return self.sample(list(among), min(self.number(low, high or low), len(among)))

    def number(self, low: int, high: int) -> int:
        return low + int(self.random() * (high - low + 1))

    def chance(self, share: float) -> bool:
        return self.random() < share

    def name(self) -> str:
        return f"{self.pick(FIRST)} {self.pick(LAST)}"

    def email(self, name: str | None = None) -> str:
        plain = "".join(c for c in (name or self.name()).lower().replace(" ", ".") if c.isascii() and c != "'")
        return f"{plain}@{self.pick(DOMAINS)}"

    def day(self) -> datetime.date:
        return datetime.date(self.number(1988, 2025), self.number(1, 12), self.number(1, 28))

    def moment(self) -> datetime.datetime:
        clock = datetime.time(self.number(0, 23), self.number(0, 59), self.number(0, 59), self.number(0, 999) * 1000)
        return datetime.datetime.combine(self.day(), clock)

    def date(self) -> str:
        day = self.day()
        month = MONTHS[day.month - 1]
        return self.pick(
            (
                day.isoformat(),
                f"{day.day} {month} {day.year}",
                f"{month} {day.day}, {day.year}",
                f"{day.day}.{day.month}.{day.year}",
            )
        )

    def clock(self) -> str:
        hour, minute = self.number(6, 22), self.pick((0, 0, 15, 30, 30, 45))
        return self.pick((f"{hour}:{minute:02}", f"{(hour - 1) % 12 + 1}:{minute:02} {'am' if hour < 12 else 'pm'}"))

    def price(self, low: int = 2, high: int = 400) -> str:
        value = self.number(low * 100, high * 100) / 100
        return self.pick((f"€{value:.2f}", f"${value:.2f}", f"£{value:.2f}", f"{value:.2f} EUR", f"{value:.0f} kr"))

    def address(self) -> str:
        return (
            f"{self.number(1, 190)} {self.pick(STREETS)} {self.pick(('Street', 'Road', 'Lane'))}, {self.pick(CITIES)}"
        )

    def ip(self) -> str:
        return self.pick(
            (
                f"192.0.2.{self.number(1, 254)}",
                f"198.51.100.{self.number(1, 254)}",
                f"10.0.{self.number(0, 9)}.{self.number(1, 254)}",
            )
        )

    def hex(self, digits: int) -> str:
        return "".join(self.pick("0123456789abcdef") for _ in range(digits))

    def phrase(self) -> str:
        return f"the {self.pick(ADJECTIVES)} {self.pick((*ANIMALS, *PLANTS, *PRODUCTS))}"

    def sentence(self) -> str:
        """Return a plain sentence about people, things and places."""
        who, what, where = self.pick(FIRST), self.pick(PRODUCTS), self.pick(PLACES)
        thing = self.phrase()
        article = "an" if what[0] in "aeiou" else "a"
        made = self.pick((
            f"{who} left {article} {what} in the {where}",
            f"Nobody had seen {thing} since {self.pick(DAYS)}",
            f"The {where} was closed, so {who} and {self.pick(FIRST)} walked on to the {self.pick(PLACES)}",
            f"{thing.capitalize()} stood beside the {where}",
            f"In {self.pick(MONTHS)} the {where} is {self.pick(ADJECTIVES)} and nearly empty",
            f"{who} wants to {self.pick(VERBS)} {thing} before it gets dark",
            f"You can {self.pick(VERBS)} it, but you should not {self.pick(VERBS)} it twice",
            f"There are {self.number(2, 60)} {self.pick(ANIMALS)}s on the {where}",
            f"My {self.pick(('aunt', 'brother', 'neighbour', 'teacher', 'cousin'))} works as {self._job()} in {self.pick(CITIES)}",
            f"It took {self.number(2, 40)} {self.pick(('minutes', 'days', 'weeks', 'years'))} to {self.pick(VERBS)} the {where}",
            f"“I never {self.pick(VERBS)} on a {self.pick(DAYS)},” said {who}",
            f"The {what} is {self.pick(COLOURS)}, made of {self.pick(MATERIALS)}, and costs {self.price()}",
            f"Who would {self.pick(VERBS)} {article} {self.pick(ADJECTIVES)} {what} at {self.clock()}",
            f"If it rains on {self.pick(DAYS)}, we will {self.pick(VERBS)} in the {where} instead",
        ))  # fmt: skip
        return made + ("?" if made.startswith("Who") else ".")

    def _job(self) -> str:
        job = self.pick(JOBS)
        return f"{'an' if job[0] in 'aeiou' else 'a'} {job}"
