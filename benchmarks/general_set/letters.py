"""Mails, notices and short messages, formal and not, in several languages, with headers, quotes and signatures or none."""

from __future__ import annotations

from words import CITIES, COMPANIES, DAYS, FIRST, JOBS, PLACES, PRODUCTS, SERVICES, TOPICS, Hand

# Subject and body; {…} is filled from `slots`.
BODIES = (
    ("Your order {number}", "Dear {name},\n\nThank you for your order of {date}. The {product} left our warehouse in {city} this morning and should reach you within {small} working days. You can follow it under the number {code}.\n\nIf anything is missing, simply answer this message."),
    ("Re: {product}", "Hello {first},\n\nthe {product} arrived today, but the box was open and one part is missing. Could you send it on, or should I return everything? I have kept the packaging and can take photographs.\n\nI am at home on {day} after {clock}."),
    ("Minutes of {day}", "Hi all,\n\nhere is what we agreed on:\n\n- {first} looks into the {service} problem and reports on {day}\n- the {place} stays closed until it has been repaired\n- nobody merges into the release branch after {clock}\n\nTell me if I forgot something."),
    ("Invoice {code}", "Dear Sir or Madam,\n\nPlease find attached our invoice {code} for {price}. It is payable within {days} days without deduction. Kindly state the invoice number with your transfer.\n\nWe thank you for your confidence and remain at your disposal for any questions."),
    ("dinner?", "hey {first}, are you around on {day}? we are cooking at my place, around {clock}. bring nothing, or bring bread. {other} is coming too and has promised to tell us about {city}"),
    ("Maintenance of {service}", "The service {service} will be unavailable on {date} between {clock} and {clock2}. Jobs that are running at that time will be stopped and started again afterwards. No action is needed on your side.\n\nThe operations team"),
    ("Application as {job}", "Dear {name},\n\nI am writing to apply for the position of {job} that you advertised on {date}. For the past {small} years I have worked for {company} in {city}, where I was responsible for {topic}. I would welcome the chance to tell you more in person.\n\nMy references are attached."),
    ("Question about your talk", "Dear {name},\n\nI heard your talk on {topic} last week and enjoyed it very much. One thing I did not understand: you said that the effect disappears when the sample is dried. Does that also hold at lower temperatures? We see the opposite in our laboratory.\n\nI would be grateful for a pointer to the literature."),
    ("[{service}] build failed", "The build #{number} of branch `{service}-fix` failed after {small} minutes.\n\nFirst error:\n\n    {service}/main.c:{number}: undefined reference to `{service}_open'\n\nLast good build: #{smaller}"),
    ("Lost: {product}", "On {day} I left a {product} in the {place}, probably near the entrance. It is of no value to anybody else, but it was a present from my grandmother. If you have found it, please write to me or leave it at the desk."),
    ("Newsletter of {company}", "Good morning!\n\nIn this issue:\n\n1. {topic}\n2. Visit us in {city}\n3. A new {product}, now for {price}\n\nYou receive this letter because you asked for it. To stop it, follow the link below."),
    ("Rent from {month}", "Dear tenants,\n\nas from {month} the advance payment for heating rises by {price} a month. The reason is the higher price of gas. The yearly account will be sent to you in spring, as always.\n\nThe house will be inspected on {date}; please make sure that the cellars are open."),
    ("Re: Re: holiday", "Sounds lovely. I would rather take the train to {city} than fly, it only takes {small} hours longer and we could read. {first} says the {place} there is worth a day. Shall I book for {day}?"),
    ("Complaint", "To whom it may concern,\n\nI waited {days} minutes for bus {small} on {date}. When it finally came it did not stop, although it was half empty. The timetable at the stop is also out of date. I expect an explanation, and I would like to know how you will make sure that this does not happen again."),
    ("Password reset", "Hi {first},\n\nsomeone asked to reset the password of your account. If it was you, use the code {number} within {days} minutes. If it was not, you can ignore this message; your password stays as it is."),
    ("Congratulations", "Dear {first},\n\nwe were delighted to hear that you have passed. All those evenings were worth it! {other} sends best wishes as well. Do come and see us when you are next in {city}; the guest room is yours."),
    ("Review of your change", "Thanks for the patch. A few remarks:\n\n> +    if (count = 0)\n\nThis assigns; you probably want `==`.\n\n> +    sleep(10);\n\nWhy ten seconds? Waiting for the event would be better.\n\nOtherwise it looks good to me."),
    ("Ihre Bestellung {number}", "Guten Tag {name},\n\nvielen Dank für Ihre Bestellung. Die Ware ist heute verschickt worden und trifft voraussichtlich in {small} Tagen bei Ihnen ein. Bitte prüfen Sie das Paket bei der Annahme auf Schäden.\n\nMit freundlichen Grüßen"),
    ("Treffen am {date}", "Hallo {first},\n\nkönnen wir das Treffen auf nächste Woche verschieben? Am {date} bin ich in {city}. Der Raum ist noch frei, ich habe schon gefragt.\n\nBis bald"),
    ("Votre demande du {date}", "Madame, Monsieur,\n\nNous avons bien reçu votre courrier et vous en remercions. Votre dossier porte le numéro {code}. Nous vous répondrons dans un délai de {small} jours ouvrables.\n\nVeuillez agréer nos salutations distinguées."),
    ("Reunión", "Hola {first}:\n\nLa reunión de mañana empieza a las {clock} y no a las nueve. Por favor, trae las cuentas del mes pasado y una copia del contrato. Si no puedes venir, avísame hoy.\n\nUn saludo"),
    ("Conferma della prenotazione", "Gentile {name},\n\nconfermiamo la Sua prenotazione di una camera doppia dal {date} per {small} notti. La colazione è compresa nel prezzo. La aspettiamo con piacere a {city}.\n\nCordiali saluti"),
    ("Afspraak", "Beste {first},\n\nde monteur komt op {date} tussen {clock} en {clock2}. Zorg ervoor dat de meterkast bereikbaar is. Komt het niet uit? Bel ons dan even.\n\nMet vriendelijke groet"),
    ("Horário da biblioteca", "Caros leitores,\n\na biblioteca estará fechada no dia {date}. Os livros podem ser devolvidos na caixa junto à entrada. Pedimos desculpa pelo incómodo.\n\nA equipa"),
)  # fmt: skip
SIGNATURES = (
    "Best regards,\n{name}",
    "Yours sincerely\n\n{name}\n{job}, {company}",
    "{first}",
    "Cheers\n{first}",
    "-- \n{name}\n{company} · {address}",
    "Kind regards,\n\n{name}\nTel. +{number}",
    "",
    "",
)
MESSAGES = (
    "Running late, start without me", "{first}: did you feed the cat?\n{other}: yes, twice", "Please bring {small} chairs to the {place}. Thx!", "OK", "the code for the door is {number}#",
    "Where are you?? We are at the {place}", "Bin gleich da, der Zug hat {days} Minuten Verspätung.", "On se voit {clock} devant la gare ?", "Happy birthday, {first}! 🎂 See you on {day}.",
    "REMINDER: your appointment is on {date} at {clock}. Reply C to confirm.", "{city} is beautiful, wish you were here. Love, {first}", "¿Puedes comprar pan y leche?", "Meeting moved to {clock}, same room.",
    "Notice: the {place} will be closed on {day} for cleaning.", "For sale: {product}, hardly used, {price}. Call {first} after {clock}.", "@{other} can you have a look at {service}? it is red again", "No parking between {clock} and {clock2}.",
)  # fmt: skip


class Slots(dict[str, str]):
    """Fills what a template asks for."""

    def __init__(self, h: Hand) -> None:
        super().__init__()
        self.h = h

    def __missing__(self, key: str) -> str:
        h = self.h
        made = {
            "name": h.name, "first": lambda: h.pick(FIRST), "other": lambda: h.pick(FIRST), "date": h.date, "clock": h.clock, "clock2": h.clock,
            "city": lambda: h.pick(CITIES), "product": lambda: h.pick(PRODUCTS), "place": lambda: h.pick(PLACES), "service": lambda: h.pick(SERVICES),
            "day": lambda: h.pick(DAYS), "month": lambda: h.day().strftime("%B"), "company": lambda: h.pick(COMPANIES), "job": lambda: h.pick(JOBS), "topic": lambda: h.pick(TOPICS),
            "number": lambda: str(h.number(1000, 999999)), "smaller": lambda: str(h.number(100, 999)), "small": lambda: str(h.number(2, 9)), "days": lambda: str(h.number(10, 40)),
            "code": lambda: f"{h.pick('RKTVX')}{h.number(10, 99)}-{h.number(1000, 9999)}", "price": h.price, "address": h.address,
        }[key]()  # fmt: skip
        return self.setdefault(key, made)


def mail(h: Hand) -> str:
    slots = Slots(h)
    subject, body = (text.format_map(slots) for text in h.pick(BODIES))
    signature = h.pick(SIGNATURES).format_map(slots)
    text = f"{body}\n\n{signature}".strip()
    if h.chance(0.2):
        quoted = "\n".join(f"> {line}".rstrip() for line in h.pick(BODIES)[1].format_map(Slots(h)).splitlines()[:6])
        text = f"{text}\n\nOn {h.date()}, {h.name()} wrote:\n{quoted}"
    sender, receiver = h.name(), h.name()
    head = h.pick((
        f"From: {sender} <{h.email(sender)}>\nTo: {receiver} <{h.email(receiver)}>\nDate: {h.moment():%a, %d %b %Y %H:%M:%S} +0100\nSubject: {subject}\n\n",
        f"Subject: {subject}\n\n", f"From: {h.email(sender)}\nTo: {h.email(receiver)}\nCc: {h.email()}\nSubject: {subject}\nMessage-ID: <{h.hex(12)}@{h.pick(('mx', 'mail'))}.example.org>\n\n",
        "", "", f"{subject}\n\n",
    ))  # fmt: skip
    return head + text


def mails(h: Hand, count: int) -> list[str]:
    return [h.pick(MESSAGES).format_map(Slots(h)) if h.chance(0.25) else mail(h) for _ in range(count)]
