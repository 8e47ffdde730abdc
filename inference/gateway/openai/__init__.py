"""OpenAI's API at the gateway: requests become a language model's `Generate` or an encoder's tensors, and what comes back
becomes OpenAI's answers and events. Nothing here reads a text: tokens, templates and parsers are the replica's.
"""
