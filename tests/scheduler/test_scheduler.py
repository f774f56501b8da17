"""What each request gets, alone and beside others."""

from tests.scheduler.harness import Harness


def test_a_lone_request_gets_the_tokens_of_its_prefix() -> None:
    engine = Harness()
    request = engine.add("a", range(10), max_tokens=5)
    engine.run()
    engine.assert_undisturbed(request)
