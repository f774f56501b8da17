"""The vocabulary that stories and questions share. Data only."""

from typing import Final

DIGIT_NAMES: Final = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
)  # fmt: skip

DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

OPPOSITES: Final = (
    ("hot", "cold"), ("big", "small"), ("tall", "short"), ("up", "down"), ("left", "right"),
    ("open", "closed"), ("happy", "sad"), ("fast", "slow"), ("light", "dark"), ("day", "night"),
    ("early", "late"), ("young", "old"), ("rich", "poor"), ("hard", "soft"), ("wet", "dry"),
    ("full", "empty"), ("loud", "quiet"), ("clean", "dirty"), ("strong", "weak"), ("high", "low"),
    ("in", "out"), ("near", "far"), ("first", "last"), ("true", "false"), ("thick", "thin"),
    ("wide", "narrow"), ("deep", "shallow"), ("sweet", "sour"), ("brave", "afraid"), ("good", "bad"),
    ("begin", "end"), ("love", "hate"), ("win", "lose"), ("push", "pull"), ("give", "take"),
    ("buy", "sell"), ("laugh", "cry"), ("float", "sink"), ("remember", "forget"), ("summer", "winter"),
    ("north", "south"), ("east", "west"), ("above", "below"), ("before", "after"), ("always", "never"),
    ("safe", "dangerous"), ("smooth", "rough"), ("inside", "outside"), ("awake", "asleep"), ("yes", "no"),
)  # fmt: skip
"""Pairs in which each word has exactly one opposite, so that answers are exact in both directions."""

GIRLS: Final = (
    "Mia", "Lily", "Anna", "Zoe", "Ruby", "Ella", "Nora", "Rosa", "Ivy", "Clara", "Lucy", "Hazel", "June", "Tess",
)  # fmt: skip
BOYS: Final = (
    "Tom", "Ben", "Sam", "Max", "Leo", "Finn", "Jack", "Otto", "Theo", "Noah", "Hugo", "Oscar", "Felix", "Milo",
)  # fmt: skip
NAMES: Final = GIRLS + BOYS

ANIMALS: Final = (
    "fox", "bear", "rabbit", "mouse", "owl", "cat", "dog", "duck", "frog", "hedgehog", "squirrel", "turtle", "goat",
    "sheep", "pony", "badger", "otter", "crow", "hen", "mole", "wolf", "deer", "bee", "dragon", "robot", "penguin",
)  # fmt: skip

THINGS: Final = (
    "apple", "pear", "plum", "egg", "coin", "shell", "stone", "button", "book", "ball", "kite", "drum", "bell",
    "lamp", "hat", "scarf", "key", "basket", "feather", "flower", "star", "boat", "spoon", "cup", "ribbon", "map",
)  # fmt: skip

COLOURS: Final = ("red", "blue", "green", "yellow", "white", "black", "brown", "orange", "pink", "purple", "silver")

CITIES: Final = ("Paris", "London", "Rome", "Oslo", "Berlin", "Madrid", "Vienna", "Lisbon", "Dublin", "Prague")

FOODS: Final = (
    "soup",
    "bread",
    "cake",
    "rice",
    "pie",
    "cheese",
    "honey",
    "jam",
    "corn",
    "toast",
    "porridge",
    "salad",
)

_OTHER_WORDS: Final = (
    "hello", "world", "computer", "model", "server", "token", "letter", "number", "question", "answer", "word",
    "line", "happy", "green", "apple", "banana", "potato", "tomato", "carrot", "onion", "pepper", "chicken",
    "monkey", "donkey", "cow", "pig", "rat", "ant", "fly", "worm", "snail", "eagle", "swan", "parrot", "camel",
    "panda", "koala", "seal", "car", "bus", "truck", "bike", "ship", "wheel", "engine", "street", "city",
    "village", "market", "shop", "hotel", "kitchen", "bath", "roof", "wall", "floor", "stairs", "mirror",
    "picture", "box", "bag", "bottle", "plate", "fork", "knife", "glass", "phone", "radio", "screen", "guitar",
    "piano", "violin", "dance", "game", "doll", "puzzle", "summer", "winter", "spring", "autumn", "morning",
    "evening", "night", "hour", "minute", "week", "month", "year", "doctor", "teacher", "farmer", "baker",
    "sailor", "soldier", "writer", "singer", "child", "man", "woman", "uncle", "gold", "iron", "wood",
    "leather", "cotton", "wool", "stone", "metal", "light", "shadow", "sky", "earth", "sun", "planet", "desert",
    "valley", "mountain", "hill", "cave", "forest", "lake", "pond", "bay", "port", "castle", "love", "fear",
    "hope", "joy", "anger", "peace", "war", "luck", "secret", "gift", "party", "holiday", "journey", "garden",
    "river", "house", "chair", "table", "window", "door", "moon", "cloud", "rain", "snow", "wind", "tree",
    "leaf", "root", "seed", "grass", "field", "farm", "road", "bridge", "tower", "school", "paper", "pencil",
    "music", "song", "story", "dream", "friend", "mother", "father", "sister", "brother", "baby", "king",
    "queen", "train", "plane", "wagon", "horse", "tiger", "lion", "zebra", "snake", "spider", "water", "milk",
    "sugar", "salt", "butter", "lemon", "melon", "grape", "cherry", "shoe", "sock", "shirt", "coat", "glove",
    "brush", "soap", "towel", "pillow", "blanket", "clock", "watch", "candle", "fire", "smoke", "sand", "beach",
    "island", "ocean", "wave", "fish", "whale", "shark", "crab", "bird", "nest", "wing", "tail", "nose", "ear",
    "eye", "hand", "foot", "knee", "heart", "head", "hair", "tooth",
)  # fmt: skip

SPELLING: Final = tuple(sorted({*ANIMALS, *THINGS, *COLOURS, *FOODS, *_OTHER_WORDS}))
"""Words that can be spelled, three to eight letters each."""


def with_article(noun_phrase: str) -> str:
    """`noun_phrase` behind "a" or "an"; sound follows spelling for every word of this vocabulary."""
    return f"{'an' if noun_phrase[0] in 'aeiou' else 'a'} {noun_phrase}"
