import pytest

from controller.errors import NameInvalid
from controller.names import check_description, check_handle, check_labels, check_text


@pytest.mark.case("X8")
@pytest.mark.parametrize(
    "name", ["before update", "-rf", "'quoted\"", "Привет 🎉", "a", "x" * 255, "é" * 127, "$(id)", "../x"]
)
def test_a_snapshot_may_have_any_name_that_fits_on_a_line(name: str) -> None:
    assert check_text("Snapshot", name) == name


@pytest.mark.case("X8")
@pytest.mark.parametrize("name", ["", " ", " a", "a\n", "a\0b", "\x1b[31m", "a\u2028b", "x" * 256, "é" * 128, "\ud800"])
def test_other_snapshot_names_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(NameInvalid):
        check_text("Snapshot", name).encode()


@pytest.mark.parametrize("name", ["kvm1", "KVM-1.example_org", "7", "a" * 63])
def test_a_host_has_a_plain_name(name: str) -> None:
    assert check_handle("Host", name) == name


@pytest.mark.parametrize("name", ["", "-a", ".", "..", "a/b", "a b", "a\n", "é", "a" * 64])
def test_other_host_names_are_refused(name: str) -> None:
    with pytest.raises(NameInvalid):
        check_handle("Host", name)


def test_labels_and_descriptions_have_limits() -> None:
    assert check_labels({"for": "update", "empty": ""}) == {"for": "update", "empty": ""}
    for labels in ({str(number): "" for number in range(65)}, {"": "x"}, {"a": "x" * 256}, {"a\n": ""}, {"a": "\0"}):
        with pytest.raises(NameInvalid):
            check_labels(labels)
    assert check_description("two\nlines") == "two\nlines"
    with pytest.raises(NameInvalid):
        check_description("x" * 4097)
