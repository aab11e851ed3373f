"""Guessing ahead: when guessing is worth its price. Time is an argument: nothing is timed."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest

from headrace_workers.generation.speculation import DraftPolicy

# -- when it pays -------------------------------------------------------------------------------------------------


@dataclass
class Node:
    """What steps cost on some machine, and how often its draft is right."""

    plain_s: float = 0.010
    draft_s: float = 0.001
    more_s: float = 0.001
    right: float = 0.8

    def run(self, policy: DraftPolicy, steps: int, sequences: int = 1) -> list[int]:
        """Decode as the policy says; how many guesses each step had."""
        random, taken = Random(3), []
        for _ in range(steps):
            drafts = policy.drafts(sequences)
            taken.append(drafts)
            if drafts == 0:
                policy.note_plain(sequences, step_s=self.plain_s)
                continue
            policy.note_drafted(
                sequences,
                drafts=drafts,
                draft_s=drafts * self.draft_s,
                verify_s=self.plain_s + drafts * self.more_s,
                accepted_of_each=[self.lucky(random, drafts) for _ in range(sequences)],
            )
        return taken

    def lucky(self, random: Random, drafts: int) -> int:
        count = 0
        while count < drafts and random.random() < self.right:
            count += 1
        return count


def share(taken: list[int]) -> float:
    """How many of the steps had guesses."""
    return sum(drafts > 0 for drafts in taken) / len(taken)


def test_both_ways_are_measured_before_anything_is_decided() -> None:
    assert Node().run(DraftPolicy(), 6) == [0, 0, 0, 2, 2, 2]


def test_guesses_are_made_where_they_are_right_and_cheap() -> None:
    """Two tokens of twelve milliseconds for three that are right four times of five, against one of ten for one."""
    taken = Node().run(DraftPolicy(), 300)

    assert share(taken[6:]) > 0.9


@pytest.mark.parametrize("node", [Node(right=0.1), Node(draft_s=0.008), Node(more_s=0.009)], ids=str)
def test_none_are_made_where_they_are_wrong_or_dear(node: Node) -> None:
    """With 32 sequences in company, say, a row costs the same wherever it is."""
    taken = node.run(DraftPolicy(), 300)

    assert share(taken[6:]) < 0.1


def test_the_better_the_draft_the_more_it_guesses() -> None:
    """Up to the most that is allowed."""
    few, many = (Node(right=right).run(DraftPolicy(most=8), 400)[-100:] for right in (0.5, 0.97))

    assert 100 < sum(few) < 300 < 600 < sum(many)
    assert max(many) == 8


def test_each_number_of_sequences_has_its_own_answer() -> None:
    """Alone a further row is almost free; in company it costs what it costs."""
    policy = DraftPolicy()
    Node().run(policy, 50, sequences=1)
    Node(plain_s=0.050, more_s=0.045, draft_s=0.010).run(policy, 50, sequences=32)

    assert policy.drafts(1) > 0
    assert policy.drafts(32) == 0


def test_a_step_with_guesses_says_nothing_of_rows_before_plain_ones_were_measured() -> None:
    """A sequence joined between the question and the step: what its rows cost would be all of the pass."""
    policy = DraftPolicy()
    policy.note_drafted(2, drafts=2, draft_s=0.002, verify_s=0.012, accepted_of_each=[2, 2])

    assert Node().run(policy, 6, sequences=2) == [0, 0, 0, 2, 2, 2]


@pytest.mark.parametrize(("before", "after"), [(0.1, 0.9), (0.9, 0.1)])
def test_a_change_is_noticed_either_way(before: float, after: float) -> None:
    """A draft that begins to know the text, or ceases to."""
    policy = DraftPolicy(probe_every=20)
    Node(right=before).run(policy, 200)

    taken = Node(right=after).run(policy, 3000)

    assert (share(taken[-200:]) > 0.5) == (after > before)


def test_dear_plain_steps_are_noticed_while_guessing() -> None:
    """The machine is busy with something else when it is first measured; without a new look guessing would stay on."""
    policy = DraftPolicy(probe_every=20)
    Node(plain_s=0.040, more_s=0.001).run(policy, 100)

    taken = Node(plain_s=0.010, more_s=0.030).run(policy, 3000)

    assert share(taken[-200:]) < 0.2


def test_looking_at_the_other_way_becomes_rare() -> None:
    """Where the answer is always the same, a probe of three steps in 1,600."""
    taken = Node(right=0.0).run(DraftPolicy(probe_every=100), 10_000)

    assert 0 < share(taken[5_000:]) < 0.005


@pytest.mark.parametrize("wrong", [{"most": 0}, {"probe_every": 0}])
def test_settings_must_be_positive(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must both be positive"):
        DraftPolicy(**wrong)
