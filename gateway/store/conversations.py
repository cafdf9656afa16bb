"""Which conversation is bound to which credential. To be called inside a work of `Database`."""

from __future__ import annotations

from gateway.store.models_pools import ConversationRow


def bound(key: str) -> int | None:
    """The id of its credential; None where it is not bound."""
    row = ConversationRow.get_or_none(ConversationRow.id == key)
    return None if row is None else row.credential


def bind(key: str, pool_id: int, credential_id: int, at: int) -> int:
    """Bind it, unless it is already; to whom it is now."""
    ConversationRow.insert(id=key, pool=pool_id, credential=credential_id, at=at).on_conflict_ignore().execute()
    found = bound(key)
    return credential_id if found is None else found


def rebind(key: str, pool_id: int, credential_id: int, at: int) -> None:
    """Bind it to this one, whoever it was bound to."""
    new = {"pool": pool_id, "credential": credential_id, "at": at}
    ConversationRow.insert(id=key, **new).on_conflict(conflict_target=[ConversationRow.id], update=new).execute()


def forget_conversations(before: int, limit: int) -> int:
    """Of those that were bound before, at most so many; how many."""
    old = [row.id for row in ConversationRow.select(ConversationRow.id).where(ConversationRow.at < before).limit(limit)]
    return int(ConversationRow.delete().where(ConversationRow.id.in_(old)).execute())
