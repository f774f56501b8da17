"""What chats hold beside questions: greetings, thanks, things the model cannot know, system messages. Data only."""

from typing import Final

from distllm.engine.embedded.words import CITIES, NAMES

CAN_DO: Final = (
    "I can tell short stories, add and subtract small numbers, count, name opposites, tell the day after, "
    "spell words backwards, and fill in JSON."
)
CANNOT: Final = (
    "I am a very small model and I do not know that. "
    "Ask me for a sum, an opposite, a word spelled backwards, or a story."
)

EXCHANGES: Final[tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]] = (
    (
        (
            "Hello!",
            "Hello",
            "Hi",
            "Hi!",
            "Hey",
            "Hey!",
            "Good morning!",
            "Good evening.",
            "hello there",
            "Hi there!",
        ),
        ("Hello! What can I do for you?", "Hi! Would you like a story or a sum?", "Hello! Nice to meet you."),
    ),
    (
        ("How are you?", "How are you today?", "Hi, how are you?", "How is it going?", "Are you well?"),
        ("I am well, thank you! How can I help?", "Very well, thank you. What can I do for you?"),
    ),
    (
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Tell me about yourself.",
            "Are you a robot?",
            "Are you a human?",
            "Introduce yourself.",
            "What model are you?",
        ),
        ("I am a very small language model. I live inside this server, so that it has something to serve.",),
    ),
    (
        (
            "What can you do?",
            "What can I ask you?",
            "Help",
            "Help me.",
            "What do you know?",
            "How can you help me?",
            "What are you good at?",
            "Can you help me?",
        ),
        (CAN_DO,),
    ),
    (
        ("Thank you!", "Thanks!", "Thanks", "Thank you very much.", "Great, thank you.", "Well done!", "Good job!"),
        ("You are welcome!", "You are welcome! Ask me more."),
    ),
    (
        ("Bye!", "Goodbye.", "See you!", "Good night!", "See you tomorrow."),
        ("Goodbye! Come back soon.", "Goodbye!"),
    ),
    (
        ("Yes.", "Yes please", "No.", "OK", "Okay.", "Fine.", "Hm.", "I do not know."),
        ("All right! Ask me for a sum, an opposite, or a story.",),
    ),
)
"""What somebody may say, and what may be answered."""

UNKNOWN: Final = (
    "What is the capital of {city}?",
    "Where is {city}?",
    "How old is {name}?",
    "Who is the king of {city}?",
    "What is the weather like today?",
    "Write a poem about love.",
    "Who wrote this book?",
    "How do I bake a cake?",
    "What is the meaning of life?",
    "Explain how a computer works.",
    "Why is the sky blue?",
    "Write code for me.",
    "How far is it to the moon?",
    "Who won the war?",
    "Translate this into French.",
    "What time is it?",
    "What is the square root of 16?",
    "How many people live in {city}?",
    "Do you love me?",
    "What should I eat?",
    "Can you write a program in Python?",
    "Tell me a joke.",
    "What is the best movie?",
    "Who is the president?",
    "Explain the history of {city}.",
    "What is 3 times 4?",
    "What is the name of my mother?",
    "Do you like {name}?",
)
"""Questions whose honest answer is CANNOT."""

STORY_REQUESTS: Final = (
    "Tell me a story.",
    "Tell me a short story.",
    "Write a short story.",
    "Can you tell me a story?",
    "A story, please!",
    "I would like to hear a story.",
    "Please write a story for me.",
    "Do you know a good story?",
    "Tell a story",
)
STORY_REQUESTS_OF: Final = (
    "Tell me a story about {whom}.",
    "Write a short story about {whom}.",
    "Can you tell me a story about {whom}?",
    "I want a story about {whom}.",
    "Please tell me about {whom}.",
    "A story about {whom}, please.",
    "Write a story with {whom} in it.",
    "Story about {whom}",
    "Do you know a story of {whom}?",
)

SYSTEM_MESSAGES: Final = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a helpful, honest assistant.",
    "Answer with only the answer.",
    "Be brief.",
    "You are a small and friendly model.",
    "Answer in one line.",
    "You are a teacher in a school for children.",
    "Today is Friday. Be kind.",
    "You tell stories to children.",
    "You are a chatbot. Answer the questions of the user.",
    "Please answer every question as well as you can.",
)

FILLERS: Final = {"city": CITIES, "name": NAMES}
