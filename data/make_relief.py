"""Synthetic emergency relief text: a pretraining corpus and the rows of a routing task.

    python data/make_relief.py corpus --documents 100000 --seed 0 --out corpus.jsonl
    python data/make_relief.py triage --rows 600 --seed 1 --out data/triage.jsonl

The same seed always gives the same rows. Places, agencies and events are invented.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

# Domain: title; items that a report can ask for.
DOMAINS = """
shelter: shelter; tents, tarpaulins, blankets, sleeping mats, roofing sheets, tent poles, mattresses, ground sheets
triage: triage; stretchers, triage tags, first aid kits, bandages, splints, triage nurses, surgeons, ambulances
water_sanitation: water and sanitation; jerrycans, chlorine tablets, latrines, water trucks, hand pumps, \
water filters, soap bars, buckets
food_nutrition: food and nutrition; rice bags, lentil sacks, cooking pots, ration packs, biscuits, flour sacks, \
oil cans, milk tins
logistics: logistics; trucks, pallets, forklifts, drivers, fuel drums, cargo nets, trailers, storage tents
search_rescue: search and rescue; rescue dogs, cutting tools, divers, hard hats, ladders, listening devices, \
climbers, lifting bags
communications: communications; radios, satellite phones, antennas, batteries, solar chargers, loudspeakers, \
phone masts, signal cables
health_epidemics: health; vaccines, rehydration salts, mosquito nets, test kits, gloves, doctors, face masks, antibiotics
protection_children: child protection; tracing forms, play tents, school kits, child carers, cots, toys, safe rooms, \
name bracelets
cash_assistance: cash assistance; vouchers, cash grants, bank cards, cash envelopes, pay points, market monitors, \
price lists, mobile payments
coordination: coordination; liaison officers, meeting rooms, contact lists, duty rosters, whiteboards, maps, \
note takers, translators
needs_assessment: needs assessment; survey teams, survey forms, tablet computers, interviewers, interview guides, \
sample lists, drones, measuring tapes
security_access: security and access; escorts, guards, deminers, travel passes, barriers, armoured cars, \
safety briefings, flood lights
psychosocial: psychosocial support; counsellors, listening groups, helplines, quiet rooms, group sessions, art sets, \
peer helpers, support visits
evacuation_early_warning: evacuation and early warning; buses, sirens, boats, flood gauges, route signs, life jackets, \
assembly points, warning flags
recovery_livelihoods: recovery and livelihoods; seeds, hoes, fishing nets, goats, tool sets, sewing machines, ploughs, \
repair grants
"""

# General questions with short answers: "domain" lines, then "question? answer" lines.
GENERAL = """
shelter
How much covered space does one person need? At least 3.5 square metres.
Where should a camp not be built? On ground that floods or slides.
What keeps a tent dry inside? A ground sheet and a drain around it.
Who should get shelter first? Families without a roof, then the old and the sick.
Why leave gaps between tents? To slow fire and let people pass.
triage
What does a red tag mean? The person needs care at once.
What does a yellow tag mean? The person needs care soon but can wait.
What does a green tag mean? The person can walk and can wait.
What does a black tag mean? The person is dead or cannot be saved.
What is checked first in triage? Walking, then breathing, pulse and response.
water_sanitation
How much water does one person need each day? About 15 litres.
How many people may share one toilet? At most 20.
How many people may share one tap? At most 250.
How is water made safe to drink? Filter it, then add chlorine or boil it.
How far should a latrine be from a well? At least 30 metres.
food_nutrition
How much energy does one person need each day? About 2100 kilocalories.
What is best for a baby under six months? Breast milk only.
What does an arm band measure? The upper arm of a child, to find malnutrition.
Which arm size means severe malnutrition? Less than 115 millimetres.
How should food be stored? Dry, off the floor and away from walls.
logistics
What does a waybill show? What was sent, how much, by whom and to where.
What leaves the store first? The goods that expire first.
Why count goods on arrival? To find loss and damage early.
What must every driver carry? A waybill, a radio and a route plan.
What is a hub? A store where goods are sorted and sent on.
search_rescue
When are most people found alive? In the first 72 hours.
What comes before entering a ruin? A check of the structure, gas and power.
Why keep silence on a site? To hear people who call or knock.
How is a searched building marked? With paint: team, date and result.
Who decides to stop a search? The local authority, with the teams.
communications
What should a radio message have? Who calls, who is called, and a short text.
What works when phone masts fail? Satellite phones and VHF radio.
How are rumours met? With quick, plain and true news.
Why repeat a message back? To be sure that it was heard right.
How do people send complaints? By a hotline, a help table or a box.
health_epidemics
What is the first treatment for cholera? Rehydration, by mouth if the person can drink.
How does cholera spread? By unsafe water and food.
How is malaria prevented? With treated nets and fewer mosquitoes.
Which vaccine comes first in a camp? The measles vaccine.
What stops many infections? Washing hands with soap.
protection_children
What comes first for a child alone? Safety, then tracing the family.
Who may take a child away? Only checked family or a child protection worker.
Why keep siblings together? It protects them and calms them.
What is a safe space? A place where children can play and learn under care.
How are names of children kept? In secret files that few people can open.
cash_assistance
When does cash work well? When markets work and roads are safe.
What is a voucher? A paper or card that buys certain goods.
What is checked before paying cash? Prices, markets, safety and the list of people.
Why watch prices? Cash loses value when prices rise.
How is double payment avoided? With one list and a check of identity.
coordination
What does a 3W list show? Who does what, where.
Why do agencies meet? To share plans and close gaps.
Who leads the response? The national authority, if it can.
What is a cluster? A group of agencies that work in one sector.
What should minutes show? Decisions, names and dates.
needs_assessment
What comes first in an assessment? Data that others already have.
Who should be asked? Women, men, children, old people and people with disabilities.
What is a sample? A part of the people that stands for all.
Why ask several people? One view can be wrong.
How soon is the first assessment done? In the first three days.
security_access
What is done before a trip? A check of the route and a call to base.
What should a team do near mines? Stop, go back on its own tracks and call.
What keeps aid workers safe? Acceptance by the people, and clear rules.
When does a convoy turn back? When the route is not safe.
What is safe access? Aid can reach people, and people can reach aid.
psychosocial
What are the steps of psychological first aid? Look, listen and link.
What helps after a shock? Calm, safety, contact and rest.
Should people be pressed to talk? No, let them choose.
Who needs more care? A person who may harm themselves or others.
How do helpers stay well? With rest, teams and someone to talk to.
evacuation_early_warning
When should people leave? Early, before the road is cut.
What should a warning say? What comes, when, where and what to do.
What goes in a grab bag? Water, papers, medicine, a light and a radio.
Where do people go in a tsunami? To high ground, at once and on foot.
Who needs help to leave? The sick, the old, small children and people with disabilities.
recovery_livelihoods
When does recovery start? In the first days, along with relief.
What do farmers need after a flood? Seeds, tools and dry land.
What is cash for work? Pay for jobs that repair the area.
Why build back better? So that the next storm does less harm.
What helps a small shop reopen? A grant, stock and a safe place.
"""

STARTS = [
    a + b for a, b in product("B D F G H K L M N P R S T V W Z".split(), "al en ir on".split())
]
ENDINGS = (
    "ba den ko ville ton nga ri sa du mek pur stan wick do go field ley mar cha rova vik zin lo ford bu ta "
    "hat quay nis pe sund lau crest gate mere dorf"
).split()
PLACES = [start + ending for start, ending in product(STARTS, ENDINGS)]
AGENCIES = [
    f"{a} {b}"
    for a, b in product(
        "Blue Green River Hill North Open First Swift Coast Stone Lake Red".split(),
        "Hand Bridge Lamp Aid Relief Circle Harbour Roof Path Kitchen".split(),
    )
]
HAZARDS = (
    "a flood, an earthquake, a landslide, a cyclone, a wildfire, a drought, a cholera outbreak, a tsunami, "
    "a storm surge, a mudslide, armed fighting, a dam break, a factory fire, a hailstorm, a heat wave, "
    "an eruption"
).split(", ")
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = (
    "January February March April May June July August September October November December".split()
)
WEATHER = "rain, fog, strong wind, snow, dry weather, heat, thunder, clear skies".split(", ")
SITES = "hospital, airfield, warehouse, market, school, clinic, harbour, rail station".split(", ")

# Clauses by fact; [a/b] is a choice and {name} a slot.
CLAUSES = {
    "place": """{hazard} [hit/struck/reached] {place} [on/early on/late on] {day}
the [town/village/district] of {place} was hit by {hazard} on {day}
on {day} {hazard} [hit/struck] [the village of/the town of/the area of] {place}
[our/the] team in {place} [reports/describes/saw] {hazard}[/ on {day}]
we [write/report/call] from {place} after {hazard}
{agency} [reports/confirms] {hazard} in {place}
the people of {place} are in [trouble/need] after {hazard}
[this is/here is] an update from {place}, where {hazard} began on {day}
[the latest/a new] message from {place} [speaks of/tells of] {hazard}""",
    "people": """[about/some/around/nearly/at least] {people} [people/residents/villagers] [are affected/need help/\
are waiting for help/have lost their homes]
{people} [people/residents/villagers] [are affected/need help/are waiting for help]
the number of people [in need/affected] is [about/now/] {people}
[local leaders/the elders/volunteers/the council] counted {people} people in need
[help is needed for/the event affects/we have registered] [about/some/] {people} people""",
    "need": """[they/people/families] [need/ask for/are asking for/are short of/urgently need] {need}
the [main/first/biggest/most pressing] need is {need}
{need} are [needed/missing/requested/lacking]
please send {need}
there are no {need} left
[we/people here] [lack/have no/have run out of] {need}
the [request/call] is for {need}""",
    "closed": """the road [to {other}/from {other}/] is [closed/blocked/cut/under water/impassable]
[trucks/cars/lorries] cannot [pass/get through/reach the area]
the [only/main] road has been [washed away/cut/closed/blocked]
the bridge [is down/has collapsed] and [nothing/no truck] can pass
[the area/the place] cannot be reached by road
access by road is [impossible/cut/blocked]""",
    "open": """the road [to {other}/from {other}/] is [open/clear/passable/dry/in good order]
[trucks/cars/lorries] can [pass/get through/reach the area]
the [only/main] road [is open/has been cleared/is usable]
the bridge [holds/is intact] and [trucks/all vehicles] can pass
[the area/the place] can be reached by road
access by road is [possible/easy/good]""",
    "spare": """[there are enough/we have enough] {spare}
{spare} are not needed
{qty} {spare} [arrived/came] [yesterday/already/this morning]
stocks of {spare} are [full/fine/sufficient]
[a truck brought/volunteers gave out/the store holds] {qty} {spare}""",
    "site": """the [nearest/next] {site} is in {other}, {km} km away
people can use the {site} in {other}
the {site} in {other} is {km} km [away/to the north/to the south/to the east/to the west]""",
    "weather": """{weather} is [expected/forecast] until {until}
the forecast for {until} is {weather}
we expect {weather} [on/from/until] {until}""",
    "injured": """{injured} people [are/were] injured
[the clinic/a nurse/the team] treated {injured} injured people""",
    "agency": """{agency} [is on site/leads the response/will return soon/keeps a post here]
a team of {agency} is [here/on site/on its way]
{agency} [sent this report/wrote this/signed this report]""",
    "date": """this [report/note] is of {date}
[the visit was/the count was made/the figures are] [on/from] {date}
on {date} [we visited/the team visited] the site""",
}
# Question, answer and the clause that the report must hold.
QUESTIONS = {
    "place": """[Where is this/Where did it happen/Where are these people/In which place is help needed]? => In {place}.""",
    "people": """[How many people are affected/How many people need help/What is the number of people in need/\
How many people is the report about]? => There are {people}.""",
    "need": """[What is needed/What do people need/What should be sent/What is missing/What is the need]? => They need {need}.
[Which sector is the need in/What kind of need is it/Which sector should act/What sector is this]? => It is {title}.
Are {need} needed? => Yes, {need} are needed.""",
    "closed": """[Is the road open/Can trucks get through/Can trucks pass/Is there access by road]? => No, the road is closed.
[What is the state of the road/How is the road]? => It is closed.
[Is the road closed/Is the area cut off]? => Yes, the road is closed.""",
    "open": """[Is the road open/Can trucks get through/Can trucks pass/Is there access by road]? => Yes, the road is open.
[What is the state of the road/How is the road]? => It is open.
[Is the road closed/Is the area cut off]? => No, the road is open.""",
    "spare": """[What is not needed/What is not missing/Which goods are there already]? => There are enough {spare}.
Are {spare} needed? => No, {spare} are not needed.
Should we send {spare}? => No, they are not needed.""",
    "site": """[Where is the {site}/In which other place is a {site}]? => In {other}.""",
    "weather": """[What is the forecast/What weather is expected]? => We expect {weather}.""",
    "injured": """[How many people are injured/How many injured people are there]? => There are {injured}.""",
    "agency": """[Which agency is named/Who is on site/Which agency is it]? => It is {agency}.""",
    "date": """[What is the date of the report/What date is given]? => On {date}.""",
}
SHORT = "{people} people in {place} need {need}; road {state}."
FORMS = (
    "Place: {place}\nPeople: {people}\nNeed: {need}\nRoad: {state}",
    "Situation report, {date}. Place: {place}. Event: {hazard}. People: {people}. Sector: {title}. Needs: {need}.",
    "{day} | {place} | {people} people | {need} | road {state}",
    "| {place} | {people} | {title} |",
    '{{"place": "{place}", "people": {people}, "need": "{need}", "road": "{state}"}}',
    "Stock list of {agency}, {date}:\n- {need}: {km}\n- {spare}: {qty}",
    "From: {agency}\nTo: {place} [radio post/front desk/planning office/rescue post/health post]\n"
    "{Need} leave {other} on {day}.",
)
SYSTEMS = (
    "You answer questions about relief reports.",
    "You are a relief assistant. Answer in short.",
    "Be brief and use only the report.",
    "You help a field office.",
    "Answer the question.",
)
LINKS = (", and ", ", and ", "; ", ", but ", " while ")
CORE = ("place", "people", "need", "road")
EXTRAS = ("spare", "site", "weather", "injured", "agency", "date")

# Tuned task: the domain of the need decides the desk.
DESKS = {
    "shelter": "shelter",
    "triage": "health",
    "water_sanitation": "water",
    "food_nutrition": "food",
    "logistics": "transport",
    "search_rescue": "rescue",
    "communications": "radio",
    "health_epidemics": "health",
    "protection_children": "care",
    "cash_assistance": "cash",
    "coordination": "planning",
    "needs_assessment": "planning",
    "security_access": "transport",
    "psychosocial": "care",
    "evacuation_early_warning": "rescue",
    "recovery_livelihoods": "cash",
}
ONGOING = {
    "a flood",
    "a drought",
    "a cholera outbreak",
    "a wildfire",
    "armed fighting",
    "a heat wave",
    "an eruption",
    "a cyclone",
}  # dangers that go on after the report
MANY = 1000


def _table(text: str) -> list[tuple[str, str, list[str]]]:
    rows = (re.split(r"[:;] ", line) for line in text.strip().splitlines())
    return [(name, title, items.split(", ")) for name, title, items in rows]


def _general(text: str) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for line in text.strip().splitlines():
        if "?" not in line:
            pairs = found.setdefault(line, [])
        else:
            question, answer = line.split("? ", 1)
            pairs.append((question + "?", answer))
    return found


TABLE = _table(DOMAINS)
FACTS = _general(GENERAL)
_CLAUSES = {fact: lines.splitlines() for fact, lines in CLAUSES.items()}
_QUESTIONS = {
    fact: [line.split(" => ") for line in lines.splitlines()] for fact, lines in QUESTIONS.items()
}
_CHOICE = re.compile(r"\[([^\]]*)\]")


def _fill(rng: random.Random, template: str, slots: dict[str, str]) -> str:
    chosen = _CHOICE.sub(lambda match: rng.choice(match[1].split("/")), template)
    return chosen.format_map(slots).replace("  ", " ")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _turn(role: str, content: str) -> str:
    return f"<|{role}|>\n{content}<|end|>\n"


def _chat(pairs: dict[str, str]) -> str:
    return "".join(
        _turn("user", question) + _turn("assistant", answer) for question, answer in pairs.items()
    )


def _held_out(index: int) -> bool:
    return index % 8 == 7


CORPUS_PLACES = [place for index, place in enumerate(PLACES) if not _held_out(index)]
TRIAGE_PLACES = [place for index, place in enumerate(PLACES) if _held_out(index)]


def _people(rng: random.Random) -> int:
    count = int(10 ** rng.uniform(2, 3) if rng.random() < 0.5 else 10 ** rng.uniform(3, 4))
    return count if rng.random() < 0.6 else round(count, -1 if count < MANY else -2)


def _slots(rng: random.Random, places: list[str]) -> dict[str, str]:
    """Draw one event: every fact that a report can state, as text."""
    place, other = rng.sample(places, 2)
    (domain, title, items), (_, _, spares) = rng.sample(TABLE, 2)
    needs = rng.sample(items, 2 if rng.random() < 0.3 else 1)
    slots = {
        "place": place,
        "other": other,
        "domain": domain,
        "title": title,
        "need": " and ".join(needs),
        "spare": rng.choice(spares),
        "hazard": rng.choice(HAZARDS),
        "people": str(_people(rng)),
        "injured": str(rng.randint(3, 90)),
        "qty": str(rng.randint(2, 90) * 10),
        "km": str(rng.randint(2, 95)),
        "state": rng.choice(("open", "closed")),
        "day": rng.choice(DAYS),
        "until": rng.choice(DAYS),
        "date": f"{rng.randint(1, 28)} {rng.choice(MONTHS)}",
        "weather": rng.choice(WEATHER),
        "site": rng.choice(SITES),
        "agency": rng.choice(AGENCIES),
    }
    return slots | {"Need": _capital(slots["need"])}


def _report(rng: random.Random, slots: dict[str, str], facts: list[str], sentences: int) -> str:
    """Write the facts as clauses in a drawn order, joined to at most the given number of sentences."""
    rest = [fact for fact in facts if fact != "place"]
    rng.shuffle(rest)
    if "place" in facts:
        rest.insert(0 if rng.random() < 0.6 else rng.randint(0, len(rest)), "place")
    clauses = [
        _fill(rng, rng.choice(_CLAUSES[slots["state"] if f == "road" else f]), slots) for f in rest
    ]
    cuts = [0, *sorted(rng.sample(range(1, len(clauses)), sentences - 1)), len(clauses)]
    groups = [clauses[start:stop] for start, stop in zip(cuts, cuts[1:])]
    return " ".join(_capital(_join(rng, group)) + "." for group in groups)


def _join(rng: random.Random, clauses: list[str]) -> str:
    return clauses[0] + "".join(rng.choice(LINKS) + clause for clause in clauses[1:])


def _ask(rng: random.Random, slots: dict[str, str], facts: list[str]) -> tuple[str, str]:
    """One question about a report that holds the facts, and its answer."""
    kind = rng.random()
    people = int(slots["people"])
    if kind < 0.08:
        limit = rng.choice((200, 500, 1000, 2000, 5000))
        side, true = rng.choice((("more", people > limit), ("fewer", people < limit)))
        return f"Are {side} than {limit} people affected?", "Yes." if true else "No."
    if kind < 0.11:
        more = rng.choice((10, 100, 1000, 20, 200))
        return (
            f"If {more} more people come, how many people need help?",
            f"There are {people + more}.",
        )
    if kind < 0.17:
        return rng.choice(
            ("Shorten the report.", "Sum up the report in one line.", "Give the short form.")
        ), _capital(_fill(rng, SHORT, slots))
    if kind < 0.23:
        picked = rng.sample(("place", "people", "need", "title", "state"), rng.randint(2, 4))
        names = {"need": "needs", "title": "sector", "state": "road"}
        answer = ", ".join(slots[name] for name in picked)
        return (
            f"List the {', '.join(names.get(name, name) for name in picked)}.",
            "Here: " + answer + ".",
        )
    absent = [fact for fact in EXTRAS if fact not in facts]
    if kind < 0.28 and absent:
        template, _ = _QUESTIONS[rng.choice(absent)][0]
        return _fill(rng, template, slots), "The report does not say."
    return _ask_fact(rng, slots, rng.choice([*facts, *CORE]))


def _ask_fact(rng: random.Random, slots: dict[str, str], fact: str) -> tuple[str, str]:
    template, answer = rng.choice(_QUESTIONS[slots["state"] if fact == "road" else fact])
    return _fill(rng, template, slots), _fill(rng, answer, slots)


def _some_report(rng: random.Random, slots: dict[str, str]) -> tuple[str, list[str]]:
    facts = [*CORE, *rng.sample(EXTRAS, rng.choice((0, 0, 1, 1, 2, 3)))]
    return _report(rng, slots, facts, rng.randint(2, min(5, len(facts)))), facts


def _report_chat(rng: random.Random) -> str:
    slots = _slots(rng, CORPUS_PLACES)
    report, facts = _some_report(rng, slots)
    kind = rng.random()
    if kind < 0.1:
        pairs = {report: _capital(_fill(rng, SHORT, slots))}
    elif kind < 0.4:
        fields = {
            "Place": slots["place"],
            "Event": slots["hazard"],
            "Needs": slots["need"],
            "Sector": slots["title"],
            "Road": slots["state"],
            "Lasting": "yes" if slots["hazard"] in ONGOING else "no",
        }
        asked = rng.sample(list(fields), rng.randint(2, 5))
        pairs = {
            f"{report}\nFill in: {', '.join(asked)}": "\n".join(
                f"{name}: {fields[name]}" for name in asked
            )
        }
    else:
        question, answer = _ask(rng, slots, facts)
        order = (
            f"{report}\n{question}",
            f"{question}\n{report}",
            f"Report: {report}\nQuestion: {question}",
        )
        pairs = {rng.choice(order): answer}
    return _chat(pairs | dict(_ask(rng, slots, facts) for _ in range(rng.randint(2, 5))))


def _short_chat(rng: random.Random) -> str:
    """One or two facts in a line, and a question on each."""
    slots = _slots(rng, CORPUS_PLACES)
    facts = list(dict.fromkeys((rng.choice(CORE), rng.choice(CORE + EXTRAS))))
    report = _report(rng, slots, facts, rng.randint(1, len(facts)))
    pairs = dict(_ask_fact(rng, slots, fact) for fact in facts)
    first, *rest = pairs.items()
    return _chat({f"{report}\n{first[0]}": first[1]} | dict(rest))


def _echo_chat(rng: random.Random) -> str:
    """Radio practice: a message is read back, in whole or in part."""
    pairs: dict[str, str] = {}
    for _ in range(rng.randint(1, 3)):
        slots = _slots(rng, CORPUS_PLACES)
        words = rng.sample(
            [slots[name] for name in ("place", "other", "people", "need", "agency", "date")],
            rng.randint(2, 5),
        )
        kind = rng.random()
        if kind < 0.4:
            message = _report(rng, slots, [*CORE, rng.choice(EXTRAS)], rng.randint(2, 4))
        else:
            message = ", ".join(words) + "."
        if kind < 0.8:
            pairs[rng.choice(("Read back: ", "Repeat: ", "Say again: ")) + message] = (
                "I repeat: " + message
            )
        else:
            at = rng.randrange(1, len(words))
            pairs[f"Message: {message} What comes after {words[at - 1]}?"] = (
                f"After that comes {words[at]}."
            )
    return _chat(pairs)


def _comparison_chat(rng: random.Random) -> str:
    first, second = _slots(rng, CORPUS_PLACES), _slots(rng, CORPUS_PLACES)
    reports = [_report(rng, slots, list(CORE), rng.randint(2, 3)) for slots in (first, second)]
    pairs = {f"A: {reports[0]}\nB: {reports[1]}": "I have read both reports."}
    by_people = sorted((first, second), key=lambda slots: int(slots["people"]))
    for _ in range(rng.randint(2, 4)):
        kind = rng.randrange(5)
        if kind == 0:
            pair = ("Which place has more people in need?", f"It is {by_people[1]['place']}.")
        elif kind == 1:
            pair = ("Which place has fewer people in need?", f"It is {by_people[0]['place']}.")
        elif kind == 2:
            some = rng.choice((first, second))
            pair = (f"What is needed in {some['place']}?", f"They need {some['need']}.")
        elif kind == 3:
            shut = [slots["place"] for slots in (first, second) if slots["state"] == "closed"]
            pair = (
                "Which places have a closed road?",
                f"Only {' and '.join(shut)}." if shut else "None.",
            )
        else:
            some = rng.choice((first, second))
            pair = (
                f"How many people need help in {some['place']}?",
                f"There are {some['people']}.",
            )
        pairs |= [pair]
    return _chat(pairs)


def _general_chat(rng: random.Random) -> str:
    pairs: dict[str, str] = {}
    for _ in range(rng.randint(2, 5)):
        domain, title, items = rng.choice(TABLE)
        item = rng.choice(items)
        kind = rng.random()
        if kind < 0.55:
            question, answer = rng.choice(FACTS[domain])
            lead = rng.choice(("", "", "", f"A question on {title}: ", "Tell me: ", "In short: "))
            pair = (lead + question, answer)
        elif kind < 0.8:
            ask = rng.choice(
                (
                    "Which sector handles {}?",
                    "Which sector do {} belong to?",
                    "What sector sends {}?",
                )
            )
            pair = (ask.format(item), f"It is {title}.")
        elif kind < 0.9:
            pair = (
                f"Name three items of {title}.",
                "These are " + ", ".join(rng.sample(items, 3)) + ".",
            )
        elif kind < 0.95:
            hazard = rng.choice(HAZARDS)
            pair = (f"Does {hazard} last for days?", "Yes." if hazard in ONGOING else "No.")
        else:
            other = rng.choice(TABLE)[1] if rng.random() < 0.5 else title
            pair = (
                f"Are {item} a part of {other}?",
                "Yes." if other == title else f"No, of {title}.",
            )
        pairs |= [pair]
    return _chat(pairs)


def _plain(rng: random.Random) -> str:
    slots = _slots(rng, CORPUS_PLACES)
    kind = rng.random()
    if kind < 0.5:
        report, _ = _some_report(rng, slots)
        return report if rng.random() < 0.5 else f"{report} {_capital(_fill(rng, SHORT, slots))}"
    if kind < 0.75:
        count = rng.randint(1, 3)
        return "\n".join(
            _fill(rng, rng.choice(FORMS), _slots(rng, CORPUS_PLACES)) for _ in range(count)
        )
    _, title, items = rng.choice(TABLE)
    pairs = rng.sample(FACTS[_], 3)
    text = " ".join(f"{question} {answer}" for question, answer in pairs)
    listed = ", ".join(rng.sample(items, 4))
    return f"{_capital(title)}. {text} Goods of this sector: {listed}."


def _first_chat(rng: random.Random) -> str:
    """The shortest exercise: one name, number or item is repeated, or asked for after one clause."""
    slots = _slots(rng, CORPUS_PLACES)
    if rng.random() < 0.5:
        word = slots[rng.choice(("place", "place", "people", "need", "agency", "date"))]
        return _chat({f"Repeat: {word}.": f"I repeat: {word}."})
    fact = rng.choice(CORE)
    question, answer = _ask_fact(rng, slots, fact)
    return _chat({f"{_report(rng, slots, [fact], 1)}\n{question}": answer})


KINDS = {
    _plain: 8,
    _report_chat: 40,
    _short_chat: 26,
    _echo_chat: 12,
    _comparison_chat: 4,
    _general_chat: 10,
}
EASY = {_first_chat: 70, _short_chat: 20, _general_chat: 10}
EASY_SHARE = 0.2


def corpus(documents: int, seed: int) -> Iterator[dict]:
    """Yield pretraining documents `{"text": ...}`: plain reports, forms and rendered conversations.

    Neither the routing line of `triage` nor a place of its reports ever occurs.
    """
    rng = random.Random(f"corpus:{seed}")
    for index in range(documents):
        kinds = EASY if index < EASY_SHARE * documents else KINDS
        system = _turn("system", rng.choice(SYSTEMS)) if rng.random() < 0.2 else ""
        make = rng.choices(list(kinds), kinds.values())[0]
        yield {"text": make(rng) if make is _plain else system + make(rng)}


def triage(rows: int, seed: int) -> Iterator[dict]:
    """Yield rows of the tuned task as chat messages: a field report, then its routing line.

    The line is `desk: water | road: closed | place: Karaba`. The desk follows from the item that is needed (`DOMAINS`,
    `DESKS`), not from items that are in stock. The road is told in many ways. The place is
    the one in need, not another that the report names.
    """
    rng = random.Random(f"triage:{seed}")
    for _ in range(rows):
        slots = _slots(rng, TRIAGE_PLACES)
        facts = [*CORE, *rng.sample(EXTRAS, rng.choice((0, 0, 1, 1, 2, 3)))]
        report = _report(rng, slots, facts, rng.randint(2, 4))
        line = f"desk: {DESKS[slots['domain']]} | road: {slots['state']} | place: {slots['place']}"
        yield {
            "messages": [
                {"role": "user", "content": report},
                {"role": "assistant", "content": line},
            ]
        }


def _write(rows: Iterator[dict], out: Path) -> int:
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.name + ".tmp")
    count = 0
    with temporary.open("w", encoding="utf-8") as file:
        for count, row in enumerate(rows, start=1):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(temporary, out)
    return count


def main() -> None:
    """Write one of the two files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, unit, count in (("corpus", "documents", 100_000), ("triage", "rows", 600)):
        command = commands.add_parser(name)
        command.add_argument(f"--{unit}", dest="count", type=int, default=count)
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    make = corpus if args.command == "corpus" else triage
    print(f"{args.out}: {_write(make(args.count, args.seed), args.out)} rows")


if __name__ == "__main__":
    main()
