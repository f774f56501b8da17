"""The coordinator: lets peers join, gives them layers, and sends them steps, whoever of them fails."""
