"""Reference agents: they connect in to a gateway and answer with a model that it could not reach. They import nothing of it; docs/agents.md is all they know.

`openai_agent` serves any OpenAI-compatible server. `webextension/` answers through a page's own session.
"""
