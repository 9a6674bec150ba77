from skip2bench.sweep.room import pack


def test_who_has_no_room_waits():
    assert pack("abcd", [3, 3, 3, 3], 6) == [["a", "b"], ["c", "d"]]
    assert pack("abc", [1, 9, 1], 6) == [["a"], ["b"], ["c"]]  # one trains whatever it takes
    assert pack("ab", [1, 1], 100) == [["a", "b"]]
    assert pack("", [], 100) == []
