"""backend_client.flow_table: UDP flows leave descriptors to others, and the least recently used gives way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backend_client.flow_table import FLOWS_PART, FlowTable


def test_flows_get_half_of_the_descriptors() -> None:
    """And one where there are hardly any."""
    assert FLOWS_PART == 2
    assert [FlowTable[str](descriptors).limit for descriptors in (1024, 3, 1, 0)] == [512, 1, 1, 1]


def test_the_least_recently_used_gives_way() -> None:
    """Whether it was used or is new counts alike; who has ended gives way to nobody."""
    table: FlowTable[str] = FlowTable(6)
    assert [table.add(flow) for flow in "abc"] == [None] * 3
    table.used("a")
    assert table.add("d") == "b"
    table.remove("c")
    table.remove("c")
    assert len(table) == 2
    assert table.add("e") is None
    assert table.add("f") == "a"
    assert table.displaced == 2


@given(st.lists(st.tuples(st.sampled_from(["add", "used", "remove"]), st.integers(0, 9))))
def test_it_is_a_list_in_the_order_of_use(steps: list[tuple[str, int]]) -> None:
    """Whatever happens in which order."""
    table: FlowTable[int] = FlowTable(8)
    order: list[int] = []
    for what, flow in steps:
        if what == "add" and flow not in order:
            gone = order.pop(0) if len(order) == 4 else None
            assert table.add(flow) == gone
            order.append(flow)
        elif what == "used":
            table.used(flow)
            order += [order.pop(order.index(flow))] if flow in order else []
        elif what == "remove":
            table.remove(flow)
            order = [other for other in order if other != flow]
        assert len(table) == len(order)
