"""The number that tells every worker to load its snapshot anew."""

from __future__ import annotations

from gateway.store.models import GenerationRow

_ONLY = 1


def generation() -> int:
    """Raised by every change of users, keys, models, deployments, credentials and prices."""
    return GenerationRow.get_by_id(_ONLY).value


def raise_generation() -> None:
    """To be called in the transaction of the change."""
    GenerationRow.update(value=GenerationRow.value + 1).where(GenerationRow.id == _ONLY).execute()
