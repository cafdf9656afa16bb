"""Sends the corpus of row 21 to a gateway, directly and through nginx, and says what came of each case.

`python -m tests.faults.smuggling` writes the table into docs/front.md.
"""

from __future__ import annotations

import re
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.gateway import ROOT
from tests.fakes.nginx import NAME, PROGRAM
from tests.faults.front import BODY_S, ROADS, Front, running_front
from tests.faults.smuggling_cases import CHAT, KEY, Case, cases

PAGE = ROOT / "docs" / "front.md"
BEGIN, END = "<!-- the table of smuggling: python -m tests.faults.smuggling -->", "<!-- end of the table -->"
ANSWER_S, MORE_S = BODY_S + 2, 0.15
"""How long an answer is waited for, and a further one."""
PROBE = b"GET /healthz HTTP/1.1\r\nHost: " + NAME.encode() + b"\r\n\r\n"
CLIENTS = 8
NOT_THE_PARSERS = (401, 404, 405)
"""Refusals of a request that was read as one; every other comes of how it is written."""


@dataclass(frozen=True)
class Answered:
    """One answer of those on a connection. `by_nginx`: nginx gave it itself."""

    status: int
    body: bytes
    by_nginx: bool


@dataclass(frozen=True)
class Outcome:
    """What came of a case on one road."""

    case: Case
    answers: tuple[Answered, ...]
    closed: bool
    in_step: bool
    upstream: tuple[bytes, ...]

    @property
    def kind(self) -> str:
        """The class that the table names. Not the status: parsers differ in that from one version to the next."""
        if not self.answers:
            return "closed without an answer" if self.closed else "waits for the rest"
        first, *more = self.answers
        if not more:
            return self._kind_of(first)
        return "two requests" if more[0].status < 400 else f"{self._kind_of(first)}; what follows is refused"

    def _kind_of(self, answer: Answered) -> str:
        if answer.by_nginx and answer.status >= 400:
            return "refused by nginx"
        return "one request" if answer.status < 400 or answer.status in NOT_THE_PARSERS else "refused"

    @property
    def wrong(self) -> str:
        """What must never be, or nothing."""
        if len(self.answers) > self.case.answers:
            return f"{len(self.answers)} answers: {[answer.status for answer in self.answers]}"
        if not self.in_step:
            return "what is left of it was read as part of the next request"
        if any(body != self.case.body for body in self.upstream) or len(self.upstream) > self.case.count:
            return f"the upstream got {self.upstream!r}"
        if self.upstream and not any(answer.status < 400 for answer in self.answers):
            return "refused, and run all the same"
        return ""

    @property
    def left_open(self) -> bool:
        """Whether the connection goes on after a request that could have been run, and was not."""
        return bool(self.answers and self.case.body and self.case.count and not self.upstream and not self.closed)


@dataclass(frozen=True)
class Corpus:
    """The cases, and what they are sent to."""

    front: Front
    cases: tuple[Case, ...]

    def outcomes(self, road: str) -> list[Outcome]:
        self.front.provider.requests.clear()
        with ThreadPoolExecutor(CLIENTS) as pool:
            talks = list(pool.map(lambda case: self._talk(road, case), self.cases))
        arrived = self._arrived()
        return [Outcome(case, *talk, arrived.get(case.name, ())) for case, talk in zip(self.cases, talks, strict=True)]

    def _arrived(self) -> dict[str, tuple[bytes, ...]]:
        """What the upstream got, by the case whose body it is. Raises AssertionError for what no case authorises: that was smuggled."""
        owners = {case.body: case.name for case in self.cases if case.body}
        found: dict[str, tuple[bytes, ...]] = {}
        for request in self.front.provider.requests:
            assert request.path == CHAT.decode(), f"smuggled: {request} at {request.path}"
            assert request.body in owners, f"smuggled: {request.body!r}"
            assert max(Counter(name for name, _ in request.fields).values()) == 1, request.fields
            name = owners[request.body]
            found[name] = (*found.get(name, ()), request.body)
        return found

    def _talk(self, road: str, case: Case) -> tuple[tuple[Answered, ...], bool, bool]:
        """The answers, whether the connection was closed, and, if not, whether the next request on it is answered as one."""
        with self.front.client(road) as client:
            sock = client.sock
            with suppress(OSError):  # refused before all was sent
                sock.sendall(case.raw.replace(KEY, self.front.gateway.key.encode()))
            received, closed = _receive(sock)
            head_only = case.raw.startswith(b"HEAD ")
            answers = parse(received, head_only)
            if closed or not answers:
                return answers, closed, True
            sock.sendall(PROBE)
            more, _ = _receive(sock)
            probed = parse(more)
            return answers, False, len(probed) == 1 and probed[0].status == 200 and b'"alive"' in probed[0].body


def _receive(sock: socket.socket) -> tuple[bytes, bool]:
    """All that comes until the other side closes or is silent; whether it closed."""
    received, until = b"", time.monotonic() + ANSWER_S
    while True:
        sock.settimeout(max(until - time.monotonic(), 0.001))
        try:
            block = sock.recv(65_536)
        except TimeoutError:
            return received, False
        except OSError:
            return received, True
        if not block:
            return received, True
        received += block
        until = time.monotonic() + (MORE_S if _is_whole(received) else ANSWER_S)


def _is_whole(received: bytes) -> bool:
    return not received.startswith(b"HTTP/1.1 100") or received.count(b"HTTP/1.1 ") > 1


def parse(received: bytes, head_only: bool = False) -> tuple[Answered, ...]:
    """The answers in `received`, interim ones left out. What has no head is an answer as HTTP/0.9 gives it."""
    answers: list[Answered] = []
    while received:
        head, mark, rest = received.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.") or not mark:
            return (*answers, Answered(400 if b'"error"' in received else 200, received, by_nginx=True))
        status = int(head[9:12])
        received = rest
        if status < 200:
            continue
        fields = dict(re.findall(rb"\r\n([^:\r]+): *([^\r]*)", head.lower()))
        if head_only:
            size = 0
        elif fields.get(b"transfer-encoding") == b"chunked":
            size = rest.index(b"0\r\n\r\n") + 5
        else:
            size = int(fields.get(b"content-length", len(rest)))
        answers.append(Answered(status, rest[:size], by_nginx=re.fullmatch(rb"[0-9a-f]{32}", fields.get(b"x-request-id", b"")) is not None))
        received = rest[size:]
    return tuple(answers)


def nginx_version() -> str:
    """Major and minor: parsers change from one to the next."""
    assert PROGRAM is not None
    told = subprocess.run([PROGRAM, "-v"], capture_output=True, text=True, check=True)
    (version,) = re.findall(r"nginx/(\d+\.\d+)", told.stderr + told.stdout)
    return str(version)


def table(direct: Sequence[Outcome], through: Sequence[Outcome]) -> str:
    rows = [f"| {ours.case.name} | {ours.kind} | {theirs.kind} |" for ours, theirs in zip(direct, through, strict=True)]
    return "\n".join([f"| what is sent | directly | through nginx {nginx_version()} |", "|---|---|---|", *rows])


def rows(page: str) -> list[list[str]]:
    """The cells of the page's table, heading first."""
    text = page.partition(BEGIN)[2].partition(END)[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line]


def written(page: str, table: str) -> str:
    """The page with this table in the place of its own."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, running_front(Path(directory)) as front:
        corpus = Corpus(front, tuple(cases()))
        direct, through = (corpus.outcomes(road) for road in ROADS)
    for road, outcomes in zip(ROADS, (direct, through), strict=True):
        for outcome in outcomes:
            if outcome.wrong:
                print(f"WRONG {road}: {outcome.case.name}: {outcome.wrong}")
    PAGE.write_text(written(PAGE.read_text(), table(direct, through)))
    print(f"{len(direct)} cases, written to {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
