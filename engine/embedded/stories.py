"""Short simple stories in plain English: a cast is drawn, then a plot is told beat by beat.

`tell` is a pure function of the generator it gets; the same seed tells the same story on any machine.
"""

import random
from dataclasses import asdict, dataclass
from typing import Final

from distllm.engine.embedded.plots import CLOSINGS, HABITS, OPENINGS, PLOTS
from distllm.engine.embedded.words import ANIMALS, COLOURS, FOODS, GIRLS, NAMES, THINGS, with_article

_TRAITS: Final = (
    "little", "young", "old", "clever", "shy", "curious", "kind", "lazy", "cheerful", "quiet", "brave", "tiny",
    "round", "sleepy", "funny", "gentle", "clumsy", "proud",
)  # fmt: skip
_HOMES: Final = (
    "in a small house by the river", "at the edge of a green forest", "under the roots of an old tree",
    "on a high hill", "in a village by the sea", "behind the old mill", "in a quiet valley", "near a blue lake",
    "on a little farm", "in a red house with a round door", "in a town with crooked streets",
    "at the foot of the mountain",
)  # fmt: skip
_PLACES: Final = (
    "by the river", "in the forest", "at the pond", "on the hill", "in the garden", "behind the mill",
    "near the bridge", "on the beach", "in the field", "under the big tree", "by the lake", "along the road",
)  # fmt: skip
_HABITS: Final = (
    "said hello to the sun", "counted the clouds", "swam in the river", "sang a song", "swept the floor",
    "fed the birds", "climbed the tallest tree", "picked flowers", "made tea for everyone",
    "wrote one line in a book",
)  # fmt: skip
_FEARS: Final = ("the dark", "deep water", "thunder", "high places", "loud sounds", "spiders")
_WEATHERS: Final = ("sunny", "rainy", "windy", "foggy", "cold", "warm", "snowy", "bright")
_SEASONS: Final = ("spring", "summer", "autumn", "winter")
_NEEDED: Final = ("milk", "sugar", "salt", "butter", "flour", "water")


@dataclass(frozen=True, slots=True)
class Hero:
    """Somebody to tell of: a child, or an animal with a name."""

    name: str
    kind: str
    is_female: bool

    @property
    def pronouns(self) -> tuple[str, str, str]:
        """As subject, object and possessive."""
        return ("she", "her", "her") if self.is_female else ("he", "him", "his")


@dataclass(frozen=True, slots=True)
class Cast:
    """The fields that the sentences of `plots` are filled with."""

    name: str
    a_hero: str
    he: str
    He: str
    him: str
    his: str
    His: str
    friend: str
    friend_kind: str
    friend_trait: str
    a_friend: str
    fhe: str
    fhim: str
    fhis: str
    home: str
    place: str
    habit: str
    thing: str
    a_thing: str
    colour: str
    a_colour: str
    food: str
    needed: str
    fear: str
    weather: str
    season: str


def draw_hero(rng: random.Random) -> Hero:
    """A child one time in three, an animal otherwise."""
    name = rng.choice(NAMES)
    is_female = name in GIRLS
    if rng.random() < 1 / 3:
        return Hero(name, "girl" if is_female else "boy", is_female)
    return Hero(name, rng.choice(ANIMALS), is_female)


def tell(rng: random.Random, hero: Hero | None = None) -> str:
    """One story in one paragraph of about a hundred words, of `hero` or of anybody."""
    fields = asdict(_draw_cast(rng, hero or draw_hero(rng)))
    beats = (OPENINGS, HABITS, *rng.choice(PLOTS), CLOSINGS)
    sentences = [rng.choice(beat).format(**fields) for beat in beats]
    return " ".join(sentence for sentence in sentences if sentence)


def _draw_cast(rng: random.Random, hero: Hero) -> Cast:
    he, him, his = hero.pronouns
    friend = _draw_friend(rng, hero)
    fhe, fhim, fhis = friend.pronouns
    trait, friend_trait = rng.sample(_TRAITS, 2)
    thing, colour = rng.choice(THINGS), rng.choice(COLOURS)
    return Cast(
        name=hero.name,
        a_hero=with_article(f"{trait} {hero.kind}"),
        he=he,
        He=he.capitalize(),
        him=him,
        his=his,
        His=his.capitalize(),
        friend=friend.name,
        friend_kind=friend.kind,
        friend_trait=friend_trait,
        a_friend=with_article(f"{friend_trait} {friend.kind}"),
        fhe=fhe,
        fhim=fhim,
        fhis=fhis,
        home=rng.choice(_HOMES),
        place=rng.choice(_PLACES),
        habit=rng.choice(_HABITS),
        thing=thing,
        a_thing=with_article(thing),
        colour=colour,
        a_colour=with_article(colour),
        food=rng.choice(FOODS),
        needed=rng.choice(_NEEDED),
        fear=rng.choice(_FEARS),
        weather=rng.choice(_WEATHERS),
        season=rng.choice(_SEASONS),
    )


def _draw_friend(rng: random.Random, hero: Hero) -> Hero:
    """Always an animal, of another name and another kind than the hero."""
    name = rng.choice([name for name in NAMES if name != hero.name])
    kind = rng.choice([kind for kind in ANIMALS if kind != hero.kind])
    return Hero(name, kind, name in GIRLS)
