"""What a text is guessed to say next."""

from models.decoding.guesses import MOST, Text


def test_what_followed_the_same_tokens_last():
    text = Text([5, 6, 7, 9, 5, 6, 8, 2, 5, 6])
    assert text.guess(20) == [8]  # behind 5 6, the last time; so far one guess is trusted
    text.append(7)
    assert text.guess(20) == [9]  # 5 6 7 goes before 6 7
    assert text.answer == [7]
    assert text.tokens == [5, 6, 7, 9, 5, 6, 8, 2, 5, 6, 7]


def test_one_more_than_was_right():
    text = Text([1, 2, 3, 4, 1, 2])
    text.judge(num_right=1)
    assert text.guess(20) == [3, 4]
    text.judge(num_right=0)
    assert text.guess(20) == [3]
    assert text.guess(0) == []


def test_a_loop_goes_on_beyond_its_period():
    text = Text([4, 7, 8, 7, 8, 7, 8])
    text.judge(num_right=4)
    assert text.guess(20) == [7, 8, 7, 8, 7]
    assert text.guess(2) == [7, 8]
    text.judge(num_right=100)
    assert len(text.guess(200)) == MOST


def test_nothing_is_guessed_where_nothing_recurs():
    for prompt in ([], [3], [3, 3], [1, 2, 3, 4], [1, 2, 9, 4, 2]):  # one token alone is too little
        assert Text(prompt).guess(20) == []
    assert Text([3, 3, 3]).guess(20) == [3]
