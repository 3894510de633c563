from bigssl.data.tools.equal import equal_together
from bigssl.data.tools.sources import Item


def groups(*samples: tuple[str, str, dict[str, bytes]]) -> dict[str, str]:
    items = [Item(key, group, lambda fields=fields: fields) for key, group, fields in samples]
    forth, back = ({item.key: item.group for item in equal_together(each)} for each in (items, items[::-1]))
    assert forth == back
    return forth


def test_equal_pictures_are_one_group_whatever_is_said_of_them_and_groups_stay_whole() -> None:
    found = groups(
        ("a", "a", {"jpg": b"1", "txt": b"one"}), ("b", "b", {"png": b"1", "json": b"{}"}),
        ("c", "C", {"jpg": b"2"}), ("d", "C", {"jpg": b"1"}), ("e", "e", {"jpg": b"3", "txt": b"one"}),
        ("f", "f", {"txt": b"one", "json": b"1"}), ("g", "g", {"txt": b"one"}),
    )  # fmt: skip
    assert found == dict.fromkeys("abcd", "C") | {"e": "e", "f": "f", "g": "f"}
