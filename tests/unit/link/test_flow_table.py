"""nexus.link.flow_table: the bounds, the order and the ends of the flows of one UDP port."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from nexus.link.flow import Address
from nexus.link.flow_table import FlowTable


@dataclass(eq=False)
class Item:
    """A flow, as the table sees it."""

    client: Address
    last_seen: float = 0.0


def client(number: int) -> Address:
    return ("192.0.2.1", number)


def filled(count: int, bound: int = 10) -> tuple[FlowTable[Address, Item], list[Item]]:
    """Return a table with flows seen at 1, 2, 3, ... seconds."""
    table: FlowTable[Address, Item] = FlowTable(bound)
    items = [Item(client(number)) for number in range(1, count + 1)]
    for now, item in enumerate(items, 1):
        assert table.add(item.client, item, now) is None
    return table, items


def test_a_flow_is_found_by_its_client_and_noted_as_seen() -> None:
    """A client without a flow has none."""
    table, items = filled(2)
    assert table.seen(client(1), 9.0) is items[0]
    assert items[0].last_seen == 9.0
    assert table.seen(client(7), 9.0) is None
    assert len(table) == 2


def test_beyond_the_bound_the_least_recently_seen_flow_is_evicted() -> None:
    """Spec backend-protocol 10: not the oldest one, if it is in use."""
    table, items = filled(3, bound=3)
    table.seen(client(1), 4.0)
    newest = Item(client(9))
    assert table.add(client(9), newest, 5.0) is items[1]
    assert list(table) == [items[2], items[0], newest]


def test_flows_expire_in_the_order_they_were_last_seen() -> None:
    """At the idle time exactly; a flow that moved meanwhile lives on."""
    table, items = filled(3)
    table.seen(client(1), 3.5)
    assert table.expired(6.9, 5.0) is None
    expired = table.expired(7.0, 5.0)
    assert expired is items[1]
    table.remove(expired.client, expired)
    assert table.expired(7.9, 5.0) is None
    assert table.expired(8.0, 5.0) is items[2]
    assert FlowTable[Address, Item](1).expired(9.0, 0.0) is None


def test_only_the_flow_that_is_meant_is_removed() -> None:
    """A late end of an earlier flow of the same client does no harm."""
    table, items = filled(1)
    table.remove(client(1), Item(client(1)))
    table.remove(client(5), items[0])
    assert list(table) == items


@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.sampled_from(["datagram", "end", "sweep"]), st.integers(0, 7)), max_size=60),
)
def test_the_table_keeps_its_bound_and_its_order(bound: int, steps: list[tuple[str, int]]) -> None:
    """Whatever happens, in any order: at most so many flows, oldest first, and each evicted one was the oldest."""
    table: FlowTable[Address, Item] = FlowTable(bound)
    for now, (what, number) in enumerate(steps):
        found = table.seen(client(number), now) if what == "datagram" else None
        if what == "datagram" and found is None:
            oldest = next(iter(table), None)
            evicted = table.add(client(number), Item(client(number)), now)
            assert evicted is (oldest if evicted is not None else None)
        elif what == "end":
            for item in table:
                if item.client == client(number):
                    table.remove(item.client, item)
        else:
            while (expired := table.expired(now, 4.0)) is not None:
                assert now - expired.last_seen >= 4.0
                table.remove(expired.client, expired)
        seen = [item.last_seen for item in table]
        assert seen == sorted(seen)
        assert len(table) <= bound
