import random
import re

from distllm.engine.embedded.stories import Hero, draw_hero, tell


def stories(count: int) -> list[str]:
    rng = random.Random(0)
    return [tell(rng) for _ in range(count)]


def test_the_same_seed_tells_the_same_story() -> None:
    assert tell(random.Random(7)) == tell(random.Random(7))


def test_stories_hardly_ever_repeat() -> None:
    assert len(set(stories(1000))) == 1000


def test_stories_are_whole_sentences_with_every_field_filled() -> None:
    for story in stories(500):
        assert not re.search(r"[{}]|  |\b[aA] [aeiou]|\ban [^aeiou]", story), story
        assert story[0].isupper()
        assert story[-1] in '.!?"'
        assert story.count('"') % 2 == 0, story


def test_stories_are_short() -> None:
    lengths = [len(story.split()) for story in stories(300)]
    assert min(lengths) > 50
    assert max(lengths) < 200


def test_a_story_is_told_of_the_hero_asked_for_with_her_pronouns() -> None:
    for seed in range(50):
        story = tell(random.Random(seed), Hero("Mia", "fox", is_female=True))
        assert "Mia" in story
        assert "fox" in story


def test_heroes_are_children_and_animals() -> None:
    rng = random.Random(0)
    kinds = {draw_hero(rng).kind for _ in range(500)}
    assert {"girl", "boy", "fox", "robot"} <= kinds
