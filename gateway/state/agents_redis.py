"""The directory of agents among the workers of several hosts: in Redis. To look costs one question every quarter of a second.

An entry is its epoch, when it was gone ("-": it is not) and the Holder as JSON, in one text. Whoever changes an entry raises the version.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import msgspec

from gateway.backend import Secret
from gateway.redis import RedisErrors, connect
from gateway.state.agents import FORGET_S, Holder
from gateway.state.base import StateUnavailable

LOOK_S, TIDY_S = 0.25, 0.5
DEAD_MS = 3_000
"""A worker of another host that did not renew its key for so long is dead."""
AWAY_S = 1.0
"""How long nobody asks a Redis that did not answer, but for the one who finds out whether it is back."""
_AGENTS, _VERSION, _EPOCH, _OWNER = "gateway:agents", "gateway:agents:version", "gateway:agents:epoch", "gateway:owner:"
# The epoch: one number for all agents, from the clock on. It falls neither when an entry is forgotten nor when Redis loses what it knew;
# and a version that begins anew is not one that was seen before.
_RAISE = """
local function raise()
    if redis.call('INCR', KEYS[2]) == 1 then redis.call('SET', KEYS[2], redis.call('TIME')[1] .. '000000') end
    return 1
end
local found = redis.call('HGET', KEYS[1], ARGV[1])
local epoch, gone, rest = string.match(found or '', '^(%d+) (%S+) (.*)$')
"""
_CLAIM = f"""{_RAISE}
local text = string.format('%.0f', math.max(tonumber(redis.call('GET', KEYS[3]) or '0') + 1, tonumber(ARGV[3])))
redis.call('SET', KEYS[3], text)
redis.call('SET', KEYS[4], '1', 'PX', ARGV[4])
redis.call('HSET', KEYS[1], ARGV[1], text .. ' - ' .. ARGV[2])
raise()
return text
"""
_CHANGE = f"""{_RAISE}
if epoch ~= ARGV[2] and (found or ARGV[4] == '0') then return 0 end
if found == ARGV[3] then return 1 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return raise()
"""
_RELEASE = f"""{_RAISE}
if epoch ~= ARGV[2] or gone ~= '-' then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], epoch .. ' ' .. ARGV[3] .. ' ' .. rest)
return raise()
"""
_FORGET = f"""{_RAISE}
if epoch ~= ARGV[2] or gone == '-' then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
return raise()
"""
_RESTORE = f"""{_RAISE}
if tonumber(epoch or '0') > tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return raise()
"""


class RedisAgents:
    """Of the worker `owner`. Where Redis does not answer, what was seen last stands.

    `alive` tells at once of a worker for which `is_local` is true; others are alive as long as they renew their key, by `tidy`. `look_s`: how old
    a look may be.
    """

    def __init__(
        self,
        url: Secret,
        owner: str,
        alive: Callable[[str], bool],
        is_local: Callable[[str], bool],
        look_s: float = LOOK_S,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis, self._owner, self._alive, self._is_local = connect(url), owner, alive, is_local
        self._look_s, self._wall, self._clock = look_s, wall_ms, clock
        self._looking = threading.Lock()
        self._own: dict[str, Holder] = {}
        self._claiming = 0
        self._changes = 0
        self._version: bytes | None = None
        self._texts: dict[str, bytes] = {}
        self._current: Mapping[str, Holder] = MappingProxyType({})
        self._look_at = self._tidy_at = self._away_until = float("-inf")

    def claim(self, holder: Holder) -> Holder:
        self._claiming += 1
        try:
            epoch = self._run(_CLAIM, holder.agent, _encoded(holder), self._wall(), DEAD_MS)
            claimed = replace(holder, epoch=int(epoch), gone_at=None)
            self._own[holder.agent] = claimed
        finally:
            self._claiming -= 1
        self._put(claimed)
        return claimed

    def change(self, holder: Holder) -> bool:
        if not self._run(_CHANGE, holder.agent, holder.epoch, _text(holder), int(self._is_own(holder))):
            self._disown(holder.agent, holder.epoch)
            return False
        if self._is_own(holder):
            self._own[holder.agent] = holder
        self._put(holder)
        return True

    def release(self, agent: str, epoch: int, at: float) -> None:
        self._disown(agent, epoch)  # where Redis is away now, `tidy` says it later
        self._release(agent, epoch, at)

    def current(self) -> Mapping[str, Holder]:
        now = self._clock()
        if now >= max(self._look_at, self._away_until) and self._looking.acquire(blocking=False):
            try:
                self._look_at = now + self._look_s
                self._look()
            except StateUnavailable:
                pass  # whoever changes something is told
            finally:
                self._looking.release()
        return self._current

    def tidy(self, now: float) -> None:
        moment = self._clock()
        if moment < self._tidy_at:
            return
        self._tidy_at = moment + TIDY_S
        self._ask(lambda: self._redis.set(_OWNER + self._owner, b"1", px=DEAD_MS))
        known = self.current()
        for owner in self._dead({holder.owner for holder in known.values() if holder.gone_at is None}):
            for holder in known.values():
                if holder.owner == owner and holder.gone_at is None:
                    self._release(holder.agent, holder.epoch, now)
        for holder in known.values():
            if holder.gone_at is not None and holder.gone_at < now - FORGET_S and self._run(_FORGET, holder.agent, holder.epoch):
                self._put(holder, forget=True)
        self._put_right(known, now)

    def close(self) -> None:
        self._redis.close()

    def _put_right(self, known: Mapping[str, Holder], now: float) -> None:
        """What Redis lost of this worker's connections, or was told wrongly while this worker could not reach it."""
        if self._claiming:
            return
        for own in list(self._own.values()):
            found = known.get(own.agent)
            if self._own.get(own.agent) is not own:
                continue
            if found is not None and found.epoch > own.epoch:
                self._disown(own.agent, own.epoch)
            elif (found is None or found.epoch < own.epoch or found.gone_at is not None) and self._run(_RESTORE, own.agent, own.epoch, _text(own)):
                self._put(own)
        for holder in known.values():
            if holder.owner == self._owner and holder.gone_at is None and holder.agent not in self._own:
                self._release(holder.agent, holder.epoch, now)

    def _dead(self, owners: set[str]) -> set[str]:
        others = [owner for owner in owners if owner != self._owner and not self._is_local(owner)]
        dead = {owner for owner in owners if owner != self._owner and self._is_local(owner) and not self._alive(owner)}
        if others:
            found = self._ask(lambda: self._redis.mget([_OWNER + owner for owner in others]))
            dead |= {owner for owner, mark in zip(others, found, strict=True) if mark is None}
        return dead

    def _is_own(self, holder: Holder) -> bool:
        return holder.agent in self._own and self._own[holder.agent].epoch == holder.epoch

    def _disown(self, agent: str, epoch: int) -> None:
        if agent in self._own and self._own[agent].epoch == epoch:
            del self._own[agent]

    def _release(self, agent: str, epoch: int, at: float) -> None:
        found = self._current.get(agent)
        if self._run(_RELEASE, agent, epoch, repr(float(at))) and found is not None and found.epoch == epoch:
            self._put(replace(found, gone_at=at))

    def _put(self, holder: Holder, *, forget: bool = False) -> None:
        """What this worker changed it sees at once, and not only when it looks again."""
        self._changes += 1
        found = dict(self._current)
        self._texts.pop(holder.agent, None)
        if forget:
            found.pop(holder.agent, None)
        else:
            found[holder.agent] = holder
        self._current, self._version = MappingProxyType(found), None

    def _look(self) -> None:
        """Read the directory, if its version is another one. Raises StateUnavailable."""
        if self._ask(lambda: self._redis.get(_VERSION)) == self._version and self._version is not None:
            return
        changes = self._changes
        version, entries = self._ask(self._read)
        if changes != self._changes:
            return  # read before what this worker has just changed: the next look is right
        found = dict[str, Holder]()
        texts = dict[str, bytes]()
        for name, text in entries.items():
            agent = name.decode(errors="replace")
            holder = self._current.get(agent) if self._texts.get(agent) == text else _holder(agent, text)
            if holder is not None:
                found[agent], texts[agent] = holder, text
        self._current, self._texts, self._version = MappingProxyType(found), texts, version

    def _read(self) -> Any:
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.get(_VERSION)
        pipeline.hgetall(_AGENTS)
        return pipeline.execute()

    def _run(self, script: str, *arguments: Any) -> Any:
        """Raises StateUnavailable."""
        if self._clock() < self._away_until:
            raise StateUnavailable("the state that workers share cannot be used: Redis did not answer a moment ago")
        # The text itself and not its hash: short enough, and a Redis that starts anew knows no hashes.
        return self._ask(lambda: self._redis.eval(script, 4, _AGENTS, _VERSION, _EPOCH, _OWNER + self._owner, *arguments))

    def _ask(self, question: Callable[[], Any]) -> Any:
        """Raises StateUnavailable."""
        try:
            answer = question()
        except RedisErrors as error:
            self._away_until = self._clock() + AWAY_S
            raise StateUnavailable(f"the state that workers share cannot be used: {error}") from error
        self._away_until = float("-inf")
        return answer


def _text(holder: Holder) -> bytes:
    gone = "-" if holder.gone_at is None else repr(float(holder.gone_at))
    return f"{holder.epoch} {gone} ".encode() + _encoded(holder)


def _encoded(holder: Holder) -> bytes:
    """Without what stands before it."""
    return msgspec.json.encode(replace(holder, epoch=0, gone_at=None))


def _holder(agent: str, text: bytes) -> Holder | None:
    """None where it is none."""
    try:
        epoch, gone, holder = text.split(b" ", 2)
        found = msgspec.json.decode(holder, type=Holder)
        return replace(found, agent=agent, epoch=int(epoch), gone_at=None if gone == b"-" else float(gone))
    except (ValueError, msgspec.MsgspecError):
        return None
