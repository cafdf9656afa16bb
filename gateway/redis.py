"""The one way to Redis, which workers of several hosts share: its client, with deadlines, and the error of all that goes wrong there.

The package is an extra: this module is imported only where REDIS_URL is set.
"""

from __future__ import annotations

from gateway.backend import Secret
from gateway.errors import SettingsError

try:
    import redis as package
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ImportError as error:
    raise SettingsError(["REDIS_URL is set, but the package for it is missing: pip install 'chat-gateway[redis]'"]) from error

Redis = package.Redis
RedisErrors = (package.RedisError, OSError)
TIMEOUT_S = 0.25
"""How long any answer of Redis is waited for; the client's own retries block for seconds where it hangs."""


def connect(url: Secret) -> package.Redis:
    """A client that opens its connections at their first use. Raises SettingsError."""
    try:
        client = package.Redis.from_url(
            url.reveal(),
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            client_name="chat-gateway",
        )
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # which alone looks at what the URL's query asks for
    except (ValueError, TypeError) as error:
        raise SettingsError(["REDIS_URL cannot be read: it must be redis://, rediss:// or unix://, as redis://[user:password@]host:port/number"]) from error
    return client
