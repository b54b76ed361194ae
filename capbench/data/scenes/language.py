"""True captions of a scene, and the things that each phrase names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from capbench.data.captions import Phrase
from capbench.data.scenes.dice import Dice
from capbench.data.scenes.drawing import CANVAS, Scene, Thing
from capbench.data.scenes.words import COLOURS, PLACES, RELATIONS, SETTINGS, SHAPES, SIZES, THINGS

CAPTIONS = 5
SHORTEST, LONGEST = 5, 16
_WORD_ODDS = (6, 3, 2)
_NUMBERS = ("no", "one", "two", "three", "four")
_OPENERS = ("", "there is", "a picture of", "an image of", "you can see", "here we see", "this scene shows")
_OPENER_ODDS = (8, 4, 3, 1, 2, 1, 2)
_VERBS = (("is", "are"), ("sits", "sit"), ("lies", "lie"), ("is placed", "are placed"), ("", ""))
_VERB_ODDS = (6, 2, 2, 1, 4)
# Which of size, colour and shape a phrase says, and how often.
_DETAILS = ((0, 1, 1, 16), (0, 0, 1, 4), (1, 1, 1, 8), (1, 0, 1, 3), (0, 1, 0, 2), (1, 0, 0, 1))


class Group(NamedTuple):
    """A description and the things that fit it; None leaves size, colour or shape unsaid."""

    size: str | None
    colour: str | None
    shape: str | None
    members: tuple[Thing, ...]
    odds: int = 0


def _groups(things: Sequence[Thing]) -> list[Group]:
    """Every description that the things allow; large things have better odds."""
    groups: dict[Group, int] = {}
    for thing in things:
        for says_size, says_colour, says_shape, odds in _DETAILS:
            size = thing.size if says_size and SIZES[thing.size] else None
            colour = thing.colour if says_colour else None
            shape = thing.shape if says_shape else None
            if size or colour or shape:
                members = tuple(
                    t
                    for t in things
                    if size in (None, t.size) and colour in (None, t.colour) and shape in (None, t.shape)
                )
                group = Group(size, colour, shape, members)
                groups[group] = groups.get(group, 0) + odds * thing.radius // len(members)
    return [group._replace(odds=odds) for group, odds in groups.items()]


def relations(subject: Sequence[Thing], other: Sequence[Thing]) -> list[str]:
    """The relations of RELATIONS that hold between every thing of `subject` and every thing of `other`.

    A direction needs disjoint cells along its axis, and the larger part of the centres' distance; near is at most 6
    pixels between cells, far at least 36 pixels between centres.
    """
    return [name for name in RELATIONS if all(_holds(name, a, b) for a in subject for b in other)]


def _holds(relation: str, a: Thing, b: Thing) -> bool:
    dx, dy, reach = b.x - a.x, b.y - a.y, a.radius + b.radius
    if relation == "near":
        return max(abs(dx), abs(dy)) - reach <= 6
    if relation == "far":
        return dx * dx + dy * dy >= 36 * 36
    along, aside = {"left": (dx, dy), "right": (-dx, dy), "above": (dy, dx), "below": (-dy, dx)}[relation]
    return along >= max(reach, abs(aside) + 1)


def places(things: Sequence[Thing]) -> list[str]:
    """The place of PLACES, by thirds of the canvas, that the centres of all the things share; empty if none."""
    spots = {
        (("top", "", "bottom")[3 * t.y // CANVAS] + " " + ("left", "", "right")[3 * t.x // CANVAS]).strip() or "middle"
        for t in things
    }
    return list(spots) if len(spots) == 1 else []


class _Sentence:
    """A caption under construction: words, some followed by a comma, and phrases."""

    def __init__(self, dice: Dice) -> None:
        self.dice = dice
        self.words: list[str] = []
        self.phrases: list[Phrase] = []
        self.placed = False  # whether it says where something is

    def say(self, text: str) -> None:
        self.words += text.split()

    def name(self, group: Group) -> None:
        """Say the noun phrase of a group, and keep its span and boxes."""
        count = len(group.members)
        noun = self.dice.pick(SHAPES[group.shape] if group.shape else THINGS, _WORD_ODDS)
        if count > 1:
            noun += "es" if noun[-1] in "sx" else "s"
        words = [self.dice.pick(SIZES[group.size], _WORD_ODDS)] if group.size else []
        words += [self.dice.pick(COLOURS[group.colour], _WORD_ODDS)] if group.colour else []
        article = "an" if [*words, noun][0][0] in "aeiou" else "a"
        articles = (article, "one") if self.words[-2:] == ["there", "is"] else (article, "one", "the")
        first = _NUMBERS[count] if count > 1 else self.dice.pick(articles, (16, 1, 3))
        start = len(self.words)
        self.words += [first, *words, noun]
        self.phrases.append(Phrase(start, len(self.words), tuple(t.box for t in group.members)))

    def open(self, first: Group) -> bool:
        """Say an opener or nothing; returns whether it did, since a verb follows only if not."""
        opener = self.dice.pick(_OPENERS, _OPENER_ODDS)
        self.say("there are" if opener == "there is" and len(first.members) > 1 else opener)
        return bool(opener)

    def verb(self, subject: Group) -> None:
        self.say(self.dice.pick(_VERBS, _VERB_ODDS)[len(subject.members) > 1])

    def relate(self, subject: Group, other: Group) -> bool:
        """Say a relation that holds and name the other group; False if none holds."""
        names = relations(subject.members, other.members)
        if not names:
            return False
        odds = [1 if name == "far" else 2 if name == "near" else 5 for name in names]
        self.say(self.dice.pick(RELATIONS[self.dice.pick(names, odds)], _WORD_ODDS))
        self.placed = True
        self.name(other)
        return True

    def setting(self, name: str) -> None:
        """Say the setting; a caption that says little else always does."""
        if len(self.phrases) == 1 or not self.placed or self.dice.below(2):
            self.say(self.dice.pick(SETTINGS[name], _WORD_ODDS))

    def place(self, group: Group) -> bool:
        """Say the place of the group; False if its things are in different places."""
        names = places(group.members)
        if names:
            self.say(self.dice.pick(PLACES[names[0]], _WORD_ODDS))
            self.placed = True
        return bool(names)


def _choose(dice: Dice, groups: Sequence[Group], count: int) -> list[Group]:
    """Up to `count` groups that share no thing, drawn by their odds."""
    chosen: list[Group] = []
    left = list(groups)
    while left and len(chosen) < count:
        chosen.append(dice.pick(left, [group.odds for group in left]))
        left = [group for group in left if not any(t in chosen[-1].members for t in group.members)]
    return chosen


def _relation(line: _Sentence, things: Sequence[Thing], groups: Sequence[Group]) -> bool:
    """ "A star sits left of two boxes", perhaps "and above a disc" or "which is above a disc"."""
    wanted = line.dice.pick((2, 3), (3, 2))
    chosen = _choose(line.dice, groups, wanted)
    if len(chosen) < wanted:
        return False
    subject, other = chosen[:2]
    opened = line.open(subject)
    line.name(subject)
    if not opened:
        line.verb(subject)
    if not line.relate(subject, other):
        return False
    if wanted == 2:
        return True
    if line.dice.below(3):
        line.say("and")
        return line.relate(subject, chosen[2])
    line.say("which are" if len(other.members) > 1 else "which is")
    return line.relate(other, chosen[2])


def _list(line: _Sentence, things: Sequence[Thing], groups: Sequence[Group]) -> bool:
    """ "A star, two boxes and a disc", or "a star with a disc"."""
    chosen = _choose(line.dice, groups, line.dice.pick((2, 3, 4), (5, 3, 1)))
    if len(chosen) < 2:
        return False
    line.open(chosen[0])
    joint = line.dice.pick(("and", "with", "and also"), (6, 2, 1)) if len(chosen) == 2 else "and"
    for position, group in enumerate(chosen):
        if position == len(chosen) - 1:
            line.say(joint)
        elif position:
            line.words[-1] += ","
        line.name(group)
    return True


def _place(line: _Sentence, things: Sequence[Thing], groups: Sequence[Group]) -> bool:
    """ "A star lies in the middle", perhaps "and a disc at the top"; now and then just "a small red star"."""
    chosen = _choose(line.dice, groups, line.dice.pick((1, 2), (3, 2)))
    opened = line.open(chosen[0])
    if line.dice.below(12) == 0 and chosen[0].colour and chosen[0].shape:
        line.name(chosen[0])
        return True
    for position, group in enumerate(chosen):
        line.say("and" if position else "")
        line.name(group)
        if not opened:
            line.verb(group)
        if not line.place(group):
            return False
    return True


def _count(line: _Sentence, things: Sequence[Thing], groups: Sequence[Group]) -> bool:
    """ "There are three shapes", with "including a star" or "with a star above a disc" behind."""
    everything = Group(None, None, None, tuple(things))
    line.open(everything)
    line.name(everything)
    chosen = _choose(line.dice, groups, 2)
    if len(chosen[0].members) == len(things):
        return False
    related = len(chosen) == 2 and line.dice.below(5) < 4
    line.say("with" if related else "including")
    line.name(chosen[0])
    return line.relate(*chosen) if related else True


_TEMPLATES = (_relation, _list, _place, _count)
_TEMPLATE_ODDS = (10, 5, 4, 2)


class Description(NamedTuple):
    """One caption: its raw line, its tokens, and the phrases over the tokens."""

    text: str
    tokens: tuple[str, ...]
    phrases: tuple[Phrase, ...]


def describe(scene: Scene, dice: Dice, captions: int = CAPTIONS) -> list[Description]:
    """Different true captions of a scene, each of 4 to 16 words."""
    groups = _groups(scene.things)
    said: dict[tuple[str, ...], Description] = {}
    while len(said) < captions:
        line = _Sentence(dice)
        if dice.pick(_TEMPLATES, _TEMPLATE_ODDS)(line, scene.things, groups):
            line.setting(scene.setting)
            tokens = tuple(word.strip(",") for word in line.words)
            if SHORTEST <= len(tokens) <= LONGEST:
                text = " ".join(line.words)
                said.setdefault(tokens, Description(text[0].upper() + text[1:] + ".", tokens, tuple(line.phrases)))
    return list(said.values())
