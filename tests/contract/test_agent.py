"""The agent backend keeps the contract over real channels: a target names the agent that answers so."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.agent import Agent
from gateway.backend import Deadlines, Secret, Target
from gateway.errors import AgentLost
from gateway.testing import UpstreamContract
from tests.fakes.hosting import Hosting, answers, breaks_off, fails, keeps_silent

USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}


class TestAgent(UpstreamContract):
    backend_class = Agent
    not_there = AgentLost
    hosting: Hosting

    @pytest.fixture(autouse=True)
    def agents(self, tmp_path: Path) -> Iterator[None]:
        with Hosting(tmp_path) as hosting:
            self.hosting = hosting
            hosting.connect("healthy", answers("Hel", "lo, \u00fc\U0001f600.", usage=USAGE))
            hosting.connect("refusing", fails("rate_limited", message="not so fast", retry_after_s=7))
            hosting.connect("silent", keeps_silent())
            hosting.connect("stalled", keeps_silent("Hel"))
            hosting.connect("broken", breaks_off("Hel"), resumes=False)
            yield

    def frames(self) -> Hosting:
        return self.hosting

    def target(self) -> Target:
        return Target(Agent.default_base_url, "model", Secret(""), Deadlines(), credential="healthy")

    def at(self, agent: str) -> Target:
        return dataclasses.replace(self.target(), credential=agent)

    def refusing(self) -> Target:
        return self.at("refusing")

    def silent(self) -> Target:
        return self.at("silent")

    def stalled(self) -> Target:
        return self.at("stalled")

    def broken(self) -> Target:
        return self.at("broken")

    def unreachable(self) -> Target:
        return self.at("nobody")
