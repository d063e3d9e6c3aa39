"""No call that changes anything is without a dry run."""

from tests.contract.reference import declared_routes


def test_every_changing_route_of_the_agent_has_a_planner() -> None:
    """The controller's routes get theirs in one place; tests/controller/api/test_dry_run.py walks them."""
    missing = [one.name for one in declared_routes("agent") if one.changes and one.planner is None]
    assert missing == [], f"give route() planner=, see agent/transactions/foresight.py, or reads=True: {missing}"


def test_a_route_that_changes_nothing_has_no_planner() -> None:
    routes = [*declared_routes("agent"), *declared_routes("controller")]
    assert [one.name for one in routes if one.planner is not None and not one.changes] == []
