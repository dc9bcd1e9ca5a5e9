"""The choice of a node for a session."""

from __future__ import annotations

from streaming.cluster.placement import NodeReport, in_order, run_of


def report(run: str, room: int, *avatars: str, draining: bool = False) -> NodeReport:
    return NodeReport(
        run=run,
        url=f"http://{run}",
        sessions=0,
        max_sessions=8,
        room=room,
        viewers=0,
        max_viewers=64,
        avatars=frozenset(avatars),
        voices=(),
        draining=draining,
        device="cpu",
    )


def test_a_node_that_has_the_avatar_comes_first_and_then_the_one_with_most_room():
    nodes = [report("a", 1), report("b", 7), report("c", 2, "anna"), report("d", 5, "anna", "bob")]
    assert [node.run for node in in_order(nodes, "anna")] == ["d", "c", "b", "a"]
    assert [node.run for node in in_order(nodes, "carl")] == ["b", "d", "c", "a"]


def test_full_and_draining_nodes_are_not_asked():
    nodes = [report("a", 0, "anna"), report("b", 3, "anna", draining=True), report("c", -1), report("d", 1)]
    assert [node.run for node in in_order(nodes, "anna")] == ["d"]


def test_a_session_names_the_run_of_its_node():
    assert run_of("31525aa7-572f9b798642b19a") == "31525aa7"
