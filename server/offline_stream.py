"""One prompt whose text is wanted as it comes."""

from collections.abc import AsyncGenerator

from distllm.server.choice import Choice
from distllm.server.generation_plan import GenerationPlan
from distllm.server.offline import engine_request
from distllm.server.ports import Engine
from distllm.server.prompt_text import read_prompt
from distllm.server.tokenizer import Tokenizer


async def stream_text(engine: Engine, tokenizer: Tokenizer, plan: GenerationPlan) -> AsyncGenerator[str, None]:
    """The pieces of the continuation of a plan of one prompt and one sequence; closing it ends the request.

    Raises what Engine.submit raises, and GenerationFailed when the engine gave up on it.
    """
    (prompt,) = plan.prompts
    choice = Choice(0, plan, prompt, await read_prompt(tokenizer, plan, prompt), tokenizer)
    async with engine.submit(engine_request(plan, prompt)) as stream:
        async for output in stream:
            delta = choice.accept(output)
            if delta.text:
                yield delta.text
            if delta.finish_reason is not None:
                return
