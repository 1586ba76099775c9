"""From chats to responses: engines, seeded sampling, and the chat template."""
